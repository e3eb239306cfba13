"""Earlier rejections, and when they are tried again."""

import time

import pytest

from zwatch.deploy.resolving import LinkStamp
from zwatch.errors import Rejection
from zwatch.rollout.lifecycle import VersionKey
from zwatch.rollout.refusals import BACKOFF_FIRST, BACKOFF_LONGEST, Refusals

V2 = VersionKey("v2", "aa")
LINK, NEWER = LinkStamp(1, 2, 3), LinkStamp(1, 2, 4)


def refused(code: str, *, times: int = 1):
    refusals = Refusals()
    for _ in range(times):
        refusals.add(V2, Rejection(code, "because"), LINK, None)
    return refusals, refusals.find(V2)


def test_a_final_rejection_is_never_due():
    _, refusal = refused("bad_image")
    refusal.note_change()
    assert not refusal.due(time.monotonic() + 10**6)


def test_wrong_files_are_due_once_they_changed():
    _, refusal = refused("hash_mismatch")
    assert not refusal.due(time.monotonic() + 10**6)
    refusal.note_change()
    assert refusal.due(time.monotonic())


@pytest.mark.parametrize(("times", "pause"), [(1, BACKOFF_FIRST), (2, 2 * BACKOFF_FIRST), (30, BACKOFF_LONGEST)])
def test_a_temporary_failure_is_due_after_a_pause_that_doubles(times, pause):
    _, refusal = refused("out_of_memory", times=times)
    assert not refusal.due(time.monotonic() + pause - 0.5)
    assert refusal.due(time.monotonic() + pause)


def test_wish_and_fallback_are_separate():
    refusals, _ = refused("set_aside")
    assert refusals.find(V2, fallback=True) is None
    refusals.add(V2, Rejection("io_error", "because"), None, None, fallback=True)
    refusals.forget(V2, fallback=True)
    assert refusals.find(V2) is not None


@pytest.mark.parametrize(
    ("wish", "link_stamp", "kept"), [(V2, LINK, True), (V2, NEWER, False), (VersionKey("v2", "bb"), LINK, False)]
)
def test_a_new_link_or_a_new_seal_clears_the_wish_but_not_the_fallback(wish, link_stamp, kept):
    refusals, _ = refused("bad_image")
    refusals.add(V2, Rejection("io_error", "because"), None, None, fallback=True)
    refusals.keep_only(wish, link_stamp)
    assert (refusals.find(V2) is not None) is kept
    assert refusals.find(V2, fallback=True) is not None
    refusals.clear()
    assert refusals.find(V2, fallback=True) is None


def test_what_is_not_set_aside_any_more_is_not_refused_for_it():
    refusals, _ = refused("set_aside")
    refusals.forget_set_aside(lambda key: key == V2)
    assert refusals.find(V2) is not None
    refusals.forget_set_aside(lambda key: False)
    assert refusals.find(V2) is None


def test_other_refusals_stay_although_nothing_is_set_aside():
    refusals, refusal = refused("out_of_memory")
    refusals.forget_set_aside(lambda key: False)
    assert refusals.find(V2) is refusal


def test_without_a_wish_there_is_no_refusal():
    assert Refusals().find(None) is None
