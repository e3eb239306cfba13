"""What operators request: loading, unloading, and waiting for what becomes of a link."""

import asyncio
import os
import threading

import numpy as np
import pytest

from tests.engine.editing import edit_tensors
from tests.rollout.conftest import BUDGET, DEADLINE, TRANSFORMER, HeldFactory, flip_byte, picture, reached
from zwatch.deploy.sealing import write_seal
from zwatch.rollout.lifecycle import EngineState

# --- unloading


async def test_unloading_frees_everything_and_lasts_across_a_restart_until_a_load(services):
    first = await services(make_factory=lambda: HeldFactory(budget=BUDGET)).start()
    await first.until_serves("v1")
    first.link("v2")
    await first.until_serves("v2")
    await asyncio.wait_for(first.operator.unload(), DEADLINE)
    assert (first.serves(), first.states()) == (None, {})
    assert first.factory.device.memory()[0] == BUDGET
    await first.supervisor.look_now()
    assert first.serves() is None
    await first.stop()
    second = await services().start()
    await second.supervisor.look_now()
    assert second.supervisor.is_unloaded("current")
    assert second.attempts() == []
    outcome = await asyncio.wait_for(second.operator.load("current"), DEADLINE)
    assert (outcome.serves, outcome.version, second.serves()) == (True, "v2", "v2")


async def test_a_new_link_ends_an_unload(service):
    await asyncio.wait_for(service.operator.unload(), DEADLINE)
    service.link("v1")
    await service.until_serves("v1")
    assert not service.supervisor.is_unloaded("current")


async def test_unloading_waits_for_the_requests_that_hold_a_lease(service):
    lease = service.engines.lease("current")
    unloading = asyncio.create_task(service.operator.unload())
    await service.until(lambda: service.states() == {"v1": EngineState.DRAINING})
    await service.supervisor.look_now()
    assert not unloading.done()
    assert picture(lease).shape == (64, 64, 3)
    lease.release()
    await asyncio.wait_for(unloading, DEADLINE)
    assert service.states() == {}


async def test_unloading_returns_only_after_the_last_engine_is_closed(services):
    service = await services(make_factory=lambda: HeldFactory(budget=BUDGET)).start()
    await service.until_serves("v1")
    engine, closing = service.engines.serving("current").engine, threading.Event()
    genuine = engine.close
    engine.close = lambda: (closing.wait(DEADLINE), genuine())
    unloading = asyncio.create_task(service.operator.unload())
    await service.until(lambda: service.states() == {})
    for _ in range(5):
        service.supervisor.changes.fire()
        await asyncio.sleep(0)
    answered_early = unloading.done()
    closing.set()
    await asyncio.wait_for(unloading, DEADLINE)
    assert not answered_early
    assert service.factory.device.memory()[0] == BUDGET


async def test_unloading_abandons_the_running_load(service):
    service.factory.hold("warm", "v2")
    service.link("v2")
    await reached(service, "warm", "v2")
    await asyncio.wait_for(service.operator.unload(), DEADLINE)
    assert service.states() == {}
    assert service.attempts()[0] == ("v2", "ABANDONED", None)


async def test_unloading_just_as_a_load_ends_frees_it_too(services):
    """The load's end comes after the unload was asked for, and before the supervisor acts on it."""
    factory = HeldFactory()
    release = factory.hold("warm", "v1")
    service = await services(make_factory=lambda: factory).start(run=False)
    await service.supervisor.step()
    await reached(service, "warm", "v1")
    unloading = asyncio.create_task(service.operator.unload())
    await service.until(lambda: service.supervisor.is_unloaded("current"))
    release.set()
    await service.until(lambda: service.supervisor.runner.running is None)
    service.run()
    await asyncio.wait_for(unloading, DEADLINE)
    assert (service.serves(), service.states()) == (None, {})


# --- loading


async def test_loading_what_serves_returns_at_once(service):
    outcome = await asyncio.wait_for(service.operator.load("current"), DEADLINE)
    assert (outcome.serves, outcome.version) == (True, "v1")
    assert len(service.attempts()) == 1


