"""Layers that several networks have; torch's without the random values that they begin with: weights are assigned, and on the
meta device, to draw them would import torch's compiler, which takes seconds."""

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """`torch.nn.Linear`."""

    def reset_parameters(self) -> None:
        """Do nothing."""


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`."""

    def reset_parameters(self) -> None:
        """Do nothing."""


class Embedding(nn.Embedding):
    """`torch.nn.Embedding`."""

    def reset_parameters(self) -> None:
        """Do nothing."""


class GroupNorm(nn.GroupNorm):
    """`torch.nn.GroupNorm`."""

    def reset_parameters(self) -> None:
        """Do nothing."""


class RMSNorm(nn.Module):
    """Root mean square norm, computed in float32."""

    def __init__(self, width: int, epsilon: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.epsilon = epsilon

    def forward(self, x: Tensor) -> Tensor:
        """Normalize the last dimension of x."""
        scale = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + self.epsilon)
        normed = x * scale
        if self.weight.dtype is not torch.float32:
            normed = normed.to(self.weight.dtype)
        return normed * self.weight
