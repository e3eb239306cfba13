"""When the phases of a piece of work began and ended: for timings and traces."""

import time
from collections.abc import Callable
from typing import NamedTuple


class Phase(NamedTuple):
    """One stay in a phase, in seconds on the monotonic clock."""

    name: str
    begun: float
    ended: float


class Phases(list[Phase]):
    """The phases of one piece of work, in the order in which they ended."""

    def of(self, name: str, on_end: Callable[[float], None] = lambda seconds: None) -> "_Stay":
        """Return a context manager that adds the time spent inside, also if it is left by an error. `on_end` then gets the seconds."""
        return _Stay(self, name, on_end)

    def seconds(self, name: str) -> float:
        """Return the time spent in a phase."""
        return sum(phase.ended - phase.begun for phase in self if phase.name == name)


class _Stay:
    """One stay in a phase. Not a generator, for the reason that `Translating` gives."""

    def __init__(self, phases: Phases, name: str, on_end: Callable[[float], None]) -> None:
        self._phases = phases
        self._name = name
        self._on_end = on_end
        self._begun = 0.0

    def __enter__(self) -> None:
        self._begun = time.monotonic()

    def __exit__(self, *error: object) -> None:
        ended = time.monotonic()
        self._phases.append(Phase(self._name, self._begun, ended))
        self._on_end(ended - self._begun)
