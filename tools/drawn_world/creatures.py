"""The animals. Each function paints one, in a frame of about -1..1 with its feet at y = 0.95."""

from __future__ import annotations

import math

from torch import Tensor

from . import sdf
from .canvas import Canvas, Frame
from .faces import Anchors, eye, eyes, feet, muzzle_mouth, smile, whiskers
from .palette import lighter
from .sdf import mirror


def cat(c: Canvas, f: Frame, colour: Tensor) -> None:
    dark, light = lighter(colour, -0.28), lighter(colour, 0.45)
    c.fill(f, sdf.curve(f.p, (0.3, 0.8), (1.05, 0.75), (0.8, 0.1), 0.1, 0.09), dark, grain=40)
    c.fill(f, sdf.ellipse(f.p, 0, 0.45, 0.44, 0.5), colour, texture=0.09, grain=34)
    c.fill(f, sdf.ellipse(f.p, 0, 0.55, 0.24, 0.34), light, line=0, shadow=0)
    feet(c, f, 0.22, colour)
    p = mirror(f.p)
    c.fill(f, sdf.polygon(p, [(0.12, -0.6), (0.66, -0.2), (0.68, -1.02)], 0.04), colour)
    c.flat(f, sdf.polygon(p, [(0.34, -0.6), (0.57, -0.42), (0.6, -0.86)], 0.02), "skin")
    c.fill(f, sdf.ellipse(f.p, 0, -0.24, 0.66, 0.48), colour, texture=0.09, grain=34, round_=0.24)
    for x in (-0.14, 0.0, 0.14):
        c.flat(f, sdf.capsule(f.p, x, -0.7, x * 0.9, -0.54 + abs(x) * -0.3, 0.035, 0.015), dark)
    c.flat(f, sdf.ellipse(p, 0.12, -0.02, 0.16, 0.12), light)
    eyes(c, f, 0.28, -0.28, 0.15, "leaf")
    c.flat(f, sdf.polygon(f.p, [(-0.06, -0.11), (0.06, -0.11), (0.0, -0.04)], 0.025), "wine")
    muzzle_mouth(c, f, -0.02, 0.14)
    whiskers(c, f, 0.36, -0.02, 0.52)


def dog(c: Canvas, f: Frame, colour: Tensor) -> None:
    dark, light = lighter(colour, -0.4), lighter(colour, 0.5)
    c.fill(f, sdf.curve(f.p, (0.35, 0.75), (0.75, 0.7), (0.85, 0.25), 0.08, 0.06), colour)
    c.fill(f, sdf.ellipse(f.p, 0, 0.45, 0.46, 0.5), colour, texture=0.07)
    c.fill(f, sdf.ellipse(f.p, 0, 0.5, 0.24, 0.34), light, line=0, shadow=0)
    feet(c, f, 0.24, colour, 0.22)
    c.fill(f, sdf.ellipse(f.p, 0, -0.28, 0.52, 0.54), colour, texture=0.07, round_=0.24)
    c.flat(f, sdf.both(sdf.ellipse(f.p, 0.25, -0.36, 0.24, 0.27), sdf.ellipse(f.p, 0, -0.28, 0.5, 0.52)), dark)
    p = mirror(f.p)
    c.fill(f, sdf.ellipse(p, 0.58, -0.2, 0.17, 0.46, -0.22), dark, texture=0.08, round_=0.12)
    c.fill(f, sdf.ellipse(f.p, 0, -0.02, 0.3, 0.23), light, shadow=0.1)
    c.fill(f, sdf.ellipse(f.p, 0.0, 0.17, 0.1, 0.14), "skin", texture=0, line=0.8)
    c.fill(f, sdf.ellipse(f.p, 0, -0.02, 0.26, 0.15), light, line=0, shadow=0, light=0.3)
    eyes(c, f, 0.22, -0.36, 0.13, "brown")
    c.fill(f, sdf.ellipse(f.p, 0, -0.13, 0.13, 0.09), "ink", texture=0)
    muzzle_mouth(c, f, 0.0, 0.15)


