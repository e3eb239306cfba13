"""What the tests of generation share: a clock, a bridge, an engine that needs no model, and a queue that uses it."""

import asyncio
import threading

import pytest
from PIL import Image

from zwatch.bridge import Bridge, Pulse
from zwatch.engine.parameters import Generation
from zwatch.errors import GenerationCancelled
from zwatch.generation.finish import Finisher
from zwatch.generation.queue import GenerationQueue
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import VersionKey

V1 = VersionKey("v1", "1" * 64)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class FakeEngine:
    """Generates images of one colour. `hold` stops it before a step until `resume`, `hold_before` says before which one;
    `error` is raised if it is set."""

    is_complete = True
    is_unjudged = False
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
        self.hold_before = None  # the thread may not be there yet
        self._go.set()

    def preview(self):
        return None

    def serve(self, parameters, *, on_step, on_image, cancelled, adapted=None):
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
def clock():
    return Clock()


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
async def bridge():
    made = Bridge()
    yield made
    await asyncio.to_thread(made.close)


@pytest.fixture
def engines(engine):
    made = EngineRegistry()
    made.admit(V1, engine)
    made.promote("current", V1)
    return made


@pytest.fixture
async def start(engines, engine, bridge):
    """Return a function that starts a queue, without a history unless one is given."""
    tasks = []

    def started(finisher=None, *, history=None, limit=8, max_work=600.0, aliases=("current",), traffic=None):
        queue = GenerationQueue(
            engines,
            bridge,
            finisher or Finisher(bridge, history),
            aliases,
            limit=limit,
            max_work=max_work,
            changes=Pulse(),
            traffic=traffic,
        )
        tasks.append(asyncio.create_task(queue.run()))
        return queue

    yield started
    engine.resume()  # the bridge waits for what runs
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
