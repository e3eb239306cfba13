"""Everything that is no animal. Each function paints one, in a frame of about -1..1 standing at y = 0.95."""

from __future__ import annotations

import math

from torch import Tensor

from . import sdf
from .canvas import Canvas, Frame
from .palette import lighter
from .sdf import mirror


def house(c: Canvas, f: Frame, colour: Tensor) -> None:
    c.fill(f, sdf.box(f.p, 0.42, -0.5, 0.12, 0.3), "stone", texture=0.1, grain=60)
    c.fill(f, sdf.box(f.p, 0, 0.42, 0.68, 0.53), colour, texture=0.06, grain=60, round_=0.06)
    c.fill(
        f,
        sdf.polygon(f.p, [(-0.88, -0.08), (0.0, -0.82), (0.88, -0.08)], 0.05),
        "wine",
        texture=0.1,
        grain=50,
    )
    c.fill(f, sdf.box(f.p, 0.0, 0.66, 0.16, 0.29, 0.03), "bark", texture=0.08, round_=0.05)
    c.flat(f, sdf.circle(f.p, 0.09, 0.68, 0.03), "gold")
    p = mirror(f.p)
    c.fill(f, sdf.box(p, 0.42, 0.34, 0.15, 0.16, 0.02), "glass", texture=0, round_=0.06)
    c.flat(f, sdf.union(sdf.box(p, 0.42, 0.34, 0.016, 0.16), sdf.box(p, 0.42, 0.34, 0.15, 0.016)), "ink")
    c.fill(f, sdf.circle(f.p, 0, -0.3, 0.13), "glass", texture=0, round_=0.06)


def tree(c: Canvas, f: Frame, colour: Tensor) -> None:
    trunk = sdf.polygon(f.p, [(-0.13, 0.0), (-0.22, 0.92), (0.22, 0.92), (0.13, 0.0)], 0.02)
    c.fill(f, trunk, "bark", texture=0.15, grain=50)
    crown = None
    for x, y, r in (
        (0, -0.5, 0.42),
        (-0.42, -0.18, 0.36),
        (0.42, -0.18, 0.36),
        (-0.2, 0.1, 0.3),
        (0.22, 0.1, 0.3),
    ):
        d = sdf.circle(f.p, x, y, r)
        crown = d if crown is None else sdf.blend(crown, d, 0.06)
    assert crown is not None
    c.fill(f, crown, colour, texture=0.16, grain=30, round_=0.3)
    light = lighter(colour, 0.35)
    for x, y in ((-0.15, -0.55), (-0.42, -0.18), (0.2, -0.2), (0.05, 0.12), (0.5, -0.05)):
        c.flat(f, sdf.curve(f.p, (x - 0.1, y), (x, y - 0.12), (x + 0.1, y), 0.022, parts=3), light)


def car(c: Canvas, f: Frame, colour: Tensor) -> None:
    cabin = [(-0.52, 0.12), (-0.34, -0.34), (0.26, -0.34), (0.52, 0.12)]
    c.fill(f, sdf.polygon(f.p, cabin, 0.08), colour, texture=0.02)
    c.fill(
        f,
        sdf.polygon(f.p, [(-0.38, 0.08), (-0.26, -0.24), (-0.06, -0.24), (-0.06, 0.08)], 0.02),
        "glass",
        texture=0,
    )
    c.fill(
        f,
        sdf.polygon(f.p, [(0.06, 0.08), (0.06, -0.24), (0.2, -0.24), (0.38, 0.08)], 0.02),
        "glass",
        texture=0,
    )
    c.fill(f, sdf.box(f.p, 0, 0.34, 0.94, 0.27, 0.15), colour, texture=0.02, round_=0.2)
    c.flat(f, sdf.capsule(f.p, -0.8, 0.36, 0.7, 0.36, 0.022), lighter(colour, -0.35))
    c.flat(f, sdf.capsule(f.p, -0.12, 0.24, 0.0, 0.24, 0.025), "ink")
    c.fill(f, sdf.ellipse(f.p, 0.84, 0.27, 0.09, 0.1), "yellow", texture=0, shadow=0)
    c.fill(f, sdf.ellipse(f.p, -0.87, 0.25, 0.06, 0.09), "red", texture=0, shadow=0)
    p = mirror(f.p)
    c.fill(f, sdf.circle(p, 0.5, 0.62, 0.25), "ink", texture=0)
    c.fill(f, sdf.circle(p, 0.5, 0.62, 0.13), "steel", texture=0, shadow=0, line=0.6)


