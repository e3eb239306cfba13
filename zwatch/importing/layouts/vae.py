"""Z-Image's VAE, the autoencoder of FLUX.1: diffusers' names and the original ones, of latent diffusion (LDM).

The differences are those of `convert_ldm_vae_checkpoint` (diffusers 0.42, loaders/single_file_utils.py): the decoder's levels
are counted from the other end, and the attention of the middle block is stored as convolutions of one pixel.
"""

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from zwatch.importing.layouts.parts import Component, Piece, Rename, Shape, Shapes, blocks_of, refusal, size_of

LATENTS = 16
"""Channels of the latents that Z-Image draws. Stable Diffusion's VAE has the same layout and 4."""

_LEVEL = re.compile(r"^(encoder\.down|decoder\.up)\.([0-9]{1,4})\.(block\.([0-9]{1,4})|downsample|upsample)\.(.+)$")
_MIDDLE = re.compile(r"^(encoder|decoder)\.mid\.(block_([12])|attn_1)\.(.+)$")
_DEPRECATED = re.compile(r"^((?:en|de)coder\.mid_block\.attentions\.0)\.(query|key|value|proj_attn)\.(weight|bias)$")
_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0",
              "query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # fmt: skip
"""LDM's names, and those that diffusers wrote before 0.16."""


def _renaming(names: Collection[str]) -> Rename:
    levels = {match[2] for name in names if (match := _LEVEL.match(name)) and match[1] == "decoder.up"}
    return _original(len(levels))


