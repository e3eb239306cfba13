"""On a device too small for two versions, requests wait while they are exchanged; they do not fail."""

import asyncio
import threading

import pytest
import torch

from tests.rollout.conftest import (
    BUDGET,
    DEADLINE,
    TRANSFORMER,
    HeldFactory,
    flip_byte,
    make_v3,
    picture,
    quick_retries,
    reached,
)
from zwatch.rollout.lifecycle import EngineState, LoadWay
from zwatch.shadow.host import HOST_SPARE, HostShadow
from zwatch.shadow.pool import Pool


@pytest.fixture
async def service(services):
    """A service that serves v1 on a device that is full with it."""
    started = await services(make_factory=lambda: HeldFactory(budget=BUDGET)).start()
    await started.until_serves("v1")
    started.factory.leave_no_room()
    return started


async def test_the_versions_are_exchanged_and_the_attempt_says_so(service):
    service.link("v2")
    await service.until_serves("v2")
    attempt = service.supervisor.attempts[0]
    assert (attempt.way, attempt.requests_waited > 0) == (LoadWay.HOST, True)
    assert attempt.control.phases.keys() >= {"read", "verify", "aside", "build", "warm", "promote"}
    assert service.states() == {"v2": EngineState.SERVING}
    assert service.engines.being_exchanged is None


async def test_repeated_exchanges_end_with_the_same_pictures_and_the_same_memory(service):
    with service.engines.lease("current") as lease:
        first = picture(lease)
    for version in ("v2", "v1", "v2", "v1"):
        service.link(version)
        await service.until_serves(version)
    with service.engines.lease("current") as lease:
        assert (picture(lease) == first).all()
    assert service.factory.device.memory()[0] == 0


async def test_an_exchange_waits_for_the_running_request_and_gives_no_new_lease(service):
    lease = service.engines.lease("current")
    service.link("v2")
    await service.until(lambda: service.engines.being_exchanged is not None)
    assert service.engines.lease("current") is None
    assert service.engines.lease("v1") is None
    assert service.engines.find("current"), "a request for the alias is accepted, and waits"
    assert not service.engines.find("v1"), "no request gets the version that is being exchanged"
    assert picture(lease).shape == (64, 64, 3)
    assert service.serves() == "v1"
    lease.release()
    await service.until_serves("v2")


async def test_a_newer_wish_while_an_exchange_waits_leaves_everything_as_it_was(service):
    lease = service.engines.lease("current")
    service.link("v2")
    await service.until(lambda: service.engines.being_exchanged is not None)
    service.link("v1")
    await service.until(lambda: service.engines.being_exchanged is None)
    assert service.attempts()[0] == ("v2", "ABANDONED", None)
    lease.release()
    await service.until_serves("v1")
    assert service.engines.lease("current") is not None


async def test_a_newer_wish_during_an_exchange_restores_the_old_version_and_then_loads(service):
    make_v3(service.root)
    go = service.factory.hold("warm", "v2")
    service.link("v2")
    await reached(service, "warm", "v2")
    service.link("v3")
    await service.until_serves("v3")
    go.set()
    assert ("v2", "ABANDONED", None) in service.attempts()
    assert service.states() == {"v3": EngineState.SERVING}


async def test_a_version_that_fails_leaves_the_old_one_serving(service, monkeypatch):
    from zwatch.engine import factory as factory_module
    from zwatch.errors import Rejection

    def no_picture(engine, cancelled):
        raise Rejection("bad_image", "the warm-up image is one colour")

    monkeypatch.setattr(factory_module, "warm", no_picture)
    service.link("v2")
    await service.until_rejected("v2", "bad_image")
    assert service.serves() == "v1"
    with service.engines.lease("current") as lease:
        assert picture(lease).shape == (64, 64, 3)


async def test_a_corrupt_version_never_makes_a_request_wait(service):
    flip_byte(service.root / "v2" / TRANSFORMER)
    service.link("v2")
    await service.until_rejected("v2", "hash_mismatch")
    attempt = service.supervisor.attempts[0]
    assert (attempt.requests_waited, service.engines.being_exchanged) == (0.0, None)


@quick_retries
async def test_a_version_that_cannot_be_restored_is_withdrawn_and_the_wish_is_loaded_again(service, monkeypatch):
    from zwatch.engine import store as store_module
    from zwatch.errors import Rejection

    building, calls = store_module.build, []

    def broken(*args):
        calls.append(args[0][0])
        if len(calls) <= 2:  # the new one's first component, and the old one's
            raise Rejection("device_error", "the device is lost")
        return building(*args)

    monkeypatch.setattr(store_module, "build", broken)
    service.link("v2")
    await service.until_serves("v2")
    assert ("v2", "REJECTED", "device_error") in service.attempts()


@quick_retries
async def test_a_version_that_another_alias_serves_too_is_not_exchanged(services):
    started = services(make_factory=lambda: HeldFactory(budget=BUDGET), aliases=("current", "canary"))
    (started.root / "canary").symlink_to("v1")
    await started.start()
    await started.until_serves("v1")
    await started.until_serves("v1", "canary")
    started.factory.leave_no_room()
    started.link("v2", "canary")
    await started.until_rejected("v2", "insufficient_memory")
    assert (started.serves(), started.serves("canary")) == ("v1", "v1")


@pytest.fixture
async def with_canary(services):
    """A service that follows `canary` too, which has no link yet; v1 serves on a device with room for nothing else."""
    started = await services(make_factory=lambda: HeldFactory(budget=BUDGET), aliases=("current", "canary")).start()
    await started.until_serves("v1")
    started.factory.leave_no_room()
    return started


