"""The record of one alias: what follows from what was seen, what it serves, and what was saved."""

import time

import pytest

from zwatch.deploy.resolving import Fault, LinkStamp, Target
from zwatch.errors import Rejection
from zwatch.rollout.alias import GOOD_IMAGES, GOOD_SECONDS, Alias
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import Attempt, LoadWay, VersionKey
from zwatch.rollout.saved import SavedAlias

V1, V2, V3 = (VersionKey(f"v{number}", str(number) * 64) for number in (1, 2, 3))
FIRST, LATER = LinkStamp(1, 2, 3), LinkStamp(1, 2, 4)


class FakeEngine:
    is_unjudged = False
    is_complete = True


class FakeDirectory:
    def __init__(self, version):
        self.version = version


def target(key, link_stamp=FIRST):
    return Target("current", key.version, link_stamp, FakeDirectory(key.version), (1, 2), None, key.digest)


@pytest.fixture
def engines():
    return EngineRegistry()


@pytest.fixture
def alias(engines):
    return Alias("current", engines)


def serve(alias, engines, key, **more):
    if engines.resident(key) is None:
        engines.admit(key, FakeEngine())
    attempt = Attempt(alias.name, key, LoadWay.DEVICE, **more)
    attempt.begin_warming()
    alias.promote(attempt)


def test_before_the_first_look_nothing_is_known(alias):
    assert (alias.wish, alias.serving, alias.previous, alias.is_unloaded) == (None, None, None, False)


def test_the_wish_is_what_the_link_asks_for(alias):
    alias.note_look(target(V1), None)
    assert (alias.wish, alias.link_stamp) == (V1, FIRST)


def test_with_a_fault_there_is_no_wish_but_a_link_stamp(alias):
    alias.note_look(target(V1), None)
    alias.note_look(None, Fault("current", "dangling", "current: …", "v9", LATER))
    assert (alias.wish, alias.link_stamp) == (None, LATER)


@pytest.mark.parametrize(
    "seen", [(None, None), (None, Fault("current", "missing", "current: …"))], ids=["not seen", "missing"]
)
def test_links_that_do_not_exist_have_equal_stamps(alias, engines, seen):
    other = Alias("canary", engines)
    alias.note_look(*seen)
    assert alias.link_stamp == other.link_stamp


def test_a_promotion_is_saved(alias, engines):
    alias.note_look(target(V2), None)
    serve(alias, engines, V1)
    serve(alias, engines, V2)
    assert alias.saved == SavedAlias(serving=V2, previous=V1, link_stamp=FIRST, wish=V2, promoted=[V2, V1])
    assert (alias.serving.key, alias.previous) == (V2, V1)


def test_after_a_restart_what_served_before_is_the_previous_one(alias, engines):
    alias.restore(SavedAlias(serving=V1, previous=V3))
    assert alias.previous == V3
    serve(alias, engines, V2)
    assert alias.previous == V1


def test_after_a_restart_with_the_same_version_the_previous_one_stays(alias, engines):
    alias.restore(SavedAlias(serving=V1, previous=V3))
    serve(alias, engines, V1)
    assert alias.previous == V3


def test_after_an_unload_what_served_before_is_the_previous_one(alias, engines):
    serve(alias, engines, V1)
    alias.unload()
    assert alias.saved.serving is None
    serve(alias, engines, V2)
    assert alias.previous == V1


def test_an_unload_lasts_until_the_link_is_made_again(alias, engines):
    alias.note_look(target(V1), None)
    serve(alias, engines, V1)
    alias.unload()
    alias.note_look(target(V1), None)
    assert (alias.is_unloaded, alias.serving) == (True, None)
    alias.note_look(target(V1, LATER), None)
    assert not alias.is_unloaded


def test_an_unload_lasts_while_the_link_is_gone(alias):
    alias.note_look(target(V1), None)
    alias.unload()
    alias.note_look(None, Fault("current", "missing", "current: …"))
    assert alias.is_unloaded


def test_a_refusal_ends_the_attempt_and_keeps_a_copy_without_frames(alias):
    alias.note_look(target(V1), None)
    attempt = Attempt("current", V1, LoadWay.DEVICE)
    try:
        raise Rejection("hash_mismatch", "because")
    except Rejection as rejection:
        alias.refuse(attempt, rejection, FIRST, None)
    assert (attempt.rejection.code, attempt.rejection.reason) == ("hash_mismatch", "because")
    assert attempt.rejection.__traceback__ is None
    assert alias.refusals.find(V1).rejection is attempt.rejection


def refuse(alias, key, code="bad_image", *, fallback=False):
    attempt = Attempt("current", key, LoadWay.DEVICE, fallback=fallback)
    alias.refuse(attempt, Rejection(code, "because"), None if fallback else FIRST, None)
    return attempt


def view(alias, running=None, fallbacks=(), later=0.0):
    return alias.view(running, fallbacks, time.monotonic() + later)


def test_a_refused_wish_is_not_due_unless_an_operator_forces_it(alias):
    alias.note_look(target(V2), None)
    refuse(alias, V2)
    assert view(alias).refused
    alias.forced = True
    assert not view(alias).refused


def test_a_refused_wish_is_due_after_its_pause_but_not_while_its_fallback_loads(alias):
    alias.note_look(target(V2), None)
    refuse(alias, V2, "out_of_memory")
    assert view(alias).refused
    assert not view(alias, later=100.0).refused
    running = Attempt("current", V1, LoadWay.DEVICE, fallback=True)
    assert view(alias, running, later=100.0).refused
    elsewhere = Attempt("canary", V1, LoadWay.DEVICE, fallback=True)
    assert not view(alias, elsewhere, later=100.0).refused


def test_the_fallback_is_the_first_that_was_not_refused_and_none_while_something_serves(alias, engines):
    assert view(alias, fallbacks=[V1, V2]).fallback == V1
    refuse(alias, V1, fallback=True)
    assert view(alias, fallbacks=[V1, V2]).fallback == V2
    serve(alias, engines, V3)
    assert view(alias, fallbacks=[V1, V2]).fallback is None


def test_a_version_proves_itself_by_images_or_by_time(alias, engines):
    assert alias.proved(time.monotonic()) is None
    serve(alias, engines, V1)
    assert alias.proved(time.monotonic()) is None
    assert alias.proved(time.monotonic() + GOOD_SECONDS) == V1
    with engines.lease("current") as lease:
        lease.count_images(GOOD_IMAGES)
    assert alias.proved(time.monotonic()) == V1