def boat(c: Canvas, f: Frame, colour: Tensor) -> None:
    c.flat(f, sdf.capsule(f.p, 0, -0.92, 0, 0.4, 0.035), "bark")
    c.fill(
        f,
        sdf.polygon(f.p, [(0.08, -0.84), (0.08, 0.22), (0.74, 0.22)], 0.03),
        "cream",
        texture=0.05,
        grain=18,
    )
    c.fill(
        f,
        sdf.polygon(f.p, [(-0.09, -0.66), (-0.09, 0.22), (-0.56, 0.22)], 0.03),
        colour,
        texture=0.05,
        grain=18,
    )
    c.fill(f, sdf.polygon(f.p, [(0.03, -0.96), (0.3, -0.88), (0.03, -0.8)], 0.01), "red", texture=0, line=0.8)
    hull = sdf.polygon(f.p, [(-0.86, 0.42), (0.9, 0.42), (0.58, 0.8), (-0.6, 0.8)], 0.06)
    c.fill(f, hull, colour, texture=0.08, grain=44)
    c.flat(f, sdf.both(hull + 0.03, sdf.box(f.p, 0, 0.5, 1.0, 0.05)), "white")
    for x in (-0.3, 0.0, 0.3):
        c.flat(f, sdf.circle(f.p, x, 0.68, 0.05), "cream")


def sun(c: Canvas, f: Frame, colour: Tensor) -> None:
    c.glow(sdf.circle(f.p, 0, 0, 0.6), colour, 0.25, 0.5)
    c.fill(f, sdf.polygon(f.p, sdf.star(0, 0, 0.95, 0.6, 12), 0.02), lighter(colour, 0.25), texture=0, light=0.5)
    c.fill(f, sdf.circle(f.p, 0, 0, 0.56), colour, texture=0.06, round_=0.3)
    p = mirror(f.p)
    c.flat(f, sdf.ellipse(p, 0.2, -0.12, 0.06, 0.09), "ink")
    c.flat(f, sdf.circle(p, 0.34, 0.08, 0.08), "red", alpha=(0.45, 0.8))
    c.flat(f, sdf.curve(f.p, (-0.22, 0.12), (0.0, 0.4), (0.22, 0.12), 0.03), "ink")


def moon(c: Canvas, f: Frame, colour: Tensor) -> None:
    d = sdf.cut(sdf.circle(f.p, 0, 0, 0.86), sdf.circle(f.p, 0.46, -0.16, 0.72))
    c.glow(d, colour, 0.2, 0.4)
    c.fill(f, d, colour, texture=0.12, grain=16, round_=0.2)
    for x, y, r in ((-0.5, -0.3, 0.1), (-0.56, 0.2, 0.13), (-0.14, 0.62, 0.1), (-0.3, 0.42, 0.06)):
        c.flat(f, sdf.circle(f.p, x, y, r), lighter(colour, -0.25), alpha=(0.7, 1.0))
    c.fill(f, sdf.polygon(f.p, sdf.star(0.5, -0.1, 0.2, 0.09), 0.01), "yellow", texture=0)


def star(c: Canvas, f: Frame, colour: Tensor) -> None:
    c.glow(sdf.circle(f.p, 0, 0, 0.6), colour, 0.2, 0.4)
    c.fill(f, sdf.polygon(f.p, sdf.star(0, 0.04, 0.94, 0.46), 0.05), colour, texture=0.04, round_=0.3)
    p = mirror(f.p)
    c.flat(f, sdf.ellipse(p, 0.15, -0.06, 0.055, 0.09), "ink")
    c.flat(f, sdf.circle(p, 0.28, 0.1, 0.06), "skin")
    c.flat(f, sdf.curve(f.p, (-0.13, 0.13), (0.0, 0.3), (0.13, 0.13), 0.026), "ink")