def rabbit(c: Canvas, f: Frame, colour: Tensor) -> None:
    light = lighter(colour, 0.5)
    p = mirror(f.p)
    c.fill(f, sdf.circle(f.p, 0.48, 0.72, 0.17), light, texture=0.1, grain=60)
    c.fill(f, sdf.ellipse(f.p, 0, 0.5, 0.44, 0.45), colour, texture=0.08, grain=40)
    c.fill(f, sdf.ellipse(f.p, 0, 0.56, 0.25, 0.32), light, line=0, shadow=0)
    feet(c, f, 0.25, colour, 0.24)
    c.fill(f, sdf.ellipse(p, 0.24, -0.66, 0.14, 0.42, 0.14), colour, round_=0.1)
    c.flat(f, sdf.ellipse(p, 0.24, -0.64, 0.07, 0.32, 0.14), "skin")
    c.fill(f, sdf.ellipse(f.p, 0, -0.1, 0.52, 0.43), colour, texture=0.08, grain=40, round_=0.22)
    c.flat(f, sdf.circle(p, 0.35, 0.04, 0.09), "skin", alpha=(0.6, 1.0))
    eyes(c, f, 0.22, -0.16, 0.12)
    c.fill(f, sdf.box(f.p, 0, 0.16, 0.075, 0.08, 0.02), "white", texture=0, shadow=0, line=0.7)
    c.flat(f, sdf.ellipse(f.p, 0, 0.0, 0.07, 0.05), "wine")
    muzzle_mouth(c, f, 0.04, 0.14)
    whiskers(c, f, 0.3, 0.06, 0.34)


def bear(c: Canvas, f: Frame, colour: Tensor) -> None:
    light = lighter(colour, 0.4)
    p = mirror(f.p)
    c.fill(f, sdf.capsule(p, 0.45, 0.2, 0.68, 0.55, 0.15), colour, texture=0.09)
    c.fill(f, sdf.ellipse(f.p, 0, 0.45, 0.56, 0.5), colour, texture=0.09)
    c.fill(f, sdf.ellipse(f.p, 0, 0.5, 0.34, 0.34), light, line=0, shadow=0)
    feet(c, f, 0.3, colour, 0.22)
    c.fill(f, sdf.circle(p, 0.44, -0.68, 0.2), colour)
    c.flat(f, sdf.circle(p, 0.44, -0.68, 0.11), light)
    c.fill(f, sdf.ellipse(f.p, 0, -0.3, 0.58, 0.52), colour, texture=0.09, round_=0.24)
    c.fill(f, sdf.ellipse(f.p, 0, -0.12, 0.27, 0.21), light, shadow=0.1)
    eyes(c, f, 0.24, -0.38, 0.11)
    c.fill(f, sdf.ellipse(f.p, 0, -0.21, 0.12, 0.08), "ink", texture=0)
    muzzle_mouth(c, f, -0.12, 0.13)


def mouse(c: Canvas, f: Frame, colour: Tensor) -> None:
    light = lighter(colour, 0.4)
    p = mirror(f.p)
    c.flat(f, sdf.curve(f.p, (0.2, 0.82), (1.1, 1.0), (0.88, 0.3), 0.055, 0.03, 8), "skin")
    c.fill(f, sdf.ellipse(f.p, 0, 0.52, 0.38, 0.42), colour, texture=0.07)
    c.fill(f, sdf.ellipse(f.p, 0, 0.58, 0.22, 0.3), light, line=0, shadow=0)
    feet(c, f, 0.2, "skin", 0.17)
    c.fill(f, sdf.circle(p, 0.56, -0.46, 0.37), colour, texture=0.07)
    c.flat(f, sdf.circle(p, 0.56, -0.46, 0.25), "skin")
    face = sdf.blend(sdf.circle(f.p, 0, -0.2, 0.42), sdf.circle(f.p, 0, 0.12, 0.14), 0.3)
    c.fill(f, face, colour, texture=0.07, round_=0.2)
    eyes(c, f, 0.19, -0.24, 0.12)
    c.fill(f, sdf.circle(f.p, 0, 0.13, 0.1), "pink", texture=0)
    whiskers(c, f, 0.16, 0.08, 0.4)


