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

    def norm(self, x: Tensor, norm: Norm, *, scaled: bool = False) -> Activations:
        """As `Operations.norm`."""
        return _rounded(_normed(x.float(), norm), x.dtype, scaled)

    def residual(self, x: Tensor, change: Tensor, norm: Norm | None) -> Tensor:
        """As `Operations.residual`."""
        changed = change.float() if norm is None else _normed(change.float(), norm)
        return (x.float() + changed).to(x.dtype)

    def residual_norm(
        self, x: Tensor, change: Tensor, norm: Norm | None, following: Norm, *, scaled: bool = False
    ) -> tuple[Tensor, Activations]:
        """As `Operations.residual_norm`."""
        found = self.residual(x, change, norm)
        return found, self.norm(found, following, scaled=scaled)

    def heads(self, query: Tensor, key: Tensor, norms: tuple[Norm, Norm] | None, rotation: Rotation) -> None:
        """As `Operations.heads`."""
        for number, x in enumerate((query, key)):
            exact = x.float() if norms is None else _normed(x.float(), norms[number])
            cosines, sines = rotation.cosines.unsqueeze(1), rotation.sines.unsqueeze(1)
            if rotation.interleaved:
                left, right = exact.view(*exact.shape[:-1], -1, 2).unbind(-1)
            else:
                left, right = exact.chunk(2, dim=-1)
            turned = left * cosines - right * sines, right * cosines + left * sines
            x.copy_(torch.stack(turned, dim=-1).flatten(-2) if rotation.interleaved else torch.cat(turned, dim=-1))

    def gated(self, left: Tensor, right: Tensor, *, scaled: bool = False) -> Activations:
        """As `Operations.gated`."""
        return _rounded(functional.silu(left.float()) * right.float(), left.dtype, scaled)

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


def _sum(x: Tensor, bias: Tensor | None, shortcut: Tensor | None) -> Tensor:
    exact = x.float()
    if bias is not None:
        exact = exact + bias.float()[:, None, None]
    return exact if shortcut is None else exact + shortcut.float()


def _normed(x: Tensor, norm: Norm) -> Tensor:
    factor = norm.factor.float().view(-1, *[1] * (x.dim() - 2), x.shape[-1])
    if norm.centred:
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + norm.epsilon) * factor


def _rounded(x: Tensor, dtype: torch.dtype, scaled: bool) -> Activations:
    return Scaled.of(x) if scaled else x.to(dtype)
