"""What lies behind the subject. Each function paints a whole picture.

`a` and `b` (float32 [B, 1, 1], about -1..1) move parts of it, so that two seeds give two places.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import sdf
from .canvas import Canvas, Frame, wobble
from .palette import lighter, tone
from .sdf import move


def sky(c: Canvas, top: Tensor, bottom: Tensor) -> None:
    """v1: a gradient from top to bottom. v2: the top's tone alone."""
    t = ((c.ys / c.half[1] + 1) / 2).clamp(0, 1)[:, None]
    upper, lower = c.colours(top), c.colours(bottom)
    v1 = torch.lerp(upper[0].expand_as(c.both[0]), lower[0], t)
    c.both = torch.stack((v1, upper[1].expand_as(v1)))


def ground(c: Canvas, f: Frame, d: Tensor, colour: Tensor | str, texture: float, grain: float) -> None:
    """Land below the field's zero line, darker towards the viewer in v1."""
    c.fill(f, d, colour, texture=texture, grain=grain, round_=0.5, light=0.35, shadow=0.12)


def cloud(c: Canvas, f: Frame, x: Tensor | float, y: float, s: float) -> None:
    g = Frame(move(f.p, x, y), f.scale)
    d = sdf.union(
        sdf.circle(g.p, 0, 0, 0.16 * s),
        sdf.circle(g.p, -0.18 * s, 0.05 * s, 0.11 * s),
        sdf.circle(g.p, 0.19 * s, 0.04 * s, 0.12 * s),
        sdf.box(g.p, 0, 0.1 * s, 0.28 * s, 0.06 * s, 0.05 * s),
    )
    c.fill(g, d, "white", texture=0.02, line=0.7, shadow=0.05, light=0.6)


def beach(c: Canvas, a: Tensor, b: Tensor) -> None:
    f = c.scene()
    sky(c, tone("sky"), tone("cream"))
    h = c.half[1]
    cloud(c, f, -0.55 * c.half[0] + 0.15 * b, -0.72 * h, 0.9)
    cloud(c, f, 0.6 * c.half[0] + 0.15 * b, -0.55 * h, 0.7)
    u, v = f.p
    ground(c, f, (0.02 * h + 0.05 * a) - v, "sea", 0.10, 30)
    for i in range(3):
        y = 0.12 + 0.09 * i
        d = (v - (y * h + 0.05 * a) - 0.015 * torch.sin(9 * u + 2.1 * i + b)).abs() - 0.008
        c.flat(f, d, "white", alpha=(0.4, 0.9))
    ground(c, f, (0.4 * h + 0.05 * a) + 0.05 * torch.sin(2.2 * u + 2 * b) - v, "sand", 0.08, 70)


def night(c: Canvas, a: Tensor, b: Tensor) -> None:
    f = c.scene()
    sky(c, tone("dusk"), lighter(tone("purple"), -0.15))
    w, h = c.half
    moon = sdf.circle(f.p, 0.68 * w + 0.1 * b, -0.66 * h, 0.17)
    c.glow(moon, "cream", 0.18, 0.6)
    c.fill(f, moon, "cream", texture=0.08, line=0.7)
    spots = (
        (-0.85, -0.8),
        (-0.5, -0.6),
        (-0.15, -0.88),
        (0.3, -0.8),
        (-0.75, -0.3),
        (0.85, -0.25),
        (0.5, -0.42),
        (-0.3, -0.35),
    )
    for i, (x, y) in enumerate(spots):
        r = (0.035, 0.05)[i % 2]
        g = Frame(move(f.p, x * w + 0.08 * b, y * h + 0.05 * a), f.scale)
        c.flat(g, sdf.polygon(g.p, sdf.star(0, 0, r, 0.4 * r, 4)), "cream")
    u, v = f.p
    ground(c, f, 0.55 * h + 0.06 * torch.sin(2.6 * u + 2 * a) - v, lighter(tone("teal"), -0.45), 0.10, 40)


def forest(c: Canvas, a: Tensor, b: Tensor) -> None:
    f = c.scene()
    sky(c, lighter(tone("leaf"), 0.55), lighter(tone("leaf"), 0.2))
    w, h = c.half
    u, v = f.p
    for i, x in enumerate((-0.95, -0.55, -0.1, 0.4, 0.85)):
        g = Frame(move(f.p, x * w + 0.1 * b, 0.0), f.scale)
        shade = lighter(tone("leaf"), (-0.35, -0.15)[i % 2])
        c.fill(g, sdf.box(g.p, 0, 0.2 * h, 0.06, 0.4 * h), "bark", texture=0.12, line=0.8)
        for y, r in ((0.12, 0.36), (-0.22, 0.3), (-0.55, 0.23)):
            d = sdf.polygon(g.p, [(-r, y * h), (0.0, y * h - 0.5), (r, y * h)], 0.02)
            c.fill(g, d, shade, texture=0.14, grain=40, line=0.8)
    ground(c, f, 0.48 * h + 0.04 * torch.sin(3 * u + 2 * a) - v, lighter(tone("leaf"), -0.05), 0.12, 60)