def pig(c: Canvas, f: Frame, colour: Tensor) -> None:
    dark, light = lighter(colour, -0.22), lighter(colour, 0.35)
    p = mirror(f.p)
    c.flat(f, sdf.curve(f.p, (0.55, 0.55), (1.0, 0.2), (0.78, 0.66), 0.045), dark)
    c.fill(f, sdf.ellipse(f.p, 0, 0.42, 0.62, 0.5), colour, texture=0.05)
    for x in (0.2, 0.44):
        c.fill(f, sdf.box(p, x, 0.84, 0.1, 0.14, 0.04), dark)
    c.fill(f, sdf.polygon(p, [(0.2, -0.6), (0.52, -0.34), (0.6, -0.78)], 0.04), dark)
    c.fill(f, sdf.ellipse(f.p, 0, -0.2, 0.58, 0.5), colour, texture=0.05, round_=0.24)
    c.flat(f, sdf.circle(p, 0.42, -0.06, 0.09), light, alpha=(0.5, 1.0))
    eyes(c, f, 0.27, -0.32, 0.11)
    c.fill(f, sdf.ellipse(f.p, 0, -0.05, 0.24, 0.18), light, texture=0.02)
    c.flat(f, sdf.ellipse(p, 0.09, -0.05, 0.045, 0.075), "wine")
    smile(c, f, 0.0, 0.15, 0.17, 0.06)


def frog(c: Canvas, f: Frame, colour: Tensor) -> None:
    dark, light = lighter(colour, -0.3), lighter(colour, 0.5)
    p = mirror(f.p)
    c.fill(f, sdf.ellipse(p, 0.58, 0.6, 0.32, 0.3, 0.5), colour, texture=0.07)
    c.fill(f, sdf.ellipse(p, 0.66, 0.86, 0.3, 0.09), dark)
    c.fill(f, sdf.ellipse(f.p, 0, 0.46, 0.48, 0.46), colour, texture=0.07)
    c.fill(f, sdf.ellipse(f.p, 0, 0.54, 0.32, 0.34), light, line=0, shadow=0)
    c.fill(f, sdf.capsule(p, 0.28, 0.45, 0.3, 0.84, 0.09), colour)
    c.fill(f, sdf.circle(p, 0.38, -0.5, 0.25), colour, texture=0.04)
    c.fill(f, sdf.ellipse(f.p, 0, -0.08, 0.7, 0.44), colour, texture=0.07, round_=0.24)
    eyes(c, f, 0.38, -0.52, 0.17, "gold")
    for x, y, r in ((-0.1, -0.36, 0.05), (0.12, -0.38, 0.04), (0.02, -0.28, 0.035)):
        c.flat(f, sdf.circle(f.p, x, y, r), dark)
    c.flat(f, sdf.curve(f.p, (-0.48, -0.02), (0.0, 0.42), (0.48, -0.02), 0.025, parts=8), "ink")
    c.flat(f, sdf.circle(p, 0.06, -0.14, 0.022), "ink")


def fox(c: Canvas, f: Frame, colour: Tensor) -> None:
    dark = lighter(colour, -0.45)
    p = mirror(f.p)
    c.fill(f, sdf.ellipse(f.p, 0.66, 0.42, 0.22, 0.46, 0.4), colour, texture=0.1, grain=36)
    tip = sdf.both(sdf.ellipse(f.p, 0.66, 0.42, 0.2, 0.44, 0.4), sdf.circle(f.p, 0.85, 0.02, 0.26))
    c.flat(f, tip, "cream")
    c.fill(f, sdf.ellipse(f.p, 0, 0.48, 0.4, 0.48), colour, texture=0.08)
    c.fill(f, sdf.ellipse(f.p, 0, 0.45, 0.2, 0.34), "cream", line=0, shadow=0)
    feet(c, f, 0.2, dark, 0.18)
    c.fill(f, sdf.polygon(p, [(0.1, -0.5), (0.56, -0.3), (0.54, -0.96)], 0.03), colour)
    c.flat(f, sdf.polygon(p, [(0.42, -0.72), (0.53, -0.66), (0.535, -0.93)], 0.025), dark)
    head = [
        (0.0, 0.2),
        (-0.12, 0.14),
        (-0.72, -0.2),
        (-0.42, -0.56),
        (0.42, -0.56),
        (0.72, -0.2),
        (0.12, 0.14),
    ]
    d = sdf.polygon(f.p, head, 0.06)
    c.fill(f, d, colour, texture=0.08, round_=0.22)
    cheek = sdf.both(d + 0.02, sdf.polygon(p, [(0.04, 0.12), (0.14, -0.22), (0.76, -0.2), (0.1, 0.3)], 0.02))
    c.flat(f, cheek, "cream")
    eyes(c, f, 0.27, -0.27, 0.11, "gold")
    c.fill(f, sdf.ellipse(f.p, 0, 0.14, 0.1, 0.075), "ink", texture=0)


