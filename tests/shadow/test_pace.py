"""GivingWay: pauses while images are being made, and only then; what is called gives what it would give."""

import time

import pytest
import torch

from zwatch.shadow import pace
from zwatch.shadow.pace import GivingWay


@pytest.fixture
def pauses(monkeypatch):
    """Count pauses instead of making them, with a clock that each of torch's calls moves by a third of a burst."""
    counted, now = [], [0.0]

    def tick():
        now[0] += pace.BURST / 3
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


def test_it_pauses_again_and_again_while_images_are_made(pauses):
    with GivingWay(lambda: True):
        assert torch.equal(work(), torch.full((3,), 741.0))
    assert len(pauses) >= 5
    assert set(pauses) == {pace.PAUSE}


def test_it_does_not_pause_while_no_image_is_made(pauses):
    with GivingWay(lambda: False):
        work()
    assert pauses == []


def test_outside_nothing_pauses(pauses):
    with GivingWay(lambda: True):
        pass
    work()
    assert pauses == []


def test_a_call_that_fails_fails_as_ever():
    with GivingWay(lambda: True), pytest.raises(RuntimeError, match="shape"):
        torch.zeros(3).view(2)
