"""Drawing on a replica: one request at a time, whose steps, previews and pictures go to the controller as they happen."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from zwatch.deploy.loras import LoraRoot
from zwatch.errors import Rejection
from zwatch.fleet.messages import DrawEvent, Drawn, Failure, Made, Stepped

if TYPE_CHECKING:
    from PIL.Image import Image

    from zwatch.engine.factory import EngineFactory
    from zwatch.engine.lora import Adapted
    from zwatch.engine.parameters import GenerationParameters
    from zwatch.engine.pipeline import Engine

_TOGETHER = 0.002
_WAIT_SECONDS = 5.0
_EARLY = 100
"""How many drawings that were cancelled before they came are remembered."""


@dataclass(eq=False)
class _Run:
    """One drawing. Its events go through a queue: the engine calls back, and a generator yields."""

    engine: "Engine"
    events: "SimpleQueue[DrawEvent]" = field(default_factory=SimpleQueue)
    cancelled: threading.Event = field(default_factory=threading.Event)
    has_previews: bool = False

    def step(self, done: int) -> None:
        """Tell that so many steps are done. The first has a preview in any case: whether one is wanted is known after it."""
        pixels = None
        if (self.has_previews or done == 1) and (preview := self.engine.preview()) is not None:
            preview.image()  # waits until it has arrived
            pixels = preview.pixels.numpy()
        self.events.put(Stepped(done, pixels))

    def following(self, event: DrawEvent) -> DrawEvent | None:
        """Return the event after another, if it is there; after a picture it usually comes at once."""
        if isinstance(event, Drawn | Failure):
            return None
        try:
            return self.events.get(timeout=_TOGETHER if isinstance(event, Made) else 0)
        except Empty:
            return None

    def image(self, number: int, image: "Image") -> None:
        """Tell that an image is made."""
        self.events.put(_made(number, image))


def _made(number: int, image: "Image", *, is_finite: bool = True) -> Made:
    import numpy as np

    return Made(number, np.asarray(image), is_finite)


class Runs:
    """The drawings of a replica."""

    def __init__(self, loras: LoraRoot) -> None:
        self._loras = loras
        self._runs: dict[str, _Run] = {}
        self._early: deque[str] = deque(maxlen=_EARLY)
        self._drawing = threading.Lock()

    @property
    def running(self) -> int:
        """How many drawings run or wait."""
        return len(self._runs)

    def draw(
        self,
        run_id: str,
        engine: "Engine",
        factory: "EngineFactory",
        parameters: "GenerationParameters",
        loras: tuple[tuple[str, str], ...],
        judged: Callable[[Exception], Failure],
    ) -> Iterator[tuple[DrawEvent, ...]]:
        """Yield the events of a drawing as they happen; together those that happen while others are on their way."""
        run = self._runs[run_id] = _Run(engine)
        if run_id in self._early:
            run.cancelled.set()
        thread = threading.Thread(
            target=self._draw, args=(run, factory, parameters, loras, judged), name="zwatch-draw", daemon=True
        )
        thread.start()
        try:
            while True:
                events = [run.events.get()]
                while (event := run.following(events[-1])) is not None:
                    events.append(event)
                yield tuple(events)
                if isinstance(events[-1], Drawn | Failure):
                    return
        finally:
            run.cancelled.set()  # also if nobody takes the rest
            self._runs.pop(run_id, None)

    def _draw(
        self,
        run: _Run,
        factory: "EngineFactory",
        parameters: "GenerationParameters",
        loras: tuple[tuple[str, str], ...],
        judged: Callable[[Exception], Failure],
    ) -> None:
        try:
            with self._drawing:
                run.events.put(self._drawn(run, factory, parameters, loras))
        except Exception as error:
            run.events.put(judged(error))
        except BaseException as error:  # without an end the controller would wait for its step
            run.events.put(Failure("error", f"{type(error).__name__}: {error}"))

    def _drawn(
        self,
        run: _Run,
        factory: "EngineFactory",
        parameters: "GenerationParameters",
        loras: tuple[tuple[str, str], ...],
    ) -> Drawn:
        begun = time.monotonic()
        adapted = self.adapted(run.engine, factory, loras)
        with factory.loras.used(adapted):
            generation = run.engine.serve(
                parameters, on_step=run.step, on_image=run.image, cancelled=run.cancelled.is_set, adapted=adapted
            )
        if not generation.finite:
            number = len(generation.images) - 1
            run.events.put(_made(number, generation.images[number], is_finite=False))
        phases = tuple((one.name, one.begun - begun, one.ended - begun) for one in generation.phases)
        return Drawn(generation.truncated, generation.finite, generation.timings, phases)

    def adapted(
        self, engine: "Engine", factory: "EngineFactory", loras: tuple[tuple[str, str], ...]
    ) -> "Adapted | None":
        """Return what draws with LoRAs, given by name and digest; they are loaded first if they are not resident.

        Raises:
            Rejection: this host has no LoRA of that name and digest, or it cannot be used.
            OSError, RuntimeError, MemoryError: a read or the device failed.
        """
        if not loras:
            return None
        network = engine.pipeline.transformer
        if (ready := factory.loras.ready(network, [digest for _, digest in loras])) is not None:
            return ready
        opened = []
        try:
            for name, digest in loras:
                opened.append(self._loras.open_lora(name))
                if opened[-1].digest != digest:
                    raise Rejection(
                        "seal_changed",
                        f"{name}/BLAKE3SUMS: its digest on this host is {opened[-1].digest}, expected {digest}",
                    )
            return factory.loras.load(network, opened)
        finally:
            for one in opened:
                one.close()

    def cancel(self, run_id: str) -> None:
        """End a drawing at its next step; one that comes with this id later, before its first."""
        if (run := self._runs.get(run_id)) is not None:
            run.cancelled.set()
        else:
            self._early.append(run_id)

    def cancel_all(self) -> None:
        """End all drawings."""
        for run in list(self._runs.values()):
            run.cancelled.set()

    def preview(self, run_id: str) -> None:
        """Make previews from now on."""
        if (run := self._runs.get(run_id)) is not None:
            run.has_previews = True

    def wait(self) -> None:
        """Wait for a moment until nothing is drawn."""
        if self._drawing.acquire(timeout=_WAIT_SECONDS):
            self._drawing.release()
