"""Finishing a job: its images are encoded and stored while the device generates the next one."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zwatch.bridge import Bridge
from zwatch.generation.history import History
from zwatch.generation.job import Job
from zwatch.generation.job_events import Finished, Picture
from zwatch.generation.pictures import Pictures
from zwatch.rollout.lifecycle import VersionKey

if TYPE_CHECKING:
    from zwatch.engine.parameters import Generation, GenerationParameters

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Result:
    """What the device generated for a job; `queued` is in seconds."""

    pictures: Pictures
    generation: "Generation"
    queued: float


class Finisher:
    """Encodes and stores the images of jobs."""

    def __init__(self, bridge: Bridge, history: History | None) -> None:
        self.on_written: Callable[[], None] = lambda: None
        """Called when a picture was stored, or could not be."""
        self._bridge = bridge
        self._history = history
        self._writing: set[asyncio.Task[Picture]] = set()

    @property
    def is_busy(self) -> bool:
        """Whether a picture is being encoded or stored."""
        return bool(self._writing)

    def begin(self, job: Job, key: VersionKey, parameters: "GenerationParameters") -> Pictures:
        """Begin a job that a version now makes the images of."""
        job.assign(key, parameters.without_pixels())
        return Pictures(job, key, parameters, self._bridge, self._history, self._begun)

    async def finish(self, job: Job, result: Result) -> Finished:
        """Wait until all images of a job are encoded and stored.

        Raises:
            MemoryError: there is not enough memory for the files.
        """
        begun = time.perf_counter()
        pictures = await result.pictures.written()
        timings = {
            "queue": result.queued, **result.generation.timings, "write": time.perf_counter() - begun, "total": job.age,
        }  # fmt: skip
        key, parameters = result.pictures.key, result.pictures.parameters
        return Finished(key, parameters.without_pixels(), result.generation.truncated, timings, pictures)

    def _begun(self, task: asyncio.Task[Picture]) -> None:
        self._writing.add(task)
        task.add_done_callback(self._written)

    def _written(self, task: asyncio.Task[Picture]) -> None:
        self._writing.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # `finish` raises it too; a job that was cancelled has no other place to say so.
            _log.warning("a picture could not be written: %s: %s", type(error).__name__, error)
        self.on_written()
