"""What creatures have in common: where they wear things, eyes, mouths, whiskers, feet."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from . import sdf
from .canvas import Canvas, Frame
from .sdf import mirror


@dataclass(frozen=True)
class Anchors:
    """Where a creature wears things, in its own units.

    eyes: half their distance, height, size. head: centre x, top y, half width. neck: centre x, y, half width.
    face: x of the middle of the eyes (0 when it looks at us).
    """

    eyes: tuple[float, float, float]
    head: tuple[float, float, float]
    neck: tuple[float, float, float]
    face: float = 0.0


def eye(c: Canvas, f: Frame, x: float, y: float, r: float, iris: str | None = None) -> None:
    d = sdf.circle(f.p, x, y, r)
    c.fill(f, d, "white", texture=0, shadow=0.15, line=0.8, round_=0.1, light=0.6)
    if iris:
        c.flat(f, sdf.circle(f.p, x, y, r * 0.82), iris)
    c.flat(f, sdf.circle(f.p, x, y + 0.01, r * 0.58), "ink")
    c.flat(f, sdf.circle(f.p, x - r * 0.24, y - r * 0.24, r * 0.24), "white")


def eyes(c: Canvas, f: Frame, x: float, y: float, r: float, iris: str | None = None) -> None:
    eye(c, f, -x, y, r, iris)
    eye(c, f, x, y, r, iris)


def smile(c: Canvas, f: Frame, x: float, y: float, w: float, h: float) -> None:
    c.flat(f, sdf.curve(f.p, (x - w, y), (x, y + 2 * h), (x + w, y), 0.022), "ink")


def muzzle_mouth(c: Canvas, f: Frame, y: float, w: float) -> None:
    """The mouth of cats and dogs: two small bows under the nose."""
    p = mirror(f.p)
    c.flat(f, sdf.curve(p, (0.0, y), (w * 0.5, y + 0.15), (w, y + 0.01), 0.02), "ink")


def whiskers(c: Canvas, f: Frame, x: float, y: float, length: float) -> None:
    p = mirror(f.p)
    for dy in (-0.05, 0.05):
        c.flat(f, sdf.capsule(p, x, y + dy * 0.6, x + length, y + dy * 2.0, 0.02), "ink", alpha=(0.8, 1.0))


def feet(c: Canvas, f: Frame, x: float, colour: Tensor | str, r: float = 0.2) -> None:
    c.fill(f, sdf.ellipse(mirror(f.p), x, 0.84, r, 0.12), colour, texture=0.03)
