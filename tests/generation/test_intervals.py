"""Intervals: against published figures, and against all that chance can do."""

import math

import pytest

from zwatch.generation.intervals import Estimate, difference, median, share


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [  # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3
        (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718), (29, 29, 0.8830, 1.0),
    ],
)  # fmt: skip
def test_a_share_has_the_published_score_interval(hits, total, low, high):
    found = share(hits, total)
    assert found is not None
    assert (found.value, round(found.low, 4), round(found.high, 4)) == (hits / total, low, high)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    [  # Newcombe 1998, "Interval estimation for the difference", table II, method 10: of p1 - p2
        ((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((5, 56), (0, 29), -0.0381, 0.1926),
        ((0, 10), (0, 20), -0.1611, 0.2775), ((10, 10), (0, 20), 0.6791, 1.0),
    ],
)  # fmt: skip
def test_a_difference_has_the_published_interval(first, second, low, high):
    found = difference(share(*second), share(*first))
    assert found is not None
    assert (round(found.low, 4), round(found.high, 4)) == (low, high)


@pytest.mark.parametrize("count", [6, 7, 20, 101, 1000])
def test_the_interval_of_a_median_is_the_shortest_that_is_sure_enough(count):
    found = median([float(value) for value in range(1, count + 1)])
    assert found is not None
    rank = round(found.low)
    assert found.high == count + 1 - rank

    def missed(k):  # how often the true median is below the k-th smallest of n values, or above the k-th largest
        return 2 * sum(math.comb(count, heads) for heads in range(k)) / 2**count

    assert missed(rank) <= 0.05 < missed(rank + 1)
    assert found.value == (count + 1) / 2


def test_few_values_have_no_interval():
    assert median([1.0] * 5) is None
    assert median([]) is None
    assert share(0, 0) is None
    assert difference(share(0, 0), share(1, 2)) is None


@pytest.mark.parametrize("total", [1, 2, 10, 1000])
def test_an_interval_has_its_value_inside_and_stays_within_0_and_1(total):
    for hits in range(total + 1):
        found = share(hits, total)
        assert found is not None
        assert 0 <= found.low <= found.value <= found.high <= 1


def test_it_holds_the_true_share_about_as_often_as_it_says():
    """Over every outcome of 50 requests, weighed by its exact probability: no luck. Wilson's interval is 95 % on the average."""
    covered = []
    for percent in range(1, 100):
        p = percent / 100
        covered.append(sum(math.comb(50, hits) * p**hits * (1 - p) ** (50 - hits) for hits in range(51)
                           if (found := share(hits, 50)) is not None and found.low <= p <= found.high))  # fmt: skip
    assert 0.945 < sum(covered) / len(covered) < 0.96
    assert min(covered) > 0.88


def test_a_difference_of_nothing_says_nothing():
    assert not Estimate(0.1, -0.1, 0.3).excludes_zero
    assert Estimate(0.2, 0.1, 0.3).excludes_zero
    assert Estimate(-0.2, -0.3, -0.1).excludes_zero
