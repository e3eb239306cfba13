"""Making one job's images on the device, in a thread that is given up if it does not get on."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zwatch.bridge import Begun, Bridge, NoAnswer
from zwatch.errors import GenerationCancelled, RequestError
from zwatch.generation.job import Job
from zwatch.generation.loras import beside
from zwatch.generation.pictures import Pictures
from zwatch.generation.previews import SHARE, PreviewCost, StepReporter
from zwatch.lanes import Interrupted
from zwatch.logs import hiding, without_private
from zwatch.rollout.trials import FaultKind
from zwatch.shadow.faults import is_memory_short, named
from zwatch.timeline import Phase

if TYPE_CHECKING:
    from PIL.Image import Image

    from zwatch.engine.lora import Adapted
    from zwatch.engine.parameters import Generation
    from zwatch.engine.pipeline import Engine

_log = logging.getLogger(__name__)

STALL, STALL_ON_GPU = 600.0, 120.0
"""Seconds after which a generation that makes no step is given up: a step may take minutes on a slow processor."""
STALL_AFTER_END = 120.0
"""Seconds after which one whose client was answered (time limit, cancelled, gone) is interrupted: others wait for the device."""
GRACE = 10.0
"""Seconds for a thread that was interrupted to come back. A loop in Python does; a call of CUDA that hangs does not."""
GRACE_ON_CPU = 300.0
"""The same on a processor, where one call of a slow step may take long: it is not stuck."""
_CHECK_SECONDS = 1.0
_STEP_SECONDS = 1.0  # for one that is to end at its next step


class Faulted(RequestError):
    """A request has no image because of the version that drew it; `kind` says how."""

    def __init__(self, kind: FaultKind, message: str) -> None:
        super().__init__("generation_failed", message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Patience:
    """For how many seconds a version may draw a request; `is_over` says, after them, whether another version can draw it."""

    seconds: float
    is_over: Callable[[], bool]


class _SignOfLife:
    """When a generation last got on, on the monotonic clock."""

    def __init__(self) -> None:
        self.begun = self.at = time.monotonic()
        self.is_given_up = False
        """Whether it is to end at its next step."""

    @property
    def silence(self) -> float:
        """Seconds since then."""
        return time.monotonic() - self.at

    @property
    def age(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self.begun


class Generator:
    """Makes the images of one job at a time. `stall` is the seconds without a step after which a generation is given up, None for
    what suits the device."""

    def __init__(self, bridge: Bridge, stall: float | None = None) -> None:
        self.preview_share = SHARE
        """Largest share of a run's time that its previews may take."""
        self.stall, self.stall_after_end, self.grace = stall, STALL_AFTER_END, GRACE
        self.is_on_gpu: Callable[[], bool] = lambda: False
        """Says whether the device is a GPU, whose steps take less than a processor's."""
        self.on_stuck: Callable[[Engine, str], object] = lambda engine, reason: None
        """Called when a generation was given up and its thread does not come back: the device can make no other image."""
        self.stuck_since: float | None = None
        """Since when such a generation makes no progress, on the monotonic clock; None if there is none."""
        self._bridge = bridge
        self._preview_cost = PreviewCost()
        self._signs: set[_SignOfLife] = set()

    @property
    def silence(self) -> float:
        """Seconds since the running generation last got on; 0 if none runs. Of several, the one that has got on least."""
        return max((sign.silence for sign in self._signs), default=0.0)

    async def run(
        self,
        engine: "Engine",
        pictures: Pictures,
        job: Job,
        *,
        holds_pictures: bool = False,
        patience: Patience | None = None,
        adapted: "Adapted | None" = None,
    ) -> "Generation":
        """Generate in a thread, with `adapted` by the job's LoRAs; give it up if it does not get on. If it `holds_pictures`, they are only in the result.

        Raises:
            RequestError: 500, an earlier one has not come back.
            Faulted: it took longer than `patience` allows, and was given up.
            GenerationCancelled: the job has ended; so it has where the generation was given up.
        """
        sign = _SignOfLife()
        try:
            begun = self._bridge.begin("generate", self._generate, engine, pictures, job, sign, holds_pictures, adapted)
        except NoAnswer as error:
            raise RequestError(
                "generation_failed", f"earlier generations have not come back: {error.strerror}"
            ) from None
        self._signs.add(sign)
        try:
            if not await self._gets_on(begun, engine, job, sign, patience):
                raise GenerationCancelled
            generation = begun.future.result()
            job.phases += generation.phases
            return generation
        except Interrupted:
            raise GenerationCancelled from None
        finally:
            job.phases.append(Phase("generate", sign.begun, time.monotonic()))
            if self.stuck_since is None:
                self._signs.discard(sign)
            del begun  # an error's frames, of which this is one, hold the memory of a failed generation

    async def _gets_on(
        self, begun: Begun["Generation"], engine: "Engine", job: Job, sign: _SignOfLife, patience: Patience | None
    ) -> bool:
        """Wait for a generation; return False if it was given up, and its job has failed."""
        limit = self.stall or (STALL_ON_GPU if self.is_on_gpu() else STALL)
        is_interrupted = False
        while not begun.future.done():
            await asyncio.wait([begun.future], timeout=min(_CHECK_SECONDS, limit / 4))
            if begun.future.done():
                break
            if patience is not None and sign.age > patience.seconds and patience.is_over():
                return await self._ends_early(begun, engine, job, sign, patience.seconds)
            if job.state.is_final and not is_interrupted and sign.silence > self.stall_after_end:
                is_interrupted = True
                begun.interrupt()
            if sign.silence > limit:
                await self._give_up(begun, engine, job, sign, limit)
                return False
        return True

    async def _ends_early(
        self, begun: Begun["Generation"], engine: "Engine", job: Job, sign: _SignOfLife, patience: float
    ) -> bool:
        """End a generation that takes too long, but for which its client still waits; return as `_gets_on`.

        Raises:
            Faulted: it has ended without images.
        """
        reason = f"{engine.version} took more than {patience:.3g} s"
        sign.is_given_up = True
        await asyncio.wait([begun.future], timeout=_STEP_SECONDS)
        if not begun.future.done() and not await self._comes_back(begun, self._grace):
            job.fail(RequestError("generation_failed", f"{reason} and was given up"))
            self._note_stuck(begun, engine, sign.at, reason, job.id)
            return False
        if not begun.future.cancelled() and begun.future.exception() is None:
            return True  # it was done just now
        _log.warning("%s and was given up (%s)", reason, job.id)
        raise Faulted(FaultKind.SLOW, reason)

    async def _give_up(
        self, begun: Begun["Generation"], engine: "Engine", job: Job, sign: _SignOfLife, limit: float
    ) -> None:
        """Tell those who wait for a generation that makes no progress, and end it; if it does not end, the device is stuck."""
        reason = f"a generation by {engine.version} made no progress for {limit:g} s"
        job.fail(RequestError("generation_failed", f"{reason} and was given up"))
        if await self.end(begun, engine, sign.at, limit, reason, job.id):
            _log.error("%s and was interrupted (%s)", reason, job.id)

    async def end(
        self, begun: Begun[Any], engine: "Engine", since: float, limit: float, reason: str, what: str
    ) -> bool:
        """End what made no progress with an engine for `limit` seconds, `since` a moment of the monotonic clock; return whether its
        thread comes back. If not, the device can make no other image. The log names `what` it is."""
        if await self._comes_back(begun, min(self._grace, limit)):
            return True
        self._note_stuck(begun, engine, since, reason, what)
        return False

    @property
    def _grace(self) -> float:
        return self.grace if self.is_on_gpu() else GRACE_ON_CPU

    async def _comes_back(self, begun: Begun[Any], seconds: float) -> bool:
        """Interrupt a thread, and return whether it comes back within some seconds."""
        begun.interrupt()
        await asyncio.wait([begun.future], timeout=seconds)
        if begun.future.done():
            _ = begun.future.cancelled() or begun.future.exception()  # seen: else asyncio logs it
        return begun.future.done()

    def _note_stuck(self, begun: Begun[Any], engine: "Engine", since: float, reason: str, what: str) -> None:
        self.stuck_since = since
        _log.error("%s and does not come back (%s); its thread is in\n%s", reason, what, begun.stack)
        begun.leave()
        self.on_stuck(engine, f"{reason} and does not come back")

    def _generate(
        self,
        engine: "Engine",
        pictures: Pictures,
        job: Job,
        sign: "_SignOfLife",
        holds_pictures: bool,
        adapted: "Adapted | None",
    ) -> "Generation":
        reporter = StepReporter(job, engine, self._bridge, self._preview_cost, share=self.preview_share)

        def cancelled() -> bool:
            sign.at = time.monotonic()
            return job.is_cancelled or sign.is_given_up

        from zwatch.engine.usable import flaw_of  # numpy, which the start does not wait for

        on_image = _ignore if holds_pictures else pictures.post
        generation = engine.serve(
            pictures.parameters, on_step=reporter.report, on_image=on_image, cancelled=cancelled, adapted=adapted
        )
        generation.flaw = flaw_of(generation)
        return generation


def _ignore(number: int, image: "Image") -> None:
    pass


def failure_of(error: Exception, job: Job) -> RequestError:
    """Return the error that is answered for an unexpected one of the device or the model, and log that."""
    with hiding(job.request.prompt, job.request.negative_prompt):
        _log.error("a generation failed", exc_info=error)
        if is_memory_short(error):
            return RequestError("out_of_memory", "memory ran out; ask for fewer pixels")
        return RequestError("generation_failed", without_private(named(error))[:500] + beside(job.loras))
