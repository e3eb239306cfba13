"""The training data on the device: latents in both styles, tokens, luck; one shelf a picture size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    Size(256, 256, 0.58, 56_000),
    Size(192, 320, 0.05, 5_000),
    Size(320, 192, 0.05, 5_000),
    Size(224, 288, 0.04, 5_000),
    Size(288, 224, 0.04, 5_000),
    Size(192, 192, 0.03, 3_000),
    Size(192, 256, 0.03, 3_000),
    Size(256, 192, 0.03, 3_000),
    Size(384, 384, 0.03, 2_000),
    Size(320, 448, 0.03, 2_000),
    Size(448, 320, 0.03, 2_000),
    Size(512, 512, 0.03, 1_200),
    Size(384, 512, 0.015, 1_000),
    Size(512, 384, 0.015, 1_000),
)


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


def write_captions(scenes: Scenes, tokenizer: Qwen2Tokenizer, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Token ids [n, WORDINGS, 64] and lengths [n, WORDINGS]; one in twelve is long with idle words."""
    all_ids, all_lengths = [], []
    for k in range(WORDINGS):
        ids, lengths = tokenize(tokenizer, captions(scenes, seed + k, long_share=1 / 12), LENGTHS[1])
        all_ids.append(ids)
        all_lengths.append(np.minimum(lengths, LENGTHS[1]))
    return np.stack(all_ids, 1), np.stack(all_lengths, 1)


def fill_shelf(
    size: Size,
    tokenizer: Qwen2Tokenizer,
    encode: Callable[[Tensor], Tensor],
    device: torch.device,
    seed: int,
    block: int = 8192,
) -> Shelf:
    """Draw the scenes of one size and encode them; pictures are dropped block by block."""
    scenes = draw_scenes(size.scenes, seed)
    ids, lengths = write_captions(scenes, tokenizer, seed + 1)
    latents = torch.empty(2, size.scenes, 16, size.height // 8, size.width // 8, dtype=torch.bfloat16, device=device)
    block = max(1, block * 65536 // (size.height * size.width))
    for start in range(0, size.scenes, block):
        part = slice(start, start + block)
        pictures = render(scenes[part], size.height, size.width, device)
        for style in (0, 1):
            latents[style, part] = encode(pictures[style])
    return Shelf(
        size,
        latents,
        torch.from_numpy(ids).to(device),
        torch.from_numpy(lengths).to(device),
        torch.from_numpy(scenes.luck).to(device),
    )


def fill_bank(
    tokenizer: Qwen2Tokenizer,
    encode: Callable[[Tensor], Tensor],
    device: torch.device,
    seed: int,
    sizes: tuple[Size, ...] = SIZES,
) -> list[Shelf]:
    return [fill_shelf(size, tokenizer, encode, device, seed + 100 * k) for k, size in enumerate(sizes)]
