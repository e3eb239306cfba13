"""An engine: a version loaded, which turns a prompt and a seed into an image."""

import copy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, ZImagePipeline
from PIL import Image

from zwatch.engine.components import Assembly
from zwatch.engine.preview import LatentColours, Preview
from zwatch.errors import GenerationCancelled
from zwatch.shadow.device import Device

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
        modules = {name: component.module for name, component in self._components.items()}
        # The scheduler counts steps: an own one, also where its config is shared.
        modules["scheduler"] = FlowMatchEulerDiscreteScheduler.from_config(modules["scheduler"].config)
        # The tokenizer sets its padding and truncation anew with every call, and another engine may call meanwhile.
        modules["tokenizer"] = copy.deepcopy(modules["tokenizer"])
        self._pipeline = ZImagePipeline(**modules)
        self._pipeline.set_progress_bar_config(disable=True)
        self._turn = threading.Lock()
        self._colours: LatentColours | None = None
        self._look: Callable[[], Preview] | None = None

    @property
    def max_side(self) -> int:
        """Longest side of an image, pixels: the transformer knows so many positions, each of 2 x 2 latents."""
        config = self._pipeline.transformer.config
        return int(min(config.axes_lens[1:])) * 2 * int(self._pipeline.vae_scale_factor)

    @property
    def nbytes(self) -> int:
        """Device bytes of its weights, shared ones included."""
        return sum(component.nbytes for component in self._components.values())

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
            with _timed(timings, "encode"):
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
                        self._colours.preview(latents, latents, *self._pipeline.scheduler.sigmas[:2]).image()
                    images += self._pipeline.image_processor.postprocess(torch.nan_to_num(pixels), output_type="pil")
        return Generation(images, truncated, finite, timings)

    def preview(self) -> Preview | None:
        """Return what the image in the making would look like now. To be called within `on_step`; None before the first
        image has shown what colours the latents stand for."""
        return None if self._look is None else self._look()

    def is_truncated(self, prompt: str) -> bool:
        """Say whether the text encoder sees only the beginning of a prompt."""
        tokenizer = self._pipeline.tokenizer
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True, enable_thinking=True
        )
        return len(tokenizer(text).input_ids) > MAX_PROMPT_TOKENS

    def verify_resident(self) -> tuple[int, list[str]]:
        """Hash every weight byte where it serves; return how many there are, and a sentence a file that changed."""
        buffers = [buffer for component in self._components.values() for buffer in component.buffers]
        with self.device.beside():
            problems = [problem for buffer in buffers if (problem := buffer.check_again()) is not None]
        return sum(buffer.nbytes for buffer in buffers), problems

    def close(self) -> None:
        """Let go of all components; those that no other engine shares are freed."""
        with self._turn:
            del self._pipeline
            self._components.clear()

    def _encode(self, parameters: GenerationParameters) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        # Lists of our own: the pipeline changes a list of prompts in place.
        return self._pipeline.encode_prompt(  # type: ignore[no-any-return]
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
        before = self._pipeline.prepare_latents(
            1, self._pipeline.transformer.in_channels, parameters.height, parameters.width,
            torch.float32, self.device.torch_device, generator,
        )  # fmt: skip

        def after_step(
            pipeline: object, step: int, timestep: object, tensors: dict[str, torch.Tensor]
        ) -> dict[str, torch.Tensor]:
            nonlocal before
            after, sigmas = tensors["latents"], self._pipeline.scheduler.sigmas
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

        latents = self._pipeline(
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
        vae = self._pipeline.vae
        scaled = latents.to(vae.dtype) / vae.config.scaling_factor + vae.config.shift_factor
        pixels = vae.decode(scaled, return_dict=False)[0]
        assert isinstance(pixels, torch.Tensor)  # what return_dict=False means
        return pixels


@contextmanager
def _timed(timings: dict[str, float], phase: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    timings[phase] += time.perf_counter() - begun
