"""GivingWay: pauses while images are being made, and only then; what is called gives what it would give."""

import time

import pytest
import torch

from zwatch.errors import Abandoned
from zwatch.shadow import pace
from zwatch.shadow.pace import GivingWay

STEP = pace.BURST * 0.4
"""What each look at the clock takes."""


@pytest.fixture
def pauses(monkeypatch):
    """Count pauses instead of making them, with a clock that moves at each look."""
    counted, now = [], [0.0]

    def tick():
        now[0] += STEP
        return now[0]

    monkeypatch.setattr(time, "sleep", counted.append)
    monkeypatch.setattr(time, "perf_counter", tick)
    return counted


def work():
    """Return what 40 calls of torch give."""
    total = torch.zeros(3)
    for number in range(39):
        total += number
    return total


def never():
    return False


def nothing():
    pass


def test_while_images_are_made_it_pauses_again_and_again_as_long_as_it_worked(pauses):
    with GivingWay(lambda: True, never, nothing):
        assert torch.equal(work(), torch.full((3,), 741.0))
    assert len(pauses) >= 5
    assert pauses == [pytest.approx(3 * STEP)] * len(pauses)


def test_after_a_long_stretch_without_a_call_it_pauses_longer_but_not_for_ever(pauses):
    with GivingWay(lambda: True, never, nothing) as mode:
        mode._paused -= 0.05
        torch.zeros(1)
        mode._paused -= 60
        torch.zeros(1)
    assert pauses == [pytest.approx(0.05, rel=0.1), pace.LONGEST]


def test_it_does_not_pause_while_no_image_is_made(pauses):
    with GivingWay(never, never, nothing):
        work()
    assert pauses == []


def test_it_stands_still_until_what_is_urgent_is_over(pauses):
    with GivingWay(never, lambda: len(pauses) < 10, nothing):
        torch.zeros(1)
        assert pauses == [pace.BURST] * 10
        work()
    assert len(pauses) == 10


def test_it_does_not_stand_still_for_ever(pauses):
    with GivingWay(never, lambda: True, nothing):
        torch.zeros(1)
    assert pace.LONGEST / STEP - 2 < len(pauses) < pace.LONGEST / STEP + 2


def test_who_is_not_wanted_any_more_is_stopped_between_two_calls():
    done = []

    def check():
        if len(done) >= 3:
            raise Abandoned

    def go_on():
        with GivingWay(never, never, check):
            while True:
                done.append(work())

    with pytest.raises(Abandoned):
        go_on()


def test_outside_nothing_pauses(pauses):
    with GivingWay(lambda: True, never, nothing):
        pass
    work()
    assert pauses == []


def test_a_call_that_fails_fails_as_ever():
    with GivingWay(lambda: True, never, nothing), pytest.raises(RuntimeError, match="shape"):
        torch.zeros(3).view(2)
