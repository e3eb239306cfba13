"""A device that is lost: it is noticed wherever its first error comes, and also where nobody handles one."""

import asyncio
import json

import pytest
import torch

from tests.rollout.conftest import DEADLINE, HeldFactory
from zwatch.bridge import Bridge, LaneLimits
from zwatch.errors import Ending, Rejection
from zwatch.rollout import device_judge
from zwatch.rollout.device_judge import DeviceJudge
from zwatch.shadow.cuda import Cuda

LOST = "CUDA error: an illegal memory access was encountered"


class FakeDevice:
    torch_device = "cuda:0"

    def __init__(self, lost=lambda: None):
        self.lost = lost


@pytest.fixture
def failures():
    return []


def judging(asked, failures, **limits):
    judge = DeviceJudge(Bridge(limits), lambda: asked, failures.append)
    judge._bridge.on_error = judge.note
    return judge


async def soon(condition):
    async with asyncio.timeout(DEADLINE):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("lane", ["encode", "verify", "load", "pin", "close", "memory", "generate", "history"])
async def test_an_error_of_the_device_in_any_thread_is_judged_whoever_handles_it(lane, failures):
    judge = judging(FakeDevice(lambda: LOST), failures)

    def fail():
        raise torch.AcceleratorError("CUDA error: unspecified launch failure")

    with pytest.raises(RuntimeError):
        await judge._bridge.run(lane, fail)
    await soon(lambda: failures)
    [failure] = failures
    assert (failure.status, failure.is_crash, failure.ending) == (1, True, Ending.DEVICE_LOST)
    assert str(failure) == (
        f"cuda:0 does not work any more ({LOST}) after AcceleratorError: CUDA error: unspecified launch failure"
    )


async def test_an_error_that_leaves_the_device_whole_is_no_failure(failures):
    judge = judging(FakeDevice(), failures)
    assert not await judge.judge(torch.AcceleratorError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED"))
    assert failures == []


async def test_a_device_that_does_not_answer_is_lost(failures):
    go = asyncio.Event()
    loop = asyncio.get_running_loop()
    device = FakeDevice(lambda: asyncio.run_coroutine_threadsafe(go.wait(), loop).result() and None)
    judge = judging(device, failures, device=LaneLimits(seconds=0.1))
    assert await judge.judge()
    assert "nothing came back within 0.1 s" in str(failures[0])
    go.set()


async def test_disks_that_do_not_answer_are_not_taken_for_the_device(failures):
    """Calls that wait for a file server fill the lane of inspections; the device is asked in its own."""
    judge = judging(FakeDevice(), failures, inspect=LaneLimits(width=1, seconds=0.05, most_left=1))
    go = asyncio.Event()
    loop = asyncio.get_running_loop()
    with pytest.raises(OSError, match="no answer"):
        await judge._bridge.run("inspect", lambda: asyncio.run_coroutine_threadsafe(go.wait(), loop).result())
    assert not await judge.judge()
    go.set()


async def test_a_device_that_is_lost_while_nothing_uses_it_is_noticed(failures, monkeypatch):
    monkeypatch.setattr(device_judge, "CHECK_SECONDS", 0.02)
    found, is_used = [None], [True]
    judge = judging(FakeDevice(lambda: found[0]), failures)
    watching = asyncio.create_task(judge.watch(lambda: is_used[0]))
    found[0] = "CUDA error: GPU is lost"
    await asyncio.sleep(0.1)
    assert failures == []
    is_used[0] = False
    await soon(lambda: failures)
    assert "GPU is lost" in str(failures[0])
    watching.cancel()


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (None, None),
        (torch.OutOfMemoryError("CUDA out of memory"), None),
        (MemoryError(), None),
        (torch.AcceleratorError(LOST + "\nSearch for it in the documentation"), LOST),
        (torch.cuda.DeferredCudaCallError("CUDA call failed lazily"), "CUDA call failed lazily"),
        (ValueError(), "ValueError"),
    ],
)
def test_what_an_operation_on_the_device_says_of_it(error, lost, monkeypatch):
    def ones(*args, **kwargs):
        if error is not None:
            raise error
        return torch.zeros(1)

    monkeypatch.setattr("zwatch.shadow.cuda.torch.ones", ones)
    cuda = Cuda.__new__(Cuda)
    cuda._device = torch.device("cpu")
    assert cuda.lost() == lost


async def test_a_load_that_stalls_because_the_device_is_lost_stops_the_service(services, tmp_path):
    factory = HeldFactory()
    factory.device.lost = lambda: LOST

    def warm(engine, control):
        raise Rejection("stalled", "making the warm-up image did not get on")

    factory.warm = warm
    service = await services(make_factory=lambda: factory).start()
    await asyncio.wait_for(service.supervisor.has_failed.wait(), DEADLINE)
    await service.until(lambda: service.supervisor.runner.running is None)
    await service.stop()
    saved = json.loads((service.state / "state.json").read_bytes())
    assert (saved["failure"]["ending"], saved["running"]) == ("device_lost", True)
    assert LOST in saved["failure"]["reason"]
    again = await services().start()
    assert again.supervisor.previous_run.ending is Ending.DEVICE_LOST


async def test_an_engine_that_cannot_be_closed_holds_up_no_decision(services):
    service = await services().start()
    await service.until_serves("v1")
    engine = service.engines.serving("current").engine
    close = engine.close

    def fail():
        close()
        raise RuntimeError("it cannot be closed")

    engine.close = fail
    await asyncio.wait_for(service.operator.unload(), DEADLINE)
    assert service.supervisor.is_empty
