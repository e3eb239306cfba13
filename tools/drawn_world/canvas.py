"""A batch of pictures painted in both styles at once.

One distance field gives both looks: v1 shades it (light from the upper left, rounded edges, texture,
soft shadow around), v2 fills it flat and draws its outline.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .palette import tone
from .sdf import Points, constants, fused, move

LINE = 0.021
"""v2's outline width in scene units (the short side is 2): 2.7 pixels at 256."""


@dataclass
class Frame:
    """Where a thing stands: its own coordinates, and how many scene units one of its units is."""

    p: Points
    scale: Tensor  # [B, 1, 1]


def wobble(p: Points, frequency: float | Tensor, phase: float = 0.0) -> Tensor:
    """A fixed, aperiodic-looking texture in -1..1: sines of turned and bent coordinates."""
    u, v = p
    f = frequency
    a = torch.sin(f * (0.80 * u + 0.60 * v) + 1.7 * torch.sin(0.37 * f * v + phase) + phase)
    b = torch.sin(f * (-0.50 * u + 0.87 * v) * 1.31 + 1.3 * torch.sin(0.53 * f * u - phase) + 2 * phase)
    c = torch.sin(f * (0.17 * u - 0.98 * v) * 1.73 + a)
    return (a + b + c) / 3


def _cover(d: Tensor, unit: Tensor, grow: Tensor | float) -> Tensor:
    """Anti-aliased coverage in 0..1 of a field in scene units, grown by `grow`."""
    return (0.5 - (d - grow) * unit).clamp(0, 1)


@fused
def _filled(both: Tensor, d: Tensor, u: Tensor, v: Tensor, scale: Tensor, colours: Tensor, k: Tensor) -> Tensor:
    """`Canvas.fill` on `both` [2, B, 3, H, W]; colours [3, B, 3, 1, 1]: v1's, v2's, the outline's."""
    unit, round_, texture, grain, grow, outlined, shadow, light, alpha = k.unbind(0)
    field = d * scale
    inside = _cover(field, unit, 0.0) * alpha
    v1, v2 = both.unbind(0)
    v1 = v1 * (1 - torch.exp(-field.clamp(min=0) / 0.05) * shadow)[:, None]
    edge = 1 - (-d / round_).clamp(0, 1)
    slope = torch.nn.functional.pad(field[:, 1:, 1:] - field[:, :-1, :-1], (1, 0, 1, 0)) * unit / math.sqrt(2)
    shade = 1 - light * (0.34 * edge * edge * slope.clamp(-1, 1) + 0.13 * edge * edge)
    shade = shade + texture * wobble((u, v), grain)
    glint = light * 0.20 * (edge * (1 - edge) * 4) * (-slope).clamp(0, 1)
    painted = (colours[0] * shade[:, None] + glint[:, None]).clamp(0, 1)
    v1 = torch.lerp(v1, painted, inside[:, None])
    v2 = torch.lerp(v2, colours[2], (_cover(field, unit, grow) * outlined)[:, None])
    v2 = torch.lerp(v2, colours[1], (_cover(field, unit, -grow) * alpha)[:, None])
    return torch.stack((v1, v2))


@fused
def _flattened(both: Tensor, d: Tensor, scale: Tensor, colours: Tensor, k: Tensor) -> Tensor:
    unit, alpha1, alpha2 = k.unbind(0)
    inside = _cover(d * scale, unit, 0.0)[:, None]
    v1 = torch.lerp(both[0], colours[0], inside * alpha1)
    return torch.stack((v1, torch.lerp(both[1], colours[1], inside * alpha2)))


@fused
def _lit(both: Tensor, d: Tensor, colours: Tensor, k: Tensor) -> Tensor:
    reach, strength = k.unbind(0)
    light = torch.exp(-d.clamp(min=0) / reach) * strength
    return torch.stack((torch.lerp(both[0], colours[0], light[:, None]), both[1]))


@fused
def _shadowed(both: Tensor, u: Tensor, v: Tensor, k: Tensor) -> Tensor:
    y, rx = k.unbind(0)
    r = torch.sqrt((u / rx) ** 2 + ((v - y) / (0.22 * rx)) ** 2 + 1e-9)
    v1 = both[0] * (1 - 0.5 * (1.25 - r).clamp(0, 1)[:, None])
    return torch.stack((v1, both[1] * (1 - 0.22 * ((1 - r) * 40 + 0.5).clamp(0, 1)[:, None])))


