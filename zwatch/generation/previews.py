"""Previews of a running job: made only while a client watches it, and only within a small share of the run's time."""

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
"""Largest share of a run's time that its previews may take."""
_FIRST_GUESS = 0.0005  # seconds per preview, until one was measured
_WEIGHT = 0.2  # of the newest in the moving average


class PreviewCost:
    """The cost of a preview in seconds: a moving average over all runs."""

    def __init__(self) -> None:
        self.seconds = _FIRST_GUESS

    def learn(self, seconds: float) -> None:
        """Add a measurement."""
        self.seconds += _WEIGHT * (seconds - self.seconds)


class PreviewBudget:
    """The time budget for the previews of one run: `share` of the time since its start."""

    def __init__(
        self, cost: PreviewCost, clock: Callable[[], float] = time.perf_counter, *, share: float = SHARE
    ) -> None:
        self._cost = cost
        self._clock = clock
        self._share = share
        self._begun = clock()
        self._spent = 0.0

    def allows(self) -> bool:
        """Return whether all previews, with one more, stay within their share of the run so far."""
        return self._spent + self._cost.seconds <= self._share * (self._clock() - self._begun)

    def spend(self, seconds: float) -> None:
        """Count a preview that took this many seconds."""
        self._spent += seconds
        self._cost.learn(seconds)


class StepReporter:
    """Reports the steps of a run to its job, with a preview if a client watches the job and the time budget allows it. One
    preview at a time: while one is being encoded, steps are reported without."""

    def __init__(self, job: Job, engine: "Engine", bridge: Bridge, cost: PreviewCost, *, share: float = SHARE) -> None:
        self._job = job
        self._engine = engine
        self._bridge = bridge
        self._budget = PreviewBudget(cost, share=share)
        self._encoding: asyncio.Task[None] | None = None
        self._busy = False

    def report(self, done: int) -> None:
        """Report that `done` steps are done; called in the generating thread."""
        preview = None
        begun = time.perf_counter()
        # No preview after the last step: the image itself follows.
        if done < self._job.steps and self._job.is_watched and not self._busy and self._budget.allows():
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
            self._budget.spend(spent + seconds)
        except Exception:
            _log.exception("a preview could not be made")
        finally:
            self._busy = False
        self._job.advance(done, file)


def _encoded(preview: "Preview") -> tuple[bytes, float]:
    """Return a preview's file, and the CPU seconds that it took."""
    image = preview.image()  # waits for the device, which takes no CPU time
    begun = time.thread_time()
    return preview_file(image), time.thread_time() - begun