def lion(c: Canvas, f: Frame, colour: Tensor) -> None:
    dark, light = lighter(colour, -0.42), lighter(colour, 0.45)
    c.flat(f, sdf.curve(f.p, (0.3, 0.8), (0.9, 0.85), (0.85, 0.4), 0.05), colour)
    c.fill(f, sdf.circle(f.p, 0.86, 0.36, 0.13), dark)
    c.fill(f, sdf.ellipse(f.p, 0, 0.52, 0.42, 0.44), colour, texture=0.05)
    feet(c, f, 0.23, colour, 0.21)
    mane = None
    for i in range(12):
        a = 2 * math.pi * (i + 0.5) / 12
        d = sdf.circle(f.p, 0.58 * math.cos(a), -0.24 + 0.54 * math.sin(a), 0.19)
        mane = d if mane is None else sdf.union(mane, d)
    assert mane is not None
    c.fill(f, sdf.union(mane, sdf.circle(f.p, 0, -0.24, 0.55)), dark, texture=0.12, grain=34)
    p = mirror(f.p)
    c.fill(f, sdf.circle(p, 0.36, -0.6, 0.13), colour)
    c.fill(f, sdf.ellipse(f.p, 0, -0.24, 0.46, 0.44), colour, texture=0.05, round_=0.2)
    c.flat(f, sdf.ellipse(p, 0.1, -0.04, 0.14, 0.11), light)
    eyes(c, f, 0.2, -0.32, 0.11, "brown")
    c.fill(f, sdf.polygon(f.p, [(-0.09, -0.17), (0.09, -0.17), (0.0, -0.07)], 0.03), "bark", texture=0)
    muzzle_mouth(c, f, -0.05, 0.14)


def elephant(c: Canvas, f: Frame, colour: Tensor) -> None:
    dark, light = lighter(colour, -0.2), lighter(colour, 0.25)
    p = mirror(f.p)
    c.fill(f, sdf.ellipse(f.p, 0, 0.42, 0.54, 0.46), colour, texture=0.06, grain=44)
    c.fill(f, sdf.box(p, 0.34, 0.74, 0.16, 0.22, 0.06), colour)
    c.flat(f, sdf.box(p, 0.34, 0.91, 0.11, 0.035, 0.03), "cream")
    c.fill(f, sdf.ellipse(p, 0.64, -0.3, 0.34, 0.44, 0.15), colour, texture=0.06, grain=44)
    c.flat(f, sdf.ellipse(p, 0.66, -0.28, 0.22, 0.32, 0.15), "skin", alpha=(0.8, 1.0))
    c.fill(f, sdf.polygon(p, [(0.14, 0.04), (0.26, 0.04), (0.3, 0.38)], 0.03), "cream", texture=0)
    c.fill(f, sdf.ellipse(f.p, 0, -0.3, 0.46, 0.48), colour, texture=0.06, grain=44, round_=0.22)
    trunk = sdf.polyline(f.p, [(0, -0.16), (0, 0.3), (0.06, 0.5), (0.24, 0.56), (0.36, 0.46)], 0.17, 0.085)
    c.fill(f, trunk, light, texture=0.04, round_=0.1)
    for y in (0.02, 0.16, 0.3):
        c.flat(f, sdf.capsule(f.p, -0.09, y, 0.09, y, 0.016), dark)
    eyes(c, f, 0.25, -0.38, 0.1)


