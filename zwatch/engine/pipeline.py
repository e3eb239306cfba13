"""An engine: a version loaded, which turns a prompt and a seed into an image."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline
from PIL import Image

from zwatch.engine.preview import LatentColours, Preview
from zwatch.engine.store import Aside, Assembly, Component, ComponentStore
from zwatch.errors import GenerationCancelled
from zwatch.shadow.buffers import FileBuffer
from zwatch.shadow.device import Device

_log = logging.getLogger(__name__)

MAX_PROMPT_TOKENS = 512
"""`max_sequence_length` of ZImagePipeline; what is longer is cut."""


@dataclass(frozen=True, slots=True)
class GenerationParameters:
    """What an image is made from. Sizes in pixels, multiples of 16."""

    prompt: str
    negative_prompt: str
    width: int
    height: int
    steps: int
    guidance_scale: float
    seeds: tuple[int, ...]


@dataclass(slots=True)
class Generation:
    """What came of it: PIL images in the order of the seeds, whether the prompt was cut, whether every pixel was a finite
    number, and seconds by phase."""

    images: list[Image.Image]
    truncated: bool
    finite: bool
    timings: dict[str, float]


class Engine:
    """One version, ready to generate. Its pipeline holds state, so it makes one image at a time."""

    def __init__(self, assembly: Assembly, device: Device) -> None:
        self.version = assembly.plan.version
        self.digest = assembly.plan.seal.digest
        self.plan = assembly.plan
        self.default_size = assembly.default_size
        self.device = device
        self._components = dict(assembly.components)
        self._pipeline: ZImagePipeline | None = _pipeline(self._components)
        self.max_side = _max_side(self._made)
        """Longest side of an image, pixels."""
        self._turn = threading.Lock()
        self._colours: LatentColours | None = None
        self._look: Callable[[], Preview] | None = None

    @property
    def _made(self) -> ZImagePipeline:
        if self._pipeline is None:
            raise RuntimeError(f"version {self.version} has given its memory away")
        return self._pipeline

    @property
    def nbytes(self) -> int:
        """Device bytes of its weights, shared ones included."""
        return sum(component.nbytes for component in self._components.values())

    @property
    def components(self) -> list[Component]:
        """What it is made of."""
        return list(self._components.values())

    @property
    def sizes(self) -> list[int]:
        """Bytes of each piece of memory that its weights lie in."""
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
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generation:
        """Make one image a seed. `on_step` gets the number of denoising steps done, over all images.

        Raises:
            GenerationCancelled: `cancelled` said so between two steps.
            RuntimeError: the device failed.
        """
        timings = dict.fromkeys(("encode", "denoise", "decode"), 0.0)
        with self._turn, self.device.measured_request(), torch.inference_mode():
            with _timed(timings, "encode"), self.device.launching():
                truncated = self.is_truncated(parameters.prompt)
                positive, negative = self._encode(parameters)
            images, finite = [], True
            for number, seed in enumerate(parameters.seeds):
                done = number * parameters.steps
                with _timed(timings, "denoise"):
                    latents = self._denoise(parameters, positive, negative, seed, done, on_step, cancelled)
                with _timed(timings, "decode"):
                    pixels = self._decode(latents)
                    finite &= bool(torch.isfinite(pixels).all())
                    if self._colours is None and finite:  # the first image is the warm-up's
                        self._colours = LatentColours.fit(latents, pixels)
                        # Once now, so that no request waits for the device to load what this runs.
                        self._colours.pixels(latents, latents, *self._made.scheduler.sigmas[:2])
                    images += self._made.image_processor.postprocess(torch.nan_to_num(pixels), output_type="pil")
        return Generation(images, truncated, finite, timings)

    def serve(
        self,
        parameters: GenerationParameters,
        *,
        on_step: Callable[[int], None] = lambda done: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generation:
        """Make somebody's images: as `generate`, before everything else that the device does, and if memory runs out,
        once more with the room that was kept for the next load.

        Raises:
            GenerationCancelled, RuntimeError: as `generate`.
        """
        with self.device.serving():
            try:
                return self.generate(parameters, on_step=on_step, cancelled=cancelled)
            except torch.OutOfMemoryError as error:
                ran_out = error.with_traceback(None)  # its frames hold the tensors that there was no room beside
            if not self.device.give_room():
                raise ran_out
            _log.warning("an image needs the memory that was kept for the next version: that will load more slowly")
            return self.generate(parameters, on_step=on_step, cancelled=cancelled)

    def preview(self) -> Preview | None:
        """Return what the image in the making would look like now. To be called within `on_step`; None before the first
        image has shown what colours the latents stand for."""
        return None if self._look is None else self._look()

    def is_truncated(self, prompt: str) -> bool:
        """Say whether the text encoder sees only the beginning of a prompt."""
        tokenizer = self._made.tokenizer
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        return len(tokenizer(text).input_ids) > MAX_PROMPT_TOKENS

    def verify_resident(self) -> tuple[int, list[str]]:
        """Hash every weight byte where it serves; return how many there are, and a sentence a file that changed."""
        buffers = [buffer for component in self.components for buffer in component.buffers]
        with self.device.beside():
            # The device hashes all of them in a row; only then does this thread wait.
            checks = [buffer.begin_check() for buffer in buffers]
            problems = [problem for check in checks if (problem := check()) is not None]
        return sum(buffer.nbytes for buffer in buffers), problems

    def close(self) -> None:
        """Let go of all components; those that no other engine shares are freed."""
        with self._turn:
            self._pipeline = None
            self._components.clear()

    def put_aside(self, store: ComponentStore, leaving: list[Component], exclusive: set[FileBuffer]) -> list[Aside]:
        """Copy components' bytes to host memory and give up the device's; until `bring_back`, it makes no images.

        Raises:
            torch.OutOfMemoryError, MemoryError: the host has not enough memory; nothing was given up.
        """
        with self._turn:
            aside = [store.put_aside(component, exclusive) for component in leaving]
            self._pipeline = None
            self._components = {name: one for name, one in self._components.items() if one not in leaving}
        return aside

    def bring_back(self, store: ComponentStore, aside: list[Aside]) -> None:
        """Undo `put_aside`.

        Raises:
            Rejection, RuntimeError: the device failed; it makes no images.
        """
        with self._turn:
            # Never changed in place: whoever asks for the status may be looking through it.
            self._components = self._components | {one.key[0]: store.bring_back(one) for one in aside}
            self._pipeline = _pipeline(self._components)

    def _encode(self, parameters: GenerationParameters) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        # Lists of our own: the pipeline changes a list of prompts in place.
        return self._made.encode_prompt(  # type: ignore[no-any-return]
            prompt=[parameters.prompt],
            negative_prompt=[parameters.negative_prompt],
            device=self.device.torch_device,
            do_classifier_free_guidance=parameters.guidance_scale > 0,
            max_sequence_length=MAX_PROMPT_TOKENS,
        )

    def _denoise(
        self,
        parameters: GenerationParameters,
        positive: list[torch.Tensor],
        negative: list[torch.Tensor],
        seed: int,
        done: int,
        on_step: Callable[[int], None],
        cancelled: Callable[[], bool],
    ) -> torch.Tensor:
        if cancelled():
            raise GenerationCancelled
        generator = torch.Generator(self.device.torch_device).manual_seed(seed)
        # Made as the pipeline itself would; here, because previews compare each step's latents with those before it.
        before = self._made.prepare_latents(
            1, self._made.transformer.in_channels, parameters.height, parameters.width,
            torch.float32, self.device.torch_device, generator,
        )  # fmt: skip

        def after_step(
            pipeline: object, step: int, timestep: object, tensors: dict[str, torch.Tensor]
        ) -> dict[str, torch.Tensor]:
            nonlocal before
            after, sigmas = tensors["latents"], self._made.scheduler.sigmas
            if self._colours is not None:
                self._look = partial(self._colours.preview, before, after, sigmas[step], sigmas[step + 1])
            try:
                on_step(done + step + 1)
            finally:
                self._look, before = None, after
            # Raised, because the pipeline's own interrupt flag still runs the decoder.
            if cancelled():
                raise GenerationCancelled
            return tensors

        latents = self._made(
            latents=before,
            prompt_embeds=positive,
            negative_prompt_embeds=negative,
            width=parameters.width,
            height=parameters.height,
            num_inference_steps=parameters.steps,
            guidance_scale=parameters.guidance_scale,
            generator=generator,
            output_type="latent",
            callback_on_step_end=after_step,
            callback_on_step_end_tensor_inputs=["latents"],
        ).images
        assert isinstance(latents, torch.Tensor)  # what output_type="latent" means
        return latents

    def _decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Turn latents of shape (1, 16, h / 8, w / 8) into pixels of shape (1, 3, h, w), as the pipeline itself would."""
        vae = self._made.vae
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        pixels = vae.decode(scaled, return_dict=False)[0]
        assert isinstance(pixels, torch.Tensor)  # what return_dict=False means
        return pixels


def _pipeline(components: Mapping[str, Component]) -> ZImagePipeline:
    modules = {name: component.module for name, component in components.items()}
    # The scheduler counts steps: an own one, also where its config is shared.
    modules["scheduler"] = FlowMatchEulerDiscreteScheduler.from_config(modules["scheduler"].config)
    pipeline = ZImagePipeline(**modules)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _max_side(pipeline: ZImagePipeline) -> int:
    """The transformer knows so many positions along a side, each of 2 x 2 latents."""
    return int(min(pipeline.transformer.config.axes_lens[1:])) * 2 * int(pipeline.vae_scale_factor)


@contextmanager
def _timed(timings: dict[str, float], phase: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    timings[phase] += time.perf_counter() - begun
