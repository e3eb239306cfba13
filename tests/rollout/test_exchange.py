"""On a card too small for two, requests wait while versions change places; they do not fail."""

import asyncio
import threading

import pytest

from tests.rollout.conftest import HeldFactory
from tests.rollout.test_supervisor import TRANSFORMER, flip_byte, make_v3, picture, quick_retries, reached  # noqa: F401
from zwatch.rollout.lifecycle import EngineState
from zwatch.shadow.host import HostShadow


@pytest.fixture
async def service(services):
    """A service that serves v1 on a device with room for nothing else."""
    started = await services(make_factory=lambda: HeldFactory(budget=2**26)).start()
    await started.until_serves("v1")
    device = started.factory.device
    device.budget = 2**26 - device.memory()[0]
    return started


def hold_behind(monkeypatch, factory, method):
    """Let a method of the factory return only when the second event is set; the first says that it is done."""
    done, go, original = threading.Event(), threading.Event(), getattr(factory, method)

    def held(*args):
        result = original(*args)
        done.set()
        assert go.wait(15)
        return result

    monkeypatch.setattr(factory, method, held)
    return done, go


async def test_the_other_version_takes_the_place_and_the_status_says_how(service):
    service.link("v2")
    await service.until_serves("v2")
    attempt = service.supervisor.attempts[0]
    assert (attempt.way, attempt.held > 0) == ("host", True)
    assert attempt.control.phases.keys() >= {"read", "verify", "aside", "build", "warm", "promote"}
    assert service.engines() == {"v2": EngineState.SERVING}
    assert service.engines.leaving is None


async def test_back_and_forth_ends_with_the_same_pictures_and_the_same_memory(service):
    with service.engines.lease("current") as lease:
        first = picture(lease)
    for version in ("v2", "v1", "v2", "v1"):
        service.link(version)
        await service.until_serves(version)
    with service.engines.lease("current") as lease:
        assert (picture(lease) == first).all()
    assert service.factory.device.memory()[0] == 0


async def test_it_waits_for_the_request_in_flight_and_gives_no_new_lease(service):
    lease = service.engines.lease("current")
    service.link("v2")
    await service.until(lambda: service.engines.leaving is not None)
    assert service.engines.lease("current") is None
    assert service.engines.lease("v1") is None
    assert service.engines.find("current"), "a request is accepted, and waits"
    assert not service.engines.find("v1"), "nobody joins the version that leaves"
    assert picture(lease).shape == (64, 64, 3)
    assert service.serves() == "v1"
    lease.release()
    await service.until_serves("v2")


async def test_a_newer_wish_while_it_waits_leaves_everything_as_it_was(service):
    lease = service.engines.lease("current")
    service.link("v2")
    await service.until(lambda: service.engines.leaving is not None)
    service.link("v1")
    await service.until(lambda: service.engines.leaving is None)
    assert service.attempts()[0] == ("v2", "ABANDONED", None)
    lease.release()
    await service.until_serves("v1")
    assert service.engines.lease("current") is not None


async def test_a_newer_wish_in_the_middle_puts_the_old_one_back_and_then_comes_in(service):
    make_v3(service.root)
    go = service.factory.hold("warm", "v2")
    service.link("v2")
    await reached(service, "warm", "v2")
    service.link("v3")
    await service.until_serves("v3")
    go.set()
    assert ("v2", "ABANDONED", None) in service.attempts()
    assert service.engines() == {"v3": EngineState.SERVING}


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
    assert (attempt.held, service.engines.leaving) == (0.0, None)


async def test_what_cannot_be_put_back_is_withdrawn_and_loaded_again(service, monkeypatch, quick_retries):  # noqa: F811
    from zwatch.engine import store as store_module
    from zwatch.errors import Rejection

    building, calls = store_module.build, []

    def broken(*args):
        calls.append(args[0][0])
        if len(calls) <= 2:  # the new one's first component, and the old one's
            raise Rejection("device_error", "the device fell off the bus")
        return building(*args)

    monkeypatch.setattr(store_module, "build", broken)
    service.link("v2")
    await service.until_serves("v2")
    assert ("v2", "REJECTED", "device_error") in service.attempts()


async def test_a_version_that_another_alias_serves_too_stays(services, quick_retries):  # noqa: F811
    started = services(make_factory=lambda: HeldFactory(budget=2**26), aliases=("current", "canary"))
    (started.root / "canary").symlink_to("v1")
    await started.start()
    await started.until_serves("v1")
    await started.until_serves("v1", "canary")
    device = started.factory.device
    device.budget = 2**26 - device.memory()[0]
    started.link("v2", "canary")
    await started.until_rejected("v2", "insufficient_memory")
    assert (started.serves(), started.serves("canary")) == ("v1", "v1")


@pytest.fixture
async def with_canary(services):
    """A service that follows `canary` too, which has no link yet; v1 serves on a device with room for nothing else."""
    started = await services(make_factory=lambda: HeldFactory(budget=2**26), aliases=("current", "canary")).start()
    await started.until_serves("v1")
    device = started.factory.device
    device.budget = 2**26 - device.memory()[0]
    return started


