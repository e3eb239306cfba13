"""Z-Image's ControlNet, as the published union checkpoint has it (Z-Image-Turbo-Fun-Controlnet-Union, 1.0 to 2.1): names and tensors are
those of diffusers' `ZImageControlNetModel`.

What the tensors' names and shapes do not tell is told by `zwatch.importing.controlnets`: which layers get the hints, and whether the blocks of
the refiner are used.
"""

import re
from collections.abc import Mapping

from zwatch.importing.layouts.parts import Component, Shape, Shapes, blocks_of, by_sizes, size_of
from zwatch.importing.layouts.transformer import MOST_MODULATION, PATCH, PATCH_ELEMENTS, block, renaming

REFINER = "control_noise_refiner"
BEFORE = f"{REFINER}.0.before_proj.weight"
"""Of the refiner's first block, if its blocks give hints."""


def sizes(shapes: Shapes) -> dict[str, int]:
    """Return what diffusers' config calls the sizes, from the shapes of a ControlNet; `n_refiner_layers` is 0 if it has no refiner of its
    own, and `refiner_hints` 1 if its blocks give hints.

    Raises:
        Rejection: a tensor that they are read from is missing or odd.
    """
    dim, patch = size_of(shapes, f"control_all_x_embedder.{PATCH}.weight", 2)
    (head_dim,) = size_of(shapes, "control_layers.0.attention.norm_q.weight", 1)
    return {
        "dim": dim, "n_heads": dim // head_dim, "head_dim": head_dim, "control_in_dim": patch // PATCH_ELEMENTS,
        "n_control_layers": blocks_of(shapes, "control_layers"), "n_refiner_layers": blocks_of(shapes, REFINER),
        "refiner_hints": int(any(name.startswith(f"{REFINER}.") and "_proj." in name for name in shapes)),
    }  # fmt: skip


def tensors(of: Mapping[str, int]) -> dict[str, Shape]:
    """Return the tensors of a ControlNet of these `sizes`, as `ZImageControlNetModel.state_dict` names them."""
    dim, modulation = of["dim"], min(of["dim"], MOST_MODULATION)
    table: dict[str, Shape] = {
        f"control_all_x_embedder.{PATCH}.weight": (dim, of["control_in_dim"] * PATCH_ELEMENTS),
        f"control_all_x_embedder.{PATCH}.bias": (dim,),
    }
    rows = (
        ("control_layers", of["n_control_layers"], True),
        (REFINER, of["n_refiner_layers"], bool(of["refiner_hints"])),
    )
    for row, count, has_hints in rows:
        for index in range(count):
            one = block(dim, of["head_dim"], modulation)
            for projection in ("before_proj", "after_proj") if has_hints else ():
                if projection == "after_proj" or index == 0:
                    one |= {f"{projection}.weight": (dim, dim), f"{projection}.bias": (dim,)}
            table |= {f"{row}.{index}.{name}": shape for name, shape in one.items()}
    return table


CONTROLNET = Component(
    name="controlnet",
    title="a ControlNet for Z-Image",
    renaming=renaming,
    expected=by_sizes(sizes, tensors),
    known=re.compile(
        r"^(?:(?:control_layers|control_noise_refiner)\.[0-9]{1,4}\."
        r"(?:attention\.(?:to_[qkv]|to_out\.0|norm_[qk])|attention_norm[12]|ffn_norm[12]|feed_forward\.w[123]|adaLN_modulation\.0"
        r"|before_proj|after_proj)|control_all_x_embedder\.2-1)\.(?:weight|bias)$"
    ),
    reshaped=re.compile(r"(?!)"),
)
