"""What counts can say: intervals that hold the true value in 95 of 100 cases, for shares, medians and their differences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

_Z = 1.959963984540054
"""The 97.5 % point of the standard normal distribution."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and the interval around it, `low <= value <= high`."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether a difference is one: its interval does not reach 0."""
        return self.low > 0 or self.high < 0


def share(hits: int, total: int) -> Estimate | None:
    """Return the share of `hits` in `total`, from 0 to 1, with its score interval; None of nothing.

    The interval is that of Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927): unlike the
    usual one it is right for few requests and for shares near 0 and 1.
    """
    if total == 0:
        return None
    found = hits / total
    square = _Z * _Z / total
    middle = (found + square / 2) / (1 + square)
    half = _Z * math.sqrt(found * (1 - found) / total + square / (4 * total)) / (1 + square)
    # The clamps are against rounding only: at 0 and at all, the interval ends exactly there.
    return Estimate(found, min(max(middle - half, 0.0), found), max(min(middle + half, 1.0), found))


def median(values: Sequence[float]) -> Estimate | None:
    """Return the median with an interval that supposes no distribution; None for fewer than 6 values, of which no interval is sure.

    It lies between the k-th smallest and the k-th largest value, where fewer than k of n tosses of a coin are heads in at most 2.5 of
    100 cases: the sign test turned round (Conover, "Practical Nonparametric Statistics", 3rd edition, section 3.2).
    """
    ordered, count = sorted(values), len(values)
    rank, below = 0, 1  # below: the ways in which at most `rank` tosses are heads
    while below * 40 <= 2**count:
        rank += 1
        below += math.comb(count, rank)
    if rank == 0:
        return None
    middle = (ordered[(count - 1) // 2] + ordered[count // 2]) / 2
    return Estimate(middle, ordered[rank - 1], ordered[count - rank])


def difference(first: Estimate | None, second: Estimate | None) -> Estimate | None:
    """Return `second - first` of two independent estimates; None if one is missing.

    The interval is method 10 of Newcombe, "Interval estimation for the difference between independent proportions", Statistics in
    Medicine 17 (1998); that the same holds for medians and others is shown by Zou and Donner, Statistics in Medicine 27 (2008).
    """
    if first is None or second is None:
        return None
    between = second.value - first.value
    low = between - math.hypot(second.value - second.low, first.high - first.value)
    high = between + math.hypot(second.high - second.value, first.value - first.low)
    return Estimate(between, low, high)
