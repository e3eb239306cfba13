"""When a directory's entries must be read again: thousands of them are not read at every tick if nothing changed."""

import os
import time
from collections.abc import Callable

_SETTLED = 0.1
"""Seconds that time stamps must be known before a reading counts for good: two changes within one tick of a file system's
clock (4-10 ms) leave the same stamp."""
_LONGEST = 2.0
"""Seconds after which everything is read again in any case: an owner that changes leaves no trace in the directory, and some
file systems keep no times of directories."""
_SHARE, _IDLE_SHARE = 0.2, 0.02
"""The shares of one core that reading may take: while something changes at every look, and while nothing does."""
_CHEAP, _BURST = 0.005, 0.5
"""Seconds of a core that a reading may always take, and that costlier ones may take at once before they are put off."""

Stamp = tuple[int, int, int, int]
"""A directory's device, inode, mtime and ctime (nanoseconds): they change when an entry is made, removed or replaced."""


def stamp_of(fd: int) -> Stamp:
    """Return the stamp of an opened directory.

    Raises:
        OSError: it cannot be read.
    """
    status = os.fstat(fd)
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns


class Reread:
    """Decides by stamps when to read again; `clock` returns seconds. One reading: `due`, then `begin`, then `done`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._stamps: object = None
        self._since = self._begun = self._begun_cpu = 0.0
        self._final = False
        self._again = float("-inf")
        self._spent = self._spent_at = 0.0

    def due(self, stamps: object) -> bool:
        """Say whether to read now, where the stamps of all that is to be read are these."""
        now = self._clock()
        if stamps != self._stamps:
            self._stamps, self._since, self._final = stamps, now, False
        self._spent = max(0.0, self._spent - (now - self._spent_at) * _SHARE)
        self._spent_at = now
        return now >= self._again if self._final else self._spent < _BURST

    def begin(self) -> None:
        """Note that a reading begins, in this thread."""
        self._begun, self._begun_cpu = self._clock(), time.thread_time()

    def done(self, *, is_whole: bool = True) -> None:
        """Note that it ended. One that is not whole is begun again at the next look."""
        cost = time.thread_time() - self._begun_cpu
        self.spend(cost)
        self._final = is_whole and self._begun - self._since >= _SETTLED
        self._again = self._clock() + max(_LONGEST, cost / _IDLE_SHARE)

    def spend(self, cost: float) -> None:
        """Count seconds of a core that were spent on reading."""
        # The next reading waits for this one only.
        self._spent = min(self._spent, _BURST) + (cost if cost > _CHEAP else 0.0)