def flower(c: Canvas, f: Frame, colour: Tensor) -> None:
    c.fill(f, sdf.curve(f.p, (0.0, -0.1), (0.08, 0.5), (0.0, 0.92), 0.06), "leaf", texture=0.03)
    c.fill(f, sdf.ellipse(f.p, 0.3, 0.6, 0.3, 0.12, -0.5), "leaf", texture=0.08)
    c.fill(f, sdf.ellipse(f.p, -0.28, 0.7, 0.28, 0.12, 0.5), "leaf", texture=0.08)
    for i in range(8):
        a = math.pi * (i + 0.5) / 4
        x, y = 0.42 * math.cos(a), -0.36 + 0.42 * math.sin(a)
        c.fill(f, sdf.ellipse(f.p, x, y, 0.25, 0.16, a), colour, texture=0.05, shadow=0.15)
    c.fill(f, sdf.circle(f.p, 0, -0.36, 0.25), "gold", texture=0.14, grain=60)


def mushroom(c: Canvas, f: Frame, colour: Tensor) -> None:
    stem = sdf.polygon(f.p, [(-0.2, 0.0), (-0.28, 0.84), (0.28, 0.84), (0.2, 0.0)], 0.08)
    c.fill(f, stem, "cream", texture=0.06, grain=40)
    p = mirror(f.p)
    c.flat(f, sdf.ellipse(p, 0.11, 0.42, 0.045, 0.07), "ink")
    c.flat(f, sdf.curve(f.p, (-0.09, 0.56), (0.0, 0.68), (0.09, 0.56), 0.022), "ink")
    cap = sdf.both(sdf.ellipse(f.p, 0, 0.08, 0.88, 0.92), sdf.box(f.p, 0, -0.5, 1.0, 0.68, 0.12))
    c.fill(f, cap, colour, texture=0.05, round_=0.3)
    for x, y, r in (
        (0, -0.5, 0.17),
        (-0.46, -0.16, 0.14),
        (0.46, -0.16, 0.14),
        (-0.06, -0.02, 0.09),
        (0.34, -0.54, 0.07),
    ):
        c.flat(f, sdf.circle(f.p, x, y, r), "white")


def balloon(c: Canvas, f: Frame, colour: Tensor) -> None:
    c.flat(f, sdf.polyline(f.p, [(0, 0.46), (0.06, 0.62), (-0.06, 0.78), (0.02, 0.98)], 0.02), "ink")
    c.fill(f, sdf.polygon(f.p, [(0, 0.34), (-0.1, 0.5), (0.1, 0.5)], 0.02), colour, texture=0)
    d = sdf.blend(sdf.circle(f.p, 0, -0.34, 0.6), sdf.circle(f.p, 0, 0.2, 0.16), 0.5)
    c.fill(f, d, colour, texture=0.02, round_=0.36)
    c.flat(f, sdf.ellipse(f.p, -0.24, -0.56, 0.1, 0.2, 0.5), "white", alpha=(0.5, 0.9))


def apple(c: Canvas, f: Frame, colour: Tensor) -> None:
    d = sdf.blend(sdf.ellipse(mirror(f.p), 0.26, 0.16, 0.5, 0.62), sdf.ellipse(mirror(f.p), 0.2, 0.5, 0.36, 0.36), 0.2)
    c.fill(f, d, colour, texture=0.05, grain=16, round_=0.36)
    c.flat(f, sdf.ellipse(f.p, 0, -0.38, 0.2, 0.07), lighter(colour, -0.4))
    c.fill(f, sdf.curve(f.p, (0.0, -0.36), (0.0, -0.62), (0.12, -0.82), 0.05), "bark", texture=0)
    c.fill(f, sdf.ellipse(f.p, 0.38, -0.68, 0.28, 0.13, -0.4), "leaf", texture=0.06)
    c.flat(f, sdf.ellipse(f.p, -0.42, 0.0, 0.09, 0.2, 0.3), "white", alpha=(0.4, 0.9))