def city(c: Canvas, a: Tensor, b: Tensor) -> None:
    f = c.scene()
    sky(c, tone("sky"), tone("cream"))
    w, h = c.half
    towers = (
        (-0.86, 0.9, "stone"),
        (-0.48, 0.55, "wine"),
        (-0.1, 1.05, "teal"),
        (0.3, 0.7, "stone"),
        (0.72, 1.0, "bark"),
    )
    for x, tall, name in towers:
        g = Frame(move(f.p, x * w + 0.08 * b, 0.5 * h), f.scale)
        top = tall * h
        c.fill(
            g,
            sdf.box(g.p, 0, 0.3 - top / 2, 0.18, 0.3 + top / 2),
            lighter(tone(name), 0.2),
            texture=0.05,
            line=0.8,
        )
        for row in range(4):
            y = -top + 0.14 + 0.24 * row * h
            c.flat(g, sdf.box((g.p[0].abs(), g.p[1]), 0.08, y, 0.045, 0.06), "yellow")
    ground(c, f, 0.5 * h + 0.0 * a - f.p[1], "stone", 0.06, 50)
    dash = (((f.p[0] + 0.1 * b) / 0.4) - torch.floor((f.p[0] + 0.1 * b) / 0.4) - 0.5).abs() * 0.4 - 0.12
    c.flat(f, sdf.both(dash, (f.p[1] - 0.78 * h).abs() - 0.03), "white")


def snow(c: Canvas, a: Tensor, b: Tensor) -> None:
    f = c.scene()
    sky(c, lighter(tone("blue"), 0.35), tone("snow"))
    w, h = c.half
    u, v = f.p
    for x, s in ((-0.8, 1.0), (0.78, 0.85)):
        g = Frame(move(f.p, x * w + 0.1 * b, 0.3 * h), f.scale)
        for y, r in ((0.1, 0.3), (-0.15, 0.24), (-0.38, 0.17)):
            d = sdf.polygon(g.p, [(-r * s, y * s), (0.0, (y - 0.36) * s), (r * s, y * s)], 0.02)
            c.fill(g, d, lighter(tone("teal"), 0.1), texture=0.08, line=0.8)
            cap = sdf.polygon(
                g.p,
                [(-r * 0.4 * s, (y - 0.2) * s), (0.0, (y - 0.36) * s), (r * 0.4 * s, (y - 0.2) * s)],
                0.02,
            )
            c.flat(g, cap, "snow")
    ground(c, f, 0.34 * h + 0.07 * torch.sin(2.3 * u + 2 * a) - v, "snow", 0.03, 40)
    flakes = (
        (-0.6, -0.8),
        (-0.2, -0.55),
        (0.15, -0.85),
        (0.5, -0.6),
        (0.85, -0.85),
        (-0.9, -0.45),
        (0.3, -0.3),
        (-0.45, -0.2),
    )
    for x, y in flakes:
        c.flat(f, sdf.circle(f.p, x * w + 0.1 * b, y * h, 0.035), "white")


def desert(c: Canvas, a: Tensor, b: Tensor) -> None:
    f = c.scene()
    sky(c, lighter(tone("orange"), 0.45), tone("cream"))
    w, h = c.half
    u, v = f.p
    c.fill(f, sdf.circle(f.p, -0.62 * w + 0.1 * b, -0.6 * h, 0.2), "yellow", texture=0, light=0.2, shadow=0)
    ground(c, f, 0.12 * h + 0.14 * torch.sin(1.9 * u + 1 + 2 * a) - v, lighter(tone("sand"), -0.14), 0.06, 40)
    g = Frame(move(f.p, 0.72 * w + 0.1 * b, 0.1 * h), f.scale)
    cactus = sdf.union(
        sdf.capsule(g.p, 0, -0.35, 0, 0.4, 0.09),
        sdf.polyline(g.p, [(0, 0.1), (-0.22, 0.06), (-0.22, -0.15)], 0.055),
        sdf.polyline(g.p, [(0, -0.02), (0.2, -0.06), (0.2, -0.25)], 0.055),
    )
    c.fill(g, cactus, "leaf", texture=0.06)
    ground(c, f, 0.42 * h + 0.06 * torch.sin(2.7 * u + 2 * b) - v, "sand", 0.07, 50)


