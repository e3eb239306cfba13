"""From a prompt to an image: what `ZImagePipeline` does, with the same bits, in steps that the engine can stop between."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from zwatch.engine.computing import EXACT, Computing, Control, Finished
from zwatch.engine.config_fields import LATENT_SCALE
from zwatch.engine.schedule import Schedule, Timeline
from zwatch.engine.tokenizer import Tokenizer
from zwatch.engine.tokenizer_service import TokenizerService

AfterStep = Callable[[int, Tensor, Tensor], None]
"""Called after a step with its number, from 0 on, and the latents before and after it; may raise to stop."""

Blend = Callable[[int, Tensor], Tensor]
"""Returns the latents after a step, by its number, with what is not to be changed put back."""


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A prompt for the transformer, shape (tokens, width), and whether its end was cut off: it has at most 512 tokens."""

    embedding: Tensor
    is_truncated: bool


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The components together; it has no state."""

    tokenizer: Tokenizer | TokenizerService
    text_encoder: Any
    transformer: Any
    vae: Any
    scheduler: Schedule
    computing: Computing = EXACT
    controlnet: Any = None
    """A version need not have one."""

    @property
    def max_side(self) -> int:
        """Longest side of an image, pixels: the transformer has a limited number of positions, each of 2 x 2 latents."""
        return int(min(self.transformer.config.axes_lens[1:])) * 2 * LATENT_SCALE

    def encode(self, prompt: str, device: torch.device) -> EncodedText:
        """Encode a prompt for the transformer."""
        encoded = self.tokenizer.encode(prompt)
        tokens = torch.tensor(encoded.tokens).to(device, non_blocking=True)
        found = self.computing.encode(self.text_encoder, tokens, torch.tensor(encoded.mask).bool())
        return EncodedText(found, encoded.is_truncated)

    def noise(self, width: int, height: int, generator: torch.Generator) -> Tensor:
        """Return the latents that an image of this size in pixels begins with, float32 of shape (1, channels, h / 8, w / 8)."""
        shape = (1, self.transformer.in_channels, height // LATENT_SCALE, width // LATENT_SCALE)
        return torch.randn(shape, generator=generator, device=generator.device, dtype=torch.float32)

    def timeline(self, latents: Tensor, steps: int) -> Timeline:
        """Return the steps for latents."""
        tokens = (latents.shape[2] // 2) * (latents.shape[3] // 2)
        return self.scheduler.timeline(steps, tokens, latents.device)

    def denoise(
        self, latents: Tensor, timeline: Timeline, prompts: Sequence[Tensor], guidance_scale: float, after_step: AfterStep,
        blend: Blend | None = None, follow: Callable[[Tensor], None] = lambda latents: None, control: Control | None = None,
    ) -> Tensor:  # fmt: skip
        """Return the latents of the image that noise becomes, of the noise's shape, float32 after one step or more.

        `prompts` are the embeddings of the prompt, and with a `guidance_scale` over 0 of the negative prompt. `blend` changes the
        latents after each step; `control` guides them. Where the device is given work ahead, `follow` is called with the result while
        it still makes the last step: what is launched there follows at once.
        """
        if not len(timeline.timesteps):
            return latents
        velocities = self.computing.velocities(self.transformer, timeline, prompts, latents, control)
        running: tuple[Finished, int, Tensor, Tensor] | None = None
        for number in range(len(timeline.timesteps)):
            wanted, *others = (found.float() for found in velocities(latents, number))
            if others:
                wanted = wanted + guidance_scale * (wanted - others[0])
            moved = timeline.step(-wanted.unsqueeze(0).squeeze(2), number, latents)
            if blend is not None:
                moved = blend(number, moved)
            if not _runs_ahead(self.computing, moved):
                after_step(number, latents, moved)
            else:
                # The device has this step to do while the one before it is reported.
                launched = (Finished(), number, latents, moved)
                if running is not None:
                    _report(running, after_step)
                running = launched
            latents = moved
        if running is not None:
            follow(latents)
            _report(running, after_step)
        return latents

    def encode_image(self, pixels: Tensor) -> Tensor:
        """Return the mean and the logarithm of the variance of the latents of pixels of shape (1, 3, h, w), from -1 to 1, as
        `Autoencoder.encode`."""
        return self.computing.encode_image(self.vae, pixels.to(self.vae.dtype))

    def decode(self, latents: Tensor) -> Tensor:
        """Return the pixels of latents of shape (1, 16, h / 8, w / 8): shape (1, 3, h, w), from -1 to 1."""
        return self.computing.decode(self.vae, self.scaled(latents))

    def scaled(self, latents: Tensor) -> Tensor:
        """Return latents as the autoencoder takes them."""
        scaled: Tensor = latents.to(self.vae.dtype) / self.vae.config.scaling_factor + self.vae.config.shift_factor
        return scaled


def _runs_ahead(computing: Computing, latents: Tensor) -> bool:
    return computing.runs_ahead and latents.is_cuda


def _report(step: tuple[Finished, int, Tensor, Tensor], after_step: AfterStep) -> None:
    finished, number, before, after = step
    finished.wait()
    after_step(number, before, after)


def image_of(pixels: Tensor) -> Image.Image:
    """Return the picture of finite pixels of shape (1, 3, h, w), from -1 to 1; waits for the device."""
    levels = (pixels * 0.5 + 0.5).clamp(0, 1)[0].permute(1, 2, 0)
    # In the order of a picture's bytes, which the device makes in no time, and into pinned memory where it is a GPU.
    levels = levels.float().mul(255).round().to(torch.uint8).contiguous()
    if levels.is_cuda:
        levels = levels.to("cpu", non_blocking=True)
        torch.cuda.current_stream().synchronize()
    return Image.fromarray(levels.numpy())
