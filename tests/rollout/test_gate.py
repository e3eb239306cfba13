"""The gate: who serves, who holds a lease, and what is left behind."""

import pytest

from zwatch.rollout.gate import Gate
from zwatch.rollout.lifecycle import EngineState, Key

V1, V2, V3 = (Key(f"v{number}", str(number) * 64) for number in (1, 2, 3))
V1_RESEALED = Key("v1", "f" * 64)


class Picture:
    """Stands where an engine stands; the gate only hands it on."""

    is_complete = True


@pytest.fixture
def gate():
    return Gate()


def serve(gate, key, alias="current"):
    if gate.resident(key) is None:
        gate.admit(key, Picture())
    gate.promote(alias, key)


def states(gate):
    return {resident.key: resident.state.name for resident in gate.residents}


def test_an_empty_gate_leases_nothing(gate):
    assert gate.lease("current") is None
    assert not gate.find("current")
    assert gate.serving("current") is None
    assert gate.residents == []


def test_a_lease_says_what_it_is_on(gate):
    serve(gate, V1)
    lease = gate.lease("current")
    assert lease.key == V1
    assert lease.engine is gate.resident(V1).engine


def test_new_leases_get_the_promoted_engine_and_old_ones_keep_theirs(gate):
    serve(gate, V1)
    old = gate.lease("current")
    serve(gate, V2)
    new = gate.lease("current")
    assert (old.key, new.key) == (V1, V2)
    assert states(gate) == {V1: "DRAINING", V2: "SERVING"}


def test_a_lease_is_counted_until_it_is_released_once(gate):
    serve(gate, V1)
    first, second = gate.lease("current"), gate.lease("current")
    assert gate.resident(V1).leases == 2
    first.release()
    first.release()
    assert gate.resident(V1).leases == 1
    with second:
        pass
    assert gate.resident(V1).leases == 0


def test_a_lease_is_released_by_an_error_too(gate):
    serve(gate, V1)

    class Oops(Exception):
        pass

    with pytest.raises(Oops), gate.lease("current"):
        raise Oops
    assert gate.resident(V1).leases == 0


def test_a_released_lease_holds_the_engine_no_more(gate):
    serve(gate, V1)
    lease = gate.lease("current")
    lease.release()
    assert not hasattr(lease, "engine")
    assert lease.key == V1


def test_the_return_of_a_lease_is_told_once():
    returned = []
    gate = Gate(lambda: returned.append(1))
    serve(gate, V1)
    lease = gate.lease("current")
    assert returned == []
    lease.release()
    lease.release()
    assert returned == [1]


def test_images_are_counted_for_the_engine_that_made_them(gate):
    serve(gate, V1)
    lease = gate.lease("current")
    serve(gate, V2)
    lease.count_images(3)
    assert (gate.resident(V1).images, gate.resident(V2).images) == (3, 0)


@pytest.mark.parametrize("model", ["v1", "v2"])
def test_a_resident_version_is_leased_by_its_name(gate, model):
    serve(gate, V1)
    serve(gate, V2)
    assert gate.find(model)
    assert gate.lease(model).key.version == model


def test_a_version_that_is_not_resident_is_not_known(gate):
    serve(gate, V1)
    assert gate.lease("v2") is None
    assert not gate.find("v2")


def test_of_two_contents_of_one_version_the_one_that_serves_is_leased(gate):
    serve(gate, V1)
    serve(gate, V1_RESEALED)
    assert gate.lease("v1").key == V1_RESEALED
    serve(gate, V1)
    assert gate.lease("v1").key == V1


def test_an_alias_goes_before_a_version_of_the_same_name(gate):
    serve(gate, Key("current", "a" * 64), alias="canary")
    serve(gate, V1)
    assert gate.lease("current").key == V1


def test_what_served_before_is_remembered_and_wanted(gate):
    serve(gate, V1)
    assert gate.previous("current") is None
    serve(gate, V2)
    assert gate.previous("current") == V1
    assert gate.wanted(V1)
    serve(gate, V3)
    assert gate.previous("current") == V2
    assert not gate.wanted(V1)


def test_promoting_what_serves_changes_nothing(gate):
    serve(gate, V1)
    serve(gate, V2)
    gate.promote("current", V2)
    assert gate.previous("current") == V1
    assert states(gate) == {V1: "DRAINING", V2: "SERVING"}


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "still draining"])
def test_flipping_back_serves_the_same_engine_again(gate, warm):
    serve(gate, V1)
    engine = gate.resident(V1).engine
    serve(gate, V2)
    if warm:
        gate.keep(V1)
    gate.promote("current", V1)
    assert gate.lease("current").engine is engine
    assert states(gate) == {V1: "SERVING", V2: "DRAINING"}
    assert gate.previous("current") == V2


def test_what_an_earlier_run_served_before_is_taken_over(gate):
    gate.remember_previous("current", V3)
    assert gate.previous("current") == V3
    assert gate.wanted(V3)


def test_an_engine_that_two_aliases_serve_drains_with_the_last(gate):
    serve(gate, V1)
    serve(gate, V1, alias="canary")
    serve(gate, V2)
    assert states(gate) == {V1: "SERVING", V2: "SERVING"}
    serve(gate, V2, alias="canary")
    assert states(gate) == {V1: "DRAINING", V2: "SERVING"}


def test_two_aliases_have_their_own_leases_on_one_engine(gate):
    serve(gate, V1)
    serve(gate, V1, alias="canary")
    leases = [gate.lease("current"), gate.lease("canary")]
    assert leases[0].engine is leases[1].engine
    assert gate.resident(V1).leases == 2


def test_freeing_forgets_the_engine_and_hands_it_over(gate):
    serve(gate, V1)
    serve(gate, V2)
    resident = gate.resident(V1)
    assert gate.free(V1) is resident.engine
    assert gate.resident(V1) is None
    assert resident.state is EngineState.FREED
    assert not gate.find("v1")


@pytest.mark.parametrize("end", [Gate.keep, Gate.free], ids=["keep", "free"])
def test_a_serving_engine_is_neither_kept_nor_freed(gate, end):
    serve(gate, V1)
    with pytest.raises(AssertionError, match="no way from SERVING"):
        end(gate, V1)
    assert gate.lease("v1") is not None


def test_an_engine_without_its_memory_gets_no_lease_under_any_name(gate):
    serve(gate, V1)
    gate.resident(V1).engine.is_complete = False
    assert gate.lease("current") is None
    assert gate.lease("v1") is None


def test_withdrawing_drains_what_served_and_wants_nothing_back(gate):
    serve(gate, V1)
    serve(gate, V2)
    lease = gate.lease("current")
    gate.withdraw("current")
    assert gate.serving("current") is None
    assert gate.lease("current") is None
    assert states(gate)[V2] == "DRAINING"
    assert gate.resident(V2).leases == 1
    assert not gate.wanted(V1)
    assert lease.engine is gate.resident(V2).engine


def test_withdrawing_one_alias_leaves_the_other(gate):
    serve(gate, V1)
    serve(gate, V1, alias="canary")
    gate.withdraw("current")
    assert gate.lease("canary").key == V1
    assert states(gate) == {V1: "SERVING"}


def test_withdrawing_what_serves_nothing_is_harmless(gate):
    gate.withdraw("current")
    assert gate.residents == []