class Canvas:
    """Pictures being painted: `both` is float32 [2, B, 3, H, W] in 0..1, v1's style first."""

    def __init__(self, batch: int, height: int, width: int, device: torch.device | str = "cpu") -> None:
        self.height, self.width = height, width
        self.unit = min(height, width) / 2  # pixels per scene unit
        ys = (torch.arange(height, device=device) + 0.5 - height / 2) / self.unit
        xs = (torch.arange(width, device=device) + 0.5 - width / 2) / self.unit
        self.xs = xs.view(1, 1, width).expand(batch, height, width).contiguous()
        self.ys = ys.view(1, height, 1).expand(batch, height, width).contiguous()
        self.both = torch.zeros(2, batch, 3, height, width, device=device)

    @property
    def half(self) -> tuple[float, float]:
        """Half the picture's width and height in scene units."""
        return self.width / 2 / self.unit, self.height / 2 / self.unit

    def scene(self) -> Frame:
        return Frame((self.xs, self.ys), torch.ones(self.xs.shape[0], 1, 1, device=self.xs.device))

    def frame(self, x: Tensor, y: Tensor, scale: Tensor) -> Frame:
        """The frame of a thing at (x, y); all arguments are [B]."""
        column = (-1, 1, 1)
        scale = scale.view(column)
        u, v = move((self.xs, self.ys), x.view(column), y.view(column))
        return Frame((u / scale, v / scale), scale)

    def colours(self, colour: Tensor | str) -> Tensor:
        """Tones of `colour` (a name, [2, 3] or [B, 2, 3]) and the outline's: [3, B, 3, 1, 1]."""
        batch, device = self.both.shape[1], self.both.device
        if isinstance(colour, str):
            return _named(colour, batch, device)
        colour = colour.to(device)
        tones = (colour[None] if colour.dim() == 2 else colour).expand(batch, 2, 3)
        outline = _named("ink", batch, device)[1:2]
        return torch.cat((tones.transpose(0, 1)[..., None, None], outline))

    def fill(
        self,
        f: Frame,
        d: Tensor,
        colour: Tensor | str,
        *,
        round_: float = 0.16,
        texture: float = 0.05,
        grain: float = 26.0,
        line: float = 1.0,
        shadow: float = 0.25,
        light: float = 1.0,
        alpha: float = 1.0,
    ) -> None:
        """Paint the inside of `d` (units of `f`).

        round_: how far from the edge v1's surface keeps curving (units of f). texture, grain: strength and
        frequency of v1's texture. line: v2's outline (1 is LINE). shadow: v1's soft shadow around the shape.
        """
        k = (self.unit, round_, texture, grain, 0.5 * line * LINE, float(line > 0), shadow, light, alpha)
        self.both = _filled(self.both, d, *f.p, f.scale, self.colours(colour), self._constants(*k))

    def flat(self, f: Frame, d: Tensor, colour: Tensor | str, alpha: float | tuple[float, float] = 1.0) -> None:
        """Paint the inside of `d` without shading or outline (patches, lines); alpha: v1's and v2's."""
        a1, a2 = alpha if isinstance(alpha, tuple) else (alpha, alpha)
        self.both = _flattened(self.both, d, f.scale, self.colours(colour), self._constants(self.unit, a1, a2))

    def glow(self, d: Tensor, colour: Tensor | str, reach: float, strength: float) -> None:
        """Soft light around `d`, in v1 only."""
        self.both = _lit(self.both, d, self.colours(colour), self._constants(reach, strength))

    def ground_shadow(self, f: Frame, y: float, rx: float) -> None:
        """The dark ellipse a thing throws on the ground: soft in v1, a flat tint in v2."""
        self.both = _shadowed(self.both, *f.p, self._constants(y, rx))

    def _constants(self, *values: float) -> Tensor:
        return constants(tuple(float(v) for v in values), self.both.device)


@lru_cache(maxsize=1024)
def _named(colour: str, batch: int, device: torch.device) -> Tensor:
    tones = torch.cat((tone(colour), tone("ink")[1:])).to(device)
    return tones[:, None, :, None, None].expand(3, batch, 3, 1, 1).contiguous()
