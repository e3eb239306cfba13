"""What creatures wear. Each function paints one thing at a creature's anchors."""

from __future__ import annotations

from . import sdf
from .canvas import Canvas, Frame
from .faces import Anchors
from .palette import lighter, tone
from .sdf import mirror, move


def sunglasses(c: Canvas, f: Frame, a: Anchors) -> None:
    x, y, r = a.eyes
    g = Frame(move(f.p, a.face, y), f.scale)
    p = mirror(g.p)
    c.flat(g, sdf.capsule(p, 0.0, -0.3 * r, x, -0.45 * r, 0.04), "ink")
    c.flat(g, sdf.capsule(p, x + 0.7 * r, -0.45 * r, x + 1.7 * r, -0.6 * r, 0.035), "ink")
    lens = [
        (x - 1.0 * r, -0.7 * r),
        (x + 1.1 * r, -0.8 * r),
        (x + 0.95 * r, 0.5 * r),
        (x + 0.2 * r, 0.95 * r),
    ]
    lens.append((x - 0.75 * r, 0.6 * r))
    c.fill(g, sdf.polygon(p, lens, 0.05), lighter(tone("ink"), -0.3), texture=0, shadow=0.3, round_=0.1, line=1.4)
    shine = sdf.capsule(g.p, -x - 0.45 * r, 0.25 * r, -x + 0.15 * r, -0.4 * r, 0.035)
    c.flat(g, sdf.union(shine, sdf.capsule(g.p, x - 0.45 * r, 0.25 * r, x + 0.15 * r, -0.4 * r, 0.035)), "sky")


def hat(c: Canvas, f: Frame, a: Anchors) -> None:
    """A purple top hat with a yellow band."""
    x, y, w = a.head
    g = Frame(move(f.p, x, y), f.scale)
    crown = sdf.polygon(g.p, [(-0.62 * w, 0.0), (-0.74 * w, -1.0 * w), (0.74 * w, -1.0 * w), (0.62 * w, 0.0)], 0.03)
    c.fill(g, crown, "purple", texture=0.04)
    c.fill(g, sdf.box(g.p, 0, -0.16 * w, 0.66 * w, 0.15 * w, 0.02), "yellow", texture=0, shadow=0, line=0.8)
    c.fill(g, sdf.ellipse(g.p, 0, 0.06, 1.2 * w, 0.22 * w), "purple", texture=0.04)


def crown(c: Canvas, f: Frame, a: Anchors) -> None:
    x, y, w = a.head
    g = Frame(move(f.p, x, y + 0.08), f.scale)
    h = 0.95 * w
    tips = [(-0.85 * w, 0), (-1.0 * w, -h), (-0.45 * w, -0.5 * h), (0, -1.15 * h), (0.45 * w, -0.5 * h)]
    tips += [(1.0 * w, -h), (0.85 * w, 0)]
    c.fill(g, sdf.polygon(g.p, tips, 0.03), "gold", texture=0.03, round_=0.1)
    for tx, ty in ((-1.0 * w, -h), (0.0, -1.15 * h), (1.0 * w, -h)):
        c.fill(g, sdf.circle(g.p, tx, ty, 0.07), "red", texture=0, shadow=0, line=0.8)
    c.flat(g, sdf.circle(mirror(g.p), 0.45 * w, -0.17 * h, 0.05), "blue")
    c.flat(g, sdf.circle(g.p, 0, -0.2 * h, 0.06), "red")


def scarf(c: Canvas, f: Frame, a: Anchors) -> None:
    """A red scarf with white stripes, one end hanging down."""
    x, y, w = a.neck
    g = Frame(move(f.p, x, y), f.scale)
    end = sdf.box(g.p, 0.5 * w, 0.3, 0.12, 0.26, 0.03, 0.12)
    c.fill(g, end, "red", texture=0.06, grain=50)
    c.flat(g, sdf.both(end + 0.03, sdf.box(g.p, 0.47 * w, 0.42, 0.3, 0.035, 0.0, 0.12)), "white")
    band = sdf.curve(g.p, (-1.05 * w, -0.04), (0, 0.2), (1.05 * w, -0.04), 0.115)
    c.fill(g, band, "red", texture=0.06, grain=50, round_=0.1)
    for t in (-0.72, -0.24, 0.24, 0.72):
        stripe = sdf.box(g.p, t * w, 0.08 - 0.12 * t * t, 0.035, 0.2, 0.0, -0.25 * t)
        c.flat(g, sdf.both(band + 0.025, stripe), "white")


def bow_tie(c: Canvas, f: Frame, a: Anchors) -> None:
    x, y, _ = a.neck
    g = Frame(move(f.p, x, y), f.scale)
    wing = sdf.polygon(mirror(g.p), [(0.0, -0.04), (0.34, -0.17), (0.34, 0.17), (0.0, 0.04)], 0.035)
    c.fill(g, wing, "blue", texture=0.02, round_=0.1)
    for sx, sy in ((0.2, -0.05), (0.29, 0.08)):
        c.flat(g, sdf.circle(mirror(g.p), sx, sy, 0.035), "white")
    c.fill(g, sdf.box(g.p, 0, 0, 0.085, 0.1, 0.05), "blue", texture=0)


def headphones(c: Canvas, f: Frame, a: Anchors) -> None:
    x, y, w = a.head
    _, ey, _ = a.eyes
    side = 1.32 * w
    g = Frame(move(f.p, x, ey + 0.04), f.scale)
    top = y - ey - 0.12
    p = mirror(g.p)
    band = sdf.curve(p, (0.0, top), (0.95 * side, top), (side, 0.0), 0.05, parts=8)
    c.fill(g, band, "teal", texture=0, round_=0.08)
    c.fill(g, sdf.ellipse(p, side, 0.02, 0.13, 0.21), "teal", texture=0.02, round_=0.1)
    c.flat(g, sdf.ellipse(p, side, 0.02, 0.06, 0.12), "yellow")


ACCESSORIES = {  # name: (painter, where it is worn; two things in one place don't go together)
    "sunglasses": (sunglasses, "eyes"),
    "hat": (hat, "head"),
    "crown": (crown, "head"),
    "headphones": (headphones, "head"),
    "scarf": (scarf, "neck"),
    "bow tie": (bow_tie, "neck"),
}