def penguin(c: Canvas, f: Frame, colour: Tensor) -> None:
    p = mirror(f.p)
    c.fill(f, sdf.ellipse(p, 0.22, 0.88, 0.2, 0.09), "orange", texture=0)
    c.fill(f, sdf.ellipse(p, 0.58, 0.28, 0.13, 0.4, -0.35), colour, texture=0.04)
    body = sdf.blend(sdf.ellipse(f.p, 0, 0.32, 0.54, 0.56), sdf.circle(f.p, 0, -0.4, 0.44), 0.35)
    c.fill(f, body, colour, texture=0.05, round_=0.24)
    c.fill(f, sdf.ellipse(f.p, 0, 0.42, 0.38, 0.42), "cream", texture=0.03, line=0, shadow=0)
    patch = sdf.union(sdf.circle(p, 0.17, -0.4, 0.2), sdf.ellipse(f.p, 0, -0.24, 0.28, 0.18))
    c.fill(f, patch, "cream", texture=0, line=0, shadow=0, light=0.4)
    eyes(c, f, 0.17, -0.42, 0.1)
    c.fill(f, sdf.polygon(f.p, [(-0.13, -0.29), (0.13, -0.29), (0.0, -0.12)], 0.03), "orange", texture=0)


def owl(c: Canvas, f: Frame, colour: Tensor) -> None:
    dark, light = lighter(colour, -0.3), lighter(colour, 0.5)
    p = mirror(f.p)
    c.fill(f, sdf.box(f.p, 0.0, 0.93, 0.9, 0.06, 0.06), "bark", texture=0.1)
    c.fill(f, sdf.polygon(p, [(0.2, -0.62), (0.52, -0.4), (0.56, -0.88)], 0.04), dark)
    body = sdf.blend(sdf.ellipse(f.p, 0, 0.3, 0.54, 0.58), sdf.ellipse(f.p, 0, -0.32, 0.54, 0.4), 0.3)
    c.fill(f, body, colour, texture=0.08, round_=0.24)
    c.fill(f, sdf.ellipse(f.p, 0, 0.44, 0.32, 0.38), light, line=0, shadow=0)
    for x, y in ((-0.14, 0.3), (0.14, 0.3), (0.0, 0.44), (-0.16, 0.58), (0.16, 0.58)):
        c.flat(f, sdf.curve(f.p, (x - 0.07, y - 0.04), (x, y + 0.1), (x + 0.07, y - 0.04), 0.02, parts=3), dark)
    c.fill(f, sdf.ellipse(p, 0.5, 0.32, 0.15, 0.42, -0.12), dark, texture=0.08)
    c.fill(f, sdf.ellipse(p, 0.14, 0.9, 0.11, 0.06), "orange", texture=0)
    c.fill(f, sdf.circle(p, 0.25, -0.32, 0.26), light, texture=0, shadow=0.1)
    eyes(c, f, 0.25, -0.32, 0.18, "gold")
    c.fill(f, sdf.polygon(f.p, [(-0.07, -0.2), (0.07, -0.2), (0.0, -0.03)], 0.03), "orange", texture=0)


