"""The fused operations as Triton kernels: each reads and writes its tensors once.

What a kernel is compiled for are dtypes and widths, never the number of tokens or the size of an image: one call with each
network of a kind compiles all that its requests will need.
"""

from typing import Any

import torch
from torch import Tensor

from zwatch.engine.fast import _group_kernels as group_kernels
from zwatch.engine.fast import _row_kernels as row_kernels
from zwatch.engine.fast.operations import GroupNorm, Norm, Rotation
from zwatch.engine.scaled import FP8, Activations, Scaled

_rows: Any = row_kernels
_groups: Any = group_kernels

ROWS = 4
"""Rows that one program normalizes one after the other, with the factors in registers."""
_NUMBERS_PER_WARP = 512
"""Numbers of a row for each warp: 16 a lane, which are two loads of 16 bytes."""
_GATED_BLOCK = 2048
_TILE = 4096
"""Numbers that a program of the group norm has at a time."""
MOST_PIECES = 1024
"""Most pieces of an image, each summed by a program: 8 for each of an H100's multiprocessors."""


class TritonOperations:
    """The operations on a GPU, or in Triton's interpreter."""

    name = "triton"
    adds_bias = True

    def __init__(self, rows: int = ROWS) -> None:
        self.rows = rows

    def norm(self, x: Tensor, norm: Norm, *, scaled: bool = False) -> Activations:
        """As `Operations.norm`."""
        batch, tokens, width = x.shape
        out, scales = _result(x, width, scaled=scaled)
        block = _power(width)
        _rows.norm_rows[(-(-tokens // self.rows), batch)](
            x, norm.factor, out, scales, tokens, norm.epsilon,
            WIDTH=width, BLOCK=block, ROWS=self.rows, APART=_stride(norm), CENTRED=norm.centred, SCALED=scaled, num_warps=_warps(block),
        )  # fmt: skip
        return Scaled(out, scales) if scaled else out

    def residual(self, x: Tensor, change: Tensor, norm: Norm | None) -> Tensor:
        """As `Operations.residual`."""
        return self._residual(x, change, norm, None, scaled=False)[0]

    def residual_norm(
        self, x: Tensor, change: Tensor, norm: Norm | None, following: Norm, *, scaled: bool = False
    ) -> tuple[Tensor, Activations]:
        """As `Operations.residual_norm`."""
        total, out, scales = self._residual(x, change, norm, following, scaled=scaled)
        return total, Scaled(out, scales) if scaled else out

    def heads(self, query: Tensor, key: Tensor, norms: tuple[Norm, Norm] | None, rotation: Rotation) -> None:
        """As `Operations.heads`."""
        batch, tokens, heads, head = query.shape
        heads_block, block = _power(max(heads, key.shape[2])), _power(head // 2)
        query_factor, key_factor = (rotation.cosines,) * 2 if norms is None else (norm.factor for norm in norms)
        _rows.rotate_heads[(tokens, batch, 2)](
            query, key, query_factor, key_factor, rotation.cosines, rotation.sines, tokens,
            0.0 if norms is None else norms[0].epsilon,
            QUERY_APART=query.stride(1), KEY_APART=key.stride(1), QUERIES=heads, KEYS=key.shape[2], HEAD=head, HEADS_BLOCK=heads_block, BLOCK=block,
            NORMED=norms is not None, INTERLEAVED=rotation.interleaved, num_warps=_warps(2 * heads_block * block, 1024),
        )  # fmt: skip

    def gated(self, left: Tensor, right: Tensor, *, scaled: bool = False) -> Activations:
        """As `Operations.gated`."""
        width = left.shape[-1]
        out, scales = _result(left, width, scaled=scaled)
        block = _power(width) if scaled else min(_power(width), _GATED_BLOCK)
        _rows.gated_rows[(left.shape[0] * left.shape[1], -(-width // block))](
            left, right, out, scales, LEFT_APART=left.stride(1), RIGHT_APART=right.stride(1),
            WIDTH=width, BLOCK=block, SCALED=scaled, num_warps=_warps(block),
        )  # fmt: skip
        return Scaled(out, scales) if scaled else out

    def scaled(self, x: Tensor) -> Scaled:
        """As `Operations.scaled`."""
        width = x.shape[-1]
        out, scales = _result(x, width, scaled=True)
        block = _power(width)
        _rows.scaled_rows[(x.shape[0] * x.shape[1],)](
            x, out, scales, APART=x.stride(1), WIDTH=width, BLOCK=block, num_warps=_warps(block)
        )
        return Scaled(out, scales)

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
        batch, channels, height, width = x.shape
        x, shortcut = _channels_last(x), None if shortcut is None else _channels_last(shortcut)
        places, each = height * width, channels // norm.groups
        groups_block, block = _power(norm.groups), _power(each)
        step = max(1, _TILE // (groups_block * block))
        piece = -(-places // MOST_PIECES // step) * step  # whole steps
        pieces = -(-places // piece)
        # Each of its own: where they begin is part of what kernels are compiled for.
        sums = [x.new_empty((batch, norm.groups, pieces), dtype=torch.float32) for _ in range(2)]
        lines = [x.new_empty((batch, channels), dtype=torch.float32) for _ in range(2)]
        out, total = torch.empty_like(x), x if shortcut is None else torch.empty_like(x)
        biased = x if bias is None else bias
        _groups.group_pieces[(pieces, batch)](
            x, biased, x if shortcut is None else shortcut, total, sums[0], sums[1], places, piece, pieces,
            CHANNELS=channels, GROUPS=norm.groups, GROUPS_BLOCK=groups_block, BLOCK=block, PLACES=step,
            BIASED=bias is not None, ADDED=shortcut is not None, num_warps=4,
        )  # fmt: skip
        # The sum that was written contains the bias.
        is_biased = bias is not None and shortcut is None
        _groups.group_whole[(norm.groups, batch)](
            sums[0], sums[1], norm.weight, norm.bias, biased, lines[0], lines[1], places, piece, pieces, norm.epsilon,
            CHANNELS=channels, GROUPS=norm.groups, BLOCK=block, PIECES=MOST_PIECES, BIASED=is_biased, num_warps=4,
        )  # fmt: skip
        channels_block = _power(channels)
        step = max(1, _TILE // channels_block)
        _groups.group_values[(-(-places // step), batch)](
            total, lines[0], lines[1], out, places,
            CHANNELS=channels, BLOCK=channels_block, PLACES=step, SILU=silu, num_warps=4,
        )  # fmt: skip
        return out, total

    def doubled(self, x: Tensor, *, bias: Tensor | None = None, shortcut: Tensor | None = None) -> Tensor:
        """As `Operations.doubled`."""
        batch, channels, height, width = x.shape
        x, shortcut = _channels_last(x), None if shortcut is None else _channels_last(shortcut)
        out = torch.empty(
            (batch, channels, 2 * height, 2 * width), dtype=x.dtype, device=x.device, memory_format=torch.channels_last
        )
        block = _power(channels)
        step, places = max(1, _TILE // block), batch * height * width
        _groups.double_places[(-(-places // step),)](
            x, x if bias is None else bias, x if shortcut is None else shortcut, out, places, width,
            CHANNELS=channels, BLOCK=block, PLACES=step, BIASED=bias is not None, ADDED=shortcut is not None, num_warps=4,
        )  # fmt: skip
        return out

    def _residual(
        self, x: Tensor, change: Tensor, norm: Norm | None, following: Norm | None, *, scaled: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, tokens, width = x.shape
        total = torch.empty_like(x)
        out, scales = (x, x) if following is None else _result(x, width, scaled=scaled)
        block = _power(width)
        none = Norm(x[0], 0.0)  # not read
        first, second = norm or none, following or none
        _rows.residual_rows[(-(-tokens // self.rows), batch)](
            x, change, first.factor, second.factor, total, out, scales, tokens, first.epsilon, second.epsilon,
            WIDTH=width, BLOCK=block, ROWS=self.rows, APART=_stride(first), FOLLOWING_APART=_stride(second), NORMED=norm is not None, FOLLOWED=following is not None,
            CENTRED=second.centred, SCALED=scaled, num_warps=_warps(block),
        )  # fmt: skip
        return total, out, scales


def _result(x: Tensor, width: int, *, scaled: bool) -> tuple[Tensor, Tensor]:
    """Return room for a result of x's rows, and for their scales if there are any."""
    shape = (*x.shape[:-1], width)
    if not scaled:
        out = x.new_empty(shape)
        return out, out
    return x.new_empty(shape, dtype=FP8), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)


def _channels_last(x: Tensor) -> Tensor:
    """Return x as the kernels read it, a copy only if it is not."""
    return x.contiguous(memory_format=torch.channels_last)


def _stride(norm: Norm) -> int:
    """Return how far apart the factors of two images are; 0 if they have the same."""
    return 0 if norm.factor.shape[0] == 1 else norm.factor.stride(0)


def _power(number: int) -> int:
    """Return the least power of two that is not less."""
    return 1 << max(0, number - 1).bit_length()


def _warps(block: int, numbers: int = _NUMBERS_PER_WARP) -> int:
    return min(16, max(1, block // numbers))
