"""What the tests of generation share: a bridge, and an engine that needs no model."""

import asyncio
import threading

import pytest
from PIL import Image

from zwatch.bridge import Bridge
from zwatch.engine.pipeline import Generation
from zwatch.errors import GenerationCancelled


class FakeEngine:
    """Generates images of one colour. `hold` stops it before a step until `resume`, `hold_before` says before which one;
    `error` is raised if it is set."""

    is_complete = True
    default_size = 64
    max_side = 1024

    def __init__(self, version="v1"):
        self.version = version
        self.prompts = []
        self.finite = True
        self.error = None
        self.hold_before = None
        self.started = threading.Event()
        self._go = threading.Event()
        self._go.set()

    def hold(self):
        self._go.clear()

    def resume(self):
        self._go.set()

    def preview(self):
        return None

    def serve(self, parameters, *, on_step, on_image, cancelled):
        self.prompts.append(parameters.prompt)
        self.started.set()
        size, images = (parameters.width, parameters.height), []
        for step in range(1, parameters.steps * len(parameters.seeds) + 1):
            if step == self.hold_before:
                self.hold()
            while not self._go.wait(0.005):
                if cancelled():
                    break
            if cancelled():
                raise GenerationCancelled
            if self.error is not None:
                raise self.error
            on_step(step)
            if step % parameters.steps == 0 and self.finite:
                number = len(images)
                images.append(Image.new("RGB", size, (parameters.seeds[number] % 256, 0, 0)))
                on_image(number, images[-1])
        return Generation(images, False, self.finite, {"encode": 0.25, "denoise": 0.5, "decode": 0.125})


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
async def bridge():
    made = Bridge()
    yield made
    await asyncio.to_thread(made.close)