def meadow(c: Canvas, a: Tensor, b: Tensor) -> None:
    f = c.scene()
    sky(c, tone("sky"), tone("snow"))
    w, h = c.half
    u, v = f.p
    cloud(c, f, 0.5 * w + 0.15 * b, -0.7 * h, 1.0)
    cloud(c, f, -0.6 * w + 0.15 * b, -0.5 * h, 0.8)
    ground(c, f, 0.15 * h + 0.1 * torch.sin(1.7 * u + 2 * a) - v, lighter(tone("leaf"), 0.25), 0.08, 40)
    ground(c, f, 0.42 * h + 0.06 * torch.sin(2.3 * u + 2 * b) - v, lighter(tone("leaf"), 0.05), 0.10, 60)
    for i, (x, y) in enumerate(((-0.85, 0.62), (-0.6, 0.88), (0.62, 0.85), (0.88, 0.6), (0.1, 0.92))):
        g = Frame(move(f.p, x * w + 0.05 * a, y * h), f.scale)
        c.flat(g, sdf.polygon(g.p, sdf.star(0, 0, 0.075, 0.035)), ("white", "pink", "yellow")[i % 3])


def mountains(c: Canvas, a: Tensor, b: Tensor) -> None:
    f = c.scene()
    sky(c, lighter(tone("sky"), -0.05), tone("snow"))
    w, h = c.half
    u, v = f.p
    for x, y, s in ((-0.6, -0.62, 0.95), (0.62, -0.72, 1.0), (0.0, -0.4, 0.8)):
        g = Frame(move(f.p, x * w + 0.12 * a, y * h), f.scale)
        d = sdf.polygon(g.p, [(0.0, 0.0), (-s, 1.3), (s, 1.3)], 0.02)
        c.fill(g, d, lighter(tone("purple"), 0.12 if s < 0.9 else -0.12), texture=0.10, grain=14, line=0.8)
        cap = sdf.polygon(
            g.p,
            [
                (0.0, 0.0),
                (-0.22 * s, 0.29),
                (-0.08 * s, 0.22),
                (0.0, 0.34),
                (0.1 * s, 0.22),
                (0.22 * s, 0.29),
            ],
            0.015,
        )
        c.fill(g, cap, "snow", texture=0.03, line=0.7, shadow=0)
    ground(c, f, 0.45 * h + 0.05 * torch.sin(2.1 * u + 2 * b) - v, lighter(tone("leaf"), -0.15), 0.10, 60)


def underwater(c: Canvas, a: Tensor, b: Tensor) -> None:
    f = c.scene()
    sky(c, lighter(tone("sea"), 0.1), tone("deep"))
    w, h = c.half
    u, v = f.p
    rays = torch.sin(5 * (u + 0.4 * v) + 2 * b).clamp(0, 1)[:, None] * (1 - (v / h + 1) / 2).clamp(0, 1)[:, None]
    c.both = torch.stack(((c.both[0] + 0.22 * rays).clamp(0, 1), c.both[1]))
    ground(c, f, 0.66 * h + 0.06 * torch.sin(2.9 * u + 2 * a) - v, "sand", 0.08, 60)
    for x, name in ((-0.82, "leaf"), (0.84, "pink")):
        for dx in (-0.12, 0.0, 0.12):
            sway = 0.07 * torch.sin(7 * v + 3 * b + 9 * dx)
            g = ((u - (x + dx) * w) - sway, v)
            c.fill(
                f,
                sdf.capsule(g, 0.0, 0.85 * h, 0.0, (0.25 + abs(dx)) * h, 0.055, 0.03),
                name,
                texture=0.05,
                line=0.8,
            )
    for x, y, r in (
        (-0.6, -0.6, 0.07),
        (-0.7, -0.3, 0.05),
        (0.6, -0.75, 0.06),
        (0.7, -0.4, 0.08),
        (-0.2, -0.85, 0.05),
    ):
        d = sdf.circle(f.p, x * w, y * h + 0.1 * a, r)
        c.fill(f, d, "glass", texture=0, line=0.7, shadow=0, alpha=0.8)


def plain(c: Canvas, colour: Tensor) -> None:
    """One colour ([B, 2, 3]): v1 with a soft vignette and paper grain, v2 flat."""
    soft = colour.clone()
    soft[:, 0] = lighter(colour[:, 0], 0.12)
    tones = c.colours(soft)
    f = c.scene()
    w, h = c.half
    k = ((c.xs / w) ** 2 + (c.ys / h) ** 2)[:, None]
    v1 = (tones[0] * (1.04 - 0.16 * k) * (1 + 0.025 * wobble(f.p, 22)[:, None])).clamp(0, 1)
    c.both = torch.stack((v1, tones[1].expand_as(v1)))


PLACES = {
    "beach": beach,
    "night": night,
    "forest": forest,
    "city": city,
    "snow": snow,
    "desert": desert,
    "meadow": meadow,
    "mountains": mountains,
    "underwater": underwater,
}
"""Name: painter. `plain` stands apart: it takes a colour."""
