"""Finishing a job: encode its images and store them in the history."""

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zwatch.bridge import Bridge
from zwatch.generation.history import History
from zwatch.generation.image_details import details_of
from zwatch.generation.image_files import encode
from zwatch.generation.job import Finished, Job, Picture
from zwatch.rollout.lifecycle import VersionKey

if TYPE_CHECKING:
    from zwatch.engine.pipeline import Generation, GenerationParameters


@dataclass(frozen=True, slots=True)
class Result:
    """What the device generated for a job: `key` comes from the lease, `queued` is in seconds."""

    key: VersionKey
    parameters: "GenerationParameters"
    generation: "Generation"
    queued: float


class Finisher:
    """Encodes and stores the images of a job while the device generates the next one."""

    def __init__(self, bridge: Bridge, history: History | None) -> None:
        self._bridge = bridge
        self._history = history

    async def finish(self, job: Job, result: Result) -> Finished:
        """Encode a job's images and store them in the history, unless the job was cancelled.

        An image that the history could not store, or has deleted again, has no name.

        Raises:
            MemoryError: there is not enough memory for the files.
        """
        begun = time.perf_counter()
        asked, seeds = job.request, result.parameters.seeds
        files = await asyncio.gather(
            *(
                self._bridge.run(
                    "encode",
                    encode,
                    image,
                    details_of(asked, result.parameters, result.key, seed),
                    asked.format,
                    asked.quality,
                )
                for image, seed in zip(result.generation.images, seeds, strict=True)
            )
        )
        names: list[str | None] = [None] * len(files)
        if self._history is not None and not job.is_cancelled:
            saved = await self._history.save(list(zip(seeds, files, strict=True)), asked.format.suffix)
            names = [name if self._history.has(name) else None for name in saved]
            job.has_image = self._history.has
        timings = {
            "queue": result.queued, **result.generation.timings, "write": time.perf_counter() - begun, "total": job.age,
        }  # fmt: skip
        pictures = tuple(Picture(*values) for values in zip(seeds, files, names, strict=True))
        return Finished(result.key, result.parameters, result.generation.truncated, timings, pictures)
