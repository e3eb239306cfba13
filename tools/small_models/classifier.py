"""A small classifier of drawn pictures: the judge of generated ones."""

from __future__ import annotations

import math

import numpy as np
import torch
from drawn_world.palette import COLOURS
from drawn_world.scene import PLACE_NAMES, SUBJECTS, WORN, Scenes
from torch import Tensor, nn

HEADS = {
    "subject": len(SUBJECTS),
    "colour": len(COLOURS),
    "eyes": len(WORN[0]) + 1,
    "head": len(WORN[1]) + 1,
    "neck": len(WORN[2]) + 1,
    "place": len(PLACE_NAMES),
    "count": 3,
}


class Classifier(nn.Module):
    """Pictures float32 [B, 3, 128, 128] in -1..1 to logits for every head of HEADS, side by side."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in (48, 96, 160, 256):
            layers += [nn.Conv2d(before, width, 3, padding=1, stride=2), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        self.body = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Linear(256 * 16, 512), nn.ReLU(), nn.Dropout(0.2))
        self.heads = nn.Linear(512, sum(HEADS.values()))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.body(x), 4)
        return self.heads(self.hidden(x.flatten(1)))


def labels(scenes: Scenes) -> np.ndarray:
    """The right classes: int64 [n, len(HEADS)]."""
    worn = scenes.worn + 1
    columns = (
        scenes.subject,
        scenes.colour,
        worn[:, 0],
        worn[:, 1],
        worn[:, 2],
        scenes.place,
        scenes.count - 1,
    )
    return np.stack(columns, 1).astype(np.int64)


def shrink(pictures: Tensor) -> Tensor:
    """uint8 [n, 3, H, W] to the classifier's input."""
    if pictures.shape[-1] == 128:
        return pictures.float() / 127.5 - 1
    return nn.functional.interpolate(pictures.float() / 127.5 - 1, size=(128, 128), mode="bilinear", antialias=True)


def train_classifier(pictures: Tensor, wanted: Tensor, steps: int, batch: int, seed: int) -> Classifier:
    """pictures: float16 [n, 3, 128, 128] (of `shrink`); wanted: int64 [n, len(HEADS)]."""
    device = pictures.device
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    model = Classifier().to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.02)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = (
            2e-3 * min(1.0, (step + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        )
        pick = torch.randint(len(pictures), (batch,), generator=generator, device=device)
        x = pictures[pick].float().contiguous(memory_format=torch.channels_last)
        x = x + 0.06 * torch.randn(x.shape, generator=generator, device=device)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            logits = model(x).float()
        loss = sum(
            nn.functional.cross_entropy(part, wanted[pick, k])
            for k, part in enumerate(logits.split(list(HEADS.values()), dim=1))
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if step % 250 == 0 or step == steps - 1:
            print(f"classifier {step} loss {loss.item():.4f}", flush=True)
    return model.eval()


@torch.no_grad()
def classify(model: Classifier, pictures: Tensor, batch: int = 256) -> np.ndarray:
    """The classes seen in uint8 pictures [n, 3, H, W]: int64 [n, len(HEADS)]."""
    seen = []
    for part in pictures.split(batch):
        logits = model(shrink(part))
        seen.append(torch.stack([x.argmax(1) for x in logits.split(list(HEADS.values()), dim=1)], 1))
    return torch.cat(seen).cpu().numpy()


def accuracy(seen: np.ndarray, wanted: np.ndarray, creatures: int) -> dict[str, float]:
    """Shares of right answers; "worn": eyes, head and neck right, over creatures only; "all": all right."""
    right = seen == wanted
    names = list(HEADS)
    creature = wanted[:, names.index("subject")] < creatures
    worn = right[:, [names.index(k) for k in ("eyes", "head", "neck")]].all(1)
    scores = {k: float(right[:, names.index(k)].mean()) for k in ("subject", "colour", "place", "count")}
    scores["worn"] = float(worn[creature].mean()) if creature.any() else float("nan")
    scores["all"] = float((right[:, : names.index("count")].all(1)).mean())
    return scores