@quick_retries
async def test_another_alias_does_not_get_the_version_that_is_being_exchanged(with_canary):
    lease = with_canary.engines.lease("current")
    with_canary.link("v2")
    await with_canary.until(lambda: with_canary.engines.being_exchanged is not None)
    with_canary.link("v1", "canary")
    await with_canary.supervisor.look_now()
    assert with_canary.serves("canary") is None
    lease.release()
    await with_canary.until(lambda: with_canary.serves() == "v2")
    await with_canary.until_rejected("v1", "insufficient_memory")
    assert with_canary.states() == {"v2": EngineState.SERVING}


async def test_a_version_that_another_alias_serves_since_the_staging_is_not_exchanged(with_canary):
    go = with_canary.factory.hold("staged", "v2")
    with_canary.link("v2")
    await reached(with_canary, "staged", "v2")
    with_canary.link("v1", "canary")
    await with_canary.until(lambda: with_canary.serves("canary") == "v1")
    go.set()
    attempt = with_canary.supervisor.attempt("current")
    await with_canary.until(lambda: attempt.rejection is not None)
    assert attempt.rejection.code == "insufficient_memory"
    assert "canary" in attempt.rejection.reason
    assert (with_canary.serves(), with_canary.serves("canary")) == ("v1", "v1")
    assert with_canary.engines.being_exchanged is None


async def test_a_newer_wish_that_serves_already_is_not_replaced_by_the_exchanged_version(services):
    started = services(make_factory=lambda: HeldFactory(budget=BUDGET), aliases=("current", "canary"))
    make_v3(started.root)
    (started.root / "canary").symlink_to("v3")
    await started.start()
    await started.until_serves("v1")
    await started.until_serves("v3", "canary")
    started.factory.leave_no_room()
    go = started.factory.hold("exchanged", "v2")
    started.link("v2")
    await reached(started, "exchanged", "v2")
    started.link("v3")
    await started.until(lambda: started.serves() == "v3")
    go.set()
    await started.until(lambda: ("v2", "ABANDONED", None) in started.attempts())
    assert started.serves() == "v3"
    await started.until(lambda: started.states() == {"v3": EngineState.SERVING})
    started.link("v1")
    await started.until_serves("v1")
    with started.engines.lease("current") as lease:
        assert picture(lease).shape == (64, 64, 3)


@pytest.fixture
async def pooled(services):
    """A service that serves v1 on a device with a pool that is full with it."""
    started = await services(make_factory=lambda: HeldFactory(budget=BUDGET, pool=Pool(plain))).start()
    await started.until_serves("v1")
    started.factory.leave_no_room()
    return started


def plain(size):
    return torch.empty(size, dtype=torch.uint8)


async def pinning(service):
    """Let host memory be pinned for the next version until the event is set."""
    device, pinning, go = service.factory.device, threading.Event(), threading.Event()

    def pin(size):
        pinning.set()
        assert go.wait(15)
        return plain(size)

    device.host = HostShadow(device.reader, Pool(pin))
    service.supervisor.runner.preparation.note_promoted(service.engines.serving("current").key)
    service.supervisor.ring()
    await service.until(pinning.is_set)
    return go


async def test_nothing_is_staged_while_its_memory_is_being_pinned(pooled):
    service, go = pooled, await pinning(pooled)
    service.link("v2")
    await service.until(lambda: service.supervisor.attempts[0].way is LoadWay.HOST)
    await asyncio.sleep(0.3)
    assert ("stage", "v2") not in service.factory.reached
    go.set()
    await service.until_serves("v2")


async def test_a_newer_wish_does_not_wait_for_memory_to_be_pinned(pooled):
    service, go = pooled, await pinning(pooled)
    service.link("v2")
    await service.until(lambda: service.supervisor.attempts[0].way is LoadWay.HOST)
    service.link("v1")
    await service.until(lambda: service.attempts()[0] == ("v2", "ABANDONED", None))
    go.set()


async def test_with_room_for_two_nothing_is_pinned(pooled):
    service, device, pinned = pooled, pooled.factory.device, []
    device.host = HostShadow(device.reader, Pool(lambda size: pinned.append(size) or plain(size)))
    device.give_room()
    device.budget *= 3
    service.supervisor.runner.preparation.note_promoted(service.engines.serving("current").key)
    service.supervisor.ring()
    preparation = service.supervisor.runner.preparation
    await service.until(lambda: device.kept and not preparation.is_running)
    await service.supervisor.look_now()
    assert pinned == []


async def test_stopping_does_not_wait_for_the_request_that_an_exchange_waits_for(service):
    lease = service.engines.lease("current")
    service.link("v2")
    await service.until(lambda: service.engines.being_exchanged is not None)
    await service.stop()
    assert service.attempts()[0] == ("v2", "ABANDONED", None)
    lease.release()


async def test_without_room_in_host_memory_it_is_rejected_with_the_byte_counts(service):
    device = service.factory.device
    device.host = HostShadow(device.reader, Pool(plain), lambda: (HOST_SPARE + 1000, 2 * HOST_SPARE))
    service.link("v2")
    await service.until_rejected("v2", "insufficient_memory")
    assert "1000" in service.supervisor.attempts[0].rejection.reason
    assert service.serves() == "v1"


async def test_an_unload_during_an_exchange_frees_both(service):
    service.factory.hold("warm", "v2")
    service.link("v2")
    await reached(service, "warm", "v2")
    unloading = asyncio.create_task(service.operator.unload())
    assert await asyncio.wait_for(unloading, DEADLINE)
    assert service.states() == {}
    device = service.factory.device
    await service.until(
        lambda: device.memory()[0] == service.factory.device.budget
    )  # the loading thread releases it soon
