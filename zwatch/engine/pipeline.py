"""An engine: a version loaded, which turns a prompt and a seed into an image."""

import logging
import threading
from collections.abc import Callable, Collection, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from PIL import Image

from zwatch.engine.acceleration import Acceleration, kind_of
from zwatch.engine.adapted import shapes_of
from zwatch.engine.computing import Computing
from zwatch.engine.decoding import Decoded, Decoding, Encoding
from zwatch.engine.initial import Beginning, begin, encoded_images
from zwatch.engine.lora import Adapted
from zwatch.engine.parameters import Generation, GenerationParameters
from zwatch.engine.precision import name_of
from zwatch.engine.preview import LatentColours, Preview
from zwatch.engine.sampling import EncodedText, Pipeline, image_of
from zwatch.engine.store import Aside, Assembly, Component, ComponentStore
from zwatch.errors import GenerationCancelled
from zwatch.shadow.converted import Buffer
from zwatch.shadow.device import Device
from zwatch.shadow.faults import is_memory_short
from zwatch.timeline import Phases

_log = logging.getLogger(__name__)

LOCK_SECONDS = 30.0
"""Seconds to wait for another image by the same engine: the queue runs one at a time, so that there is none to wait for."""


class Engine:
    """One version, ready to generate. It makes one image at a time: two would need twice the memory."""

    def __init__(self, assembly: Assembly, device: Device, acceleration: Acceleration | None = None) -> None:
        self.version = assembly.plan.version
        self.digest = assembly.plan.seal.digest
        self.plan = assembly.plan
        self.default_size = assembly.default_size
        self.device = device
        self._acceleration = acceleration or Acceleration(device)
        self._decoding, self._encoding = Decoding(device), Encoding(device)
        self.components = tuple(assembly.components.values())
        """What it consists of. Replaced, never changed in place: other threads iterate over it."""
        self._pipeline: Pipeline | None = _pipeline(self.components)
        self._kind = kind_of(self._pipeline)  # looking through all modules takes milliseconds
        self.precision = name_of(self.pipeline.transformer, self.pipeline.text_encoder)
        """What it computes in: bf16, fp32, fp16, fp8 or int8; of the transformer and the text encoder, joined by `+`, if they differ."""
        self.max_side = self.pipeline.max_side
        """Longest side of an image, pixels."""
        self.has_control = self.pipeline.controlnet is not None
        """Whether a control image can guide it."""
        self.linear_shapes = shapes_of(self.pipeline.transformer)  # of the layers that LoRAs can change
        self.is_unjudged = False
        """Whether it has not made an image in this process, and its first one has to be judged."""
        self._lock = threading.Lock()
        self.colours: LatentColours | None = None
        """Which colours its latents stand for, for previews: set by its first image, or known from an earlier start."""
        self.golden = assembly.golden
        """What it must draw, and how much of that was checked."""
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
    def host_nbytes(self) -> int:
        """Host bytes of weights that visit the device: the text encoder's, if it is offloaded."""
        return sum(buffer.nbytes for part in self.components if part.is_offloaded for buffer in part.buffers)

    @property
    def device_buffers(self) -> list[Buffer]:
        """Its weights on the device."""
        return [buffer for component in self.components for buffer in component.device_buffers]

    @property
    def sizes(self) -> list[int]:
        """Bytes of each piece of device memory that loading its weights takes."""
        return [size for buffer in self.device_buffers for size in buffer.sizes]

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
        is_request: bool = False,
        adapted: Adapted | None = None,
    ) -> Generation:
        """Make one image per seed; `adapted` draws with the LoRAs of `parameters`. `on_step` gets the number of steps done, over all
        images; `on_image` the index and the image of each seed before the next is begun, if its pixels are finite. For a request, a
        prompt that was encoded before need not be encoded again; a version has to prove that it can.

        Raises:
            GenerationCancelled: `cancelled` returned true between two steps.
            RuntimeError: the device failed.
        """
        phases = Phases()
        with (
            self._exclusively(), self.device.measured_request(), torch.inference_mode(),
            self._acceleration.during(self._kind, is_request=is_request) as computing,
        ):  # fmt: skip
            pipeline = self._for(parameters, computing, adapted)
            with phases.of("encode"), self.device.launching():
                prompts, new = self._encode(pipeline, parameters, is_request=is_request)
                given = encoded_images(pipeline, self._encoding, parameters, self.device.torch_device)
            images, finite = [], True
            for number, seed in enumerate(parameters.seeds):
                # What a load lacks passes.
                picture = Decoded(self._decoding if is_request else Decoding(self.device), pipeline)
                with phases.of("denoise"):
                    dtype, done = prompts[0].embedding.dtype, number * parameters.steps_made
                    beginning = begin(pipeline, parameters, given, seed, dtype, self.device.torch_device)
                    latents = self._denoise(pipeline, parameters, beginning, prompts, done, on_step, cancelled, picture)
                with phases.of("decode"):
                    pixels = picture.pixels(latents)
                    all_finite = torch.isfinite(pixels).all()
                    images.append(image_of(torch.nan_to_num(pixels)))  # waits for the device, once for both
                    finite &= bool(all_finite)
                    if self.colours is None and finite:  # the first image is the warm-up's
                        self.colours = LatentColours.fit(latents, pixels)
                        # Run it once now, so that no request waits for the device to load its kernels.
                        self.colours.pixels(latents, latents, *pipeline.timeline(latents, 1).sigmas)
                if not finite:
                    break
                on_image(number, images[-1])
            self._keep(new if finite else {})
        timings = {name: phases.seconds(name) for name in ("encode", "denoise", "decode")}
        return Generation(images, prompts[0].is_truncated, finite, timings, phases)

    def _keep(self, new: dict[Hashable, EncodedText]) -> None:
        if (prompts := self._acceleration.prompts) is not None:
            for key, prompt in new.items():
                prompts.put(key, prompt)

    def _for(self, parameters: GenerationParameters, computing: Computing, adapted: Adapted | None) -> Pipeline:
        own, scales = self.pipeline, [lora.scale for lora in parameters.loras]
        network = own.transformer if adapted is None else adapted.scaled(scales)
        return replace(own, computing=computing, transformer=network)

    def serve(
        self,
        parameters: GenerationParameters,
        *,
        on_step: Callable[[int], None] = lambda done: None,
        on_image: Callable[[int, Image.Image], None] = lambda number, image: None,
        cancelled: Callable[[], bool] = lambda: False,
        adapted: Adapted | None = None,
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

        draw = partial(
            self.generate, parameters, on_step=on_step, on_image=give, cancelled=cancelled, is_request=True, adapted=adapted
        )  # fmt: skip
        with self.device.serving():
            try:
                return draw()
            except (RuntimeError, MemoryError) as error:
                if not is_memory_short(error):
                    raise
                ran_out = error.with_traceback(None)  # its frames hold the tensors that left no room
            if had_graphs := self._acceleration.give_room():
                self._decoding, self._encoding = Decoding(self.device), Encoding(self.device)
            if self.device.give_room():
                _log.warning(
                    "a request needed the memory kept for the next load: the next version will load more slowly"
                )
            elif not had_graphs:
                raise ran_out
            return draw()

    def preview(self) -> Preview | None:
        """Return a preview of the image that is being made, inside `on_step`; None before the first image, the warm-up's,
        has shown which colours the latents stand for, and outside `on_step`."""
        return None if self._make_preview is None else self._make_preview()

    def _preview_beside(self, colours: LatentColours, *read: torch.Tensor) -> Preview:
        with self._acceleration.beside_steps(*read):
            return colours.preview(*read)

    def prepare(self) -> None:
        """Begin to compile, beside requests, what makes them faster."""
        self._acceleration.prepare(self.pipeline)

    @contextmanager
    def other_way(self) -> Iterator[None]:
        """Draw the other way inside: fast instead of exactly, or exactly instead of fast. For who has the engine for itself. Where there
        is no other way for its networks, or not yet, the pictures are the same."""
        own = self._acceleration
        self._acceleration = own.other()
        try:
            yield
        finally:
            self._acceleration = own

    def is_truncated(self, prompt: str) -> bool:
        """Return whether the text encoder sees only the beginning of a prompt."""
        return self.pipeline.tokenizer.encode(prompt).is_truncated

    def verify_resident(self) -> tuple[int, list[str]]:
        """Hash every weight byte, on the device and in host memory; return how many there are, and a sentence per file that changed."""
        buffers = [buffer for component in self.components for buffer in component.buffers]
        with self.device.beside():
            # All hashes are launched first; only then does this thread wait for the device.
            checks = [buffer.begin_check() for buffer in buffers]
            problems = [problem for check in checks if (problem := check()) is not None]
        if problems and self._acceleration.prompts is not None:
            self._acceleration.prompts.clear()  # they may have been encoded by changed weights
        nbytes, changed = self._acceleration.verify_loras()
        return sum(buffer.nbytes for buffer in buffers) + nbytes, [*problems, *changed]

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

    def exclusive_buffers(self, others: Collection["Engine"], digests: Collection[str]) -> set[Buffer]:
        """Return the buffers on the device that none of the other engines holds and whose digest is not among `digests`."""
        shared = {buffer for engine in others for buffer in engine.device_buffers}
        return {buffer for buffer in set(self.device_buffers) - shared if buffer.digest not in digests}

    def put_aside(self, store: ComponentStore, leaving: list[Component], exclusive: set[Buffer]) -> list[Aside]:
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

    def _encode(
        self, pipeline: Pipeline, parameters: GenerationParameters, *, is_request: bool
    ) -> tuple[list[EncodedText], dict[Hashable, EncodedText]]:
        """Return the prompt, and the negative prompt if it counts; and what of it can be kept for the next request."""
        texts = [parameters.prompt, *([parameters.negative_prompt] if parameters.guidance_scale > 0 else [])]
        cache, device = self._acceleration.prompts if is_request else None, self.device.torch_device
        if cache is None:
            return [pipeline.encode(text, device) for text in texts], {}
        parts = {component.key.component: component.key for component in self.components}
        found: list[EncodedText] = []
        new: dict[Hashable, EncodedText] = {}
        for text in texts:
            # All that an embedding depends on: its dtype is that of the text encoder's files.
            key = (text, parts["text_encoder"], parts["tokenizer"], pipeline.computing.name, self.host_nbytes > 0)
            if (kept := cache.get(key, device)) is None:
                kept = new[key] = pipeline.encode(text, device)
            found.append(kept)
        return found, new

    def _denoise(
        self,
        pipeline: Pipeline,
        parameters: GenerationParameters,
        beginning: Beginning,
        prompts: list[EncodedText],
        done: int,
        on_step: Callable[[int], None],
        cancelled: Callable[[], bool],
        picture: Decoded,
    ) -> torch.Tensor:
        if cancelled():
            raise GenerationCancelled
        timeline = beginning.timeline
        preview = self._preview_beside if pipeline.computing.runs_ahead else LatentColours.preview

        def after_step(step: int, before: torch.Tensor, after: torch.Tensor) -> None:
            if self.colours is not None:
                sigmas = timeline.sigmas[step], timeline.sigmas[step + 1]
                self._make_preview = partial(preview, self.colours, before, after, *sigmas)
            try:
                on_step(done + step + 1)
            finally:
                self._make_preview = None
            if cancelled():
                raise GenerationCancelled

        texts, scale = [prompt.embedding for prompt in prompts], parameters.guidance_scale
        return pipeline.denoise(
            beginning.latents, timeline, texts, scale, after_step, beginning.blend, picture.launch, beginning.control
        )


def _pipeline(components: Collection[Component]) -> Pipeline:
    return Pipeline(**{component.key.component: component.module for component in components})
