"""The fused operations between a network's products, and how they are computed in torch alone.

Each is computed in float32 and rounded once, at its end. That is closer to the exact result than the networks' own forward,
which rounds after each step, and it is what the kernels of `triton_operations` compute in one pass over memory.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from zwatch.engine.scaled import Activations, Scaled


@dataclass(frozen=True, slots=True)
class Norm:
    """What a norm multiplies with: `factor` of shape (1 or batch, width). `centred` subtracts the mean first (a layer norm);
    else it is the root mean square norm."""

    factor: Tensor
    epsilon: float
    centred: bool = False


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary positions: cosines and sines, float32 of shape (tokens, head / 2).

    `interleaved`: a pair is two neighbours; else it is a number of the head's first half and one of its second.
    """

    cosines: Tensor
    sines: Tensor
    interleaved: bool


@dataclass(frozen=True, slots=True)
class GroupNorm:
    """A group norm's parameters."""

    weight: Tensor
    bias: Tensor
    groups: int
    epsilon: float


class Operations(Protocol):
    """The operations. All activations are contiguous in their last dimension, and of shape (batch, tokens, width) unless
    another is given. `scaled` results are fp8 with a scale for each row, as fp8 products take them."""

    name: str
    """What tells results of one implementation from those of another: their last bits differ."""
    adds_bias: bool
    """Whether adding a convolution's bias is left to them, because the convolution would do it in a pass of its own."""

    def norm(self, x: Tensor, norm: Norm, *, scaled: bool = False) -> Activations:
        """Return x normalized over its width."""

    def residual(self, x: Tensor, change: Tensor, norm: Norm | None) -> Tensor:
        """Return x + change, with `change` normalized first."""

    def residual_norm(
        self, x: Tensor, change: Tensor, norm: Norm | None, following: Norm, *, scaled: bool = False
    ) -> tuple[Tensor, Activations]:
        """Return `residual`, and that normalized by the following norm."""

    def heads(self, query: Tensor, key: Tensor, norms: tuple[Norm, Norm] | None, rotation: Rotation) -> None:
        """Normalize and rotate each head, in place: both are of shape (batch, tokens, heads, head), the two may have
        different numbers of heads, and their tokens may be apart in memory."""

    def gated(self, left: Tensor, right: Tensor, *, scaled: bool = False) -> Activations:
        """Return silu(left) * right; rows may be apart in memory."""

    def scaled(self, x: Tensor) -> Scaled:
        """Return x as fp8."""

    def group_norm(
        self,
        x: Tensor,
        norm: GroupNorm,
        *,
        bias: Tensor | None = None,
        shortcut: Tensor | None = None,
        silu: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Return silu(group norm(x + bias + shortcut)), and the sum, for channels-last x of shape (batch, channels, h, w).
        Without a shortcut nobody needs the sum, and x is returned instead."""

    def doubled(self, x: Tensor, *, bias: Tensor | None = None, shortcut: Tensor | None = None) -> Tensor:
        """Return each place of x + bias + shortcut four times: shape (batch, channels, 2 h, 2 w), channels-last as x is."""


class TorchOperations:
    """The operations in torch."""

    name = "torch"
    adds_bias = True

    def norm(self, x: Tensor, norm: Norm, *, scaled: bool = False) -> Activations:
        """As `Operations.norm`."""
        return _rounded(_normed(x, norm), x.dtype, scaled)

    def residual(self, x: Tensor, change: Tensor, norm: Norm | None) -> Tensor:
        """As `Operations.residual`."""
        changed = _copied(change) if norm is None else _normed(change, norm)
        return changed.add_(x.float()).to(x.dtype)

    def residual_norm(
        self, x: Tensor, change: Tensor, norm: Norm | None, following: Norm, *, scaled: bool = False
    ) -> tuple[Tensor, Activations]:
        """As `Operations.residual_norm`."""
        found = self.residual(x, change, norm)
        return found, self.norm(found, following, scaled=scaled)

    def heads(self, query: Tensor, key: Tensor, norms: tuple[Norm, Norm] | None, rotation: Rotation) -> None:
        """As `Operations.heads`."""
        cosines, sines = rotation.cosines.unsqueeze(1), rotation.sines.unsqueeze(1)
        turns = torch.complex(cosines, sines) if rotation.interleaved else None
        for number, x in enumerate((query, key)):
            exact = _copied(x) if norms is None else _normed(x, norms[number])
            if turns is not None:  # in one operation, which reads and writes its numbers in order
                torch.view_as_complex(exact.view(*exact.shape[:-1], -1, 2)).mul_(turns)
            else:
                left, right = exact.chunk(2, dim=-1)
                exact = torch.cat((left * cosines - right * sines, right * cosines + left * sines), dim=-1)
            x.copy_(exact)

    def gated(self, left: Tensor, right: Tensor, *, scaled: bool = False) -> Activations:
        """As `Operations.gated`."""
        return _rounded(functional.silu(_copied(left), inplace=True).mul_(right.float()), left.dtype, scaled)

    def scaled(self, x: Tensor) -> Scaled:
        """As `Operations.scaled`."""
        return Scaled.of(x)

    def group_norm(
        self,
        x: Tensor,
        norm: GroupNorm,
        *,
        bias: Tensor | None = None,
        shortcut: Tensor | None = None,
        silu: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """As `Operations.group_norm`."""
        exact, total = _sum(x, bias, shortcut), x
        if shortcut is not None:
            total = exact.to(x.dtype)
            exact = total.float()
        normed = functional.group_norm(exact, norm.groups, norm.weight.float(), norm.bias.float(), norm.epsilon)
        found = functional.silu(normed) if silu else normed
        return found.to(x.dtype, memory_format=torch.channels_last), total

    def doubled(self, x: Tensor, *, bias: Tensor | None = None, shortcut: Tensor | None = None) -> Tensor:
        """As `Operations.doubled`."""
        total = _sum(x, bias, shortcut).to(x.dtype)
        return functional.interpolate(total, scale_factor=2.0, mode="nearest").contiguous(
            memory_format=torch.channels_last
        )


class ProcessorOperations(TorchOperations):
    """The operations on a processor: as few passes over an image as torch has there, which round where the network does."""

    name = "processor"
    adds_bias = False  # oneDNN's convolutions add it to what they have in registers

    def group_norm(
        self,
        x: Tensor,
        norm: GroupNorm,
        *,
        bias: Tensor | None = None,
        shortcut: Tensor | None = None,
        silu: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """As `Operations.group_norm`."""
        total = _sum_rounded(x, bias, shortcut)
        normed = functional.group_norm(total, norm.groups, norm.weight, norm.bias, norm.epsilon)
        return functional.silu(normed, inplace=True) if silu else normed, x if shortcut is None else total

    def doubled(self, x: Tensor, *, bias: Tensor | None = None, shortcut: Tensor | None = None) -> Tensor:
        """As `Operations.doubled`."""
        total = _sum_rounded(x, bias, shortcut)
        return functional.interpolate(total, scale_factor=2.0, mode="nearest")


def _sum(x: Tensor, bias: Tensor | None, shortcut: Tensor | None) -> Tensor:
    exact = x.float()
    if bias is not None:
        exact = exact + bias.float()[:, None, None]
    return exact if shortcut is None else exact + shortcut.float()


def _sum_rounded(x: Tensor, bias: Tensor | None, shortcut: Tensor | None) -> Tensor:
    """Return `_sum` in the dtype of x, rounded after each addition."""
    if bias is not None:
        x = x + bias.to(x.dtype)[:, None, None]
    return x if shortcut is None else x + shortcut


def _copied(x: Tensor) -> Tensor:
    """Return a copy in float32, contiguous: what follows may change it in place, which saves memory that is read and written."""
    return x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)


def _normed(x: Tensor, norm: Norm) -> Tensor:
    """Return a new tensor, in float32."""
    exact, width = _copied(x), x.shape[-1]
    if norm.centred:
        exact -= exact.mean(-1, keepdim=True)
    scale = torch.linalg.vector_norm(exact, dim=-1, keepdim=True).square_().div_(width).add_(norm.epsilon).rsqrt_()
    return exact.mul_(scale).mul_(norm.factor.float().view(-1, *[1] * (x.dim() - 2), width))


def _rounded(x: Tensor, dtype: torch.dtype, scaled: bool) -> Activations:
    return Scaled.of(x) if scaled else x.to(dtype)
