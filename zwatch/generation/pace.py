"""How long versions take for their requests, as measured."""

from collections import OrderedDict

from zwatch.rollout.lifecycle import VersionKey

_FIRST_GUESS = (2.0, 8.4)
"""Seconds, and megapixels x steps, of a request, until one was measured: 1024 x 1024 in 8 steps."""
_WEIGHT = 0.2  # by which older requests count less at each newer one
_KEPT = 16
"""Of how many versions the pace is kept, those that drew last."""


class Pace:
    """Seconds for the work of requests, of each version and of all; work is in megapixels x steps x images. Newer requests count
    more."""

    def __init__(self) -> None:
        self._all = _FIRST_GUESS
        self._versions: OrderedDict[VersionKey, tuple[float, float]] = OrderedDict()

    @property
    def of_all(self) -> float:
        """Seconds for a megapixel in one step, over the last requests."""
        return self._all[0] / self._all[1]

    def seconds(self, key: VersionKey, work: float) -> float | None:
        """Return how long a version takes for some work; None if it has drawn nothing."""
        found = self._versions.get(key)
        return None if found is None else found[0] / found[1] * work

    def note(self, key: VersionKey, seconds: float, work: float) -> None:
        """Note a request that a version has drawn."""
        self._all = _mixed(self._all, seconds, work)
        self._versions[key] = _mixed(self._versions.pop(key, (0.0, 0.0)), seconds, work)
        while len(self._versions) > _KEPT:
            self._versions.popitem(last=False)


def _mixed(before: tuple[float, float], seconds: float, work: float) -> tuple[float, float]:
    return (1 - _WEIGHT) * before[0] + seconds, (1 - _WEIGHT) * before[1] + work
