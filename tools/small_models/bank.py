"""The training data on the device: latents in both styles, tokens, luck; one shelf a picture size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from drawn_world.captions import captions
from drawn_world.render import render
from drawn_world.scene import Scenes, draw_scenes
from torch import Tensor
from transformers import Qwen2Tokenizer

from .tokenizer import tokenize

LENGTHS = (32, 64)
"""Caption lengths in tokens, chat template included, padded as Z-Image pads."""
WORDINGS = 3
"""Captions written for each scene."""


@dataclass(frozen=True)
class Size:
    """A picture size in pixels, its share of the training steps, and how many scenes are drawn for it."""

    height: int
    width: int
    share: float
    scenes: int


SIZES = (
    Size(256, 256, 0.55, 60_000),
    Size(192, 320, 0.045, 5_000),
    Size(320, 192, 0.045, 5_000),
    Size(224, 288, 0.03, 3_000),
    Size(288, 224, 0.03, 3_000),
    Size(192, 192, 0.03, 3_000),
    Size(192, 256, 0.02, 3_000),
    Size(256, 192, 0.02, 3_000),
    Size(384, 384, 0.04, 2_500),
    Size(320, 512, 0.03, 2_000),
    Size(512, 320, 0.03, 2_000),
    Size(512, 512, 0.05, 2_000),
    Size(384, 512, 0.02, 1_500),
    Size(512, 384, 0.02, 1_500),
    Size(192, 512, 0.02, 2_000),
    Size(512, 192, 0.02, 2_000),
)


@dataclass
class Script:
    """What is to be drawn for one size, and how it is worded."""

    scenes: Scenes
    ids: np.ndarray  # int32 [n, WORDINGS, 64]
    lengths: np.ndarray  # int32 [n, WORDINGS]


@dataclass
class Shelf:
    """All training data of one picture size."""

    size: Size
    latents: Tensor  # bf16 [2, n, 16, h, w]
    ids: Tensor  # int32 [n, WORDINGS, 64]
    lengths: Tensor  # int32 [n, WORDINGS]
    luck: Tensor  # float32 [n, 16]

    def __post_init__(self) -> None:
        flat = self.lengths.view(-1)
        self.fitting = [torch.nonzero(flat <= LENGTHS[0])[:, 0], torch.nonzero(flat > LENGTHS[0])[:, 0]]
        """Indices into (scene, wording) of captions that fit in the shorter length, and of the others."""


def write_script(tokenizer: Path, n: int, seed: int) -> Script:
    """n scenes and WORDINGS captions of each as tokens; one caption in twelve is long with idle words.

    tokenizer: its folder, so that other processes can do this.
    """
    scenes = draw_scenes(n, seed)
    words = Qwen2Tokenizer.from_pretrained(tokenizer)
    worded = [tokenize(words, captions(scenes, seed + 1 + k, long_share=1 / 12), LENGTHS[1]) for k in range(WORDINGS)]
    lengths = np.stack([np.minimum(lengths, LENGTHS[1]) for _, lengths in worded], 1)
    return Script(scenes, np.stack([ids for ids, _ in worded], 1), lengths)


def fill_shelf(
    size: Size, script: Script, encode: Callable[[Tensor], Tensor], device: torch.device, block: int = 8192
) -> Shelf:
    """Draw the scenes of one size and encode them; pictures are dropped block by block."""
    n = len(script.scenes)
    latents = torch.empty(2, n, 16, size.height // 8, size.width // 8, dtype=torch.bfloat16, device=device)
    block = max(1, block * 65536 // (size.height * size.width))
    for start in range(0, n, block):
        part = slice(start, start + block)
        pictures = render(script.scenes[part], size.height, size.width, device)
        for style in (0, 1):
            latents[style, part] = encode(pictures[style])
    tables = (torch.from_numpy(a).to(device) for a in (script.ids, script.lengths, script.scenes.luck))
    return Shelf(size, latents, *tables)
