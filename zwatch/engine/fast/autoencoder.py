"""The decoder and the encoder of `Autoencoder` on channels-last images, with what lies between the convolutions fused.

The weights need no copy in that layout: cuDNN's call makes one each time, 0.1 GB for the published decoder, which takes less than
a tenth of a millisecond.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from zwatch.engine.fast import operations as made_of
from zwatch.engine.fast.operations import Operations
from zwatch.engine.networks.autoencoder import Attention, Autoencoder, Decoder, Encoder, Halving, Residual
from zwatch.engine.networks.layers import Conv2d


@dataclass(frozen=True, slots=True)
class _Pending:
    """An image that is still a sum: of `x`, of what each channel of it is shifted by, and of a shortcut."""

    x: Tensor
    bias: Tensor | None = None
    shortcut: Tensor | None = None


def decode(network: Autoencoder, latents: Tensor, *, operations: Operations) -> Tensor:
    """Return the pixels that `Autoencoder.decode` does, channels-last."""
    decoder = network.decoder
    if network.post_quant_conv is not None:
        latents = network.post_quant_conv(latents)
    return _through(decoder, operations, latents)


def encode(network: Autoencoder, pixels: Tensor, *, operations: Operations) -> Tensor:
    """Return what `Autoencoder.encode` does, channels-last."""
    found = _through(network.encoder, operations, pixels)
    return found if network.quant_conv is None else network.quant_conv(found)


def _through(ends: Encoder | Decoder, operations: Operations, x: Tensor) -> Tensor:
    image = _convolved(ends.conv_in, operations, x.contiguous(memory_format=torch.channels_last))
    for part in ends.parts():
        if isinstance(part, Residual):
            image = _residual(part, operations, image)
        elif isinstance(part, Attention):
            image = _attention(part, operations, image)
        elif isinstance(part, Halving):
            image = _convolved(part.conv, operations, functional.pad(_whole(image), (0, 1, 0, 1)))
        else:
            image = _convolved(
                part.conv, operations, operations.doubled(image.x, bias=image.bias, shortcut=image.shortcut)
            )
    normed, _ = _normed(ends.conv_norm_out, operations, image)
    made: Tensor = ends.conv_out(normed)
    return made


def _whole(image: _Pending) -> Tensor:
    """Return the sum."""
    x = image.x if image.bias is None else image.x + image.bias.to(image.x.dtype)[:, None, None]
    return x if image.shortcut is None else x + image.shortcut


def _residual(part: Residual, operations: Operations, image: _Pending) -> _Pending:
    normed, x = _normed(part.norm1, operations, image)
    change = _convolved(part.conv1, operations, normed)
    normed, _ = _normed(part.norm2, operations, change)
    change = _convolved(part.conv2, operations, normed)
    # Without a shortcut, the sum was not written: what x is still to be shifted by goes the same way as x.
    missing = image.bias if image.shortcut is None else None
    if part.conv_shortcut is None:
        return _Pending(change.x, _added(change.bias, missing), x)
    shortcut = _convolved(part.conv_shortcut, operations, x)
    if missing is not None:
        missing = part.conv_shortcut.weight.flatten(1).float() @ missing.float()
    return _Pending(change.x, _added(_added(change.bias, shortcut.bias), missing), shortcut.x)


def _attention(part: Attention, operations: Operations, image: _Pending) -> _Pending:
    normed, x = _normed(part.group_norm, operations, image, silu=False)
    places = normed.permute(0, 2, 3, 1).flatten(1, 2)
    query, key, value = (made(places).unsqueeze(1) for made in (part.to_q, part.to_k, part.to_v))
    found = functional.scaled_dot_product_attention(query, key, value).squeeze(1)
    change: Tensor = part.to_out[0](found).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
    return _Pending(change, None, x)


def _normed(norm: nn.GroupNorm, operations: Operations, image: _Pending, *, silu: bool = True) -> tuple[Tensor, Tensor]:
    """Return a sum normalized, and the sum; without a shortcut that is not made, and x is returned."""
    parameters = made_of.GroupNorm(norm.weight, norm.bias, norm.num_groups, norm.eps)
    return operations.group_norm(image.x, parameters, bias=image.bias, shortcut=image.shortcut, silu=silu)


def _convolved(convolution: Conv2d, operations: Operations, x: Tensor) -> _Pending:
    """Return a convolution, whose bias is still to be added if that would be a pass of its own."""
    if type(convolution) is not Conv2d or not operations.adds_bias:  # the first: adapted to a processor
        return _Pending(convolution(x))
    return _Pending(convolution._conv_forward(x, convolution.weight, None), convolution.bias)  # noqa: SLF001


def _added(left: Tensor | None, right: Tensor | None) -> Tensor | None:
    if left is None or right is None:
        return left if right is None else right
    return left.float() + right.float()
