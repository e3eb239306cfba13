"""The bounded queue: requests wait here for the device's turn, first come first served."""

import asyncio
import logging
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from zwatch.bridge import Bridge, Pulse
from zwatch.errors import GenerationCancelled, RequestError
from zwatch.rollout.gate import Gate, Lease
from zwatch.rollout.lifecycle import Key
from zwatch.service.parameters import GenerateRequest, invalid

if TYPE_CHECKING:
    from zwatch.engine.pipeline import Engine, Generation, GenerationParameters

_log = logging.getLogger(__name__)

_FIRST_GUESS = 2.0  # seconds a request takes, until one was measured
_WEIGHT = 0.2  # of the newest request in the running mean
_NO_RETRY = {"x-should-retry": "false"}


@dataclass(frozen=True, slots=True)
class Result:
    """Images, what made them, and from which version: `key` comes from the lease."""

    key: Key
    parameters: "GenerationParameters"
    generation: "Generation"
    queued: float


@dataclass(eq=False)
class Job:
    """One request on its way through the queue."""

    request: GenerateRequest
    done: asyncio.Future[Result]
    lease: Lease | None
    id: str = field(default_factory=lambda: f"j-{secrets.token_hex(8)}")
    step: int = 0
    _cancelled: threading.Event = field(default_factory=threading.Event)
    _accepted: float = field(default_factory=time.monotonic)

    def cancel(self) -> None:
        """Stop it between two denoising steps, or before it begins."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody asked to stop it."""
        return self._cancelled.is_set()

    @property
    def age(self) -> float:
        """Seconds since it was accepted."""
        return time.monotonic() - self._accepted


