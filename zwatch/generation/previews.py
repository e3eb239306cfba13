"""Previews for those who follow a job: made only while somebody looks, and only as often as costs next to nothing."""

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from zwatch.bridge import Bridge
from zwatch.generation.image_files import preview_file
from zwatch.generation.job import Job

if TYPE_CHECKING:
    from zwatch.engine.pipeline import Engine
    from zwatch.engine.preview import Preview

_log = logging.getLogger(__name__)

SHARE = 0.02
"""Most of a run's time that its previews may take."""
_FIRST_GUESS = 0.0005  # seconds a preview costs, until one was measured
_WEIGHT = 0.2  # of the newest in the running mean


class PreviewCost:
    """What a preview costs in seconds, learnt over all runs."""

    def __init__(self) -> None:
        self.seconds = _FIRST_GUESS

    def learn(self, seconds: float) -> None:
        """Take in another measurement."""
        self.seconds += _WEIGHT * (seconds - self.seconds)


class PreviewPace:
    """Of one run: whether there is time for another preview."""

    def __init__(self, cost: PreviewCost, clock: Callable[[], float] = time.perf_counter) -> None:
        self._cost = cost
        self._clock = clock
        self._begun = clock()
        self._spent = 0.0

    def allows(self) -> bool:
        """Say whether all previews, with one more, are still within their share of the run so far."""
        return self._spent + self._cost.seconds <= SHARE * (self._clock() - self._begun)

    def spend(self, seconds: float) -> None:
        """Count a preview that took so long."""
        self._spent += seconds
        self._cost.learn(seconds)


class Steps:
    """Tells a job of its steps, with a preview where there is somebody to see it, and time. One at a time: while a
    preview is being encoded, steps go without."""

    def __init__(self, job: Job, engine: "Engine", bridge: Bridge, cost: PreviewCost) -> None:
        self._job = job
        self._engine = engine
        self._bridge = bridge
        self._pace = PreviewPace(cost)
        self._encoding: asyncio.Task[None] | None = None
        self._busy = False

    def report(self, done: int) -> None:
        """In the generating thread: `done` steps are done."""
        preview = None
        begun = time.perf_counter()
        # After the last step comes the image itself.
        if done < self._job.steps and self._job.is_watched and not self._busy and self._pace.allows():
            preview = self._engine.preview()
        if preview is None:
            self._bridge.post(self._job.advance, done)
        else:
            self._busy = True
            self._bridge.post(self._begin, done, preview, time.perf_counter() - begun)

    def _begin(self, done: int, preview: "Preview", spent: float) -> None:
        self._encoding = asyncio.create_task(self._encode(done, preview, spent), name="preview")

    async def _encode(self, done: int, preview: "Preview", spent: float) -> None:
        file: bytes | None = None
        try:
            file, seconds = await self._bridge.run("encode", _encoded, preview)
            self._pace.spend(spent + seconds)
        except Exception:
            _log.exception("a preview could not be made")
        finally:
            self._busy = False
        self._job.advance(done, file)


def _encoded(preview: "Preview") -> tuple[bytes, float]:
    """Return a preview's file, and the processor seconds that it took."""
    image = preview.image()  # waits for the device, which costs nobody anything
    begun = time.thread_time()
    return preview_file(image), time.thread_time() - begun
