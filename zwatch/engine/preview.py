"""Previews: the image that is being made, at an eighth of its size, by a linear map from latents to colours."""

from dataclasses import dataclass
from typing import Self

import torch
from PIL import Image

_SCALE = 8
"""Pixels per latent along a side: the VAE reduces each side 8 times."""
_RIDGE = 1e-3
"""Ridge of the fit, relative to the latents' mean square: channels may be correlated in the one image of the fit."""


@dataclass(frozen=True, slots=True)
class Preview:
    """A preview that is being copied from the device to the host: one pixel per latent, an eighth of the image's sides.

    `pixels` is uint8 of shape (h / 8, w / 8, 3), complete once `arrived` (a CUDA event; None on a CPU) has happened.
    """

    pixels: torch.Tensor
    arrived: torch.cuda.Event | None

    def image(self) -> Image.Image:
        """Return the picture; waits for the device if necessary."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return Image.fromarray(self.pixels.numpy())


@dataclass(frozen=True, slots=True)
class LatentColours:
    """An affine map from one latent to one colour, float32: `weights` of shape (3, channels) and `bias` of (3, 1)."""

    weights: torch.Tensor
    bias: torch.Tensor

    @classmethod
    def fit(cls, latents: torch.Tensor, pixels: torch.Tensor) -> Self:
        """Return the map that fits one image best, by least squares; each VAE needs its own.

        `latents` are of shape (1, channels, h, w) as the transformer leaves them, `pixels` of (1, 3, 8 h, 8 w) in
        [-1, 1] are the VAE's output for them.
        """
        known = latents[0].flatten(1).to("cpu", torch.float64).T
        known = torch.cat([known, torch.ones(len(known), 1, dtype=torch.float64)], dim=1)
        wanted = torch.nn.functional.avg_pool2d(pixels.float(), _SCALE)[0].flatten(1).to("cpu", torch.float64).T
        square = known.T @ known
        square += _RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
        solution = torch.linalg.solve(square, known.T @ wanted).T.to(latents.device, torch.float32)
        return cls(solution[:, :-1].contiguous(), solution[:, -1:].contiguous())

    def preview(
        self, before: torch.Tensor, after: torch.Tensor, sigma: torch.Tensor, next_sigma: torch.Tensor
    ) -> Preview:
        """Return the result of `pixels`, being copied to the host. All work is queued on the device's stream; nothing here
        waits for it."""
        pixels = self.pixels(before, after, sigma, next_sigma)
        if not pixels.is_cuda:
            return Preview(pixels, None)
        pixels = pixels.to("cpu", non_blocking=True)  # pinned, by torch itself
        arrived = torch.cuda.Event(blocking=True)
        arrived.record()
        return Preview(pixels, arrived)

    def pixels(
        self, before: torch.Tensor, after: torch.Tensor, sigma: torch.Tensor, next_sigma: torch.Tensor
    ) -> torch.Tensor:
        """Return the image that the step from `before` to `after` points to if extended to the end, uint8 of shape
        (h / 8, w / 8, 3).

        The latents are float32 of shape (1, channels, h / 8, w / 8). Flow matching's x = (1 - sigma) x0 + sigma noise is
        a straight line, along which the step from `sigma` to `next_sigma` moved by (next_sigma - sigma) v: so
        x0 = x - sigma v.
        """
        velocity = (after - before) / (next_sigma - sigma)
        clean = (after - next_sigma * velocity)[0]
        colours = torch.addmm(self.bias, self.weights, clean.flatten(1))
        # [-1, 1] to [0, 255]
        levels = colours.add_(1).mul_(127.5).clamp_(0, 255).to(torch.uint8)
        return levels.view(3, *clean.shape[1:]).permute(1, 2, 0).contiguous()
