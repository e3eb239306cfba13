"""Signed distance fields of simple shapes, batched in torch.

Every function takes a point field `p = (u, v)` of two float32 tensors `[B, H, W]` in the units of the
caller's frame (v grows downwards) and returns distances `[B, H, W]` in the same units, negative inside.
Formulas: Inigo Quilez, "2D distance functions", https://iquilezles.org/articles/distfunctions2d/.
Shape parameters are floats, or tensors `[B, 1, 1]` where pictures of a batch differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, wraps

import torch
from torch import Tensor

Points = tuple[Tensor, Tensor]
Number = float | Tensor


def fused(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """One kernel instead of dozens where tensors are on a GPU; the plain function elsewhere."""
    compiled = torch.compile(function, dynamic=True)

    @wraps(function)
    def call(*tensors: Tensor) -> Tensor:
        return compiled(*tensors) if tensors[0].is_cuda else function(*tensors)

    return call


@lru_cache(maxsize=4096)
def constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Numbers as a tensor [len(values), 1, 1, 1] that stays on the device."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1, 1)


def parameters(p: Points, *values: Number) -> Tensor:
    """A shape's parameters, [count, 1 or B, 1, 1]."""
    if not any(isinstance(v, Tensor) for v in values):
        return constants(tuple(float(v) for v in values), p[0].device)
    like = next(v for v in values if isinstance(v, Tensor))
    return torch.stack([v.expand_as(like) if isinstance(v, Tensor) else torch.full_like(like, v) for v in values])


def move(p: Points, x: Number, y: Number) -> Points:
    """Put the frame's origin at (x, y)."""
    return p[0] - x, p[1] - y


def mirror(p: Points) -> Points:
    """Fold the right half onto the left one, so that one shape is drawn on both sides."""
    return p[0].abs(), p[1]


@fused
def _ellipse(u: Tensor, v: Tensor, k: Tensor) -> Tensor:
    x, y, rx, ry, c, s = k.unbind(0)
    u, v = u - x, v - y
    u, v = (c * u + s * v) / rx, (c * v - s * u) / ry
    k0 = torch.sqrt(u * u + v * v + 1e-9)
    k1 = torch.sqrt((u / rx) ** 2 + (v / ry) ** 2 + 1e-9)
    return k0 * (k0 - 1.0) / k1


@fused
def _box(u: Tensor, v: Tensor, k: Tensor) -> Tensor:
    x, y, hx, hy, r, c, s = k.unbind(0)
    u, v = u - x, v - y
    a, b = (c * u + s * v).abs() - (hx - r), (c * v - s * u).abs() - (hy - r)
    outside = torch.sqrt(a.clamp(min=0) ** 2 + b.clamp(min=0) ** 2 + 1e-12)
    return outside + torch.maximum(a, b).clamp(max=0) - r


@fused
def _capsule(u: Tensor, v: Tensor, k: Tensor) -> Tensor:
    x, y, dx, dy, r0, grow = k.unbind(0)
    u, v = u - x, v - y
    h = ((u * dx + v * dy) / (dx * dx + dy * dy + 1e-9)).clamp(0, 1)
    return torch.sqrt((u - h * dx) ** 2 + (v - h * dy) ** 2 + 1e-12) - (r0 + grow * h)


@fused
def _polygon(u: Tensor, v: Tensor, k: Tensor) -> Tensor:
    """k: [2 n, 1, 1, 1], x and y of each corner in turn. A corner given twice changes nothing."""
    n = k.shape[0] // 2
    d = torch.full_like(u, 1e9)
    inside = torch.zeros_like(u, dtype=torch.bool)
    for i in range(n):
        xi, yi, xj, yj = k[2 * i], k[2 * i + 1], k[(2 * i - 2) % (2 * n)], k[(2 * i - 1) % (2 * n)]
        ex, ey = xj - xi, yj - yi
        wx, wy = u - xi, v - yi
        h = ((wx * ex + wy * ey) / (ex * ex + ey * ey + 1e-12)).clamp(0, 1)
        d = torch.minimum(d, (wx - ex * h) ** 2 + (wy - ey * h) ** 2)
        above, below, left = v >= yi, v < yj, ex * wy > ey * wx
        inside = inside ^ ((above & below & left) | ~(above | below | left))
    return torch.where(inside, -1.0, 1.0) * torch.sqrt(d + 1e-12)


