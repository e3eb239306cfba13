"""Drawing one job at its turn: the lease of a version, its images on the device, and what becomes of a fault."""

import time
from collections.abc import Awaitable, Callable, Container
from enum import Enum
from typing import TYPE_CHECKING, Final, Literal

from zwatch.errors import GenerationCancelled, RequestError
from zwatch.generation.finish import Finisher, Result
from zwatch.generation.generator import Generator, failure_of
from zwatch.generation.job import Job
from zwatch.generation.request import fitted
from zwatch.rollout.traffic import Traffic

if TYPE_CHECKING:
    from zwatch.engine.parameters import Generation
    from zwatch.engine.pipeline import Engine

_FIRST_GUESS = (2.0, 8.4)
"""Seconds, and megapixels x steps, of a request, until one was measured: 1024 x 1024 in 8 steps."""
_WEIGHT = 0.2  # by which older requests count less at each newer one, in the estimate of how long waiting work takes


class _Again(Enum):
    """What `Drawer.draw` returns for a job that has to wait for another version."""

    AGAIN = "again"


AGAIN: Final = _Again.AGAIN
"""The job has to wait again: another version is to draw it."""


class Drawer:
    """Draws jobs, one at a time. `not_served` returns the error for a request for what serves nothing."""

    def __init__(
        self,
        traffic: Traffic,
        generator: Generator,
        finisher: Finisher,
        aliases: Container[str],
        max_work: float,
        not_served: Callable[[str], RequestError],
    ) -> None:
        self.generator = generator
        self.judge: Callable[[Exception], Awaitable[RequestError | None]] | None = None
        """Called with each unexpected error of the device or the model, before the next job runs; the error that it returns is
        answered instead."""
        self.judge_first: Callable[[Engine, Generation], Awaitable[bool]] = _trusting
        """Called with the first images of an engine on trial; returns whether it can go on serving."""
        self._traffic = traffic
        self._finisher = finisher
        self._aliases = aliases
        self._max_work = max_work
        self._not_served = not_served
        self._recent_seconds, self._recent_work = _FIRST_GUESS

    @property
    def pace(self) -> float:
        """Seconds for a megapixel in one step, over the last requests."""
        return self._recent_seconds / self._recent_work

    async def draw(self, job: Job) -> Result | Literal[_Again.AGAIN] | None:
        """Generate a job's images on the device; None if the job failed or was cancelled (its state is set here)."""
        queued, begun = job.age, time.monotonic()
        job.begin()
        try:
            job.lease = job.lease or self._traffic.lease(job.request.model, job.client)
            if job.lease is None:
                raise self._not_served(job.request.model)
            engine = job.lease.engine
            pictures = self._finisher.begin(job, job.lease.key, fitted(job.request, engine, self._max_work))
            is_on_trial = engine.is_on_trial
            generation = await self.generator.run(engine, pictures, job, holds_pictures=is_on_trial)
            if is_on_trial:
                if not await self.judge_first(engine, generation):
                    return self._again(job)
                pictures.add_all(generation)
            if not generation.finite:
                raise RequestError("generation_failed", "the model made NaN or infinite pixels")
            self._recent_seconds = (1 - _WEIGHT) * self._recent_seconds + time.monotonic() - begun
            self._recent_work = (1 - _WEIGHT) * self._recent_work + job.work
            return Result(pictures, generation, queued)
        except GenerationCancelled:
            job.cancel()  # usually it is in its final state already
        except RequestError as error:
            job.fail(error)
        except Exception as error:
            other = None if self.judge is None else await self.judge(error)
            job.fail(other or failure_of(error, job))
        return None

    def _again(self, job: Job) -> Literal[_Again.AGAIN] | None:
        """Let a job wait for the version that serves instead of the one that made bad images for it.

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


async def _trusting(engine: "Engine", generation: "Generation") -> bool:
    return True
