"""The lives of an attempt and of an engine: both tables of states, and the only code that changes a state."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, TypeVar

from zwatch.errors import Rejection

if TYPE_CHECKING:  # torch is imported by the first load, not by the service's start
    from zwatch.engine.pipeline import Engine
    from zwatch.shadow.loader import LoadControl


@dataclass(frozen=True, slots=True, order=True)
class VersionKey:
    """What an engine holds: a version and its digest. The digest is None for a version without a readable seal."""

    version: str
    digest: str | None


class AttemptState(Enum):
    """Where one try to bring a version into service stands."""

    LOADING = "LOADING"
    WARMING = "WARMING"
    PROMOTED = "PROMOTED"
    REJECTED = "REJECTED"
    ABANDONED = "ABANDONED"


class EngineState(Enum):
    """Where a resident engine stands. An engine is born by its promotion."""

    SERVING = "SERVING"
    DRAINING = "DRAINING"
    WARM = "WARM"
    FREED = "FREED"


ATTEMPT_MOVES: Mapping[AttemptState, frozenset[AttemptState]] = {
    AttemptState.LOADING: frozenset({AttemptState.WARMING, AttemptState.REJECTED, AttemptState.ABANDONED}),
    AttemptState.WARMING: frozenset({AttemptState.PROMOTED, AttemptState.REJECTED, AttemptState.ABANDONED}),
    AttemptState.PROMOTED: frozenset(),
    AttemptState.REJECTED: frozenset(),
    AttemptState.ABANDONED: frozenset(),
}
ENGINE_MOVES: Mapping[EngineState, frozenset[EngineState]] = {
    EngineState.SERVING: frozenset({EngineState.DRAINING}),
    # Back to SERVING: a flip back while the last requests still drain must not wait for them.
    EngineState.DRAINING: frozenset({EngineState.SERVING, EngineState.WARM, EngineState.FREED}),
    EngineState.WARM: frozenset({EngineState.SERVING, EngineState.FREED}),
    EngineState.FREED: frozenset(),
}

S = TypeVar("S", AttemptState, EngineState)


def _moved(moves: Mapping[S, frozenset[S]], old: S, new: S) -> S:
    if new not in moves[old]:
        raise AssertionError(f"no way from {old.name} to {new.name}")
    return new


@dataclass(eq=False)
class Attempt:
    """One try to bring a target into service. `way` says how: `device` (loaded beside), `resident` (was there), or `host`
    (verified in host memory and exchanged for what served, while requests waited for `held` seconds)."""

    alias: str
    key: VersionKey
    way: str
    control: "LoadControl | None" = None
    fallback: bool = False
    state: AttemptState = AttemptState.LOADING
    rejection: Rejection | None = None
    held: float = 0.0
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    _begun: float = field(default_factory=time.monotonic)
    _seconds: float | None = None

    @property
    def seconds(self) -> float:
        """How long it has taken, until now or until its end."""
        return time.monotonic() - self._begun if self._seconds is None else self._seconds

    @property
    def running(self) -> bool:
        """Whether its end is still open."""
        return bool(ATTEMPT_MOVES[self.state])

    def warming(self) -> None:
        """All bytes are verified; the first image is being made."""
        self._to(AttemptState.WARMING)

    def promoted(self) -> None:
        """It serves."""
        self._to(AttemptState.PROMOTED)

    def rejected(self, rejection: Rejection) -> None:
        """It was decided against."""
        self.rejection = rejection
        self._to(AttemptState.REJECTED)

    def abandoned(self) -> None:
        """A newer wish came."""
        self._to(AttemptState.ABANDONED)

    def _to(self, state: AttemptState) -> None:
        self.state = _moved(ATTEMPT_MOVES, self.state, state)
        if not self.running:
            self._seconds = time.monotonic() - self._begun


@dataclass(eq=False)
class Resident:
    """An engine on the device, with the leases that requests hold on it."""

    key: VersionKey
    engine: "Engine"
    state: EngineState = EngineState.SERVING
    leases: int = 0
    images: int = 0
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    serving_from: float = field(default_factory=time.monotonic)

    def serve(self) -> None:
        """It gets new leases from now on (again)."""
        if self.state is not EngineState.SERVING:
            self.state = _moved(ENGINE_MOVES, self.state, EngineState.SERVING)
            self.since, self.serving_from = datetime.now(UTC), time.monotonic()

    def drain(self) -> None:
        """It gets no new leases; those it has go on."""
        self.state = _moved(ENGINE_MOVES, self.state, EngineState.DRAINING)

    def keep(self) -> None:
        """Its last lease is gone; it stays for a flip back."""
        self.state = _moved(ENGINE_MOVES, self.state, EngineState.WARM)

    def free(self) -> None:
        """It goes; nobody holds a lease."""
        self.state = _moved(ENGINE_MOVES, self.state, EngineState.FREED)