def bird(c: Canvas, f: Frame, colour: Tensor) -> None:
    dark, light = lighter(colour, -0.28), lighter(colour, 0.5)
    for x in (-0.08, 0.16):
        c.flat(f, sdf.capsule(f.p, x, 0.6, x + 0.02, 0.92, 0.03), "orange")
        c.flat(f, sdf.capsule(f.p, x - 0.08, 0.93, x + 0.14, 0.93, 0.028), "orange")
    c.fill(f, sdf.polygon(f.p, [(-0.4, 0.1), (-0.98, -0.22), (-0.94, 0.08), (-0.5, 0.4)], 0.04), dark)
    body = sdf.blend(sdf.ellipse(f.p, -0.05, 0.25, 0.6, 0.46), sdf.circle(f.p, 0.34, -0.36, 0.4), 0.3)
    c.fill(f, sdf.polygon(f.p, [(0.66, -0.46), (1.0, -0.3), (0.66, -0.2)], 0.03), "orange", texture=0)
    c.fill(f, sdf.capsule(f.p, 0.2, -0.72, 0.12, -0.86, 0.05, 0.03), dark)
    c.fill(f, body, colour, texture=0.06, round_=0.24)
    c.fill(f, sdf.ellipse(f.p, 0.2, 0.32, 0.3, 0.3), light, line=0, shadow=0)
    c.fill(f, sdf.ellipse(f.p, -0.22, 0.2, 0.38, 0.22, 0.35), dark, texture=0.1, grain=34)
    eye(c, f, 0.44, -0.42, 0.13)


def fish(c: Canvas, f: Frame, colour: Tensor) -> None:
    dark, light = lighter(colour, -0.25), lighter(colour, 0.4)
    c.fill(
        f,
        sdf.polygon(f.p, [(-0.42, 0.0), (-0.9, -0.46), (-0.78, 0.0), (-0.9, 0.46)], 0.06),
        dark,
        texture=0.05,
    )
    c.fill(f, sdf.polygon(f.p, [(-0.3, -0.36), (-0.1, -0.74), (0.36, -0.4)], 0.05), dark)
    c.fill(f, sdf.polygon(f.p, [(-0.1, 0.4), (-0.16, 0.7), (0.24, 0.42)], 0.04), dark)
    body = sdf.ellipse(f.p, 0.16, 0, 0.72, 0.5)
    c.fill(f, body, colour, texture=0.04, round_=0.26)
    for x in (-0.3, -0.08, 0.14):
        scale = sdf.curve(f.p, (x, -0.3), (x + 0.2, 0.0), (x, 0.3), 0.028)
        c.flat(f, sdf.both(scale, body + 0.04), light)
    c.fill(f, sdf.ellipse(f.p, 0.04, 0.2, 0.2, 0.1, 0.4), light, texture=0)
    eye(c, f, 0.54, -0.12, 0.15)
    c.flat(f, sdf.curve(f.p, (0.84, 0.1), (0.7, 0.24), (0.58, 0.18), 0.024), "ink")
    for x, y, r in ((0.98, -0.34, 0.07), (0.86, -0.58, 0.05)):
        c.fill(f, sdf.circle(f.p, x, y, r), "glass", texture=0, shadow=0, line=0.7)


def turtle(c: Canvas, f: Frame, colour: Tensor) -> None:
    dark, light = lighter(colour, -0.35), lighter(colour, 0.35)
    c.fill(f, sdf.polygon(f.p, [(-0.66, 0.58), (-0.98, 0.7), (-0.66, 0.74)], 0.03), light)
    for x in (-0.42, 0.34):
        c.fill(f, sdf.capsule(f.p, x, 0.55, x + 0.03, 0.8, 0.15, 0.14), light, texture=0.05)
    c.fill(f, sdf.capsule(f.p, 0.45, 0.5, 0.68, 0.1, 0.15, 0.16), light, texture=0.04)
    c.fill(f, sdf.ellipse(f.p, 0.72, -0.08, 0.28, 0.25), light, texture=0.04)
    shell = sdf.both(sdf.ellipse(f.p, -0.08, 0.55, 0.72, 0.86), sdf.box(f.p, -0.08, 0.0, 0.9, 0.58, 0.08))
    c.fill(f, shell, colour, texture=0.07, round_=0.24)
    for x, y, r in ((-0.08, 0.0, 0.19), (-0.46, 0.24, 0.14), (0.3, 0.24, 0.14), (-0.08, 0.36, 0.12)):
        c.flat(f, sdf.polygon(f.p, sdf.star(x, y, r, r * 0.87, 3, 0.0), 0.03), dark, alpha=(0.8, 1.0))
    c.fill(f, sdf.box(f.p, -0.08, 0.58, 0.76, 0.08, 0.08), dark)
    eye(c, f, 0.8, -0.14, 0.1)
    c.flat(f, sdf.curve(f.p, (0.74, 0.05), (0.86, 0.1), (0.95, 0.0), 0.022), "ink")


