"""The bounded queue: requests wait here for the device, first in, first out."""

import asyncio
import math
from collections import deque
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from zwatch.bridge import Bridge, Pulse
from zwatch.deploy.loras import LoraRoot
from zwatch.deploy.shares import parse_share
from zwatch.errors import RequestError, retry_after
from zwatch.generation.drawing import AGAIN, Drawer
from zwatch.generation.finish import Finisher, Result
from zwatch.generation.fitting import fitted, steps_of, work_of
from zwatch.generation.generator import Generator, failure_of
from zwatch.generation.job import Job, jobs_of_request
from zwatch.generation.job_store import JobStore
from zwatch.generation.loras import JobLoras, Loras
from zwatch.generation.request import USUAL_SIDE, GenerateRequest
from zwatch.generation.sources import Source, too_much_held
from zwatch.generation.turns import Turns
from zwatch.generation.unserved import not_served
from zwatch.logs import request_id
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import VersionKey
from zwatch.rollout.traffic import Traffic

_FINISHING = 4
"""Most jobs whose images are encoded and stored at a time; beyond that the device waits, to bound the memory for pixels."""


class GenerationQueue:
    """Accepts requests while there is room and runs them one at a time on the device, or as many at a time as there are replicas.

    `limit` is how many requests may wait; `max_work` is the most megapixels x steps x images of one request; `stall` is for the
    `Generator`.
    """

    def __init__(
        self,
        engines: EngineRegistry,
        bridge: Bridge,
        finisher: Finisher,
        aliases: Container[str],
        *,
        limit: int,
        max_work: float,
        changes: Pulse,
        stall: float | None = None,
        traffic: Traffic | None = None,
        loras: Loras | None = None,
    ) -> None:
        self.limit, self.max_work = limit, max_work
        self.timeout = math.inf
        """Seconds after which the client of an attended job gets an error."""
        self.turns = Turns()
        self.jobs = JobStore()
        self.on_end: list[Callable[[Job], None]] = []
        """Called with each job when it ends, in any state."""
        self.on_refuse: list[Callable[[RequestError], None]] = []
        """Called with the error of each request that did not become a job."""
        self.is_coming: Callable[[str], bool] = lambda model: False
        """Says whether an alias or a version that does not serve will soon, so that requests for it may wait."""
        self.is_unloaded: Callable[[str], bool] = lambda alias: False
        """Says whether an alias serves nothing because it was unloaded."""
        self._engines, self._traffic = engines, traffic or Traffic({}, engines)
        self._finisher = finisher
        self.loras = loras or Loras(bridge, LoraRoot(Path("loras")))
        self.loras.changed = changes.fire
        self.drawer = Drawer(
            self._traffic, Generator(bridge, stall), finisher, aliases, max_work, self.not_served,
            lambda model: self.is_coming(model), self.loras,  # noqa: PLW0108 (another one may be set later)
        )  # fmt: skip
        finisher.on_written = changes.fire
        self._aliases, self._changes = aliases, changes
        self._waiting: deque[Job] = deque()
        self._finishing, self._room_to_finish = dict[Job, asyncio.Task[None]](), asyncio.Semaphore(_FINISHING)
        self._arrived = asyncio.Event()
        self.closed: RequestError | None = None
        """What every new request is refused with, if it is."""
        self._is_permanent = False

    @property
    def generator(self) -> Generator:
        """What makes the images."""
        return self.drawer.generator

    @property
    def running(self) -> Job | None:
        """The request that is drawn; of several the one that was begun first."""
        return next(iter(self.turns.jobs), None)

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        return len(self._waiting)

    def worker_stuck_since(self) -> float | None:
        """Return since when, on the monotonic clock, a generation that was given up does not come back; None if all is well."""
        return self.generator.stuck_since

    def close(self, error: RequestError, *, permanent: bool = False) -> None:
        """Refuse new requests with this error. `reopen` does not undo a `permanent` close."""
        if not self._is_permanent:
            self.closed, self._is_permanent = error, permanent

    def reopen(self) -> None:
        """Accept requests again, unless the queue was closed permanently."""
        if not self._is_permanent:
            self.closed = None

    def refuse_if_full(self) -> None:
        """Refuse a request that cannot be accepted, before its body is read.

        Raises:
            RequestError: 429 no room, 503 closed.
        """
        with self._reporting_refusals():
            self._check_room()

    def _check_room(self, after: int = 0) -> None:
        if self.closed is not None:
            # Raised many times: a traceback would keep the frames of every request.
            raise self.closed.to_keep()
        # The first waiting jobs are about to run while there are free turns.
        if len(self._waiting) + after >= self.limit + self.turns.free:
            raise RequestError(
                "queue_full", f"{self.limit} requests wait already", headers=retry_after(self._seconds_until_room())
            )

    def submit(
        self,
        request: GenerateRequest,
        *,
        attended: bool,
        keeps_files: bool = False,
        client: str | None = None,
        source: Source | None = None,
        loras: JobLoras | None = None,
    ) -> Job:
        """Accept a request, with the image that it changes, or that guides it, and the LoRAs that it names if there are some; for `attended`, `keeps_files` and `client` see `Job`. A request that names a version leases it now; so does one
        that names a share; one that names an alias leases what the alias serves when its turn comes. While a version for it is loaded, it waits.

        Raises:
            RequestError: 400 beyond a limit, 404 unknown model, 429 queue full, 503 nothing serves or the queue is closed.
        """
        work = self.check(request, client, source=source, loras=loras)
        is_for_alias = request.model in self._aliases and parse_share(request.model) is None
        lease = None if is_for_alias else self._traffic.lease(request.model, client)
        job = Job(request, lease, self._ended, attended=attended, keeps_files=keeps_files, client=client, source=source)
        job.loras = loras
        if loras is not None and (resident := self._traffic.find(request.model, client)) is not None:
            self.loras.begin(loras, resident.engine)
        job.time_limit = self.timeout if attended else math.inf
        job.work = work
        self.jobs.add(job)
        if (of_request := jobs_of_request.get(None)) is not None:
            of_request.append(job)
        job.position = len(self._waiting)
        self._waiting.append(job)
        self._arrived.set()
        self._changes.fire()
        return job

    def check(
        self,
        request: GenerateRequest,
        client: str | None = None,
        after: int = 0,
        source: Source | None = None,
        loras: JobLoras | None = None,
    ) -> float:
        """Check as `submit` whether a request would be accepted after so many others; return its work."""
        with self._reporting_refusals():
            self._check_room(after)
            self._check_held(source)
            if (resident := self._traffic.find(request.model, client)) is None:
                if not self.is_coming(request.model):
                    raise self.not_served(request.model)
                # The limits are checked when its turn comes.
                return work_of(request, USUAL_SIDE, source, self.max_work)
            made = fitted(request, resident.engine, self.max_work, source, loras)
            return made.width * made.height / 1e6 * steps_of(request, source) * request.n

    def _check_held(self, source: Source | None) -> None:
        if source is not None and (reason := too_much_held(source, (job.source for job in self.jobs.unsettled))):
            raise RequestError("queue_full", reason, headers=retry_after(self._seconds_until_room()))

    @contextmanager
    def _reporting_refusals(self) -> Iterator[None]:
        try:
            yield
        except RequestError as refusal:
            for listener in self.on_refuse:
                listener(refusal)
            raise

    @contextmanager
    def attending(self, job: Job) -> Iterator[None]:
        """Cancel the job if this block is left before the job has ended (client disconnected, time limit passed)."""
        try:
            yield
        finally:
            self.cancel(job)
            self.jobs.settle(job)

    def cancel(self, job: Job) -> None:
        """Cancel a job that waits or runs; ignored if it has ended."""
        if job.state.is_final:
            return
        if job in self._waiting:
            self._waiting.remove(job)
            self._renumber()
            self._release(job)
        job.cancel()

    async def run(self) -> None:
        """Run jobs until cancelled."""
        try:
            while True:
                job = await self._turn()
                self._waiting.remove(job)
                self.turns.begin(job, self._draw(job))
                self._renumber()
                self._changes.fire()
        finally:
            await self.turns.cancel()

    async def _draw(self, job: Job) -> None:
        request_id.set(job.request_id)  # for log lines about this job, here and in threads
        try:
            result = await self.drawer.draw(job)
            if result is AGAIN:
                self._wait_again(job)
            elif result is not None:
                await self._room_to_finish.acquire()
                self._finishing[job] = asyncio.create_task(self._finish(job, result), name="finish")
                del result  # the finishing task frees the pixels
        except Exception as error:  # the queue ends with it
            self.turns.fail(error)
        finally:
            self.turns.end(job)
            self._release(job)
            self._arrived.set()
            self._changes.fire()

    def wake(self) -> None:
        """Check again whether a job can run."""
        self._arrived.set()

    async def _turn(self) -> Job:
        """Wait for a job that can run, and return it."""
        while True:
            # Both before the look, so that nothing is missed that happens after it.
            self._arrived.clear()
            changed: asyncio.Future[Any] = self._changes.next()
            self.turns.check()
            if self.turns.free and (job := self._next()) is not None:
                return job
            arrived: asyncio.Future[Any] = asyncio.ensure_future(self._arrived.wait())
            try:
                await asyncio.wait([arrived, changed], return_when=asyncio.FIRST_COMPLETED)
            finally:
                arrived.cancel()

    def _next(self) -> Job | None:
        """Return the job to run next, if any; not one whose LoRAs are being loaded. While an engine is being exchanged, only jobs with a lease on it run; those for
        what is being loaded wait for it."""
        exchanged = self._engines.being_exchanged
        if exchanged is not None:
            return next((job for job in self._waiting if job.lease and job.lease.key == exchanged.key), None)
        waits = cache(self._waits)  # dozens may wait for one version, whose load changes something all the time
        able = (job for job in self._waiting if job.loras is None or not job.loras.is_loading)
        return next((job for job in able if job.lease or not waits(*_asked(job))), None)

    def _waits(self, model: str, client: str | None, avoided: frozenset[VersionKey]) -> bool:
        return self._traffic.find(model, client, avoided) is None and self.is_coming(model)

    async def drained(self, given_up: Callable[[], bool] = lambda: False) -> None:
        """Return when no job waits, runs or is being finished, or at the first change after which `given_up` is true."""
        while (self._waiting or self.turns.jobs or self._finishing or self._finisher.is_busy) and not given_up():
            await self._changes.wait()

    def refuse_waiting(self, error: RequestError) -> None:
        """Fail all jobs that wait."""
        waiting, self._waiting = self._waiting, deque()
        for job in waiting:
            self._release(job)
            job.fail(error)

    def give_up_waiting(self, error: RequestError) -> None:
        """Fail all jobs that wait for a version to be loaded, now and from now on: it will not be."""
        for job in [job for job in self._waiting if job.lease is None and self._waits(*_asked(job))]:
            self._waiting.remove(job)
            job.fail(error)
        self.is_coming = lambda model: False
        self._renumber()

    def abandon(self, error: RequestError) -> None:
        """Fail all jobs that have not ended, when the service stops."""
        for job in self.jobs.unsettled:
            job.fail(error)

    def _wait_again(self, job: Job) -> None:
        """Let a job that another version is to draw wait for that, before all others."""
        job.wait_again()
        self._waiting.appendleft(job)
        self._renumber()

    async def _finish(self, job: Job, result: Result) -> None:
        try:
            job.finish(await self._finisher.finish(job, result))
        except Exception as error:
            job.fail(failure_of(error, job))
        finally:
            self._room_to_finish.release()
            del self._finishing[job]
            self._changes.fire()

    def _release(self, job: Job) -> None:
        if job.lease is not None:
            job.lease.release()

    def _ended(self, job: Job) -> None:
        self.drawer.note_end(job)
        if not job.attended:
            self.jobs.settle(job)
        for listener in self.on_end:
            listener(job)
        self._changes.fire()

    def _renumber(self) -> None:
        for position, job in enumerate(self._waiting):
            job.set_position(position)

    def not_served(self, model: str) -> RequestError:
        """Return the error for a request for what serves nothing."""
        return not_served(model, self._aliases, self.is_unloaded)

    def _seconds_until_room(self) -> float:
        return self.turns.seconds_until_room(self.drawer.pace.of_all, sum(job.work for job in self._waiting))


def _asked(job: Job) -> tuple[str, str | None, frozenset[VersionKey]]:
    """Return what decides which engine a job gets."""
    return job.request.model, job.client, job.second_turn.avoided
