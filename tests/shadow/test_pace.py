"""GivingWay: pauses while images are being made, and only then; what is called gives what it would give."""

import time

import pytest
import torch

from zwatch.errors import Abandoned
from zwatch.shadow import pace
from zwatch.shadow.pace import GivingWay

STEP = pace.BURST * 0.4
"""What each look at the clock takes."""


class Clock:
    """A clock that moves at each look."""

    def __init__(self):
        self.now = 0.0

    def tick(self):
        self.now += STEP
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made.tick)
    return made


@pytest.fixture
def pauses(monkeypatch, clock):
    """Count pauses instead of making them."""
    counted = []
    monkeypatch.setattr(time, "sleep", counted.append)
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


def test_while_images_are_made_it_pauses_for_as_long_as_it_worked(pauses):
    with GivingWay(lambda: True, never, nothing):
        assert torch.equal(work(), torch.full((3,), 741.0))
    assert len(pauses) >= 5
    assert pauses == [pytest.approx(3 * STEP)] * len(pauses)


def test_after_a_long_time_without_a_call_it_pauses_longer_up_to_a_limit(pauses, clock):
    with GivingWay(lambda: True, never, nothing):
        clock.now += 0.05
        torch.zeros(1)
        clock.now += 60
        torch.zeros(1)
    assert pauses == [pytest.approx(0.05, rel=0.1), pace.LONGEST]


def test_it_does_not_pause_while_no_image_is_made(pauses):
    with GivingWay(never, never, nothing):
        work()
    assert pauses == []


def test_it_pauses_until_urgent_work_is_over(pauses):
    with GivingWay(never, lambda: len(pauses) < 10, nothing):
        torch.zeros(1)
        assert pauses == [pace.BURST] * 10
        work()
    assert len(pauses) == 10


def test_a_pause_for_urgent_work_has_a_limit(pauses):
    with GivingWay(never, lambda: True, nothing):
        torch.zeros(1)
    assert pace.LONGEST / STEP - 2 < len(pauses) < pace.LONGEST / STEP + 2


def test_an_abandoned_load_is_stopped_between_two_calls():
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


def test_calls_outside_do_not_pause(pauses):
    with GivingWay(lambda: True, never, nothing):
        pass
    work()
    assert pauses == []


def test_a_call_that_fails_still_raises_its_error():
    with GivingWay(lambda: True, never, nothing), pytest.raises(RuntimeError, match="shape"):
        torch.zeros(3).view(2)
