"""How the networks of a pipeline are computed: exactly as diffusers does, bit for bit, or another way."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from zwatch.engine import library
from zwatch.engine.networks.autoencoder import Autoencoder
from zwatch.engine.networks.controlnet import ZImageControlNet
from zwatch.engine.networks.text_encoder import Qwen3Encoder
from zwatch.engine.schedule import Timeline
from zwatch.engine.streamed import StreamedEncoder

Velocities = Callable[[Tensor, int], Sequence[Tensor]]
"""Returns, for latents of shape (1, channels, h, w) before a step and the step's number, where they move for each of the prompts,
each of shape (channels, 1, h, w)."""


@dataclass(frozen=True, slots=True)
class Control:
    """What guides a picture: a ControlNet, the control image's latents of shape (control_in_dim, 1, h, w), and how strong its hints
    are."""

    network: ZImageControlNet
    context: Tensor
    scale: float


class Computing(Protocol):
    """One way to compute. It has no state of a picture, so that engines share it."""

    @property
    def name(self) -> str:
        """What tells its results from those of another way: their last bits differ."""

    @property
    def runs_ahead(self) -> bool:
        """Whether a step is launched before the device has finished the one before it."""

    def encode(self, text_encoder: Any, tokens: Tensor, mask: Tensor) -> Tensor:
        """Return a prompt for the transformer, as `Qwen3Encoder.encode`."""

    def velocities(
        self,
        transformer: Any,
        timeline: Timeline,
        prompts: Sequence[Tensor],
        latents: Tensor,
        control: Control | None = None,
    ) -> Velocities:
        """Return what computes the steps of one picture, whose latents have the shape of these; `control` guides it, if there is one."""

    def encode_image(self, vae: Any, pixels: Tensor) -> Tensor:
        """Return the mean and the logarithm of the variance of an image's latents, as `Autoencoder.encode`."""

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """Return the pixels of latents of shape (1, channels, h / 8, w / 8): shape (1, 3, h, w)."""


class ExactComputing:
    """diffusers' own bits."""

    name = "exact"
    runs_ahead = False

    def encode(self, text_encoder: Any, tokens: Tensor, mask: Tensor) -> Tensor:
        """As `Computing.encode`."""
        encode = (
            text_encoder.encode
            if isinstance(text_encoder, Qwen3Encoder | StreamedEncoder)
            else partial(library.encode, text_encoder)
        )
        found: Tensor = encode(tokens, mask)
        return found

    def velocities(
        self,
        transformer: Any,
        timeline: Timeline,
        prompts: Sequence[Tensor],
        latents: Tensor,
        control: Control | None = None,
    ) -> Velocities:
        """As `Computing.velocities`."""

        def at(latents: Tensor, number: int) -> Sequence[Tensor]:
            # One frame of each image
            inputs = latents.to(transformer.dtype).repeat(len(prompts), 1, 1, 1).unsqueeze(2)
            towards = ((1000 - timeline.timesteps[number].expand(1)) / 1000).repeat(len(prompts))
            given = list(inputs.unbind(0)), towards, list(prompts)
            if control is None:
                found: Sequence[Tensor] = transformer(*given, return_dict=False)[0]
            else:
                hints = control.network(transformer, *given, control.context, control.scale)
                found = transformer(*given, hints=hints)[0]
            return found

        return at

    def encode_image(self, vae: Any, pixels: Tensor) -> Tensor:
        """As `Computing.encode_image`."""
        if isinstance(vae, Autoencoder):
            return vae.encode(pixels)
        moments: Tensor = vae.encode(pixels).latent_dist.parameters  # the library's
        return moments

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        """As `Computing.decode`."""
        found: Tensor = vae.decode(latents, return_dict=False)[0]
        return found


EXACT = ExactComputing()


class Finished:
    """A point in the work of the current stream, which the device reaches later."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event(blocking=True)
        self._event.record()

    def wait(self) -> None:
        """Wait until the device is there, without using the processor."""
        self._event.synchronize()