def circle(p: Points, x: Number, y: Number, r: Number) -> Tensor:
    return capsule(p, x, y, x, y, r)


def ellipse(p: Points, x: Number, y: Number, rx: Number, ry: Number, angle: float = 0.0) -> Tensor:
    """First-order distance to an ellipse: exact on the outline, good near it."""
    return _ellipse(*p, parameters(p, x, y, rx, ry, math.cos(angle), math.sin(angle)))


def box(p: Points, x: Number, y: Number, hx: Number, hy: Number, r: float = 0.0, angle: float = 0.0) -> Tensor:
    """A rectangle of half sizes (hx, hy) with corners rounded by r."""
    return _box(*p, parameters(p, x, y, hx, hy, r, math.cos(angle), math.sin(angle)))


def capsule(p: Points, x0: Number, y0: Number, x1: Number, y1: Number, r0: Number, r1: Number | None = None) -> Tensor:
    """A line with round ends, its radius going from r0 to r1."""
    return _capsule(*p, parameters(p, x0, y0, x1 - x0, y1 - y0, r0, 0.0 if r1 is None else r1 - r0))


def polyline(p: Points, points: Sequence[tuple[float, float]], r0: float, r1: float | None = None) -> Tensor:
    """A stroke through `points`, its radius going from r0 to r1."""
    r1 = r0 if r1 is None else r1
    n = len(points) - 1
    d = None
    for i in range(n):
        a, b = points[i], points[i + 1]
        part = capsule(p, *a, *b, r0 + (r1 - r0) * i / n, r0 + (r1 - r0) * (i + 1) / n)
        d = part if d is None else torch.minimum(d, part)
    assert d is not None
    return d


def curve(
    p: Points,
    a: tuple[float, float],
    b: tuple[float, float],
    c: tuple[float, float],
    r0: float,
    r1: float | None = None,
    parts: int = 6,
) -> Tensor:
    """A stroke along the quadratic Bézier curve a-b-c."""
    points = []
    for i in range(parts + 1):
        t = i / parts
        w0, w1, w2 = (1 - t) ** 2, 2 * t * (1 - t), t * t
        points.append((w0 * a[0] + w1 * b[0] + w2 * c[0], w0 * a[1] + w1 * b[1] + w2 * c[1]))
    return polyline(p, points, r0, r1)


def polygon(p: Points, points: Sequence[tuple[float, float]], r: float = 0.0) -> Tensor:
    """A polygon, its outline pushed out by r with rounded corners."""
    sizes = (4, 8, 12, 24)  # few different lengths, few compiled kernels
    n = next(size for size in sizes if size >= len(points))
    corners = [*points, *[points[-1]] * (n - len(points))]
    d = _polygon(*p, constants(tuple(float(c) for corner in corners for c in corner), p[0].device))
    return d - r if r else d


def star(
    x: float, y: float, outer: float, inner: float, tips: int = 5, start: float = -math.pi / 2
) -> list[tuple[float, float]]:
    """The corners of a star, for `polygon`."""
    corners = []
    for i in range(2 * tips):
        r, a = (outer, inner)[i % 2], start + math.pi * i / tips
        corners.append((x + r * math.cos(a), y + r * math.sin(a)))
    return corners


def union(*ds: Tensor) -> Tensor:
    d = ds[0]
    for other in ds[1:]:
        d = torch.minimum(d, other)
    return d


def blend(a: Tensor, b: Tensor, k: float) -> Tensor:
    """A union whose seam is rounded over k (quadratic smooth minimum)."""
    h = (k - (a - b).abs()).clamp(min=0) / k
    return torch.minimum(a, b) - h * h * (k / 4)


def cut(a: Tensor, b: Tensor) -> Tensor:
    """a without b."""
    return torch.maximum(a, -b)


def both(a: Tensor, b: Tensor) -> Tensor:
    """Where a and b overlap."""
    return torch.maximum(a, b)
