"""Colours: one name, two tones. v1's are soft and natural, v2's pure and saturated."""

from __future__ import annotations

import torch
from torch import Tensor

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "black")

_TONES = {  # name: (v1 sRGB, v2 sRGB)
    "red": ("c0392f", "ff2a2a"),
    "orange": ("d9843b", "ff8a00"),
    "yellow": ("dcc04f", "ffe100"),
    "green": ("5f9a50", "18c637"),
    "blue": ("4a79b8", "1f6dff"),
    "purple": ("8159a6", "a02cf0"),
    "pink": ("dc93ac", "ff7fc4"),
    "brown": ("85593a", "a3581f"),
    "white": ("e9e6df", "ffffff"),
    "black": ("3b3b42", "2b2b38"),
    # tones that captions don't name
    "ink": ("2a2429", "14101c"),
    "cream": ("ecdcc0", "fff0cc"),
    "skin": ("e0a9a0", "ffb3b3"),
    "gold": ("d8a93a", "ffc400"),
    "grey": ("8d8f94", "a9b2c3"),
    "steel": ("a9b3ba", "cfdbea"),
    "glass": ("9fc0d2", "8fe3ff"),
    "teal": ("3d8f8a", "00bfae"),
    "bark": ("6e4c34", "8f4f22"),
    "leaf": ("4f8a46", "14b83a"),
    "sand": ("d6bd8c", "ffdf8e"),
    "sea": ("4c8fa6", "00a8e8"),
    "sky": ("a9c9df", "86d8ff"),
    "dusk": ("27305a", "1d2a78"),
    "deep": ("2b6184", "0a6fc2"),
    "snow": ("dfe7ee", "f1f9ff"),
    "stone": ("86868c", "9aa3b8"),
    "wine": ("8a2f3b", "d0103a"),
}


def tone(name: str) -> Tensor:
    """The two tones of a colour: float32 [2, 3] in 0..1, v1's first."""
    rgb = [[int(code[i : i + 2], 16) / 255 for i in (0, 2, 4)] for code in _TONES[name]]
    return torch.tensor(rgb, dtype=torch.float32)


def table(names: tuple[str, ...] = COLOURS) -> Tensor:
    """All tones: float32 [len(names), 2, 3]."""
    return torch.stack([tone(name) for name in names])


def lighter(colour: Tensor, amount: float) -> Tensor:
    """Towards white (amount > 0) or towards black (amount < 0)."""
    return colour + (1 - colour) * amount if amount > 0 else colour * (1 + amount)
