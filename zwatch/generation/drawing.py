"""Drawing one job at its turn: the lease of a version, its images on the device, and what becomes of a fault.

A request that fails with a version on trial is drawn again by the other version, before its client sees an error.
"""

import time
from collections.abc import Awaitable, Callable, Container
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal

from zwatch.errors import GenerationCancelled, RequestError
from zwatch.generation.finish import Finisher, Result
from zwatch.generation.generator import Faulted, Generator, failure_of
from zwatch.generation.job import Job
from zwatch.generation.pace import Pace
from zwatch.generation.request import fitted
from zwatch.rollout import trials
from zwatch.rollout.engines import Lease
from zwatch.rollout.lifecycle import VersionKey
from zwatch.rollout.traffic import Traffic
from zwatch.rollout.trials import FaultKind, Redraw, Suspicion
from zwatch.shadow.faults import is_memory_short

if TYPE_CHECKING:
    from zwatch.engine.parameters import Generation
    from zwatch.engine.pipeline import Engine
    from zwatch.rollout.withdrawal import Withdrawal


class _Again(Enum):
    """What `Drawer.draw` returns for a job that has to wait for another version."""

    AGAIN = "again"


AGAIN: Final = _Again.AGAIN
"""The job has to wait again: another version is to draw it."""


class Drawer:
    """Draws jobs, one at a time. `not_served` returns the error for a request for what serves nothing, `is_coming` says whether it
    will soon."""

    def __init__(
        self,
        traffic: Traffic,
        generator: Generator,
        finisher: Finisher,
        aliases: Container[str],
        max_work: float,
        not_served: Callable[[str], RequestError],
        is_coming: Callable[[str], bool],
    ) -> None:
        self.generator = generator
        self.pace = Pace()
        self.judge: Callable[[Exception, VersionKey], Awaitable[RequestError | None]] | None = None
        """Called with each unexpected error of the device or the model, and the version that drew, before the next job runs; the
        error that it returns is answered instead."""
        self.judge_first: Callable[[Engine, Generation], Awaitable[bool]] = _trusting
        """Called with the first images of an engine whose warm-up was skipped; returns whether it can go on serving."""
        self.withdrawal: Withdrawal | None = None
        """What is told of the outcomes of versions on trial; None where none is."""
        self.least_patience = trials.LEAST_PATIENCE
        """Seconds for which a version on trial may draw whatever the other version takes."""
        self.on_redraw: list[Callable[[Suspicion], None]] = []
        """Called for each request that another version is to draw again."""
        self._traffic = traffic
        self._finisher = finisher
        self._aliases = aliases
        self._max_work = max_work
        self._not_served = not_served
        self._is_coming = is_coming

    async def draw(self, job: Job) -> Result | Literal[_Again.AGAIN] | None:
        """Generate a job's images on the device; None if the job failed or was cancelled (its state is set here)."""
        queued, begun = job.age, time.monotonic()
        job.begin()
        try:
            lease = job.lease = job.lease or self._traffic.lease(job.request.model, job.client, job.avoided)
            if lease is None:
                raise self._not_served(job.request.model)
            return await self._draw(job, lease, queued)
        except GenerationCancelled:
            if job.lease is not None:
                self._note_time_limit(job, job.lease.key, time.monotonic() - begun)
            job.cancel()  # usually it is in its final state already
        except Faulted as error:
            return self._faulted(job, error.kind, error)
        except RequestError as error:
            job.fail(job.first_error or error)
        except Exception as error:
            return await self._failed(job, error)
        return None

    async def _draw(self, job: Job, lease: Lease, queued: float) -> Result | Literal[_Again.AGAIN] | None:
        begun, engine, is_watched = time.monotonic(), lease.engine, self._is_watched(lease.key)
        pictures = self._finisher.begin(job, lease.key, fitted(job.request, engine, self._max_work))
        is_first = engine.is_on_trial
        generation = await self.generator.run(
            engine,
            pictures,
            job,
            holds_pictures=is_first or is_watched,
            patience=self._patience(job, lease.key) if is_watched and self._may_be_drawn_again(job) else None,
        )
        if is_first and not await self.judge_first(engine, generation):
            return self._again(job)
        flaw = None if generation.flaw is None else FaultKind(generation.flaw.kind)
        if flaw is FaultKind.NOT_FINITE:
            raise Faulted(flaw, "the model made NaN or infinite pixels")
        if flaw is not None and is_watched and self._another(job, lease.key):
            return self._faulted(job, flaw, RequestError("generation_failed", "the model made an image of one colour"))
        if is_first or is_watched:
            pictures.add_all(generation)
        self.pace.note(lease.key, time.monotonic() - begun, job.work)
        self._note_drawn(job, lease.key, flaw)
        return Result(pictures, generation, queued)

    # --- what becomes of a fault

    async def _failed(self, job: Job, error: Exception) -> Literal[_Again.AGAIN] | None:
        """Answer an unexpected error of the device or the model, or let another version draw the job."""
        assert job.lease is not None  # without one it has another error
        other = None if self.judge is None else await self.judge(error, job.lease.key)
        if other is not None:
            job.fail(other)
            return None
        kind = FaultKind.OUT_OF_MEMORY if is_memory_short(error) else FaultKind.ERROR
        return self._faulted(job, kind, failure_of(error, job))

    def _faulted(self, job: Job, kind: FaultKind, error: RequestError) -> Literal[_Again.AGAIN] | None:
        """Let another version draw a job that a version on trial failed to draw; if that is not possible, answer the error."""
        assert job.lease is not None  # it was drawn
        key = job.lease.key
        if job.suspicion is not None:  # the other version failed too
            self._settle(job, Redraw.FAILED)
        elif self._is_watched(key) and not job.state.is_final:
            job.suspicion = Suspicion(key, kind, error.message)
            job.first_error = error.with_traceback(None)  # its frames hold the images
            if self._another(job, key):
                return self._draw_again(job, job.suspicion)
            suspicion = job.suspicion
            self._settle(job, Redraw.NONE)
            # If that was one too many, what serves instead may have to be loaded first.
            if self._may_be_drawn_again(job) and not self._is_watched(key) and self._is_coming(job.request.model):
                return self._draw_again(job, suspicion)
        job.fail(error)
        return None

    def _draw_again(self, job: Job, suspicion: Suspicion) -> Literal[_Again.AGAIN] | None:
        job.avoided = frozenset({suspicion.key})
        for listener in self.on_redraw:
            listener(suspicion)
        return self._again(job)

    def _again(self, job: Job) -> Literal[_Again.AGAIN] | None:
        """Let a job wait for the version that serves instead of the one that drew it.

        Raises:
            RequestError: it asked for that version by name.
        """
        if job.request.model not in self._aliases:
            raise RequestError("generation_failed", f"{job.request.model} makes no usable images and was withdrawn")
        if job.state.is_final:
            return None
        if job.lease is not None:
            job.lease.release()
        return AGAIN

    def _may_be_drawn_again(self, job: Job) -> bool:
        """Say whether another version may draw a job: it names none, and this is its first turn."""
        return job.request.model in self._aliases and not job.avoided

    def _another(self, job: Job, key: VersionKey) -> bool:
        """Say whether another version can draw a job now."""
        return (
            self._may_be_drawn_again(job)
            and self._traffic.find(job.request.model, job.client, frozenset({key})) is not None
        )

    # --- what is noted of versions on trial

    def _is_watched(self, key: VersionKey) -> bool:
        return self.withdrawal is not None and self.withdrawal.is_watched(key)

    def _patience(self, job: Job, key: VersionKey) -> float | None:
        return trials.patience(job.time_left, self._usual(job, key), self.least_patience)

    def _usual(self, job: Job, key: VersionKey) -> float | None:
        """Return how many seconds the other version takes for such a job, if that is known."""
        others = () if self.withdrawal is None else self.withdrawal.others(key)
        found = [seconds for other in others if (seconds := self.pace.seconds(other, job.work)) is not None]
        return max(found, default=None)

    def _note_drawn(self, job: Job, key: VersionKey, flaw: FaultKind | None) -> None:
        if job.suspicion is not None:
            self._settle(job, Redraw.WELL if flaw is None else Redraw.ONE_COLOUR, key)
        elif self.withdrawal is not None and flaw is None:
            self.withdrawal.note(key, None)

    def _note_time_limit(self, job: Job, key: VersionKey, drawn: float) -> None:
        """Note that a version on trial drew until the job's time limit passed, if that was its fault."""
        if self.withdrawal is None or job.suspicion is not None or not job.is_timed_out or not self._is_watched(key):
            return
        if trials.is_too_slow(drawn, job.time_limit, self._usual(job, key)):
            self.withdrawal.note(key, f"it drew for {drawn:.3g} s until the time limit of {job.time_limit:g} s passed")

    def note_end(self, job: Job) -> None:
        """Note the end of a job: one that waited to be drawn again may have been cancelled."""
        if job.suspicion is not None:
            self._settle(job, Redraw.NONE)

    def _settle(self, job: Job, redraw: Redraw, other: VersionKey | None = None) -> None:
        assert job.suspicion is not None
        suspicion, job.suspicion = job.suspicion, None
        for key, fault in trials.settled(suspicion, redraw, other):
            if self.withdrawal is not None:
                self.withdrawal.note(key, fault)


async def _trusting(engine: "Engine", generation: "Generation") -> bool:
    return True