class GenerationQueue:
    """Takes requests while there is room, and runs them one at a time, which is what one device can do."""

    def __init__(self, gate: Gate, bridge: Bridge, aliases: tuple[str, ...], limit: int, changes: Pulse) -> None:
        self.limit = limit
        self.running: Job | None = None
        self._gate = gate
        self._bridge = bridge
        self._aliases = aliases
        self._changes = changes
        self._waiting: deque[Job] = deque()
        self._arrived = asyncio.Event()
        self._closed: RequestError | None = None
        self._for_good = False
        self._seconds = _FIRST_GUESS

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    def close(self, answer: RequestError, *, for_good: bool = False) -> None:
        """Take no more requests; those that come get this answer. `for_good` is not undone by `reopen`."""
        if not self._for_good:
            self._closed, self._for_good = answer, for_good

    def reopen(self) -> None:
        """Take requests again."""
        if not self._for_good:
            self._closed = None

    def submit(self, request: GenerateRequest) -> Job:
        """Accept a request. One that names a version leases it at once; one for an alias when its turn comes.

        Raises:
            RequestError: 404 unknown model, 429 no room, 503 nothing to serve it.
        """
        if self._closed is not None:
            raise self._closed.with_traceback(None)  # raised again and again, it would keep every request's frames
        if not self._gate.knows(request.model):
            raise self._unservable(request.model)
        # While nothing runs, the first of those that wait is about to.
        if len(self._waiting) >= self.limit + (self.running is None):
            raise RequestError(
                429, "queue_full", f"{self.limit} requests wait already", headers={"Retry-After": self._retry_after()}
            )
        lease = None if request.model in self._aliases else self._gate.lease(request.model)
        job = Job(request, asyncio.get_running_loop().create_future(), lease)
        self._waiting.append(job)
        self._arrived.set()
        self._changes.fire()
        return job

    async def result(self, job: Job) -> Result:
        """Wait for a job; if the caller is cancelled (its client left), so is the job.

        Raises:
            RequestError: it failed.
        """
        try:
            return await job.done
        except asyncio.CancelledError:
            self.cancel(job)
            raise

    def cancel(self, job: Job) -> None:
        """Cancel a job that waits or runs; harmless when it has ended."""
        job.cancel()
        if job in self._waiting:
            self._waiting.remove(job)
            self._end(job)

    async def run(self) -> None:
        """Run jobs, for ever."""
        while True:
            while (job := self._next()) is None:
                self._arrived.clear()
                await self._arrived.wait()
            self._waiting.remove(job)
            self.running = job
            self._changes.fire()
            try:
                await self._run(self.running)
            finally:
                job, self.running = self.running, None
                self._end(job)

    def wake(self) -> None:
        """Look again whether a request can run."""
        self._arrived.set()

    def _next(self) -> Job | None:
        """Return whose turn it is. While an engine is on its way out, that is who holds a lease on it."""
        leaving = self._gate.leaving
        if leaving is None:
            return next(iter(self._waiting), None)
        held = (job for job in self._waiting if job.lease is not None and job.lease.key == leaving.key)
        return next(held, None)

    async def drained(self, given_up: Callable[[], bool] = lambda: False) -> None:
        """Return when no request waits or runs, or at a change after which `given_up` says so."""
        while (self._waiting or self.running is not None) and not given_up():
            await self._changes.wait()

    def _end(self, job: Job) -> None:
        if job.lease is not None:
            job.lease.release()
        if not job.done.done():
            job.done.cancel()
        self._changes.fire()

    async def _run(self, job: Job) -> None:
        queued, begun = job.age, time.monotonic()
        try:
            job.lease = job.lease or self._gate.lease(job.request.model)
            if job.lease is None:
                raise self._unservable(job.request.model)
            engine, key = job.lease.engine, job.lease.key
            parameters = fitted(job.request, engine)
            generation = await self._bridge.run("generate", self._generate, engine, parameters, job)
            if not generation.finite:
                raise RequestError(
                    500, "generation_failed", "the model made pixels that are no numbers", headers=_NO_RETRY
                )
            job.lease.count_images(len(generation.images))
            result = Result(key, parameters, generation, queued)
            if not job.done.done():
                job.done.set_result(result)
        except GenerationCancelled:
            pass  # whoever cancelled it waits no more
        except RequestError as error:
            if not job.done.done():
                job.done.set_exception(error)
        except Exception as error:
            if not job.done.done():
                job.done.set_exception(_failure(error))
        else:
            self._seconds += _WEIGHT * (time.monotonic() - begun - self._seconds)

    def _generate(self, engine: "Engine", parameters: "GenerationParameters", job: Job) -> "Generation":
        def on_step(done: int) -> None:
            job.step = done

        return engine.serve(parameters, on_step=on_step, cancelled=lambda: job.is_cancelled)

    def _unservable(self, model: str) -> RequestError:
        if model in self._aliases:
            return RequestError(
                503, "model_not_loaded", f"{model} serves nothing at present, see /status", headers={"Retry-After": "2"}
            )
        return RequestError(
            404,
            "model_not_found",
            f"{model[:100]!r} is neither an alias nor a resident version, see /status",
            param="model",
        )

    def _retry_after(self) -> str:
        return str(max(1, math.ceil(self._seconds * (len(self._waiting) + 1) / 2)))


def fitted(request: GenerateRequest, engine: "Engine") -> "GenerationParameters":
    """Complete a request with the defaults of the version that serves it, and check it against that version's limits.

    Raises:
        RequestError: 400, a side is longer than the version's positions reach.
    """
    from zwatch.engine.pipeline import GenerationParameters

    sides = {"width": request.width or engine.default_size, "height": request.height or engine.default_size}
    for name, side in sides.items():
        if side > engine.max_side:
            raise invalid(name, f"{name} may be {engine.max_side} at most with version {engine.version}, got {side}")
    return GenerationParameters(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        seeds=tuple(request.seed + number for number in range(request.n)),
        **sides,
    )


def _failure(error: Exception) -> RequestError:
    from torch import OutOfMemoryError

    _log.error("a generation failed", exc_info=error)
    if isinstance(error, (OutOfMemoryError, MemoryError)):
        return RequestError(500, "out_of_memory", "memory ran out; ask for fewer pixels", headers=_NO_RETRY)
    return RequestError(500, "generation_failed", f"{type(error).__name__}: {error}"[:500], headers=_NO_RETRY)
