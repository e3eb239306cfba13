"""How good a pair of versions is: a classifier trained on drawn pictures looks at generated ones."""

from __future__ import annotations

import numpy as np
import torch
from diffusers import AutoencoderKL, ZImageTransformer2DModel
from drawn_world.captions import plain_caption
from drawn_world.creatures import CREATURES
from drawn_world.render import render
from drawn_world.scene import HELD_OUT_PAIRS, SUBJECTS, WORN, Scenes, draw_all_scenes, draw_scenes
from torch import Tensor
from transformers import Qwen2Tokenizer, Qwen3Model

from .architecture import SIDE
from .bank import LENGTHS
from .classifier import HEADS, Classifier, accuracy, classify, labels, shrink, train_classifier
from .flow import sample
from .grid import PROMPTS, scene_of
from .tokenizer import tokenize
from .vae import decode


def drawn(scenes: Scenes, device: torch.device, block: int = 4096) -> tuple[Tensor, Tensor]:
    """Both styles of the scenes as classifier input, float16 [2 n, 3, 128, 128], and the classes."""
    parts = [[], []]
    for start in range(0, len(scenes), block):
        pictures = render(scenes[slice(start, start + block)], 128, 128, device)
        for style in (0, 1):
            parts[style].append(shrink(pictures[style]).half())
    wanted = torch.from_numpy(labels(scenes)).to(device)
    return torch.cat([*parts[0], *parts[1]]), torch.cat((wanted, wanted))


def train_judge(device: torch.device, scenes: int, steps: int, batch: int, seed: int) -> Classifier:
    """The classifier learns from every kind of scene, held-out combinations too: it is only the judge."""
    pictures, wanted = drawn(draw_all_scenes(scenes, seed), device)
    return train_classifier(pictures, wanted, steps, batch, seed)


def held_out_scenes(n: int, seed: int) -> tuple[Scenes, list[str]]:
    """n held-out scenes with plain captions, every second one Chinese."""
    scenes = draw_scenes(n, seed, held=True)
    return scenes, [plain_caption(scenes, i, chinese=bool(i % 2)) for i in range(n)]


@torch.no_grad()
def generate(
    prompts: list[str],
    transformer: ZImageTransformer2DModel,
    encoder: Qwen3Model,
    vae: AutoencoderKL,
    tokenizer: Qwen2Tokenizer,
    seed: int,
    height: int = SIDE,
    width: int = SIDE,
) -> Tensor:
    """Pictures uint8 [n, 3, height, width] as the pipeline makes them (8 steps, guidance 0), many at once."""
    device = next(transformer.parameters()).device
    ids, lengths = tokenize(tokenizer, prompts, LENGTHS[1])
    length = LENGTHS[int(lengths.max() > LENGTHS[0])]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(prompts), 16, height // 8, width // 8, generator=generator).to(device)
    ids_, lengths_ = torch.from_numpy(ids[:, :length]).to(device), torch.from_numpy(lengths).to(device)
    return decode(vae, sample(transformer, encoder, ids_, lengths_, noise))


def _pairs(scenes: Scenes) -> np.ndarray:
    """Which scenes show a pair of HELD_OUT_PAIRS."""
    found = np.zeros(len(scenes), bool)
    for subject, thing in HELD_OUT_PAIRS:
        slot = next(k for k, things in enumerate(WORN) if thing in things)
        found |= (scenes.subject == SUBJECTS.index(subject)) & (scenes.worn[:, slot] == WORN[slot].index(thing))
    return found


def measure(
    judge: Classifier,
    transformer: ZImageTransformer2DModel | None,
    encoder: Qwen3Model,
    vae: AutoencoderKL,
    tokenizer: Qwen2Tokenizer,
    style: int,
    prompts: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Accuracies on held-out prompts: of all of them, of the never seen pairs, and by language.

    Without a transformer the drawn pictures of the same scenes are judged: the ceiling.
    """
    scenes, texts = held_out_scenes(prompts, seed)
    device = next(judge.parameters()).device
    if transformer is None:
        pictures = render(scenes, SIDE, SIDE, device)[style]
    else:
        pictures = generate(texts, transformer, encoder, vae, tokenizer, seed)
    seen, wanted = classify(judge, pictures), labels(scenes)
    chinese = np.arange(prompts) % 2 == 1
    chosen = {
        "all prompts": np.ones(prompts, bool),
        "never seen pairs": _pairs(scenes),
        "English": ~chinese,
        "Chinese": chinese,
    }
    return {k: accuracy(seen[v], wanted[v], len(CREATURES)) for k, v in chosen.items() if v.any()}


def measure_bare(
    judge: Classifier,
    transformer: ZImageTransformer2DModel,
    encoder: Qwen3Model,
    vae: AutoencoderKL,
    tokenizer: Qwen2Tokenizer,
    seed: int,
    pictures: int,
) -> dict[str, dict[str, float]]:
    """For each prompt of PROMPTS that leaves colour and place open, many pictures: how often its subject is
    seen, and how often with the right things worn as well."""
    results = {}
    for prompt, wanted in PROMPTS:
        if wanted[1] is None and wanted[3] is None:
            seen = classify(judge, generate([prompt] * pictures, transformer, encoder, vae, tokenizer, seed))
            right = seen == labels(scene_of(*wanted))
            subject = right[:, 0]
            worn = right[:, [list(HEADS).index(k) for k in ("eyes", "head", "neck")]].all(1)
            results[prompt] = {"subject": float(subject.mean()), "subject and worn": float((subject & worn).mean())}
    return results
