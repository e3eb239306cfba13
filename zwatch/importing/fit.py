"""Whether weights fit their config: what is missing, unknown or of another shape.

The tables of `layouts` say what a config's network has. torch and the libraries are imported for configs alone that these do not
cover.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zwatch.engine import allowed
from zwatch.engine.config_fields import FIELDS
from zwatch.engine.configs import check_config, check_widths, config_object
from zwatch.engine.networks.configs import ControlConfig
from zwatch.errors import Refused, Rejection
from zwatch.importing.layouts import controlnet, text_encoder, transformer, vae

Shapes = Mapping[str, tuple[int, ...]]
_MOST_NAMED = 8


def check(source: Path, small: Mapping[str, bytes], shapes: Mapping[str, Shapes]) -> None:
    """Check the configs of a pipeline from a source as every load does, and the tensors of its components against them.

    Raises:
        Refused: with the list of differences.
    """
    found = []
    try:
        allowed.component_classes(small)
        for path in FIELDS:
            if path in small:
                check_config(path, small[path])
        for component, given in shapes.items():
            found += _differences(component, allowed.as_loaded(component, given), expected(component, small))
        if not found:
            check_widths(small)
    except Rejection as rejection:
        raise Refused(f"{source}: {rejection.reason}") from None
    if found:
        raise Refused(f"{source}: the weights do not fit:\n  " + "\n  ".join(found))


def expected(component: str, small: Mapping[str, bytes]) -> Shapes:
    """Return the shape of each tensor that a component must have, by its name, as its config in `small` says.

    Raises:
        Rejection: its config is wrong.
    """
    path = f"{component}/config.json"
    config = config_object(small[path], path)
    if (known := _TABLES[component](config)) is not None:
        return known
    from zwatch.engine import components

    return components.shapes(component, {"config.json": small[path]})


def _transformer(config: Mapping[str, Any]) -> Shapes | None:
    own = allowed.own_transformer(config)
    if own is None or not own.qk_norm:
        return None
    sizes = {
        name: getattr(own, name) for name in ("dim", "cap_feat_dim", "in_channels", "n_layers", "n_refiner_layers")
    }
    return transformer.tensors(sizes | {"head_dim": own.dim // own.n_heads})


def _text_encoder(config: Mapping[str, Any]) -> Shapes | None:
    own = allowed.own_text_encoder(allowed.computing(config))
    if own is None or own.attention_bias:
        return None
    names = (
        "vocab_size", "hidden_size", "head_dim", "num_attention_heads", "num_key_value_heads", "intermediate_size",
        "num_hidden_layers",
    )  # fmt: skip
    return text_encoder.tensors({name: getattr(own, name) for name in names})


def _vae(config: Mapping[str, Any]) -> Shapes | None:
    own = allowed.own_vae(config)
    if own is None or not own.mid_block_add_attention:
        return None
    quant = {"quant_conv": own.use_quant_conv, "post_quant_conv": own.use_post_quant_conv}
    pictures = config.get("in_channels", 3), config.get("out_channels", 3)
    sizes = vae.Sizes(own.block_out_channels, *pictures, own.latent_channels, own.layers_per_block)
    return vae.tensors(sizes, [name for name, is_there in quant.items() if is_there])


def _controlnet(config: Mapping[str, Any]) -> Shapes | None:
    own = ControlConfig.of(config)
    if not own.qk_norm:
        return None
    kind = own.add_control_noise_refiner
    sizes = {"dim": own.dim, "head_dim": own.dim // own.n_heads, "control_in_dim": own.control_in_dim}
    counts = {
        "n_control_layers": len(own.control_layers_places),
        "n_refiner_layers": 0 if kind == "control_layers" else own.n_refiner_layers,
    }
    return controlnet.tensors(sizes | counts | {"refiner_hints": int(kind == controlnet.REFINER)})


_TABLES = {"controlnet": _controlnet, "text_encoder": _text_encoder, "vae": _vae, "transformer": _transformer}
"""What each component with weights must have, by its config; None where the tables do not cover it."""


def _differences(component: str, given: Shapes, expected: Shapes) -> list[str]:
    """Return what differs, a line each kind."""
    both = sorted(given.keys() & expected.keys())
    shapes = [f"{name} {list(given[name])} instead of {list(expected[name])}" for name in both if given[name] != expected[name]]  # fmt: skip
    kinds = {
        "missing": sorted(expected.keys() - given.keys()),
        "unknown": sorted(given.keys() - expected.keys()),
        "of another shape than the config says": shapes,
    }
    return [f"{component}: {len(names)} {what}: {_named(names)}" for what, names in kinds.items() if names]


def _named(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return ", ".join(name[:200] for name in names[:_MOST_NAMED]) + more
