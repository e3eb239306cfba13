"""The decoder and the encoder of `Autoencoder` in bands of rows, for want of memory: never more than two whole images of one level exist at a time.

Unlike diffusers' tiling, which decodes overlapping tiles and blends them, nothing is approximated: each norm takes the mean and
the variance of the whole image, and each convolution sees the rows around its band. So there are no seams, and a picture differs
from the one that is decoded at once as rounding differs.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from zwatch.engine.networks.autoencoder import Attention, Autoencoder, Decoder, Doubling, Encoder, Halving, Residual

BAND_BYTES = 32 * 2**20
"""Bytes of a band in float32; a few of them exist at a time."""
QUERIES = 1024
"""Places of which attention to all others is computed at a time."""


def decode(network: Autoencoder, latents: Tensor, store: torch.device) -> Tensor:
    """Return the pixels that `Autoencoder.decode` does, on the device of the latents, with whole images in the memory of `store`."""
    decoder, device = network.decoder, latents.device
    if network.post_quant_conv is not None:
        latents = network.post_quant_conv(latents)
    return _end(decoder, _through(decoder.parts(), _Image(decoder.conv_in(latents), device), store), latents)


def encode(network: Autoencoder, pixels: Tensor, store: torch.device) -> Tensor:
    """Return what `Autoencoder.encode` does, on the device of the pixels, with whole images in the memory of `store`."""
    encoder, given = network.encoder, _Image(pixels, pixels.device)
    image = _Image(_empty(given, encoder.conv_in.out_channels, store), pixels.device)
    for begin, end in image.bands():
        image.rows[:, :, begin:end] = given.around(begin, end, encoder.conv_in)
    found = _end(encoder, _through(encoder.parts(), image, store), pixels)
    return found if network.quant_conv is None else network.quant_conv(found)


def _through(parts: Iterable[nn.Module], image: "_Image", store: torch.device) -> "_Image":
    for part in parts:
        if isinstance(part, Residual):
            image = _residual(part, image, store)
        elif isinstance(part, Attention):
            image = _attention(part, image)
        elif isinstance(part, Halving):
            image = _halved(part, image, store)
        else:
            assert isinstance(part, Doubling)
            image = _doubled(part, image, store)
    return image


def _end(ends: Encoder | Decoder, image: "_Image", like: Tensor) -> Tensor:
    """Return what the last norm and the last convolution make of an image."""
    norm = _Norm(ends.conv_norm_out, image)
    made = like.new_empty((1, ends.conv_out.out_channels, image.height, image.width))
    for begin, end in image.bands():
        made[:, :, begin:end] = image.around(begin, end, lambda rows: ends.conv_out(functional.silu(norm(rows))))
    return made


class _Image:
    """An image somewhere, shape (1, channels, height, width), which is computed on a device band by band."""

    def __init__(self, rows: Tensor, device: torch.device) -> None:
        self.rows = rows
        self.device = device
        self.height, self.width = rows.shape[2:]

    def bands(self) -> Iterator[tuple[int, int]]:
        """Return the first row of each band, and the one after its last."""
        step = max(1, BAND_BYTES // (4 * self.rows.shape[1] * self.width))
        return ((begin, min(begin + step, self.height)) for begin in range(0, self.height, step))

    def band(self, begin: int, end: int) -> Tensor:
        """Return rows on the device."""
        return self.rows[:, :, begin:end].to(self.device)

    def around(self, begin: int, end: int, function: Callable[[Tensor], Tensor], scale: int = 1) -> Tensor:
        """Return what a function with a convolution of 3 x 3 makes of rows, `scale` rows of each."""
        first, last = max(0, begin - 1), min(self.height, end + 1)
        made = function(self.band(first, last))
        return made[:, :, (begin - first) * scale : (end - first) * scale]


class _Norm:
    """A group norm with the mean and the variance of a whole image."""

    def __init__(self, norm: nn.GroupNorm, image: _Image) -> None:
        found = [
            torch.var_mean(group.to(image.device).float(), correction=0)
            for group in image.rows.chunk(norm.num_groups, dim=1)
        ]
        variance, mean = (torch.stack(numbers) for numbers in zip(*found, strict=True))
        repeated = norm.num_channels // norm.num_groups
        scale = (variance + norm.eps).rsqrt().repeat_interleave(repeated) * norm.weight.float()
        shift = norm.bias.float() - mean.repeat_interleave(repeated) * scale
        self._scale, self._shift = scale[:, None, None], shift[:, None, None]

    def __call__(self, rows: Tensor) -> Tensor:
        """Return rows of the image normalized."""
        return torch.addcmul(self._shift, rows.float(), self._scale).to(rows.dtype)


def _residual(part: Residual, image: _Image, store: torch.device) -> _Image:
    norm = _Norm(part.norm1, image)
    change = _Image(_empty(image, part.conv1.out_channels, store), image.device)
    for begin, end in image.bands():
        change.rows[:, :, begin:end] = image.around(begin, end, lambda rows: part.conv1(functional.silu(norm(rows))))
    norm = _Norm(part.norm2, change)
    above = change.rows[:, :, :0].clone()
    for begin, end in change.bands():
        # The result takes the place of the change, whose last row the next band still needs.
        first = begin - above.shape[2]
        rows = torch.cat((above.to(image.device), change.band(begin, min(end + 1, change.height))), dim=2)
        above = change.rows[:, :, end - 1 : end].clone()
        made = part.conv2(functional.silu(norm(rows)))[:, :, begin - first : end - first]
        x = image.band(begin, end)
        change.rows[:, :, begin:end] = (x if part.conv_shortcut is None else part.conv_shortcut(x)) + made
    return change


def _doubled(part: Doubling, image: _Image, store: torch.device) -> _Image:
    made = _Image(_empty(image, part.conv.out_channels, store, 2), image.device)
    for begin, end in image.bands():
        made.rows[:, :, 2 * begin : 2 * end] = image.around(begin, end, part, scale=2)
    return made


def _halved(part: Halving, image: _Image, store: torch.device) -> _Image:
    shape = (1, part.conv.out_channels, image.height // 2, image.width // 2)
    made = _Image(torch.empty(shape, dtype=image.rows.dtype, device=store), image.device)
    for begin, end in made.bands():
        last = 2 * end + 1  # a row of the convolution takes three, of which the last is the next one's first
        rows = functional.pad(image.band(2 * begin, min(last, image.height)), (0, 1, 0, max(0, last - image.height)))
        made.rows[:, :, begin:end] = part.conv(rows)
    return made


def _attention(part: Attention, image: _Image) -> _Image:
    whole = image.band(0, image.height)
    places = part.group_norm(whole.flatten(2)).transpose(1, 2)
    key, value = (made(places).unsqueeze(1) for made in (part.to_k, part.to_v))
    found = torch.cat([
        functional.scaled_dot_product_attention(part.to_q(some).unsqueeze(1), key, value).squeeze(1)
        for some in places.split(QUERIES, dim=1)
    ], dim=1)  # fmt: skip
    made = part.to_out[0](found).transpose(-1, -2).reshape(whole.shape) + whole
    return _Image(made, image.device)


def _empty(image: _Image, channels: int, store: torch.device, scale: int = 1) -> Tensor:
    shape = (1, channels, scale * image.height, scale * image.width)
    return torch.empty(shape, dtype=image.rows.dtype, device=store)