async def test_loading_after_a_rejection_tries_again(service):
    flip_byte(service.root / "v2" / TRANSFORMER)
    service.link("v2")
    await service.until_rejected("v2", "hash_mismatch")
    outcome = await asyncio.wait_for(service.operator.load("current"), DEADLINE)
    assert not outcome.serves
    assert TRANSFORMER in outcome.message
    assert [state for _, state, _ in service.attempts()] == ["REJECTED", "REJECTED", "PROMOTED"]


async def test_loading_an_alias_with_a_fault_returns_the_fault(service):
    os.unlink(service.root / "current")
    (service.root / "current").symlink_to("nowhere")
    outcome = await asyncio.wait_for(service.operator.load("current"), DEADLINE)
    assert not outcome.serves
    assert "nowhere" in outcome.message


async def test_loading_after_a_file_was_overwritten_in_place_is_rejected_until_it_is_sealed(service):
    before = service.engines.serving("current").key
    with service.engines.lease("current") as lease:
        expected = picture(lease)
        edit_tensors(service.root / "v1" / TRANSFORMER, lambda tensors: {k: t * 1.5 for k, t in tensors.items()})
        outcome = await asyncio.wait_for(service.operator.load("current"), DEADLINE)
        assert not outcome.serves
        assert TRANSFORMER in outcome.message
        assert service.attempts()[0] == ("v1", "REJECTED", "hash_mismatch")
        assert service.engines.serving("current").key == before
        assert np.array_equal(picture(lease), expected)
    write_seal(service.root / "v1", "v1")
    outcome = await asyncio.wait_for(service.operator.load("current"), DEADLINE)
    assert outcome.serves
    assert service.engines.serving("current").key != before
    with service.engines.lease("current") as lease:
        assert not np.array_equal(picture(lease), expected)


async def test_loading_after_the_same_bytes_were_written_again_verifies_them_and_keeps_the_engine(service):
    resident = service.engines.serving("current")
    data = (service.root / "v1" / TRANSFORMER).read_bytes()
    (service.root / "v1" / TRANSFORMER).write_bytes(data)
    outcome = await asyncio.wait_for(service.operator.load("current"), DEADLINE)
    assert outcome.serves
    assert service.engines.serving("current") is resident
    assert service.attempts() == [("v1", "PROMOTED", None)] * 2
    await asyncio.wait_for(service.operator.load("current"), DEADLINE)
    assert len(service.attempts()) == 2


# --- waiting for a link


async def test_the_outcome_of_a_wish_is_that_it_serves(service):
    stamp = service.point("v2")
    outcome = await asyncio.wait_for(service.operator.outcome("current", "v2", stamp), DEADLINE)
    assert (outcome.serves, outcome.version, service.serves()) == (True, "v2", "v2")
    assert outcome.attempt is service.supervisor.attempt("current")


async def test_the_outcome_of_a_bad_wish_is_its_rejection(service):
    flip_byte(service.root / "v2" / TRANSFORMER)
    outcome = await asyncio.wait_for(service.operator.outcome("current", "v2", service.point("v2")), DEADLINE)
    assert not outcome.serves
    assert outcome.attempt.rejection.code == "hash_mismatch"
    assert outcome.message == outcome.attempt.rejection.reason


async def test_the_outcome_of_an_older_wish_is_superseded(service):
    service.factory.hold("build", "v2")
    waiting = asyncio.create_task(service.operator.outcome("current", "v2", service.point("v2")))
    await reached(service, "build", "v2")
    service.link("v1")
    outcome = await asyncio.wait_for(waiting, DEADLINE)
    assert not outcome.serves
    assert "superseded" in outcome.message


@pytest.mark.parametrize("asked", ["outcome", "load"])
async def test_waiting_for_a_load_ends_with_an_unload(service, asked):
    service.factory.hold("build", "v2")
    stamp = service.point("v2")
    waiting = asyncio.create_task(
        service.operator.outcome("current", "v2", stamp) if asked == "outcome" else service.operator.load("current")
    )
    await reached(service, "build", "v2")
    await asyncio.wait_for(service.operator.unload(), DEADLINE)
    done, _ = await asyncio.wait([waiting], timeout=DEADLINE)
    waiting.cancel()
    assert done, "it still waits for a load that was abandoned"
    assert not waiting.result().serves