def rocket(c: Canvas, f: Frame, colour: Tensor) -> None:
    c.glow(sdf.ellipse(f.p, 0, 0.8, 0.1, 0.2), "orange", 0.15, 0.5)
    c.fill(f, sdf.polygon(f.p, [(-0.2, 0.6), (0.0, 1.0), (0.2, 0.6)], 0.05), "orange", texture=0.05, light=0.4)
    c.fill(
        f,
        sdf.polygon(f.p, [(-0.1, 0.6), (0.0, 0.82), (0.1, 0.6)], 0.03),
        "yellow",
        texture=0,
        line=0,
        shadow=0,
    )
    p = mirror(f.p)
    c.fill(f, sdf.polygon(p, [(0.28, 0.1), (0.64, 0.66), (0.26, 0.52)], 0.05), colour, texture=0.03)
    body = sdf.both(sdf.circle(p, -0.5, 0.1, 0.88), sdf.box(f.p, 0, -0.2, 0.6, 0.78, 0.05))
    c.fill(f, body, "white", texture=0.04, round_=0.2)
    c.fill(f, sdf.both(body, sdf.box(f.p, 0, -0.86, 0.6, 0.46)), colour, texture=0.02, shadow=0)
    c.fill(f, sdf.both(body, sdf.box(f.p, 0, 0.52, 0.6, 0.1)), colour, texture=0.02, shadow=0)
    c.fill(f, sdf.circle(f.p, 0, -0.06, 0.18), "steel", texture=0)
    c.fill(f, sdf.circle(f.p, 0, -0.06, 0.11), "glass", texture=0, shadow=0, line=0.6)


def umbrella(c: Canvas, f: Frame, colour: Tensor) -> None:
    hook = [(0.0, -0.7), (0.0, 0.7), (0.04, 0.84), (0.14, 0.88), (0.23, 0.8), (0.24, 0.68)]
    c.fill(f, sdf.polyline(f.p, hook, 0.045), "bark", texture=0)
    dome = sdf.circle(f.p, 0, 0.14, 0.94)
    d = sdf.both(dome, sdf.box(f.p, 0, -0.5, 1.0, 0.64))
    for x in (-0.62, 0.0, 0.62):
        d = sdf.cut(d, sdf.ellipse(f.p, x, 0.18, 0.3, 0.16))
    c.fill(f, d, colour, texture=0.03, round_=0.3)
    dark = lighter(colour, -0.3)
    for s in (-1, 1):
        rib = sdf.curve(f.p, (0.0, -0.78), (s * 0.3, -0.5), (s * 0.31, 0.06), 0.02)
        c.flat(f, sdf.both(rib, d + 0.02), dark)
    c.fill(f, sdf.capsule(f.p, 0, -0.92, 0, -0.8, 0.035), "bark", texture=0)


def cup(c: Canvas, f: Frame, colour: Tensor) -> None:
    for x in (-0.3, 0.0, 0.3):
        steam = sdf.polyline(f.p, [(x, -0.42), (x + 0.07, -0.56), (x - 0.05, -0.72), (x + 0.03, -0.9)], 0.04, 0.02)
        c.flat(f, steam, "white", alpha=(0.55, 0.95))
    ring = sdf.ellipse(f.p, 0.62, 0.28, 0.3, 0.3).abs() - 0.07
    c.fill(f, ring, colour, texture=0, round_=0.07)
    body = sdf.polygon(f.p, [(-0.58, -0.24), (-0.44, 0.82), (0.44, 0.82), (0.58, -0.24)], 0.08)
    c.fill(f, body, colour, texture=0.03, round_=0.26)
    c.fill(f, sdf.ellipse(f.p, 0, -0.24, 0.62, 0.13), lighter(colour, 0.3), texture=0, shadow=0)
    c.flat(f, sdf.ellipse(f.p, 0, -0.22, 0.5, 0.09), "bark")
    heart = sdf.union(
        sdf.circle(mirror(f.p), 0.1, 0.28, 0.13),
        sdf.polygon(f.p, [(-0.2, 0.34), (0.2, 0.34), (0, 0.58)], 0.02),
    )
    c.flat(f, heart, lighter(colour, 0.6))


