"""What is said of a trial: figures of which the answer is known."""

import pytest

from zwatch.generation.trial_verdict import Counts, compared, conclusion, figures


def counts(version, requests=0, failures=0, seconds=(), up=0, down=0):
    return Counts(version, requests, failures, seconds, up, down)


def test_nothing_is_concluded_from_nothing():
    first, second = counts("v1"), counts("v3")
    assert figures(first).failure_rate is figures(first).latency is figures(first).votes is None
    assert conclusion(first, second) == "nothing can be concluded yet, from 0 and 0 requests, 0 and 0 votes"


def test_nothing_is_concluded_from_a_difference_that_chance_makes_often():
    first, second = counts("v1", 100, 1, [1.0] * 99, 5, 4), counts("v3", 12, 1, [1.0] * 11, 2, 0)
    assert conclusion(first, second).startswith("nothing can be concluded yet, from 100 and 12 requests")


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (counts("v3", 100, 20, [1.0] * 80, 8, 2), "v3 fails more often (by 13.1 to 28.7 points) than v1"),
        (counts("v3", 100, 0, [0.5 + number / 1000 for number in range(100)], 8, 2), "v3 draws faster"),
        (counts("v3", 100, 0, [1.5 + number / 1000 for number in range(100)], 8, 2), "v3 draws slower"),
        (counts("v3", 100, 0, [1.0] * 100, 2, 28), "v3 is liked less"),
    ],
)  # fmt: skip
def test_a_clear_difference_is_said_with_its_interval(second, words):
    first = counts("v1", 1000, 2, [1.0] * 998, 40, 10)
    found = conclusion(first, second)
    assert words in found
    assert "nothing can be concluded yet" in found, "the other two"
    assert "from 1000 and 100 requests" in found


def test_the_other_way_round_all_signs_change():
    first = counts("v1", 1000, 2, [1.0, 1.1] * 400, 40, 10)
    second = counts("v3", 100, 20, [1.5, 1.6] * 40, 2, 28)
    one, other = compared(figures(first), figures(second)), compared(figures(second), figures(first))
    for name in ("failure_rate", "latency", "votes"):
        there, back = getattr(one, name), getattr(other, name)
        assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low))
    assert conclusion(second, first).startswith("v1 fails less often")
    assert " fails more often" in conclusion(first, second)
    assert "nothing" not in conclusion(first, second)
