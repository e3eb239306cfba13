"""Where an image that is changed begins: the image's own latents, with noise for as many steps as `strength` leaves.

The numbers are those of diffusers' `ZImageImg2ImgPipeline`, and with a mask those of `ZImageInpaintPipeline`.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional

from zwatch.engine.computing import Control
from zwatch.engine.config_fields import LATENT_SCALE
from zwatch.engine.decoding import Encoding
from zwatch.engine.networks.controlnet import context_of
from zwatch.engine.parameters import GenerationParameters, InitialImage
from zwatch.engine.sampling import Blend, Pipeline
from zwatch.engine.schedule import Timeline

_LOG_VARIANCE = (-30.0, 20.0)
"""What diffusers' distribution limits it to."""


def pixels_of(picture: Image.Image | None, width: int, height: int) -> Tensor:
    """Return an RGB image at a size in pixels: float32 of shape (1, 3, height, width), from -1 to 1."""
    assert picture is not None  # the images are not made yet
    # Channels last, as diffusers has them: that decides the last bits of convolutions.
    return 2.0 * _levels(picture, width, height)[None].permute(0, 3, 1, 2) - 1.0


def mask_of(initial: InitialImage, width: int, height: int) -> Tensor | None:
    """Return which latents of an image of a size in pixels are changed: float32 of shape (1, 1, height / 8, width / 8), 1 or 0."""
    if initial.mask is None:
        return None
    mask = initial.mask
    if initial.mask_blur:
        mask = mask.filter(ImageFilter.GaussianBlur(initial.mask_blur))
    whole = (_levels(mask, width, height)[None, None] >= 0.5).float()
    return functional.interpolate(whole, size=(height // LATENT_SCALE, width // LATENT_SCALE), mode="nearest")


def _levels(picture: Image.Image, width: int, height: int) -> Tensor:
    """Return a picture's levels at a size, from 0 to 1."""
    resized = picture.resize((width, height), Image.Resampling.LANCZOS)
    return torch.from_numpy(np.array(resized).astype(np.float32) / 255.0)


@dataclass(frozen=True, slots=True)
class Beginning:
    """The latents that an image begins with, the steps from there on, and what is to be put back after each."""

    latents: Tensor
    timeline: Timeline
    blend: Blend | None = None
    control: Control | None = None
    """What guides it."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """The image that a request changes, on the device: the mean and the logarithm of the variance of its latents, shape (1, 2 x channels,
    h / 8, w / 8), and which of them are changed (None: all)."""

    moments: Tensor
    mask: Tensor | None

    def begin(self, vae: Any, timeline: Timeline, first: int, dtype: torch.dtype, generator: torch.Generator) -> Beginning:  # fmt: skip
        """Return where the image of a generator's seed begins, if its first step is `first` of the timeline's. `dtype` is that of the
        prompt's embedding, in which diffusers makes the first latents."""
        clean = self._sample(vae, generator).to(dtype)
        noise = _noise(clean.shape, dtype, generator).to(clean.device)
        levels = timeline.sigmas.to(dtype)
        rest = timeline.after(first)
        latents = clean if first >= len(timeline.timesteps) else _noised(clean, noise, levels[first])
        if self.mask is None:
            return Beginning(latents, rest)
        changed, last = self.mask.to(clean.device, dtype), len(timeline.timesteps) - 1

        def blend(number: int, after: Tensor) -> Tensor:
            # The step after the last has no noise.
            at = first + number
            kept = clean if at == last else _noised(clean, noise, levels[at + 1])
            return (1 - changed) * kept + changed * after

        return Beginning(latents, rest, blend)

    def _sample(self, vae: Any, generator: torch.Generator) -> Tensor:
        """Return latents of the image as the transformer knows them."""
        mean, logarithm = self.moments.chunk(2, dim=1)
        deviation = torch.exp(0.5 * logarithm.clamp(*_LOG_VARIANCE))
        drawn = mean + deviation * _noise(mean.shape, mean.dtype, generator).to(mean.device)
        scaled: Tensor = (drawn - vae.config.shift_factor) * vae.config.scaling_factor
        return scaled


@dataclass(frozen=True, slots=True)
class EncodedImages:
    """The images of a request, on the device: the one that is changed, and the one that guides."""

    initial: EncodedImage | None
    control: Control | None


def encoded_images(pipeline: Pipeline, encoding: Encoding, parameters: GenerationParameters, device: torch.device) -> EncodedImages:  # fmt: skip
    """Return the images of a request, as far as it has some."""
    given = pipeline, encoding, parameters, device
    return EncodedImages(_changed_image(*given), _control(*given))


def _changed_image(pipeline: Pipeline, encoding: Encoding, parameters: GenerationParameters, device: torch.device) -> EncodedImage | None:  # fmt: skip
    source, sides = parameters.source, (parameters.width, parameters.height)
    if source is None:
        return None
    moments = encoding.encode(pipeline, pixels_of(source.picture, *sides).to(device, non_blocking=True))
    return EncodedImage(moments, mask_of(source, *sides))


def _control(pipeline: Pipeline, encoding: Encoding, parameters: GenerationParameters, device: torch.device) -> Control | None:  # fmt: skip
    """Return what guides a picture, if anything does: the numbers are those of `ZImageControlNetPipeline`.

    Raises:
        ValueError: the version has no ControlNet; a request is refused before.
    """
    asked, config = parameters.control, pipeline.vae.config
    if asked is None:
        return None
    if pipeline.controlnet is None:
        raise ValueError("a control image needs a version with a controlnet")
    # Channels first, unlike the image that is changed: so it is repeated for each image of a batch.
    pixels = pixels_of(asked.picture, parameters.width, parameters.height).contiguous().to(device, non_blocking=True)
    mean, _ = encoding.encode(pipeline, pixels).chunk(2, dim=1)
    latents = ((mean - config.shift_factor) * config.scaling_factor)[0].unsqueeze(1)
    return Control(pipeline.controlnet, context_of(pipeline.controlnet, latents), asked.scale)


def begin(
    pipeline: Pipeline,
    parameters: GenerationParameters,
    given: EncodedImages,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Beginning:
    """Return where the image of a seed begins on a device: with noise, or with the image that is changed, for which `dtype` is that of the
    prompt's embedding."""
    generator = torch.Generator("cpu" if parameters.has_host_noise else device).manual_seed(seed)
    if (initial := given.initial) is not None:
        timeline = pipeline.timeline(initial.moments, parameters.steps)
        return initial.begin(pipeline.vae, timeline, parameters.first_step, dtype, generator)
    noise = pipeline.noise(parameters.width, parameters.height, generator).to(device)
    return Beginning(noise, pipeline.timeline(noise, parameters.steps), control=given.control)


def _noise(shape: torch.Size, dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)


def _noised(clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    """Return latents with the noise of a level: the order of the operations decides the last bits."""
    return level * noise + (1.0 - level) * clean
