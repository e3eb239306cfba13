"""torch's layers without the random values that they begin with: weights are assigned. On the meta device, to draw them would
import torch's compiler, which takes seconds."""

from torch import nn


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