async def test_another_alias_does_not_get_the_version_that_leaves(with_canary, quick_retries):  # noqa: F811
    lease = with_canary.engines.lease("current")
    with_canary.link("v2")
    await with_canary.until(lambda: with_canary.engines.leaving is not None)
    with_canary.link("v1", "canary")
    await with_canary.supervisor.look_now()
    assert with_canary.serves("canary") is None
    lease.release()
    await with_canary.until(lambda: with_canary.serves() == "v2")
    await with_canary.until_rejected("v1", "insufficient_memory")
    assert with_canary.engines() == {"v2": EngineState.SERVING}


async def test_what_another_alias_serves_since_it_was_staged_stays(with_canary, monkeypatch):
    staged, go = hold_behind(monkeypatch, with_canary.factory, "stage")
    with_canary.link("v2")
    await with_canary.until(staged.is_set)
    with_canary.link("v1", "canary")
    await with_canary.until(lambda: with_canary.serves("canary") == "v1")
    go.set()
    attempt = with_canary.supervisor.attempt("current")
    await with_canary.until(lambda: attempt.rejection is not None)
    assert attempt.rejection.code == "insufficient_memory"
    assert "canary" in attempt.rejection.reason
    assert (with_canary.serves(), with_canary.serves("canary")) == ("v1", "v1")
    assert with_canary.engines.leaving is None


async def test_a_newer_wish_that_serves_already_is_not_pushed_aside_by_what_came_in(services, monkeypatch):
    started = services(make_factory=lambda: HeldFactory(budget=2**26), aliases=("current", "canary"))
    make_v3(started.root)
    (started.root / "canary").symlink_to("v3")
    await started.start()
    await started.until_serves("v1")
    await started.until_serves("v3", "canary")
    device = started.factory.device
    device.budget = 2**26 - device.memory()[0]
    exchanged, go = hold_behind(monkeypatch, started.factory, "exchange")
    started.link("v2")
    await started.until(exchanged.is_set)
    started.link("v3")
    await started.until(lambda: started.serves() == "v3")
    go.set()
    await started.until(lambda: ("v2", "ABANDONED", None) in started.attempts())
    assert started.serves() == "v3"
    await started.until(lambda: started.engines() == {"v3": EngineState.SERVING})
    started.link("v1")
    await started.until_serves("v1")
    with started.engines.lease("current") as lease:
        assert picture(lease).shape == (64, 64, 3)


async def pinning(service, monkeypatch):
    """Have host memory pinned for the next version until the event is set."""
    device, going_on, go = service.factory.device, threading.Event(), threading.Event()
    monkeypatch.setattr(device, "reserve", lambda sizes: False)
    reserve = device.host.reserve

    def pin(sizes):
        going_on.set()
        assert go.wait(15)
        return reserve(sizes)

    monkeypatch.setattr(device.host, "reserve", pin)
    service.supervisor._preparation.note_promoted(service.engines.serving("current").key)
    service.supervisor.ring()
    await service.until(going_on.is_set)
    return go


async def test_nothing_is_staged_while_the_memory_for_it_is_being_pinned(service, monkeypatch):
    go = await pinning(service, monkeypatch)
    began, stage = threading.Event(), service.factory.stage
    monkeypatch.setattr(service.factory, "stage", lambda *args: began.set() or stage(*args))
    service.link("v2")
    await service.until(lambda: service.supervisor.attempts[0].way == "host")
    assert not await asyncio.to_thread(began.wait, 0.3)
    go.set()
    await service.until_serves("v2")


async def test_a_newer_wish_does_not_wait_for_memory_to_be_pinned(service, monkeypatch):
    go = await pinning(service, monkeypatch)
    service.link("v2")
    await service.until(lambda: service.supervisor.attempts[0].way == "host")
    service.link("v1")
    await service.until(lambda: service.attempts()[0] == ("v2", "ABANDONED", None))
    go.set()


async def test_where_there_is_room_for_two_nothing_is_pinned(service, monkeypatch):
    device, pinned = service.factory.device, []
    device.budget *= 3
    monkeypatch.setattr(device, "reserve", lambda sizes: False)
    monkeypatch.setattr(device.host, "reserve", pinned.append)
    service.supervisor._preparation.note_promoted(service.engines.serving("current").key)
    service.supervisor.ring()
    preparation = service.supervisor._preparation
    await service.until(lambda: preparation._task is not None and not preparation.is_going_on)
    await service.supervisor.look_now()
    assert pinned == []


async def test_stopping_does_not_wait_for_the_request_that_an_exchange_waits_for(service):
    lease = service.engines.lease("current")
    service.link("v2")
    await service.until(lambda: service.engines.leaving is not None)
    await service.stop()
    assert service.attempts()[0] == ("v2", "ABANDONED", None)
    lease.release()


async def test_without_room_on_the_host_it_is_rejected_with_the_byte_counts(service, monkeypatch):
    monkeypatch.setattr(HostShadow, "memory", lambda self: (1000, 2000))
    service.link("v2")
    await service.until_rejected("v2", "insufficient_memory")
    assert "1000" in service.supervisor.attempts[0].rejection.reason
    assert service.serves() == "v1"


async def test_an_unload_in_the_middle_frees_both(service):
    service.factory.hold("warm", "v2")
    service.link("v2")
    await reached(service, "warm", "v2")
    unloading = asyncio.create_task(service.supervisor.unload())
    assert await asyncio.wait_for(unloading, 15)
    assert service.engines() == {}
    device = service.factory.device
    await service.until(lambda: device.memory()[0] == device.budget)  # the loading thread lets go a moment later
