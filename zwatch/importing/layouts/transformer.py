"""Z-Image's transformer: diffusers' names and ComfyUI's, which are those of the original code.

The differences are those of `convert_z_image_transformer_checkpoint_to_diffusers` (diffusers 0.42,
loaders/single_file_utils.py) and of `z_image_to_diffusers` (ComfyUI, comfy/utils.py): one tensor for query, key and value, in
this order, and other names for the embedders, the norms and the output. Z-Image does not share keys between heads.
"""

import re
from collections.abc import Collection, Mapping

from zwatch.importing.layouts.parts import Component, Piece, Rename, Shape, Shapes, blocks_of, by_sizes, size_of

PATCH = "2-1"
"""How diffusers names the embedder and the final layer: patches of 2 x 2 latents, one frame."""
PATCH_ELEMENTS = 4
TIME_FREQUENCIES, TIME_HIDDEN, MOST_MODULATION = 256, 1024, 256
"""Sizes that no config changes: TimestepEmbedder's `frequency_embedding_size`, its `mid_size`, and ADALN_EMBED_DIM, in
diffusers' transformer_z_image.py."""
BLOCKS = ("layers", "noise_refiner", "context_refiner")
FUSED = (".attention.qkv.", ".attention.to_qkv.")
"""ComfyUI's name, and that of serving stacks that fuse diffusers' three."""

_RENAMED = (
    (re.compile(r"^x_embedder\."), f"all_x_embedder.{PATCH}."),
    (re.compile(r"^final_layer\."), f"all_final_layer.{PATCH}."),
    (re.compile(r"\.attention\.out\."), ".attention.to_out.0."),
    (re.compile(r"\.attention\.q_norm\."), ".attention.norm_q."),
    (re.compile(r"\.attention\.k_norm\."), ".attention.norm_k."),
)
_DROPPED = frozenset({"norm_final.weight"})
"""A weight of the original code that its forward pass does not use: diffusers drops it too."""


def diffusers_name(name: str) -> str:
    """Return diffusers' name of a tensor or module of the original layout, or of diffusers' own."""
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name


def _pieces(name: str) -> tuple[Piece, ...]:
    if name in _DROPPED:
        return ()
    for fused in FUSED:
        if fused in name:
            return tuple(Piece(name.replace(fused, f".attention.to_{part}."), i) for i, part in enumerate("qkv"))
    return (Piece(diffusers_name(name)),)


def renaming(names: Collection[str]) -> Rename:
    """Return how the names of the original layout, or of diffusers' own, become diffusers'."""
    return _pieces


def sizes(shapes: Shapes) -> dict[str, int]:
    """Return what diffusers' config calls the sizes, from the shapes of a transformer in diffusers' layout.

    Raises:
        Rejection: a tensor that they are read from is missing or odd.
    """
    dim, cap_feat_dim = size_of(shapes, "cap_embedder.1.weight", 2)
    (head_dim,) = size_of(shapes, "layers.0.attention.norm_q.weight", 1)
    _, patch = size_of(shapes, f"all_x_embedder.{PATCH}.weight", 2)
    return {
        "dim": dim, "cap_feat_dim": cap_feat_dim, "n_heads": dim // head_dim, "head_dim": head_dim,
        "in_channels": patch // PATCH_ELEMENTS, "n_layers": blocks_of(shapes, "layers"),
        "n_refiner_layers": blocks_of(shapes, "noise_refiner"),
    }  # fmt: skip


def tensors(of: Mapping[str, int]) -> dict[str, Shape]:
    """Return the tensors of a transformer of these `sizes`, as `ZImageTransformer2DModel.state_dict` names them."""
    dim, modulation, patch = of["dim"], min(of["dim"], MOST_MODULATION), of["in_channels"] * PATCH_ELEMENTS
    table: dict[str, Shape] = {
        "x_pad_token": (1, dim), "cap_pad_token": (1, dim),
        f"all_x_embedder.{PATCH}.weight": (dim, patch), f"all_x_embedder.{PATCH}.bias": (dim,),
        f"all_final_layer.{PATCH}.linear.weight": (patch, dim), f"all_final_layer.{PATCH}.linear.bias": (patch,),
        f"all_final_layer.{PATCH}.adaLN_modulation.1.weight": (dim, modulation),
        f"all_final_layer.{PATCH}.adaLN_modulation.1.bias": (dim,),
        "t_embedder.mlp.0.weight": (TIME_HIDDEN, TIME_FREQUENCIES), "t_embedder.mlp.0.bias": (TIME_HIDDEN,),
        "t_embedder.mlp.2.weight": (modulation, TIME_HIDDEN), "t_embedder.mlp.2.bias": (modulation,),
        "cap_embedder.0.weight": (of["cap_feat_dim"],), "cap_embedder.1.weight": (dim, of["cap_feat_dim"]),
        "cap_embedder.1.bias": (dim,),
    }  # fmt: skip
    counts = (of["n_layers"], of["n_refiner_layers"], of["n_refiner_layers"])
    for kind, count in zip(BLOCKS, counts, strict=True):
        for index in range(count):
            one = block(dim, of["head_dim"], modulation if kind != "context_refiner" else None)
            table |= {f"{kind}.{index}.{name}": shape for name, shape in one.items()}
    return table


def block(dim: int, head_dim: int, modulation: int | None) -> dict[str, Shape]:
    """Return the tensors of a block; without `modulation`, the width of a time step's embedding, no step changes it."""
    # The hidden size is FeedForward's in transformer_z_image.py: int(dim / 3 * 8).
    hidden = int(dim / 3 * 8)
    table: dict[str, Shape] = {f"attention.to_{part}.weight": (dim, dim) for part in ("q", "k", "v", "out.0")}
    table |= {f"attention.norm_{part}.weight": (head_dim,) for part in "qk"}
    table |= {f"{norm}.weight": (dim,) for norm in ("attention_norm1", "attention_norm2", "ffn_norm1", "ffn_norm2")}
    table |= {"feed_forward.w1.weight": (hidden, dim), "feed_forward.w3.weight": (hidden, dim)}
    table["feed_forward.w2.weight"] = (dim, hidden)
    if modulation is not None:
        table |= {"adaLN_modulation.0.weight": (4 * dim, modulation), "adaLN_modulation.0.bias": (4 * dim,)}
    return table


TRANSFORMER = Component(
    name="transformer",
    title="Z-Image's transformer",
    renaming=renaming,
    expected=by_sizes(sizes, tensors),
    known=re.compile(
        r"^(?:(?:layers|noise_refiner|context_refiner)\.[0-9]{1,4}\."
        r"(?:attention\.(?:to_[qkv]|to_out\.0|norm_[qk])|attention_norm[12]|ffn_norm[12]|feed_forward\.w[123]|adaLN_modulation\.0)"
        r"|all_x_embedder\.2-1|all_final_layer\.2-1\.(?:linear|adaLN_modulation\.1)|cap_embedder\.[01]|t_embedder\.mlp\.[02])"
        r"\.(?:weight|bias)$|^(?:x|cap)_pad_token$"
    ),
    reshaped=re.compile(r"_pad_token$"),  # in some files without the first dimension, of size 1
)
