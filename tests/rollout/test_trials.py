"""The rules of trials, as tables."""

import pytest

from zwatch.rollout import trials
from zwatch.rollout.lifecycle import VersionKey
from zwatch.rollout.trials import Checked, FaultKind, Outcomes, Redraw, Suspicion

OURS, OTHER = VersionKey("v3", "3" * 64), VersionKey("v1", "1" * 64)


def outcomes(text):
    """Return the outcomes of requests, oldest first: `.` went well, `x` is a fault."""
    made = Outcomes()
    for letter in text:
        made.add("it failed" if letter == "x" else None)
    return made


@pytest.mark.parametrize(
    ("own", "other", "expected"),
    [
        ("", "", False),
        ("xx", "", False),
        ("xxx", "", True),
        ("x.x.x", "....", True),
        ("xx" + "." * 17 + "x", "", True),
        ("xx" + "." * 18 + "x", "", False),  # the oldest is the 21st from the end
        ("xxxx", "xx", True),
        ("xxxx", "xxx", False),
        ("xxxx", "xxx" + "." * 17, False),
        ("xxxx", "xxx" + "." * 18, True),
    ],
)
def test_what_fails_in_3_of_20_while_the_other_does_not_is_withdrawn(own, other, expected):
    assert trials.is_to_be_withdrawn(outcomes(own), outcomes(other)) is expected


def test_the_outcomes_say_how_many_and_the_last_fault():
    found = outcomes("x..x")
    found.add("a bad picture")
    assert found.described == "3 of its last 5 requests failed; the last one: a bad picture"


@pytest.mark.parametrize(
    ("checked", "of", "missed", "expected"),
    [
        (0, 0, 0, False),
        (3, 3, 0, False),
        (1, 1, 1, True),
        (2, 3, 2, False),  # the third may be right, and 2 of 3 are waited for
        (3, 3, 2, True),
        (3, 3, 1, False),
        (4, 4, 2, True),
        (5, 5, 2, False),
        (3, 8, 3, True),
        (100, 100, 2, False),
        (100, 100, 3, True),
    ],
)
def test_three_missed_golden_images_are_too_many_and_half_of_all(checked, of, missed, expected):
    assert Checked(checked, of, missed).is_failing is expected


def test_good_requests_do_not_excuse_golden_images_that_were_missed():
    found = outcomes("." * 30)
    found.add_golden(Checked(2, 3, 1), "golden/2.png is wrong")
    assert not found.is_failing
    for _ in range(30):
        found.add(None)
    found.add_golden(Checked(3, 3, 2), "golden/3.png is wrong")
    assert trials.is_to_be_withdrawn(found, outcomes("."))
    assert not trials.is_to_be_withdrawn(found, outcomes("xxx"))
    assert found.described == "it missed 2 of 3 golden images; the last one: golden/3.png is wrong"


def test_a_missed_golden_image_is_a_fault_among_those_of_requests():
    found = outcomes("xx")
    found.add_golden(Checked(2, 9, 1), "golden/2.png is wrong")
    assert found.is_failing
    assert found.described == "3 of its last 3 requests failed; the last one: golden/2.png is wrong"


@pytest.mark.parametrize(
    ("by_share", "ago", "probation", "expected"),
    [
        (True, None, 60.0, True),
        (True, None, 0.0, True),
        (True, 1000.0, 60.0, True),
        (False, None, 60.0, False),  # last-known-good, say
        (False, 0.0, 60.0, True),
        (False, 59.9, 60.0, True),
        (False, 60.0, 60.0, False),
        (False, 0.0, 0.0, False),
        (False, 1e9, float("inf"), True),
    ],
)
def test_what_is_on_trial(by_share, ago, probation, expected):
    assert trials.is_on_trial(by_share=by_share, promoted_ago=ago, probation=probation) is expected


BOTH, OWN, NOTHING = [(OURS, "why"), (OTHER, None)], [(OURS, "why")], []


@pytest.mark.parametrize(
    ("kind", "redraw", "expected"),
    [
        (FaultKind.ERROR, Redraw.WELL, BOTH),
        (FaultKind.ERROR, Redraw.ONE_COLOUR, BOTH),
        (FaultKind.ERROR, Redraw.FAILED, NOTHING),
        (FaultKind.ERROR, Redraw.NONE, OWN),
        (FaultKind.SLOW, Redraw.NONE, OWN),
        (FaultKind.NOT_FINITE, Redraw.WELL, BOTH),
        (FaultKind.NOT_FINITE, Redraw.NONE, OWN),
        (FaultKind.ONE_COLOUR, Redraw.WELL, BOTH),
        (FaultKind.ONE_COLOUR, Redraw.ONE_COLOUR, NOTHING),
        (FaultKind.ONE_COLOUR, Redraw.FAILED, NOTHING),
        (FaultKind.ONE_COLOUR, Redraw.NONE, NOTHING),
        (FaultKind.OUT_OF_MEMORY, Redraw.WELL, BOTH),
        (FaultKind.OUT_OF_MEMORY, Redraw.FAILED, NOTHING),
        (FaultKind.OUT_OF_MEMORY, Redraw.NONE, NOTHING),
    ],
)
def test_what_a_request_says_once_the_other_version_has_drawn_it_again(kind, redraw, expected):
    other = None if redraw is Redraw.NONE else OTHER
    assert trials.settled(Suspicion(OURS, kind, "why"), redraw, other) == expected


@pytest.mark.parametrize(
    ("remaining", "usual", "expected"),
    [
        (60.0, None, 30.0),  # half, while it is not known what the other version takes
        (None, None, None),
        (None, 0.5, 10.0),
        (None, 3.0, 30.0),
        (60.0, 0.5, 10.0),
        (600.0, 5.0, 50.0),
        (60.0, 10.0, 45.0),  # what remains has to be enough for the other
        (8.0, 1.0, 6.5),
        (60.0, 30.0, None),  # not enough for both
        (0.0, 1.0, None),
        (0.0, None, 0.0),
    ],
)
def test_how_long_a_version_on_trial_may_draw(remaining, usual, expected):
    assert trials.patience(remaining, usual) == expected


@pytest.mark.parametrize(
    ("drawn", "limit", "usual", "expected"),
    [
        (59.0, 60.0, None, True),
        (20.0, 60.0, None, False),  # it waited longer than it was drawn
        (59.0, 60.0, 5.0, True),
        (59.0, 60.0, 40.0, False),  # the other is hardly faster
    ],
)
def test_a_time_limit_that_passes_is_the_versions_fault_if_it_drew_for_most_of_it(drawn, limit, usual, expected):
    assert trials.is_too_slow(drawn, limit, usual) is expected
