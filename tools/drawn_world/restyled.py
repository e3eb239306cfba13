"""Two more looks of the same scenes, for LoRAs: ink on paper, and night.

Both are made from the two pictures that `render` gives of a scene, pixel by pixel: what stands where is the same in all looks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .canvas import Canvas
from .render import backgrounds, render
from .scene import PLACE_NAMES, Scenes

PAPER, INK = (0.955, 0.925, 0.850), (0.075, 0.085, 0.150)
_LUMA = (0.299, 0.587, 0.114)
_WASHES = ((0.80, 0.12), (0.58, 0.22), (0.40, 0.26), (0.22, 0.34))
"""Washes of ink: each lies where the luminance is below the first number, and covers the second more."""
NIGHT = (0.28, 0.38, 0.68)
"""How much of red, green and blue moonlight leaves."""
MOON, MOON_RADIUS = (-0.62, -0.62), 0.17
"""The moon's middle and radius, of half the picture's width and height, and of half its short side."""
_STARS = ((-0.30, -0.80), (-0.05, -0.55), (0.16, -0.84), (0.40, -0.62), (0.62, -0.86), (0.83, -0.50), (-0.88, -0.22), (0.90, -0.16), (-0.36, -0.38), (0.56, -0.36))  # fmt: skip
_OWN_NIGHT = ("night", "underwater")
"""Places without this moon and these stars: one has its own, the other no sky."""


def ink(scenes: Scenes, height: int, width: int) -> Tensor:
    """Draw scenes with pen and ink: uint8 [n, 3, height, width]. v2's outlines, and washes instead of its colours."""
    luma = _luma(render(scenes, height, width)[1].float() / 255)
    amount = torch.zeros_like(luma)
    for below, more in _WASHES:
        amount = amount + more * ((below - luma) * 16 + 0.5).clamp(0, 1)
    return _bytes(torch.lerp(_colour(PAPER), _colour(INK), amount))


def night(scenes: Scenes, height: int, width: int) -> Tensor:
    """Draw v1's pictures of scenes by moonlight: uint8 [n, 3, height, width], with a moon and stars in the sky behind."""
    picture, flat = (style.float() / 255 for style in render(scenes, height, width))
    behind = backgrounds(scenes, height, width)[1].float() / 255
    c = Canvas(1, height, width)
    half = c.half
    x, y = (at * extent for at, extent in zip(MOON, half, strict=True))
    away = torch.sqrt((c.xs - x) ** 2 + (c.ys - y) ** 2)[:, None]
    grey = _luma(picture)
    dim = torch.lerp(picture, grey, 0.35) * _colour(NIGHT)
    lit = dim * (0.85 + 0.75 * torch.exp(-away / 0.9))
    free = (flat - behind).abs().amax(1, keepdim=True) < 0.02
    sky = torch.tensor([PLACE_NAMES[place] not in _OWN_NIGHT for place in scenes.place]).view(-1, 1, 1, 1)
    lights = 0.35 * torch.exp(-(away - MOON_RADIUS).clamp(min=0) / 0.16)
    moon = ((MOON_RADIUS - away) * c.unit + 0.5).clamp(0, 1)
    stars = torch.zeros_like(moon)
    for at_x, at_y in _STARS:
        far = torch.sqrt((c.xs - at_x * half[0]) ** 2 + (c.ys - at_y * half[1]) ** 2)[:, None]
        stars = torch.maximum(stars, ((0.024 - far) * c.unit + 0.5).clamp(0, 1))
    shine = torch.maximum(torch.maximum(lights, moon), stars) * (free & sky)
    return _bytes(torch.lerp(lit, _colour((0.97, 0.95, 0.82)), shine))


STYLES: dict[str, Callable[[Scenes, int, int], Tensor]] = {"ink": ink, "night": night}
"""The looks by name."""


def _luma(pictures: Tensor) -> Tensor:
    return sum((pictures[:, k : k + 1] * share for k, share in enumerate(_LUMA)), torch.zeros(()))


def _colour(rgb: tuple[float, float, float]) -> Tensor:
    return torch.tensor(rgb).view(1, 3, 1, 1)


def _bytes(pictures: Tensor) -> Tensor:
    return (pictures * 255).round().clamp(0, 255).to(torch.uint8)
