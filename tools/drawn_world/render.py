"""Scenes to pictures, both styles at once, on whatever device."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .accessories import ACCESSORIES
from .backgrounds import PLACES, plain
from .canvas import Canvas
from .creatures import CREATURES
from .palette import table
from .scene import PLAIN, SUBJECTS, WORN, Scenes
from .sdf import fused
from .things import THINGS

FLOATING = {"sun", "moon", "star", "balloon", "rocket", "umbrella", "fish", "octopus"}


def _at_least(members: np.ndarray, n: int = 8) -> np.ndarray:
    """Repeat the last member until there are n: batches of 1 to 7 would each be compiled again."""
    return np.concatenate((members, np.repeat(members[-1:], max(0, n - len(members)))))


def _groups(keys: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    """Indices of equal keys, at most `size` at a time."""
    for key in np.unique(keys):
        members = np.flatnonzero(keys == key)
        for start in range(0, len(members), size):
            yield int(key), _at_least(members[start : start + size])


def _column(values: np.ndarray, device: torch.device | str) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float32, device=device)


def _backgrounds(pictures: Tensor, scenes: Scenes, device: torch.device | str, size: int) -> None:
    height, width = pictures.shape[-2:]
    colours = table().to(device)
    for key, members in _groups(np.minimum(scenes.place, PLAIN), size):
        part = scenes[members]
        c = Canvas(len(members), height, width, device)
        if key == PLAIN:
            plain(c, colours[torch.as_tensor(part.place - PLAIN, device=device)])
        else:
            a, b = (_column(np.tanh(part.luck[:, k] * 0.8), device).view(-1, 1, 1) for k in (3, 4))
            list(PLACES.values())[key](c, a, b)
        _store(pictures, members, c)


def _layout(part: Scenes, i: int, half: tuple[float, float]) -> dict[str, np.ndarray]:
    """Where the i-th of a scene's things stands: x, y, scale (scene units), each [n].

    Nothing turns or faces the other way: the first steps could not settle it, and drew two heads.
    """
    w, h = half
    luck = np.tanh(part.luck * 0.6) / np.tanh(1.2)  # about -1..1, thin ends
    n = part.count
    spread = np.select([n == 1, n == 2], [0.0, 0.46], 0.65)
    x = spread * w * (i - (n - 1) / 2) * np.where(n == 2, 2.0, 1.0)
    x = x + np.select([part.position == 1, part.position == 2], [-0.44 * w, 0.44 * w], 0.0)
    room = np.select([n == 1, n == 2], [1.0, min(w, 1.3)], min(w, 1.6))
    scale = np.select([(n == 1) & (part.position == 0), n == 1, n == 2], [0.82, 0.54, 0.46], 0.32) * room
    floating = np.isin(part.subject, [SUBJECTS.index(s) for s in FLOATING])
    y = np.where(floating, 0.0, 0.12 * h) + np.where(n == 3, 0.08 * h * (1 if i == 1 else -0.5), 0.0)
    loose = np.where(n == 1, 1.0, 0.35)
    return {
        "x": x + 0.06 * w * loose * luck[:, 0],
        "y": y + 0.025 * h * loose * luck[:, 1],
        "scale": scale * (1 + 0.035 * luck[:, 2]),
    }


def _subjects(pictures: Tensor, scenes: Scenes, device: torch.device | str, size: int) -> None:
    colours = table().to(device)
    for i in range(3):
        there = np.flatnonzero(scenes.count > i)
        for key, chosen in _groups(scenes.subject[there], size):
            members = there[chosen]
            c = _load(pictures, members, device)
            part = scenes[members]
            layout = {k: _column(v, device) for k, v in _layout(part, i, c.half).items()}
            f = c.frame(**layout)
            name = SUBJECTS[key]
            if name not in FLOATING:
                c.ground_shadow(f, 0.93, 0.85)
            paint = CREATURES[name][0] if name in CREATURES else THINGS[name]
            paint(c, f, colours[torch.as_tensor(part.colour, device=device)])
            _store(pictures, members, c)
            if name in CREATURES:
                _accessories(pictures, scenes, members, layout, device)


def _accessories(
    pictures: Tensor,
    scenes: Scenes,
    members: np.ndarray,
    layout: dict[str, Tensor],
    device: torch.device | str,
) -> None:
    for slot in (2, 0, 1):  # hats and headphones lie over everything else
        for kind, name in enumerate(WORN[slot]):
            wearing = np.flatnonzero(scenes.worn[members, slot] == kind)
            if len(wearing):
                wearing = _at_least(wearing)
                c = _load(pictures, members[wearing], device)
                chosen = torch.as_tensor(wearing, device=device)
                f = c.frame(**{k: v[chosen] for k, v in layout.items()})
                anchors = CREATURES[SUBJECTS[scenes.subject[members[0]]]][1]
                ACCESSORIES[name][0](c, f, anchors)
                _store(pictures, members[wearing], c)


def _load(pictures: Tensor, members: np.ndarray, device: torch.device | str) -> Canvas:
    c = Canvas(len(members), pictures.shape[-2], pictures.shape[-1], device)
    old = pictures[:, torch.as_tensor(members, device=pictures.device)].to(device).float() / 255
    c.both = old
    return c


def _store(pictures: Tensor, members: np.ndarray, c: Canvas) -> None:
    pictures[:, torch.as_tensor(members, device=pictures.device)] = _bytes(c.both)


@fused
def _bytes(both: Tensor) -> Tensor:
    return (both * 255).round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def render(scenes: Scenes, height: int, width: int, device: torch.device | str = "cpu", size: int = 384) -> Tensor:
    """Draw the scenes: uint8 [2, n, 3, height, width] on `device`, v1's style first.

    size: how many pictures of 256×256 are worked on at once.
    """
    size = max(8, size * 65536 // (height * width))
    pictures = torch.zeros(2, len(scenes), 3, height, width, dtype=torch.uint8, device=device)
    _backgrounds(pictures, scenes, device, size)
    _subjects(pictures, scenes, device, size)
    return pictures


@torch.no_grad()
def backgrounds(scenes: Scenes, height: int, width: int, device: torch.device | str = "cpu", size: int = 384) -> Tensor:
    """Draw what lies behind the scenes' subjects, as `render` does."""
    pictures = torch.zeros(2, len(scenes), 3, height, width, dtype=torch.uint8, device=device)
    _backgrounds(pictures, scenes, device, max(8, size * 65536 // (height * width)))
    return pictures
