"""The life of an attempt: what it gives back at its end, and when it is tried again. Real files, real engines."""

import logging
import threading

import pytest

from tests.rollout.conftest import BUDGET, TRANSFORMER, HeldFactory, flip_byte, make_v3, picture, quick_retries, reached
from zwatch.errors import Rejection, Retry
from zwatch.rollout.lifecycle import EngineState, LoadWay
from zwatch.rollout.load_thread import LoadLimits


@pytest.mark.parametrize("stage", ["build", "warm"])
async def test_load_after_cancelled_load(service, stage):
    """v2 is abandoned for v3, and then loads all the same."""
    make_v3(service.root)
    service.factory.hold(stage, "v2")
    service.link("v2")
    await reached(service, stage, "v2")
    service.link("v3")
    await service.until_serves("v3")
    service.factory.holding.clear()
    service.link("v2")
    await service.until_serves("v2")
    assert service.attempts() == [
        ("v2", "PROMOTED", None), ("v3", "PROMOTED", None), ("v2", "ABANDONED", None), ("v1", "PROMOTED", None),
    ]  # fmt: skip


@pytest.mark.parametrize("stage", ["build", "warm"])
async def test_an_abandoned_load_gives_its_memory_back(services, stage):
    service = await services(make_factory=lambda: HeldFactory(budget=BUDGET)).start()
    await service.until_serves("v1")
    free = service.factory.device.memory()[0]
    service.factory.hold(stage, "v2")
    service.link("v2")
    await reached(service, stage, "v2")
    service.link("v1")
    await service.until(lambda: service.attempts()[0] == ("v2", "ABANDONED", None))
    await service.until(lambda: service.factory.device.memory()[0] == free)


async def test_resources_released_if_load_fails(services):
    service = await services(make_factory=lambda: HeldFactory(budget=BUDGET)).start()
    await service.until_serves("v1")
    free = service.factory.device.memory()[0]
    flip_byte(service.root / "v2" / TRANSFORMER)
    service.link("v2")
    await service.until_rejected("v2", "hash_mismatch")
    await service.until(lambda: service.supervisor.settled_once)
    assert service.factory.device.memory()[0] == free
    assert service.states() == {"v1": EngineState.SERVING}


@quick_retries
async def test_a_load_that_lacked_memory_is_tried_again_until_there_is_enough(services):
    service = await services(make_factory=lambda: HeldFactory(budget=10_000)).start()
    await service.until(lambda: service.attempts().count(("v1", "REJECTED", "insufficient_memory")) >= 2)
    service.factory.device.budget = BUDGET
    await service.until_serves("v1")


@pytest.mark.parametrize("first_pause", [60.0])
async def test_a_file_that_changes_ends_the_pause(services):
    readable = threading.Event()
    readable.set()

    class RefusingFactory(HeldFactory):
        def plan(self, directory, digest, control):
            if not readable.is_set():
                raise Rejection("io_error", f"{TRANSFORMER}: Permission denied")
            return super().plan(directory, digest, control)

    service = await services(make_factory=RefusingFactory).start()
    await service.until_serves("v1")
    readable.clear()
    service.link("v2")
    await service.until_rejected("v2", "io_error")
    readable.set()
    (service.root / "v2" / TRANSFORMER).chmod(0o640)
    await service.until_serves("v2")


@quick_retries
async def test_the_pause_between_tries_doubles(services):
    service = await services(make_factory=lambda: HeldFactory(budget=10_000)).start()
    await service.until(lambda: [state for _, state, _ in service.attempts()].count("REJECTED") >= 3)
    (refusal,) = service.supervisor.records["current"].refusals.awaiting()
    assert refusal.tries >= 3


@quick_retries
async def test_a_device_that_cannot_be_opened_rejects_and_is_tried_again(services):
    broken = threading.Event()
    tries = []

    def make_factory():
        tries.append(1)
        if not broken.is_set():
            raise RuntimeError("No CUDA GPUs are available")
        return HeldFactory()

    service = await services(make_factory=make_factory).start()
    await service.until(lambda: service.attempts()[-1:] and service.attempts()[-1][1] == "REJECTED")
    assert "No CUDA GPUs are available" in service.supervisor.attempts[-1].rejection.reason
    broken.set()
    await service.until_serves("v1")
    assert all(state != "LOADING" for _, state, _ in service.attempts())


async def test_a_warm_version_makes_room_for_a_new_one(services):
    service = await services(make_factory=lambda: HeldFactory(budget=BUDGET)).start()
    await service.until_serves("v1")
    make_v3(service.root)
    service.link("v2")
    await service.until_serves("v2")
    service.factory.leave_no_room()
    service.link("v3")
    await service.until_serves("v3")
    assert service.states() == {"v2": EngineState.WARM, "v3": EngineState.SERVING}


async def test_a_version_leased_by_its_name_is_not_evicted(services):
    service = await services(make_factory=lambda: HeldFactory(budget=BUDGET)).start()
    await service.until_serves("v1")
    make_v3(service.root)
    service.link("v2")
    await service.until_serves("v2")
    await service.until(lambda: service.states()["v1"] is EngineState.WARM)
    lease = service.engines.lease("v1")
    service.factory.leave_no_room()
    service.link("v3")
    await service.until_serves("v3")
    assert service.states() == {"v1": EngineState.WARM, "v3": EngineState.SERVING}
    assert service.supervisor.attempts[0].way is LoadWay.HOST
    assert picture(lease).shape == (64, 64, 3)


async def abandon(service, how):
    match how:
        case "link":
            service.link("v1")
        case "unload":
            assert await service.operator.unload()
        case "stop":
            await service.stop()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("link", "its alias no longer asks for it"),
        ("unload", "an operator unloaded everything"),
        ("stop", "the service is stopping"),
    ],
)
async def test_the_log_says_why_a_load_was_abandoned(service, caplog, how, reason):
    caplog.set_level(logging.INFO, "zwatch")
    service.factory.hold("build", "v2")
    service.link("v2")
    await reached(service, "build", "v2")
    await abandon(service, how)
    await service.until(lambda: service.attempts()[0] == ("v2", "ABANDONED", None))
    (line,) = [record.message for record in caplog.records if "is abandoned" in record.message]
    assert line.endswith(f"s: {reason}")


def impatient(service):
    """Give up loads soon, from now on."""
    service.supervisor.runner._thread._limits = LoadLimits(stalled=2.0, slow=2.0, unwinding=0.5)


@quick_retries
async def test_a_read_that_never_returns_is_given_up_named_and_tried_again(service, hanging_mount):
    mount = hanging_mount(service.root / "v2")
    impatient(service)
    mount.hangs = TRANSFORMER
    service.link("v2")
    await service.until_rejected("v2", "stalled")
    rejection = service.supervisor.attempts[0].rejection
    assert rejection.retry is Retry.BACKOFF
    assert "did not get on for 2 s" in rejection.reason
    assert service.serves() == "v1"
    mount.heal()
    await service.until(lambda: service.serves() == "v2")
    await service.until(lambda: not service.supervisor.runner._thread.lingering)


async def test_a_load_that_loops_in_python_code_is_ended(services):
    class LoopingFactory(HeldFactory):
        def warm(self, engine, control):
            while engine.version == "v2":
                pass
            super().warm(engine, control)

    service = await services(make_factory=LoopingFactory).start()
    await service.until_serves("v1")
    impatient(service)
    service.link("v2")
    await service.until_rejected("v2", "stalled")
    await service.until(lambda: service.bridge.left("load") == 0)
    assert service.serves() == "v1"
