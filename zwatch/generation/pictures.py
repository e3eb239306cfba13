"""The pictures of one job: each is encoded and stored as soon as its image is made, while the device makes the next one."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from zwatch.bridge import Bridge
from zwatch.generation.history import History
from zwatch.generation.image_details import Details, details_of
from zwatch.generation.image_files import encode
from zwatch.generation.job import Job
from zwatch.generation.job_events import Picture
from zwatch.rollout.lifecycle import VersionKey
from zwatch.timeline import Phase

if TYPE_CHECKING:
    from PIL.Image import Image

    from zwatch.engine.parameters import Generation, GenerationParameters


class Pictures:
    """The pictures of a job in the making. `key` is the version that makes them, taken from the lease. `begun` is called with
    each task that writes one."""

    def __init__(
        self,
        job: Job,
        key: VersionKey,
        parameters: "GenerationParameters",
        bridge: Bridge,
        history: History | None,
        begun: Callable[["asyncio.Task[Picture]"], object],
    ) -> None:
        self.key = key
        self.parameters = parameters
        self._job = job
        self._source = job.source  # the job forgets it when it ends, which may be before its last picture is written
        self._bridge = bridge
        self._history = history
        self._begun = begun
        self._writing: list[asyncio.Task[Picture]] = []
        if history is not None:
            job.has_image = history.has

    def post(self, number: int, image: "Image") -> None:
        """Add an image from the generating thread."""
        self._bridge.post(self.add, number, image)

    def add(self, number: int, image: "Image") -> None:
        """Encode and store an image, and add it to the job; nothing if the job has ended meanwhile. One that was made before the
        job is cancelled is kept."""
        if self._job.state.is_final:
            return
        if self._job.lease is not None:
            self._job.lease.count_images(1)
        before = self._writing[-1] if self._writing else None
        task = asyncio.create_task(self._write(self.parameters.seeds[number], image, before), name="write")
        self._writing.append(task)
        self._begun(task)

    def add_all(self, generation: "Generation") -> None:
        """Add the finite images of a generation that held them."""
        for number, image in enumerate(generation.images[: None if generation.finite else -1]):
            self.add(number, image)

    async def written(self) -> tuple[Picture, ...]:
        """Wait until none is being stored any more, and return them in the order of their seeds. One that the history could not
        store, or has deleted again, has no name.

        Raises:
            MemoryError: there is not enough memory for a file.
        """
        if self._writing:
            await asyncio.wait(self._writing)
        pictures = [task.result() for task in self._writing]
        return tuple(replace(picture, name=self._job.stored_name(picture)) for picture in pictures)

    def _encoded(self, image: "Image", details: Details) -> bytes:
        """Return the file of an image, which is first put into the picture that it is a part of. To be called in a thread."""
        canvas = None if self._source is None else self._source.canvas
        asked = self._job.request
        return encode(image if canvas is None else canvas.with_drawn(image), details, asked.format, asked.quality)

    async def _write(self, seed: int, image: "Image", before: "asyncio.Task[Picture] | None") -> Picture:
        job, name, begun = self._job, None, time.monotonic()
        asked = job.request
        notes = {} if self._source is None else self._source.notes
        details = details_of(asked, self.parameters, self.key, seed, job.signer, job.by_share, job.trial, notes)
        try:
            file = await self._bridge.run("encode", self._encoded, image, details)
        finally:
            if before is not None:  # in the history too, they are in the order of their seeds; also if one fails
                await asyncio.wait([before])
        if self._history is not None:
            [name] = await self._history.save([(seed, file)], asked.format.suffix)
        job.phases.append(Phase("write", begun, time.monotonic()))
        picture = Picture(seed, file, name)
        job.add_picture(picture)
        return picture
