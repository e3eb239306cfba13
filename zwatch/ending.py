"""How the service ends: when it is stopped, and when the device is lost or a generation does not come back."""

import asyncio
import logging
from typing import TYPE_CHECKING

from zwatch.api.services import Services, TimeLimits
from zwatch.errors import Ending, FatalError, RequestError, retry_after
from zwatch.generation.queue import GenerationQueue
from zwatch.rollout.lifecycle import VersionKey
from zwatch.rollout.supervisor import Supervisor

if TYPE_CHECKING:
    from zwatch.engine.pipeline import Engine

_log = logging.getLogger(__name__)

STOPPING = RequestError("shutting_down", "the service stops", headers=retry_after(5))


def let_judge(supervisor: Supervisor, queue: GenerationQueue, *, probation: float, timeout: float) -> None:
    """Let the supervisor judge what the queue meets: errors of the device, first images, what becomes of requests, and what does
    not come back. A version is on trial for `probation` seconds after its promotion; an attended request has `timeout` seconds."""

    async def judge(error: Exception, key: VersionKey) -> RequestError | None:
        if not await supervisor.judge(error):
            return None
        supervisor.withdrawal.blame(key)
        refuse_all(queue)
        return STOPPING

    def stuck(engine: "Engine", reason: str) -> None:
        refuse_all(queue)
        error = FatalError(reason, is_crash=True, ending=Ending.HUNG)
        key = VersionKey(engine.version, engine.digest)
        supervisor.fail(error, hung=key)
        supervisor.withdrawal.blame(key)

    queue.timeout, supervisor.withdrawal.probation = timeout, probation
    queue.drawer.judge, queue.drawer.withdrawal = judge, supervisor.withdrawal
    queue.drawer.judge_first = supervisor.first_images.judge
    queue.generator.on_stuck = stuck
    queue.generator.is_on_gpu = lambda: (
        supervisor.factory is not None and supervisor.factory.device.torch_device.type == "cuda"
    )


def refuse_all(queue: GenerationQueue) -> None:
    """Tell the clients of all jobs that wait to come again, and those who come; what the device has drawn is still answered."""
    queue.close(STOPPING, permanent=True)
    queue.refuse_waiting(STOPPING)


def begin_end(services: Services, limits: TimeLimits) -> float:
    """Refuse what waits where something failed for good; return for how many seconds to wait for what has begun."""
    if services.supervisor.failure is None:
        return limits.drain
    refuse_all(services.queue)
    return limits.failed_drain


async def end_requests(services: Services, limits: TimeLimits) -> None:
    """Accept no more requests, and wait until those that were accepted have ended: where something failed for good, only for
    what is drawn already."""
    seconds = begin_end(services, limits)
    services.queue.close(STOPPING, permanent=True)
    try:
        async with asyncio.timeout(seconds):
            await services.queue.drained()
    except TimeoutError:
        _log.warning("%d requests were still waiting after %g s", services.queue.waiting, seconds)