def cake(c: Canvas, f: Frame, colour: Tensor) -> None:
    c.fill(f, sdf.ellipse(f.p, 0, 0.84, 0.92, 0.13), "steel", texture=0)
    c.fill(f, sdf.box(f.p, 0, 0.5, 0.72, 0.36, 0.08), "cream", texture=0.08, grain=50)
    icing = sdf.box(f.p, 0, 0.24, 0.74, 0.14, 0.1)
    for x, h in ((-0.56, 0.44), (-0.28, 0.54), (0.0, 0.42), (0.28, 0.56), (0.56, 0.46)):
        icing = sdf.blend(icing, sdf.capsule(f.p, x, 0.24, x, h, 0.1), 0.06)
    c.fill(f, icing, colour, texture=0.03)
    c.fill(f, sdf.box(f.p, 0, -0.1, 0.44, 0.24, 0.08), colour, texture=0.03)
    for x in (-0.26, 0.0, 0.26):
        c.fill(f, sdf.box(f.p, x, -0.5, 0.05, 0.18, 0.02), "glass", texture=0, line=0.8)
        c.glow(sdf.circle(f.p, x, -0.78, 0.06), "yellow", 0.1, 0.5)
        c.fill(f, sdf.ellipse(f.p, x, -0.78, 0.06, 0.1), "orange", texture=0, line=0.7, shadow=0)
    for x in (-0.4, -0.13, 0.14, 0.41):
        c.flat(f, sdf.circle(f.p, x * 0.75, -0.08, 0.05), "red")


def train(c: Canvas, f: Frame, colour: Tensor) -> None:
    c.flat(f, sdf.capsule(f.p, -0.98, 0.93, 0.98, 0.93, 0.03), "stone")
    for x, y, r in ((0.52, -0.78, 0.13), (0.3, -0.9, 0.1)):
        c.fill(f, sdf.circle(f.p, x, y, r), "white", texture=0.05, shadow=0, line=0.8)
    c.fill(f, sdf.polygon(f.p, [(0.42, -0.1), (0.36, -0.52), (0.68, -0.52), (0.6, -0.1)], 0.02), "ink", texture=0)
    c.fill(f, sdf.box(f.p, 0.3, 0.25, 0.58, 0.36, 0.12), colour, texture=0.03, round_=0.24)
    c.fill(f, sdf.box(f.p, -0.5, 0.02, 0.4, 0.58, 0.04), colour, texture=0.03)
    c.fill(f, sdf.box(f.p, -0.5, -0.6, 0.5, 0.09, 0.05), "wine", texture=0)
    c.fill(f, sdf.box(f.p, -0.5, -0.2, 0.24, 0.2, 0.03), "glass", texture=0)
    c.flat(f, sdf.box(f.p, 0.3, 0.25, 0.04, 0.36), "gold")
    c.fill(f, sdf.circle(f.p, 0.88, 0.16, 0.09), "yellow", texture=0)
    c.fill(f, sdf.box(f.p, 0.0, 0.62, 0.92, 0.07, 0.03), "ink", texture=0)
    for x, r in ((-0.58, 0.24), (0.02, 0.2), (0.5, 0.2)):
        c.fill(f, sdf.circle(f.p, x, 0.9 - r, r), "red", texture=0)
        c.flat(f, sdf.circle(f.p, x, 0.9 - r, r * 0.4), "steel")


THINGS = {
    "house": house,
    "tree": tree,
    "car": car,
    "boat": boat,
    "sun": sun,
    "moon": moon,
    "star": star,
    "flower": flower,
    "mushroom": mushroom,
    "balloon": balloon,
    "apple": apple,
    "rocket": rocket,
    "umbrella": umbrella,
    "cup": cup,
    "cake": cake,
    "train": train,
}
"""Name: painter."""
