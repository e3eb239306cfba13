"""LoRA factors for the small transformer: training them, and the tensors as files have them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from diffusers import ZImageTransformer2DModel
from torch import Tensor
from torch.nn.utils import parametrize
from transformers import Qwen3Model

from .bank import Shelf
from .flow import Batches, flow_loss, trapezoid

SKIPPED = ("t_embedder", "cap_embedder")
"""What tells the time and the words is the same in every style."""


class LowRank(torch.nn.Module):
    """A weight W becomes W + B @ A; A is (rank, in), B (out, rank) and zero at first."""

    def __init__(self, rows: int, columns: int, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.randn(rank, columns, generator=generator) / columns**0.5)
        self.b = torch.nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.b @ self.a


def linears(model: ZImageTransformer2DModel) -> Iterator[tuple[str, torch.nn.Linear]]:
    """The layers that get factors, by name."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and not name.startswith(SKIPPED):
            yield name, module


def train_lora(
    model: ZImageTransformer2DModel, encoder: Qwen3Model, bank: list[Shelf], rank: int, steps: int, batch: int, seed: int,
    rate: float = 3e-3, average: float = 0.99, log_every: int = 50,
) -> dict[str, Tensor]:  # fmt: skip
    """Train factors for a frozen transformer on the first style of the bank; returns the average of their last steps, by
    `<module>.lora_A.weight` and `<module>.lora_B.weight`. The transformer is as before when it returns."""
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    encoder.requires_grad_(False)
    factors = {name: LowRank(*linear.weight.shape, rank, generator) for name, linear in linears(model)}
    for name, linear in linears(model):
        parametrize.register_parametrization(linear, "weight", factors[name])
    parameters = [p for one in factors.values() for p in (one.a, one.b)]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    averages = [p.detach().clone() for p in parameters]
    batches = Batches(model, bank, 0, batch, seed)
    start, total = time.monotonic(), 0.0
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * trapezoid(step, step / steps, warm=20)
        loss = flow_loss(model, encoder, batches.next())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        keep = min(average, (step + 1) / (step + 10))
        torch._foreach_lerp_(averages, [p.detach() for p in parameters], 1 - keep)
        total += loss.item()
        if (step + 1) % log_every == 0:
            print(f"{step + 1} loss {total / log_every:.4f} {time.monotonic() - start:.0f} s", flush=True)
            total = 0.0
    for _, linear in linears(model):
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=False)
    ends = zip(averages[::2], averages[1::2], strict=True)
    return {
        f"{name}.lora_{kind}.weight": factor.contiguous()
        for name, pair in zip(factors, ends, strict=True)
        for kind, factor in zip("AB", pair, strict=True)
    }


def merge(model: ZImageTransformer2DModel, factors: dict[str, Tensor], scale: float) -> None:
    """Add factors to the weights, in float32; the negative scale takes them out again."""
    with torch.no_grad():
        for name, linear in linears(model):
            a, b = (factors[f"{name}.lora_{kind}.weight"].float() for kind in "AB")
            linear.weight += scale * (b @ a)
