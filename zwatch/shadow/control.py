"""What a load and its caller share: progress, whether the load is still wanted, and what it is doing."""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

from zwatch.errors import Abandoned
from zwatch.timeline import Phases

REPORT_SECONDS = 0.02
"""Least time between two reports: a report wakes the event loop, and a fast load has thousands of chunks a second."""


class LoadControl:
    """What a load and its caller share.

    `report` is called in the loading thread after progress, every `report_seconds` at most, and after each phase.
    """

    def __init__(self, report: Callable[[], None] = lambda: None, *, report_seconds: float = REPORT_SECONDS) -> None:
        self.phases: dict[str, float] = {}
        self.timeline = Phases()
        """When it was in which phase."""
        self.bytes_total = 0
        self.bytes_done = 0
        self.shared: list[str] = []
        self.activity = "looking at the version's files"
        """What it does now, as the beginning of a sentence that says that it does not end."""
        self.is_slow = False
        """Whether that may take minutes without a sign of progress: compiling kernels, an image on a slow processor."""
        self.got_on = time.monotonic()
        """When it last got on, on the monotonic clock."""
        self.is_left = False
        """Whether its thread did not return and was left: what the load holds is given back when the thread ends."""
        self._report = report
        self._report_seconds = report_seconds
        self._reported = 0.0
        self._abandoned = threading.Event()

    def abandon(self) -> None:
        """Stop the load at its next chunk."""
        self._abandoned.set()

    @property
    def is_abandoned(self) -> bool:
        """Whether `abandon` was called."""
        return self._abandoned.is_set()

    def begin(self, activity: str, *, is_slow: bool = False) -> None:
        """Note what is done from now on, and raise Abandoned if `abandon` was called."""
        self.activity, self.is_slow = activity, is_slow
        self.check()

    def check(self) -> None:
        """Note that the load got on, and raise Abandoned if `abandon` was called."""
        self.got_on = time.monotonic()
        if self._abandoned.is_set():
            raise Abandoned("superseded by a newer target")

    def advance(self, count: int) -> None:
        """Count `count` more bytes as done, and raise Abandoned if `abandon` was called."""
        self.bytes_done += count
        if (now := time.monotonic()) - self._reported >= self._report_seconds:
            self._reported = now
            self._report()
        self.check()

    def phase(self, name: str) -> AbstractContextManager[None]:
        """Return a context manager that adds the time spent inside to the phase `name`, in seconds, and reports."""
        return self.timeline.of(name, partial(self.end_phase, name))

    def add_phases(self, other: "LoadControl") -> None:
        """Add the phases of what was done before, for this load."""
        self.phases |= other.phases
        self.timeline += other.timeline

    def end_phase(self, name: str, seconds: float) -> None:
        """Add time to a phase, and report."""
        self.phases[name] = self.phases.get(name, 0.0) + seconds
        self._report()
