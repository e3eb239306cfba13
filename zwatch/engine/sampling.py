"""From a prompt to an image: what `ZImagePipeline` does, with the same bits, in steps that the engine can stop between."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from zwatch.engine import library
from zwatch.engine.config_fields import LATENT_SCALE
from zwatch.engine.networks.text_encoder import Qwen3Encoder
from zwatch.engine.schedule import Schedule, Timeline
from zwatch.engine.tokenizer import Tokenizer

AfterStep = Callable[[int, Tensor, Tensor], None]
"""Called after a step with its number, from 0 on, and the latents before and after it; may raise to stop."""


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A prompt for the transformer, shape (tokens, width), and whether its end was cut off: it has at most 512 tokens."""

    embedding: Tensor
    is_truncated: bool


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The five components together; it has no state."""

    tokenizer: Tokenizer
    text_encoder: Any
    transformer: Any
    vae: Any
    scheduler: Schedule

    @property
    def max_side(self) -> int:
        """Longest side of an image, pixels: the transformer has a limited number of positions, each of 2 x 2 latents."""
        return int(min(self.transformer.config.axes_lens[1:])) * 2 * LATENT_SCALE

    def encode(self, prompt: str, device: torch.device) -> EncodedText:
        """Encode a prompt for the transformer."""
        encoded = self.tokenizer.encode(prompt)
        tokens, mask = torch.tensor(encoded.tokens).to(device), torch.tensor(encoded.mask).bool()
        encode = (
            self.text_encoder.encode
            if isinstance(self.text_encoder, Qwen3Encoder)
            else partial(library.encode, self.text_encoder)
        )
        return EncodedText(encode(tokens, mask), encoded.is_truncated)

    def noise(self, width: int, height: int, generator: torch.Generator) -> Tensor:
        """Return the latents that an image of this size in pixels begins with, float32 of shape (1, channels, h / 8, w / 8)."""
        shape = (1, self.transformer.in_channels, height // LATENT_SCALE, width // LATENT_SCALE)
        return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)

    def timeline(self, latents: Tensor, steps: int) -> Timeline:
        """Return the steps for latents."""
        tokens = (latents.shape[2] // 2) * (latents.shape[3] // 2)
        return self.scheduler.timeline(steps, tokens, latents.device)

    def denoise(
        self, latents: Tensor, timeline: Timeline, prompts: Sequence[Tensor], guidance_scale: float, after_step: AfterStep
    ) -> Tensor:  # fmt: skip
        """Return the latents of the image that noise becomes, float32 of the noise's shape.

        `prompts` are the embeddings of the prompt, and with a `guidance_scale` over 0 of the negative prompt.
        """
        for number, time in enumerate(timeline.timesteps):
            moved = timeline.step(self._velocity(latents, time, prompts, guidance_scale), number, latents)
            after_step(number, latents, moved)
            latents = moved
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Return the pixels of latents of shape (1, 16, h / 8, w / 8): shape (1, 3, h, w), from -1 to 1."""
        scaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor + self.vae.config.shift_factor
        pixels: Tensor = self.vae.decode(scaled, return_dict=False)[0]
        return pixels

    def _velocity(self, latents: Tensor, time: Tensor, prompts: Sequence[Tensor], guidance_scale: float) -> Tensor:
        count = len(prompts)
        # One frame of each image
        inputs = latents.to(self.transformer.dtype).repeat(count, 1, 1, 1).unsqueeze(2)
        towards = ((1000 - time.expand(1)) / 1000).repeat(count)
        found = self.transformer(list(inputs.unbind(0)), towards, list(prompts), return_dict=False)[0]
        wanted: Tensor = found[0].float()
        if count > 1:
            wanted = wanted + guidance_scale * (wanted - found[1].float())
        return -wanted.unsqueeze(0).squeeze(2)


def image_of(pixels: Tensor) -> Image.Image:
    """Return the picture of finite pixels of shape (1, 3, h, w), from -1 to 1; waits for the device."""
    levels = (pixels * 0.5 + 0.5).clamp(0, 1)[0].permute(1, 2, 0)
    return Image.fromarray(levels.float().mul(255).round().to(torch.uint8).cpu().numpy())
