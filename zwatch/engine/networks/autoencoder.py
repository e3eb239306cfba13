"""The autoencoder between images and latents (arXiv:2112.10752, in FLUX's configuration): 8 times smaller sides, 16 channels.

Parameters have the names, and results the bits, of diffusers' `AutoencoderKL`.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from zwatch.engine.networks.configs import AutoencoderConfig
from zwatch.engine.networks.layers import Conv2d, GroupNorm, Linear

_EPSILON = 1e-6


class Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, config: AutoencoderConfig, channels: int, out: int) -> None:
        super().__init__()
        groups = config.norm_num_groups
        self.norm1, self.norm2 = (GroupNorm(groups, width, eps=_EPSILON) for width in (channels, out))
        self.conv1, self.conv2 = (Conv2d(width, out, 3, padding=1) for width in (channels, out))
        self.conv_shortcut = Conv2d(channels, out, 1) if channels != out else None

    def forward(self, x: Tensor) -> Tensor:
        """Return shape (batch, out, h, w) for x of shape (batch, channels, h, w)."""
        change = self.conv1(functional.silu(self.norm1(x)))
        change = self.conv2(functional.silu(self.norm2(change)))
        result: Tensor = (x if self.conv_shortcut is None else self.conv_shortcut(x)) + change
        return result


class Attention(nn.Module):
    """Attention of all places to all, with one head."""

    def __init__(self, config: AutoencoderConfig, channels: int) -> None:
        super().__init__()
        self.group_norm = GroupNorm(config.norm_num_groups, channels, eps=_EPSILON)
        self.to_q, self.to_k, self.to_v = (Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Return the shape of x, (batch, channels, h, w)."""
        places = self.group_norm(x.flatten(2)).transpose(1, 2)
        query, key, value = (made(places).unsqueeze(1) for made in (self.to_q, self.to_k, self.to_v))
        found = functional.scaled_dot_product_attention(query, key, value).squeeze(1)
        result: Tensor = self.to_out[0](found).transpose(-1, -2).reshape(x.shape) + x
        return result


class Middle(nn.Module):
    """The block at the smallest size."""

    def __init__(self, config: AutoencoderConfig, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Residual(config, channels, channels) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(config, channels)] if config.mid_block_add_attention else [])

    def forward(self, x: Tensor) -> Tensor:
        """Return the shape of x, (batch, channels, h, w)."""
        for part in self.parts():
            x = part(x)
        return x

    def parts(self) -> list[Residual | Attention]:
        """Return what it consists of, in order."""
        return [self.resnets[0], *self.attentions, self.resnets[1]]


class Halving(nn.Module):
    """A convolution that halves the sides."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Return shape (batch, channels, h / 2, w / 2)."""
        result: Tensor = self.conv(functional.pad(x, (0, 1, 0, 1)))
        return result


class Doubling(nn.Module):
    """Each place four times, and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return shape (batch, channels, 2 h, 2 w)."""
        result: Tensor = self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return result


class Level(nn.Module):
    """The blocks at one size, and the way to the next."""

    def __init__(
        self, config: AutoencoderConfig, channels: int, out: int, layers: int, name: str, *parts: nn.Module
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(Residual(config, out if number else channels, out) for number in range(layers))
        self.parts = name
        if parts:
            setattr(self, name, nn.ModuleList(parts))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the next level gets."""
        for part in (*self.resnets, *getattr(self, self.parts, ())):
            x = part(x)
        return x


class Encoder(nn.Module):
    """From an image to the mean and the variance of its latents."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level(
                config, widths[max(0, number - 1)], width, config.layers_per_block, "downsamplers",
                *([] if number == len(widths) - 1 else [Halving(width)]),
            )
            for number, width in enumerate(widths)
        )  # fmt: skip
        self.mid_block = Middle(config, widths[-1])
        self.conv_norm_out = GroupNorm(config.norm_num_groups, widths[-1], eps=_EPSILON)
        self.conv_out = Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return shape (batch, 2 x latent channels, h / 8, w / 8) for an image of shape (batch, 3, h, w)."""
        return _through(self, self.conv_in(x), [*self.down_blocks, self.mid_block])

    def parts(self) -> list[Residual | Attention | Doubling | Halving]:
        """As `Decoder.parts`."""
        return [*_parts(self.down_blocks), *self.mid_block.parts()]


class Decoder(nn.Module):
    """From latents to an image."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        widths = config.block_out_channels[::-1]
        self.conv_in = Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = Middle(config, widths[0])
        self.up_blocks = nn.ModuleList(
            Level(
                config, widths[max(0, number - 1)], width, config.layers_per_block + 1, "upsamplers",
                *([] if number == len(widths) - 1 else [Doubling(width)]),
            )
            for number, width in enumerate(widths)
        )  # fmt: skip
        self.conv_norm_out = GroupNorm(config.norm_num_groups, widths[-1], eps=_EPSILON)
        self.conv_out = Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return an image, shape (batch, 3, 8 h, 8 w), for latents of shape (batch, latent channels, h, w)."""
        return _through(self, self.conv_in(x), [self.mid_block, *self.up_blocks])

    def parts(self) -> list[Residual | Attention | Doubling | Halving]:
        """Return what lies between the first convolution and the last norm, in order, for another way to compute it."""
        return [*self.mid_block.parts(), *_parts(self.up_blocks)]


def _parts(levels: nn.ModuleList) -> list[Residual | Doubling | Halving]:
    return [part for level in levels for part in (*level.resnets, *getattr(level, level.parts, ()))]  # type: ignore[misc,call-overload]


def _through(ends: Encoder | Decoder, x: Tensor, parts: list[nn.Module]) -> Tensor:
    for part in parts:
        x = part(x)
    result: Tensor = ends.conv_out(functional.silu(ends.conv_norm_out(x)))
    return result


class Autoencoder(nn.Module):
    """The network. Built on the meta device it has no values until weights are assigned."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        latents = config.latent_channels
        self.quant_conv = Conv2d(2 * latents, 2 * latents, 1) if config.use_quant_conv else None
        self.post_quant_conv = Conv2d(latents, latents, 1) if config.use_post_quant_conv else None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that it computes in."""
        return self.decoder.conv_in.weight.dtype

    def encode(self, pixels: Tensor) -> Tensor:
        """Return the mean and the logarithm of the variance of an image's latents, shape (batch, 2 x latent channels, h / 8, w / 8),
        for pixels of shape (batch, 3, h, w) from -1 to 1."""
        found: Tensor = self.encoder(pixels)
        return found if self.quant_conv is None else self.quant_conv(found)

    def decode(self, latents: Tensor, *, return_dict: bool = False) -> tuple[Tensor]:
        """Return the image of latents of shape (batch, latent channels, h, w), in a tuple as diffusers does with
        `return_dict=False`: shape (batch, 3, 8 h, 8 w), from -1 to 1."""
        assert not return_dict  # as the pipeline calls it
        return (self.decoder(latents if self.post_quant_conv is None else self.post_quant_conv(latents)),)
