"""The configs of a Z-Image pipeline's networks, for what needs no torch: to know a network's tensors takes no network."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PATCH = 2
_THETA = 10_000.0


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """The fields of `transformer/config.json`, with diffusers' defaults. Patches have 2 x 2 latents of one frame."""

    in_channels: int = 16
    dim: int = 3840
    n_layers: int = 30
    n_refiner_layers: int = 2
    n_heads: int = 30
    norm_eps: float = 1e-5
    qk_norm: bool = True
    cap_feat_dim: int = 2560
    rope_theta: float = 256.0
    t_scale: float = 1000.0
    axes_dims: tuple[int, int, int] = (32, 48, 48)
    axes_lens: tuple[int, int, int] = (1024, 512, 512)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "TransformerConfig | None":
        """Return a config that was checked; None if it needs what is not here: other patches, conditioning images."""
        patches = (config.get("all_patch_size", [PATCH]), config.get("all_f_patch_size", [1]))
        if patches != ([PATCH], [1]) or config.get("siglip_feat_dim") is not None:
            return None
        known = {name: config[name] for name in cls.__dataclass_fields__ if name in config}
        lists = {name: tuple(value) for name, value in known.items() if isinstance(value, list)}
        found = cls(**(known | lists))
        fits = found.dim % found.n_heads == 0 and found.dim // found.n_heads == sum(found.axes_dims)
        return found if fits and not any(width % 2 for width in found.axes_dims) else None


@dataclass(frozen=True, slots=True)
class ControlConfig:
    """The fields of `controlnet/config.json`, with diffusers' defaults: `control_layers_places` are the layers of the transformer that
    get a hint, and `add_control_noise_refiner` which blocks give hints to its noise refiner (None: none do)."""

    control_layers_places: tuple[int, ...]
    control_in_dim: int
    control_refiner_layers_places: tuple[int, ...] = ()
    add_control_noise_refiner: str | None = None
    dim: int = 3840
    n_refiner_layers: int = 2
    n_heads: int = 30
    norm_eps: float = 1e-5
    qk_norm: bool = True

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "ControlConfig":
        """Return a config that was checked."""
        known: dict[str, Any] = {
            name: config[name] for name in cls.__dataclass_fields__ if config.get(name) is not None
        }
        return cls(**known | {name: tuple(value) for name, value in known.items() if isinstance(value, list)})


@dataclass(frozen=True, slots=True)
class TextConfig:
    """The fields of `text_encoder/config.json` that count, with transformers' defaults."""

    vocab_size: int = 151_936
    hidden_size: int = 4096
    intermediate_size: int = 22_016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    head_dim: int = 128
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    rope_theta: float = _THETA

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "TextConfig | None":
        """Return a config that was checked; None if it needs what is not here: scaled positions, sliding windows, other
        activations."""
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1))
        is_sliding = config.get("use_sliding_window") or "sliding_attention" in (config.get("layer_types") or ())
        if kind != "default" or partial != 1 or is_sliding or config.get("hidden_act", "silu") not in ("silu", "swish"):
            return None
        known = {name: config[name] for name in cls.__dataclass_fields__ if config.get(name) is not None}
        known["rope_theta"] = rope.get("rope_theta") or config.get("rope_theta") or _THETA
        if config.get("num_key_value_heads", 0) is None:
            known["num_key_value_heads"] = known.get("num_attention_heads", cls().num_attention_heads)
        found = cls(**known)
        fits = found.num_attention_heads % found.num_key_value_heads == 0 and found.num_hidden_layers > 1
        return found if fits and found.head_dim % 2 == 0 else None


@dataclass(frozen=True, slots=True)
class AutoencoderConfig:
    """The fields of `vae/config.json` that count, with diffusers' defaults."""

    block_out_channels: tuple[int, ...]
    shift_factor: float
    scaling_factor: float = 0.18215
    layers_per_block: int = 1
    latent_channels: int = 4
    norm_num_groups: int = 32
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "AutoencoderConfig | None":
        """Return a config that was checked; None if it needs what is not here: attention in other blocks, other activations."""
        blocks = {*config["down_block_types"], *config["up_block_types"]}
        if blocks != {"DownEncoderBlock2D", "UpDecoderBlock2D"}:
            return None
        if config.get("act_fn", "silu").lower() not in ("silu", "swish"):
            return None
        known = {name: config[name] for name in cls.__dataclass_fields__ if name in config}
        found = cls(**(known | {"block_out_channels": tuple(config["block_out_channels"])}))
        is_even = all(width % found.norm_num_groups == 0 for width in found.block_out_channels)
        return found if is_even else None
