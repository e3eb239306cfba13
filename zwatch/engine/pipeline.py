"""An engine: a version loaded, which turns a prompt and a seed into an image."""

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from PIL import Image

from zwatch.engine.preview import LatentColours, Preview
from zwatch.engine.sampling import EncodedText, Pipeline, image_of
from zwatch.engine.store import Aside, Assembly, Component, ComponentStore
from zwatch.errors import GenerationCancelled
from zwatch.shadow.buffers import FileBuffer
from zwatch.shadow.device import Device

_log = logging.getLogger(__name__)

LOCK_SECONDS = 30.0
"""Seconds to wait for another image by the same engine: the queue runs one at a time, so that there is none to wait for."""


@dataclass(frozen=True, slots=True)
class GenerationParameters:
    """What images are made from, one per seed. Sizes in pixels, multiples of 16."""

    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    seeds: tuple[int, ...]


@dataclass(slots=True)
class Generation:
    """The result: images in the order of the seeds, whether the prompt was truncated, whether every pixel was a finite
    number (the images end with the first that has another), and seconds by phase."""

    images: list[Image.Image]
    truncated: bool
    finite: bool
    timings: dict[str, float]


class Engine:
    """One version, ready to generate. It makes one image at a time: two would need twice the memory."""

    def __init__(self, assembly: Assembly, device: Device) -> None:
        self.version = assembly.plan.version
        self.digest = assembly.plan.seal.digest
        self.plan = assembly.plan
        self.default_size = assembly.default_size
        self.device = device
        self.components = tuple(assembly.components.values())
        """What it consists of. Replaced, never changed in place: other threads iterate over it."""
        self._pipeline: Pipeline | None = _pipeline(self.components)
        self.max_side = self.pipeline.max_side
        """Longest side of an image, pixels."""
        self._lock = threading.Lock()
        self._colours: LatentColours | None = None
        self._make_preview: Callable[[], Preview] | None = None

    @property
    def pipeline(self) -> Pipeline:
        """Its components together.

        Raises:
            RuntimeError: it is closed or put aside.
        """
        if self._pipeline is None:
            raise RuntimeError(f"version {self.version} cannot make images: it has released its device memory")
        return self._pipeline

    @property
    def nbytes(self) -> int:
        """Device bytes of its weights, shared ones included."""
        return sum(component.nbytes for component in self.components)

    @property
    def sizes(self) -> list[int]:
        """Bytes of each piece of device memory that holds its weights."""
        return [size for component in self.components for buffer in component.buffers for size in buffer.sizes]

    @property
    def is_complete(self) -> bool:
        """Whether it can make images: it is not closed, and its weights are on the device."""
        return self._pipeline is not None

    def generate(
        self,
        parameters: GenerationParameters,
        *,
        on_step: Callable[[int], None] = lambda done: None,
        on_image: Callable[[int, Image.Image], None] = lambda number, image: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generation:
        """Make one image per seed. `on_step` gets the number of denoising steps done, over all images; `on_image` gets the index
        and the image of each seed before the next is begun, if its pixels are finite.

        Raises:
            GenerationCancelled: `cancelled` returned true between two steps.
            RuntimeError: the device failed.
        """
        timings = dict.fromkeys(("encode", "denoise", "decode"), 0.0)
        with self._exclusively(), self.device.measured_request(), torch.inference_mode():
            with _timed(timings, "encode"), self.device.launching():
                prompts = self._encode(parameters)
            images, finite = [], True
            for number, seed in enumerate(parameters.seeds):
                done = number * parameters.steps
                with _timed(timings, "denoise"):
                    latents = self._denoise(parameters, prompts, seed, done, on_step, cancelled)
                with _timed(timings, "decode"):
                    pixels = self.pipeline.decode(latents)
                    finite &= bool(torch.isfinite(pixels).all())
                    if self._colours is None and finite:  # the first image is the warm-up's
                        self._colours = LatentColours.fit(latents, pixels)
                        # Run it once now, so that no request waits for the device to load its kernels.
                        self._colours.pixels(latents, latents, *self.pipeline.timeline(latents, 1).sigmas)
                    images.append(image_of(torch.nan_to_num(pixels)))
                if not finite:
                    break
                on_image(number, images[-1])
        return Generation(images, prompts[0].is_truncated, finite, timings)

    def serve(
        self,
        parameters: GenerationParameters,
        *,
        on_step: Callable[[int], None] = lambda done: None,
        on_image: Callable[[int, Image.Image], None] = lambda number, image: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generation:
        """Make images for a request: as `generate`, with priority over other work on the device. If memory runs out, it
        tries once more with the memory that was kept for the next load; `on_image` gets each image once.

        Raises:
            GenerationCancelled, RuntimeError: as `generate`.
        """
        given = 0

        def give(number: int, image: Image.Image) -> None:
            nonlocal given
            if number == given:
                given += 1
                on_image(number, image)

        with self.device.serving():
            try:
                return self.generate(parameters, on_step=on_step, on_image=give, cancelled=cancelled)
            except torch.OutOfMemoryError as error:
                ran_out = error.with_traceback(None)  # its frames hold the tensors that left no room
            if not self.device.give_room():
                raise ran_out
            _log.warning("a request needed the memory kept for the next load: the next version will load more slowly")
            return self.generate(parameters, on_step=on_step, on_image=give, cancelled=cancelled)

    def preview(self) -> Preview | None:
        """Return a preview of the image that is being made, inside `on_step`; None before the first image, the warm-up's,
        has shown which colours the latents stand for, and outside `on_step`."""
        return None if self._make_preview is None else self._make_preview()

    def is_truncated(self, prompt: str) -> bool:
        """Return whether the text encoder sees only the beginning of a prompt."""
        return self.pipeline.tokenizer.encode(prompt).is_truncated

    def verify_resident(self) -> tuple[int, list[str]]:
        """Hash every weight byte on the device; return how many there are, and a sentence per file that changed."""
        buffers = [buffer for component in self.components for buffer in component.buffers]
        with self.device.beside():
            # All hashes are launched first; only then does this thread wait for the device.
            checks = [buffer.begin_check() for buffer in buffers]
            problems = [problem for check in checks if (problem := check()) is not None]
        return sum(buffer.nbytes for buffer in buffers), problems

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Make one image at a time. A generation that was given up and does not come back keeps the engine for itself."""
        if not self._lock.acquire(timeout=LOCK_SECONDS):
            raise RuntimeError(
                f"an image that version {self.version} makes does not come back; deploy another version or restart the service"
            )
        try:
            yield
        finally:
            self._lock.release()

    def close(self) -> None:
        """Release all components; those that no other engine shares are freed, when an image that is being made by a
        generation that does not come back ends."""
        is_ours = self._lock.acquire(timeout=LOCK_SECONDS)
        self._pipeline = None
        self.components = ()
        if is_ours:
            self._lock.release()

    def exclusive_buffers(self, others: Collection["Engine"], digests: Collection[str]) -> set[FileBuffer]:
        """Return the buffers that none of the other engines holds and whose digest is not among `digests`."""
        shared = {buffer for engine in others for component in engine.components for buffer in component.buffers}
        own = {buffer for component in self.components for buffer in component.buffers}
        return {buffer for buffer in own - shared if buffer.digest not in digests}

    def put_aside(self, store: ComponentStore, leaving: list[Component], exclusive: set[FileBuffer]) -> list[Aside]:
        """Move components' bytes to host memory; until `restore`, it cannot make images.

        Raises:
            torch.OutOfMemoryError, MemoryError: the host has not enough memory; nothing was released.
        """
        with self._lock:
            aside = [store.put_aside(component, exclusive) for component in leaving]
            self._pipeline = None
            self.components = tuple(component for component in self.components if component not in leaving)
        return aside

    def restore(self, store: ComponentStore, aside: list[Aside]) -> None:
        """Undo `put_aside`.

        Raises:
            Rejection, RuntimeError: the device failed; it cannot make images.
        """
        with self._lock:
            self.components = (*self.components, *[store.restore(one) for one in aside])
            self._pipeline = _pipeline(self.components)

    def _encode(self, parameters: GenerationParameters) -> list[EncodedText]:
        """Return the prompt, and the negative prompt if it counts."""
        texts = [parameters.prompt, *([parameters.negative_prompt] if parameters.guidance_scale > 0 else [])]
        return [self.pipeline.encode(text, self.device.torch_device) for text in texts]

    def _denoise(
        self,
        parameters: GenerationParameters,
        prompts: list[EncodedText],
        seed: int,
        done: int,
        on_step: Callable[[int], None],
        cancelled: Callable[[], bool],
    ) -> torch.Tensor:
        if cancelled():
            raise GenerationCancelled
        generator = torch.Generator(self.device.torch_device).manual_seed(seed)
        noise = self.pipeline.noise(parameters.width, parameters.height, generator)
        timeline = self.pipeline.timeline(noise, parameters.steps)

        def after_step(step: int, before: torch.Tensor, after: torch.Tensor) -> None:
            if self._colours is not None:
                sigmas = timeline.sigmas[step], timeline.sigmas[step + 1]
                self._make_preview = partial(self._colours.preview, before, after, *sigmas)
            try:
                on_step(done + step + 1)
            finally:
                self._make_preview = None
            if cancelled():
                raise GenerationCancelled

        embeddings = [prompt.embedding for prompt in prompts]
        return self.pipeline.denoise(noise, timeline, embeddings, parameters.guidance_scale, after_step)


def _pipeline(components: Collection[Component]) -> Pipeline:
    return Pipeline(**{component.key.component: component.module for component in components})


@contextmanager
def _timed(timings: dict[str, float], phase: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    timings[phase] += time.perf_counter() - begun
