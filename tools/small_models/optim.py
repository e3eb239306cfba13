"""Muon for the matrices of the blocks, AdamW for the rest.

Muon: Keller Jordan, https://kellerjordan.github.io/posts/muon/ ; the update's scale: Liu et al., "Muon is
scalable for LLM training", arXiv:2502.16982. Matrices of one shape are orthogonalised together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor


def orthogonalise(g: Tensor) -> Tensor:
    """The nearest half-orthogonal matrices to g [k, m, n], nearly (five Newton-Schulz steps in bf16)."""
    x = g.to(torch.bfloat16 if g.is_cuda else torch.float32)  # many CPUs have no instructions for bfloat16
    tall = x.shape[1] > x.shape[2]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315)
        x = torch.baddbmm(x, b, x, beta=3.4445)
    return x.mT if tall else x


class Optimizer:
    """One step over all parameters; `rate` scales both parts' learning rates."""

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        muon_rate: float,
        adam_rate: float,
        momentum: float = 0.95,
        decay: float = 0.01,
    ) -> None:
        self.groups: dict[tuple[int, int], list[Tensor]] = defaultdict(list)
        for p in matrices:
            self.groups[(p.shape[0], p.shape[1])].append(p)
        self.momenta = {shape: torch.zeros_like(torch.stack(list(ps))) for shape, ps in self.groups.items()}
        others = list(others)
        fused = bool(others) and others[0].is_cuda
        self.adam = torch.optim.AdamW(others, lr=adam_rate, betas=(0.9, 0.98), weight_decay=0.0, fused=fused)
        self.muon_rate, self.adam_rate = muon_rate, adam_rate
        self.momentum, self.decay = momentum, decay

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for shape, ps in self.groups.items():
            g = torch.stack([p.grad for p in ps]).float()
            buffer = self.momenta[shape]
            buffer.lerp_(g, 1 - self.momentum)
            update = orthogonalise(g.lerp(buffer, self.momentum)).float()
            lr = self.muon_rate * rate
            torch._foreach_mul_(ps, 1 - lr * self.decay)
            torch._foreach_add_(ps, list(update.mul(-lr * 0.2 * max(shape) ** 0.5).unbind()))
        for group in self.adam.param_groups:
            group["lr"] = self.adam_rate * rate
        self.adam.step()

    def zero_grad(self) -> None:
        for ps in self.groups.values():
            for p in ps:
                p.grad = None
        self.adam.zero_grad(set_to_none=True)


def split(modules: Iterable[torch.nn.Module]) -> tuple[list[Tensor], list[Tensor]]:
    """The matrices inside transformer layers, and everything else that is trained."""
    matrices, others = [], []
    for module in modules:
        for name, p in module.named_parameters():
            if p.requires_grad:
                inside = "layers." in name or "refiner." in name
                (matrices if inside and p.dim() == 2 else others).append(p)
    return matrices, others