def _original(levels: int) -> Callable[[str], tuple[Piece, ...]]:
    def pieces(name: str) -> tuple[Piece, ...]:
        if level := _LEVEL.match(name):
            return (Piece(_of_level(level, levels)),)
        if middle := _MIDDLE.match(name):
            coder, _, block, rest = middle.groups()
            if block:
                return (Piece(f"{coder}.mid_block.resnets.{int(block) - 1}.{_resnet(rest)}"),)
            part, _, kind = rest.rpartition(".")
            return (Piece(f"{coder}.mid_block.attentions.0.{_ATTENTION.get(part, part)}.{kind}"),)
        if old := _DEPRECATED.match(name):
            return (Piece(f"{old[1]}.{_ATTENTION[old[2]]}.{old[3]}"),)
        return (Piece(re.sub(r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out.", name)),)

    return pieces


def _of_level(level: re.Match[str], levels: int) -> str:
    side, index, what, block, rest = level.groups()
    place = (
        f"encoder.down_blocks.{int(index)}"
        if side == "encoder.down"
        else f"decoder.up_blocks.{levels - 1 - int(index)}"
    )
    if block:
        return f"{place}.resnets.{int(block)}.{_resnet(rest)}"
    return f"{place}.{what}rs.0.{rest}"


def _resnet(rest: str) -> str:
    return rest.replace("nin_shortcut.", "conv_shortcut.")


_QUANT = {"quant_conv": 2, "post_quant_conv": 1}
"""Convolutions of one pixel around the latents, which FLUX.1's has not: how many times the latents' channels they have."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The sizes of a VAE, which diffusers' config calls `block_out_channels`, `in_channels`, `out_channels`, `latent_channels` and
    `layers_per_block`."""

    channels: tuple[int, ...]
    pictures: int
    out: int
    latents: int
    layers: int


def sizes(shapes: Shapes) -> Sizes:
    """Return the sizes, from the shapes of a VAE in diffusers' layout.

    Raises:
        Rejection: a tensor that they are read from is missing or odd, or the latents are not Z-Image's.
    """
    levels = blocks_of(shapes, "encoder.down_blocks")
    channels = tuple(
        size_of(shapes, f"encoder.down_blocks.{level}.resnets.0.conv1.weight", 4)[0] for level in range(levels)
    )
    _, pictures, _, _ = size_of(shapes, "encoder.conv_in.weight", 4)
    _, latents, _, _ = size_of(shapes, "decoder.conv_in.weight", 4)
    out, _, _, _ = size_of(shapes, "decoder.conv_out.weight", 4)
    if latents != LATENTS:
        kind = "Stable Diffusion's" if latents == 4 else "another model's"
        raise refusal(
            f"a VAE of {latents} latent channels, {kind}; Z-Image needs FLUX.1's, of {LATENTS}: ae.safetensors"
        )
    return Sizes(channels, pictures, out, latents, blocks_of(shapes, "encoder.down_blocks.0.resnets"))


def expected(shapes: Shapes) -> dict[str, Shape]:
    """Return the tensors that a VAE must have beside some of its tensors.

    Raises:
        Rejection: a tensor that the sizes are read from is missing or odd, or the latents are not Z-Image's.
    """
    of = sizes(shapes)
    if not of.channels:
        raise refusal("no tensor of encoder.down_blocks; is the file complete?")
    return tensors(of, [name for name in _QUANT if f"{name}.weight" in shapes])


def tensors(of: Sizes, quant: Collection[str]) -> dict[str, Shape]:
    """Return the tensors of a VAE of these sizes, as `AutoencoderKL.state_dict` names them. `quant` are those of `quant_conv` and
    `post_quant_conv` that it has."""
    channels, latents = of.channels, of.latents
    table: dict[str, Shape] = {}
    _coder(table, "encoder.down_blocks", channels, of.layers, "downsamplers")
    _coder(table, "decoder.up_blocks", channels[::-1], of.layers + 1, "upsamplers")
    for coder, into, out in (
        ("encoder", (channels[0], of.pictures), (2 * latents, channels[-1])),
        ("decoder", (channels[-1], latents), (of.out, channels[0])),
    ):
        _conv(table, f"{coder}.conv_in", *into)
        _conv(table, f"{coder}.conv_out", *out)
        _norm(table, f"{coder}.conv_norm_out", channels[0] if coder == "decoder" else channels[-1])
        _middle(table, f"{coder}.mid_block", channels[-1])
    for name in quant:
        _conv(table, name, _QUANT[name] * latents, _QUANT[name] * latents, 1)
    return table


def _coder(table: dict[str, Shape], prefix: str, channels: tuple[int, ...], layers: int, sampler: str) -> None:
    before = channels[0]
    for level, size in enumerate(channels):
        for layer in range(layers):
            _resnet_block(table, f"{prefix}.{level}.resnets.{layer}", before, size)
            before = size
        if level < len(channels) - 1:
            _conv(table, f"{prefix}.{level}.{sampler}.0.conv", size, size)


def _middle(table: dict[str, Shape], prefix: str, size: int) -> None:
    for index in (0, 1):
        _resnet_block(table, f"{prefix}.resnets.{index}", size, size)
    _norm(table, f"{prefix}.attentions.0.group_norm", size)
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        table[f"{prefix}.attentions.0.{part}.weight"] = (size, size)
        table[f"{prefix}.attentions.0.{part}.bias"] = (size,)


def _resnet_block(table: dict[str, Shape], prefix: str, before: int, size: int) -> None:
    _norm(table, f"{prefix}.norm1", before)
    _conv(table, f"{prefix}.conv1", size, before)
    _norm(table, f"{prefix}.norm2", size)
    _conv(table, f"{prefix}.conv2", size, size)
    if before != size:
        _conv(table, f"{prefix}.conv_shortcut", size, before, 1)


def _conv(table: dict[str, Shape], name: str, out: int, into: int, width: int = 3) -> None:
    table[f"{name}.weight"], table[f"{name}.bias"] = (out, into, width, width), (out,)


def _norm(table: dict[str, Shape], name: str, size: int) -> None:
    table[f"{name}.weight"], table[f"{name}.bias"] = (size,), (size,)


VAE = Component(
    name="vae",
    title="FLUX.1's VAE",
    renaming=_renaming,
    expected=expected,
    known=re.compile(
        r"^(?:(?:encoder|decoder)\.(?:conv_in|conv_out|conv_norm_out|mid_block\.(?:resnets\.[01]\.(?:norm[12]|conv[12])"
        r"|attentions\.0\.(?:group_norm|to_[qkv]|to_out\.0))|(?:down|up)_blocks\.[0-9]{1,4}\.(?:resnets\.[0-9]{1,4}\.(?:norm[12]|conv[12]"
        r"|conv_shortcut)|(?:down|up)samplers\.0\.conv))|(?:post_)?quant_conv)\.(?:weight|bias)$"
    ),
    reshaped=re.compile(r"\.attentions\.0\.to_(?:[qkv]|out\.0)\.weight$"),  # convolutions of one pixel
)
