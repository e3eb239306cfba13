"""The resident engines: which one serves, who holds a lease, and what is kept for a flip back."""

import pytest

from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import EngineState, VersionKey

V1, V2, V3 = (VersionKey(f"v{number}", str(number) * 64) for number in (1, 2, 3))
V1_RESEALED = VersionKey("v1", "f" * 64)


class FakeEngine:
    """Stands for an engine; the registry only passes it on."""

    is_complete = True


@pytest.fixture
def engines():
    return EngineRegistry()


def serve(engines, key, alias="current"):
    if engines.resident(key) is None:
        engines.admit(key, FakeEngine())
    engines.promote(alias, key)


def states(engines):
    return {resident.key: resident.state.name for resident in engines.residents}


def test_an_empty_registry_leases_nothing(engines):
    assert engines.lease("current") is None
    assert not engines.find("current")
    assert engines.serving("current") is None
    assert engines.residents == []


def test_a_lease_says_what_it_is_on(engines):
    serve(engines, V1)
    lease = engines.lease("current")
    assert lease.key == V1
    assert lease.engine is engines.resident(V1).engine


def test_new_leases_get_the_promoted_engine_and_old_ones_keep_theirs(engines):
    serve(engines, V1)
    old = engines.lease("current")
    serve(engines, V2)
    new = engines.lease("current")
    assert (old.key, new.key) == (V1, V2)
    assert states(engines) == {V1: "DRAINING", V2: "SERVING"}


def test_a_lease_is_counted_until_it_is_released_once(engines):
    serve(engines, V1)
    first, second = engines.lease("current"), engines.lease("current")
    assert engines.resident(V1).leases == 2
    first.release()
    first.release()
    assert engines.resident(V1).leases == 1
    with second:
        pass
    assert engines.resident(V1).leases == 0


def test_a_lease_is_released_by_an_error_too(engines):
    serve(engines, V1)

    class Oops(Exception):
        pass

    with pytest.raises(Oops), engines.lease("current"):
        raise Oops
    assert engines.resident(V1).leases == 0


def test_a_released_lease_does_not_hold_the_engine(engines):
    serve(engines, V1)
    lease = engines.lease("current")
    lease.release()
    assert not hasattr(lease, "engine")
    assert lease.key == V1


def test_the_release_of_a_lease_is_reported_once():
    returned = []
    engines = EngineRegistry(lambda: returned.append(1))
    serve(engines, V1)
    lease = engines.lease("current")
    assert returned == []
    lease.release()
    lease.release()
    assert returned == [1]


def test_images_are_counted_for_the_engine_that_made_them(engines):
    serve(engines, V1)
    lease = engines.lease("current")
    serve(engines, V2)
    lease.count_images(3)
    assert (engines.resident(V1).images, engines.resident(V2).images) == (3, 0)


@pytest.mark.parametrize("model", ["v1", "v2"])
def test_a_resident_version_is_leased_by_its_name(engines, model):
    serve(engines, V1)
    serve(engines, V2)
    assert engines.find(model)
    assert engines.lease(model).key.version == model


def test_a_version_that_is_not_resident_is_not_known(engines):
    serve(engines, V1)
    assert engines.lease("v2") is None
    assert not engines.find("v2")


def test_if_two_contents_of_a_version_are_resident_the_one_that_serves_is_leased(engines):
    serve(engines, V1)
    serve(engines, V1_RESEALED)
    assert engines.lease("v1").key == V1_RESEALED
    serve(engines, V1)
    assert engines.lease("v1").key == V1


def test_an_alias_takes_precedence_over_a_version_of_the_same_name(engines):
    serve(engines, VersionKey("current", "a" * 64), alias="canary")
    serve(engines, V1)
    assert engines.lease("current").key == V1


def test_what_served_before_is_the_previous_one(engines):
    serve(engines, V1)
    assert engines.previous("current") is None
    serve(engines, V2)
    assert engines.previous("current") == V1
    assert engines.is_previous(V1)
    serve(engines, V3)
    assert engines.previous("current") == V2
    assert not engines.is_previous(V1)


def test_promoting_what_serves_changes_nothing(engines):
    serve(engines, V1)
    serve(engines, V2)
    engines.promote("current", V2)
    assert engines.previous("current") == V1
    assert states(engines) == {V1: "DRAINING", V2: "SERVING"}


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "still draining"])
def test_flipping_back_serves_the_same_engine_again(engines, warm):
    serve(engines, V1)
    engine = engines.resident(V1).engine
    serve(engines, V2)
    if warm:
        engines.keep(V1)
    engines.promote("current", V1)
    assert engines.lease("current").engine is engine
    assert states(engines) == {V1: "SERVING", V2: "DRAINING"}
    assert engines.previous("current") == V2


def test_what_an_earlier_run_served_before_can_be_restored(engines):
    engines.remember_previous("current", V3)
    assert engines.previous("current") == V3
    assert engines.is_previous(V3)


def test_an_engine_that_two_aliases_serve_drains_with_the_last(engines):
    serve(engines, V1)
    serve(engines, V1, alias="canary")
    serve(engines, V2)
    assert states(engines) == {V1: "SERVING", V2: "SERVING"}
    serve(engines, V2, alias="canary")
    assert states(engines) == {V1: "DRAINING", V2: "SERVING"}


def test_two_aliases_have_their_own_leases_on_one_engine(engines):
    serve(engines, V1)
    serve(engines, V1, alias="canary")
    leases = [engines.lease("current"), engines.lease("canary")]
    assert leases[0].engine is leases[1].engine
    assert engines.resident(V1).leases == 2


def test_freeing_removes_the_engine_and_returns_it(engines):
    serve(engines, V1)
    serve(engines, V2)
    resident = engines.resident(V1)
    assert engines.free(V1) is resident.engine
    assert engines.resident(V1) is None
    assert resident.state is EngineState.FREED
    assert not engines.find("v1")


@pytest.mark.parametrize("end", [EngineRegistry.keep, EngineRegistry.free], ids=["keep", "free"])
def test_a_serving_engine_is_neither_kept_nor_freed(engines, end):
    serve(engines, V1)
    with pytest.raises(AssertionError, match="no transition from SERVING"):
        end(engines, V1)
    assert engines.lease("v1") is not None


def test_an_engine_without_its_memory_gets_no_lease_under_any_name(engines):
    serve(engines, V1)
    engines.resident(V1).engine.is_complete = False
    assert engines.lease("current") is None
    assert engines.lease("v1") is None


def test_withdrawing_drains_what_served_and_forgets_the_previous_one(engines):
    serve(engines, V1)
    serve(engines, V2)
    lease = engines.lease("current")
    engines.withdraw("current")
    assert engines.serving("current") is None
    assert engines.lease("current") is None
    assert states(engines)[V2] == "DRAINING"
    assert engines.resident(V2).leases == 1
    assert not engines.is_previous(V1)
    assert lease.engine is engines.resident(V2).engine


def test_withdrawing_one_alias_leaves_the_other(engines):
    serve(engines, V1)
    serve(engines, V1, alias="canary")
    engines.withdraw("current")
    assert engines.lease("canary").key == V1
    assert states(engines) == {V1: "SERVING"}


def test_withdrawing_what_serves_nothing_is_harmless(engines):
    engines.withdraw("current")
    assert engines.residents == []
