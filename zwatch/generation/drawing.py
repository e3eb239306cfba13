"""Drawing one job at its turn: the lease of a version, its images on the device, and what becomes of a fault.

A request that fails with a version on trial is drawn again by the other version, before its client sees an error.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Container
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal

from zwatch.deploy.shares import alias_of_key, parse_share
from zwatch.errors import GenerationCancelled, RequestError
from zwatch.generation.finish import Finisher, Result
from zwatch.generation.fitting import fitted
from zwatch.generation.generator import Faulted, Generator, Patience, failure_of
from zwatch.generation.job import Job
from zwatch.generation.loras import Loras, beside
from zwatch.generation.pace import Pace
from zwatch.rollout import trials
from zwatch.rollout.engines import Lease
from zwatch.rollout.lifecycle import VersionKey
from zwatch.rollout.traffic import Traffic
from zwatch.rollout.trials import FaultKind, Redraw, Suspicion
from zwatch.shadow.faults import is_memory_short

if TYPE_CHECKING:
    from zwatch.engine.parameters import Generation, GenerationParameters
    from zwatch.engine.pipeline import Engine
    from zwatch.generation.pictures import Pictures
    from zwatch.rollout.withdrawal import Withdrawal


_log = logging.getLogger(__name__)

_ONE_COLOUR = "the model made an image of one colour"


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
        loras: Loras,
    ) -> None:
        self.generator, self.loras = generator, loras
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
        self.trial_of: Callable[[Job], str] = lambda job: ""
        """Returns the id of the trial in which the end of a job that gets its version now counts; "" for none."""
        self.on_fault: list[Callable[[str, VersionKey], None]] = []
        """Called once it is known that a request was drawn again because of a fault of the first version: with the id of the trial
        in which that counts, "" for none, and the version."""
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
        lease = job.lease = job.lease or self._traffic.lease(job.request.model, job.client, job.second_turn.avoided)
        if lease is None:
            job.fail(job.second_turn.error or self._not_served(job.request.model))
            return None
        # Noted now: the alias may serve something else when it fails.
        is_watched = self._is_watched(lease)
        if not job.second_turn.is_taken:
            job.trial = self.trial_of(job)
        try:
            return await self._draw(job, lease, queued, is_watched=is_watched)
        except GenerationCancelled:
            self._note_time_limit(job, lease, time.monotonic() - begun)
            job.cancel()  # usually it is in its final state already
        except Faulted as error:
            return self._faulted(job, lease, error.kind, error, is_watched=is_watched)
        except RequestError as error:
            job.fail(job.second_turn.error or error)
        except Exception as error:
            other = None if self.judge is None else await self.judge(error, lease.key)
            if other is None:
                kind = FaultKind.OUT_OF_MEMORY if is_memory_short(error) else FaultKind.ERROR
                return self._faulted(job, lease, kind, failure_of(error, job), is_watched=is_watched)
            job.fail(other)
        return None

    async def _draw(
        self, job: Job, lease: Lease, queued: float, *, is_watched: bool
    ) -> Result | Literal[_Again.AGAIN] | None:
        begun, engine = time.monotonic(), lease.engine
        pictures = self._finisher.begin(job, lease.key, self._fitted(job, engine))
        is_first = engine.is_unjudged
        adapted = await self.loras.adapted(job.loras, engine)
        with self.loras.using(adapted):
            generation = await self.generator.run(
                engine,
                pictures,
                job,
                holds_pictures=is_first or is_watched,
                patience=self._patience(job, lease) if is_watched else None,
                adapted=adapted,
            )
        seconds = time.monotonic() - begun
        if is_first and not await self.judge_first(engine, generation):
            return self._again(job)
        flaw = None if generation.flaw is None else FaultKind(generation.flaw.kind)
        if flaw is FaultKind.NOT_FINITE:
            raise Faulted(flaw, f"the model made NaN or infinite pixels{beside(job.loras)}")
        self.pace.note(lease.key, seconds, job.work)
        if flaw is not None and is_watched and self._another(job, lease.key):
            other = await self._drawn_in_colours(job, lease, _suspicion(lease, flaw, _ONE_COLOUR))
            if other is not None:
                return Result(*other, queued)
        elif (suspicion := job.second_turn.take_suspicion()) is not None:
            self._settle(job, suspicion, Redraw.WELL, lease.key)
        elif flaw is None:
            self._note(lease, None)
        if is_first or is_watched:
            pictures.add_all(generation)
        return Result(pictures, generation, queued)

    def _fitted(self, job: Job, engine: "Engine") -> "GenerationParameters":
        return fitted(job.request, engine, self._max_work, job.source, job.loras)

    async def _drawn_in_colours(
        self, job: Job, first: Lease, suspicion: Suspicion
    ) -> "tuple[Pictures, Generation] | None":
        """Let another version draw a job whose image has one colour by a version on trial; return what it drew if that has not. If
        it has, or cannot be drawn, the first image is what its client gets: it may have asked for a plain picture."""
        other = self._traffic.lease(job.request.model, job.client, frozenset({first.key}))
        if other is None:
            return None
        parameters = job.parameters
        assert parameters is not None  # it was drawn
        job.lease = other
        job.take_second_turn()
        job.restart()
        try:
            pictures = self._finisher.begin(job, other.key, self._fitted(job, other.engine))
            adapted = await self.loras.adapted(job.loras, other.engine)
            with self.loras.using(adapted):
                generation = await self.generator.run(other.engine, pictures, job, holds_pictures=True, adapted=adapted)
            if generation.flaw is None:
                first.release()
                self._redrawn(suspicion)
                self._settle(job, suspicion, Redraw.WELL, other.key)
                pictures.add_all(generation)
                return pictures, generation
        except GenerationCancelled:
            other.release()
            job.lease = first
            raise
        except RequestError as error:
            _log.warning("a picture of one colour by %s was not drawn again: %s", first.key.version, error.message)
        except Exception as error:
            failure_of(error, job)  # logs it
            if self.judge is not None:
                await self.judge(error, other.key)
        other.release()
        job.lease = first
        job.assign(first.key, parameters)
        return None

    # --- what becomes of a fault

    def _faulted(
        self, job: Job, lease: Lease, kind: FaultKind, error: RequestError, *, is_watched: bool
    ) -> Literal[_Again.AGAIN] | None:
        """Let another version draw a job that a version on trial failed to draw; if that is not possible, answer the error."""
        if (suspicion := job.second_turn.take_suspicion()) is not None:  # the other version failed too
            self._settle(job, suspicion, Redraw.FAILED)
        elif is_watched and not job.state.is_final:
            suspicion = _suspicion(lease, kind, error.message)
            if self._another(job, lease.key):
                job.second_turn.suspicion = suspicion
                return self._draw_again(job, suspicion, error)
            self._settle(job, suspicion, Redraw.NONE)
            # If that was one too many, what serves instead may have to be loaded first.
            if self._may_be_drawn_again(job) and not self._is_watched(lease) and self._is_coming(job.request.model):
                return self._draw_again(job, suspicion, error)
        job.fail(error)
        return None

    def _draw_again(self, job: Job, suspicion: Suspicion, error: RequestError) -> Literal[_Again.AGAIN] | None:
        job.take_second_turn()
        job.second_turn.avoided = frozenset({suspicion.key})
        job.second_turn.error = error.to_keep()  # its frames hold the images
        self._redrawn(suspicion)
        return self._again(job)

    def _redrawn(self, suspicion: Suspicion) -> None:
        by = "" if suspicion.by_share is None else f" ({suspicion.by_share})"
        version, text = suspicion.key.version, suspicion.text
        _log.warning("%s%s failed (%s); another version draws the request again", version, by, text)
        for listener in self.on_redraw:
            listener(suspicion)

    def _again(self, job: Job) -> Literal[_Again.AGAIN] | None:
        """Let a job wait for the version that serves instead of the one that drew it.

        Raises:
            RequestError: it asked for that version, or a share, by name.
        """
        if not self._is_for_alias(job):
            raise RequestError("generation_failed", f"{job.request.model} makes no usable images and was withdrawn")
        if job.state.is_final:
            return None
        job.take_second_turn()
        if job.lease is not None:
            job.lease.release()
        return AGAIN

    def _is_for_alias(self, job: Job) -> bool:
        """Say whether a job asks for what an alias serves, and not for a version or a share by name."""
        return job.request.model in self._aliases and parse_share(job.request.model) is None

    def _may_be_drawn_again(self, job: Job) -> bool:
        """Say whether another version may draw a job: it names none, and this is its first turn."""
        return self._is_for_alias(job) and not job.second_turn.avoided

    def _another(self, job: Job, key: VersionKey) -> bool:
        """Say whether another version can draw a job now."""
        return (
            not job.state.is_final
            and self._may_be_drawn_again(job)
            and self._traffic.find(job.request.model, job.client, frozenset({key})) is not None
        )

    # --- what is noted of versions on trial

    def _is_watched(self, lease: Lease) -> bool:
        return self.withdrawal is not None and lease.by is not None and self.withdrawal.is_watched(lease.key, lease.by)

    def _patience(self, job: Job, lease: Lease) -> Patience | None:
        seconds = trials.patience(job.time_left, self._usual(job, lease), self.least_patience)
        return None if seconds is None else Patience(seconds, lambda: self._another(job, lease.key))

    def _usual(self, job: Job, lease: Lease) -> float | None:
        """Return how many seconds the other version takes for such a job, if that is known."""
        if self.withdrawal is None or lease.by is None:
            return None
        other = self.withdrawal.other(lease.key, lease.by)
        return None if other is None else self.pace.seconds(other, job.work)

    def _note_time_limit(self, job: Job, lease: Lease, drawn: float) -> None:
        """Note that a version on trial drew until the job's time limit passed, if that was its fault."""
        if job.second_turn.suspicion is not None or not job.is_timed_out or not self._is_watched(lease):
            return
        if trials.is_too_slow(drawn, job.time_limit, self._usual(job, lease)):
            self._note(lease, f"it drew for {drawn:.3g} s until the time limit of {job.time_limit:g} s passed")

    def _note(self, lease: Lease, fault: str | None) -> None:
        if self.withdrawal is not None and lease.by is not None:
            self.withdrawal.note(lease.key, fault, lease.by)

    def note_end(self, job: Job) -> None:
        """Note the end of a job: one that waited to be drawn again may have been cancelled."""
        if (suspicion := job.second_turn.take_suspicion()) is not None:
            self._settle(job, suspicion, Redraw.NONE)

    def _settle(self, job: Job, suspicion: Suspicion, redraw: Redraw, other: VersionKey | None = None) -> None:
        noted = trials.settled(suspicion, redraw, other)
        if job.second_turn.is_taken and (suspicion.key, suspicion.text) in noted:
            # First: if the version is withdrawn for it, its trial ends with this fault.
            for listener in self.on_fault:
                listener(job.second_turn.trial, suspicion.key)
        if self.withdrawal is None or suspicion.by is None:
            return
        alias = alias_of_key(suspicion.by) or suspicion.by  # which the other version's requests come by
        for key, fault in noted:
            self.withdrawal.note(key, fault, suspicion.by if key == suspicion.key else alias)


def _suspicion(lease: Lease, kind: FaultKind, text: str) -> Suspicion:
    return Suspicion(lease.key, kind, text, lease.by_share, lease.by)


async def _trusting(engine: "Engine", generation: "Generation") -> bool:
    return True