def octopus(c: Canvas, f: Frame, colour: Tensor) -> None:
    dark, light = lighter(colour, -0.2), lighter(colour, 0.4)
    p = mirror(f.p)
    c.fill(f, sdf.curve(p, (0.3, 0.15), (0.78, 0.2), (0.9, -0.12), 0.13, 0.07), dark)
    c.fill(f, sdf.curve(p, (0.3, 0.3), (0.6, 0.72), (0.94, 0.5), 0.14, 0.07), colour)
    c.fill(f, sdf.curve(p, (0.2, 0.35), (0.3, 1.0), (0.66, 0.88), 0.14, 0.07), dark)
    c.fill(f, sdf.capsule(p, 0.1, 0.3, 0.12, 0.84, 0.14, 0.08), colour)
    d = sdf.blend(sdf.ellipse(f.p, 0, -0.34, 0.56, 0.56), sdf.ellipse(f.p, 0, 0.18, 0.4, 0.26), 0.2)
    c.fill(f, d, colour, texture=0.06, round_=0.26)
    for x, y, r in ((-0.3, -0.62, 0.08), (-0.12, -0.76, 0.06), (0.28, -0.66, 0.07)):
        c.flat(f, sdf.circle(f.p, x, y, r), light)
    eyes(c, f, 0.2, -0.22, 0.15)
    c.flat(f, sdf.circle(p, 0.4, 0.02, 0.08), "skin", alpha=(0.6, 1.0))
    smile(c, f, 0.0, 0.06, 0.13, 0.07)


CREATURES = {
    "cat": (cat, Anchors((0.28, -0.28, 0.2), (0, -0.68, 0.4), (0, 0.2, 0.36))),
    "dog": (dog, Anchors((0.22, -0.36, 0.18), (0, -0.76, 0.38), (0, 0.24, 0.36))),
    "rabbit": (rabbit, Anchors((0.22, -0.16, 0.17), (0, -0.46, 0.36), (0, 0.32, 0.34))),
    "bear": (bear, Anchors((0.24, -0.38, 0.18), (0, -0.76, 0.38), (0, 0.2, 0.42))),
    "mouse": (mouse, Anchors((0.19, -0.24, 0.17), (0, -0.56, 0.32), (0, 0.27, 0.3))),
    "pig": (pig, Anchors((0.27, -0.32, 0.18), (0, -0.64, 0.38), (0, 0.28, 0.42))),
    "frog": (frog, Anchors((0.38, -0.52, 0.24), (0, -0.48, 0.36), (0, 0.36, 0.4))),
    "fox": (fox, Anchors((0.27, -0.27, 0.18), (0, -0.58, 0.38), (0, 0.27, 0.3))),
    "lion": (lion, Anchors((0.2, -0.32, 0.17), (0, -0.86, 0.4), (0, 0.34, 0.34))),
    "elephant": (elephant, Anchors((0.25, -0.38, 0.18), (0, -0.74, 0.36), (0, 0.3, 0.42))),
    "penguin": (penguin, Anchors((0.17, -0.42, 0.16), (0, -0.8, 0.34), (0, 0.0, 0.4))),
    "owl": (owl, Anchors((0.25, -0.32, 0.2), (0, -0.68, 0.38), (0, 0.12, 0.42))),
    "bird": (bird, Anchors((0.17, -0.42, 0.16), (0.32, -0.72, 0.32), (0.24, -0.02, 0.36), 0.46)),
    "fish": (fish, Anchors((0.2, -0.12, 0.18), (0.3, -0.44, 0.34), (0.42, 0.36, 0.26), 0.56)),
    "turtle": (turtle, Anchors((0.13, -0.14, 0.13), (0.72, -0.3, 0.24), (0.6, 0.24, 0.2), 0.78)),
    "octopus": (octopus, Anchors((0.2, -0.22, 0.19), (0, -0.84, 0.38), (0, 0.28, 0.36))),
}
"""Name: (painter, anchors)."""
