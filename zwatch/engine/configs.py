"""The check of a version's configs, before its weights are read.

The libraries check little of them: a wrong type fails in the middle of an image, a wrong number draws noise, takes gigabytes
of memory, or reads beyond a table, which on a GPU ends the process.
"""

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from itertools import pairwise
from typing import Any

from zwatch.deploy.pipeline_files import CONTROL_CONFIG
from zwatch.engine.config_fields import FIELDS, LATENT_SCALE, MAX_PROMPT_TOKENS, MOST_SHIFT, Rule
from zwatch.errors import Rejection

_PATCH = 2
"""The transformer takes patches of 2 x 2 latents."""
_MOST_PATCHES = (2048 // (LATENT_SCALE * _PATCH)) ** 2
"""Of the largest image that a request may ask for."""
_LEAST_SHIFT = 1e-3
"""A linear shift divides by it."""
MAX_CONFIG = 2 * 2**20
"""Largest accepted config, bytes: the interpreter's lock is held while JSON is parsed. Known ones have some kilobytes, the
index of a thousand shards a hundred."""
_SHOWN = 80
"""Most characters of a wrong value that a reason repeats."""

Config = Mapping[str, Any]


def config_object(data: bytes, path: str) -> dict[str, Any]:
    """Parse a JSON config from verified bytes.

    Raises:
        Rejection: `config_invalid`.
    """
    if len(data) > MAX_CONFIG:
        raise Rejection(
            "config_invalid", f"{path}: found {len(data)} bytes, expected at most {MAX_CONFIG} for a config"
        )
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Rejection("config_invalid", f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Rejection("config_invalid", f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def check_configs(small: Mapping[str, bytes]) -> None:
    """Check the fields of every config of a version, each by itself and those of one config together.

    Raises:
        Rejection: `file_missing`, or `config_invalid` with the file, the field, what was found and what was expected.
    """
    for path in FIELDS:
        if path in small:
            check_config(path, small[path])
        elif path != CONTROL_CONFIG:
            raise Rejection("file_missing", f"{path}: the seal does not name it")


def check_config(path: str, data: bytes) -> None:
    """Check the fields of one config of a version, each by itself and together.

    Raises:
        Rejection: `config_invalid`, as `check_configs`.
    """
    config = config_object(data, path)
    _check_fields(path, config, FIELDS[path], "")
    for check in _RELATIONS.get(path, ()):
        if (problem := check(config)) is not None:
            raise Rejection("config_invalid", f"{path}: {problem}")


def _check_fields(path: str, config: Config, rules: Mapping[str, Rule], prefix: str) -> None:
    for key, rule in rules.items():
        if key not in config:
            if rule.required:
                raise Rejection("config_invalid", f"{path}: {prefix}{key}: found nothing, expected {rule.expected}")
        elif not rule.accepts(config[key]):
            raise Rejection(
                "config_invalid", f"{path}: {prefix}{key}: found {_shown(config[key])}, expected {rule.expected}"
            )
        elif rule.fields and isinstance(config[key], dict):
            _check_fields(path, config[key], rule.fields, f"{prefix}{key}.")


def _shown(value: object) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= _SHOWN else f"{shown[: _SHOWN - 3]}..."


def _patches(config: Config) -> str | None:
    sizes, frames = config.get("all_patch_size", [_PATCH]), config.get("all_f_patch_size", [1])
    if len(sizes) == len(frames) and (_PATCH, 1) in zip(sizes, frames, strict=True):
        return None
    return f"all_patch_size: found {sizes} with all_f_patch_size {frames}, expected lists of one length with 2 and 1"


def _heads(config: Config) -> str | None:
    defaults = {"dim": 3840, "n_heads": 30, "axes_dims": [32, 48, 48]}
    dim, heads, axes = (config.get(key, default) for key, default in defaults.items())
    if dim % heads or dim // heads != sum(axes) or any(axis % 2 for axis in axes):
        return f"axes_dims: found {axes}, expected even numbers with the sum dim / n_heads, {dim} / {heads}"
    return None


def _positions(config: Config) -> str | None:
    # One for the padding, the prompt's, and one for the image.
    least, found = 1 + MAX_PROMPT_TOKENS + 1, config.get("axes_lens", [1024])[0]
    if found >= least:
        return None
    return f"axes_lens: found {found} positions for the prompt, expected at least {least}: prompts have up to {MAX_PROMPT_TOKENS} tokens"


def _text_heads(config: Config) -> str | None:
    heads, shared = config.get("num_attention_heads", 32), config.get("num_key_value_heads")
    if shared is not None and heads % shared:
        return f"num_key_value_heads: found {shared}, expected a divisor of num_attention_heads, {heads}"
    return f"head_dim: found {odd}, expected an even number" if (odd := config.get("head_dim", 128)) % 2 else None


def _text_layers(config: Config) -> str | None:
    types, layers = config.get("layer_types"), config.get("num_hidden_layers", 32)
    if types is None:
        return None
    if len(types) != layers:
        return f"layer_types: found {len(types)}, expected one for each of num_hidden_layers, {layers}"
    slides = config.get("use_sliding_window", False) and config.get("sliding_window", 4096) is not None
    if "sliding_attention" in types and not slides:
        return 'layer_types: found "sliding_attention", expected "full_attention": use_sliding_window is not true'
    return None


def _text_ids(config: Config) -> str | None:
    pad, tokens = config.get("pad_token_id"), config.get("vocab_size", 151936)
    return (
        None if pad is None or pad < tokens else f"pad_token_id: found {pad}, expected less than vocab_size, {tokens}"
    )


def _groups(config: Config) -> str | None:
    groups, channels = config.get("norm_num_groups", 32), config.get("block_out_channels", [])
    if all(channel % groups == 0 for channel in channels):
        return None
    return f"norm_num_groups: found {groups}, expected a divisor of each of block_out_channels, {channels}"


def _sigmas(config: Config) -> str | None:
    names = [f"use_{name}_sigmas" for name in ("karras", "exponential", "beta")]
    chosen = [name for name in names if config.get(name)]
    if len(chosen) > 1:
        return f"{chosen[1]}: found true, expected false beside {chosen[0]}"
    if chosen == [names[-1]] and find_spec("scipy") is None:
        return f"{chosen[0]}: found true, which needs the package scipy; expected false where that is not installed"
    return None


def _shifts(config: Config) -> str | None:
    """Check the shift by the number of patches, as `calculate_shift` of ZImagePipeline computes it for every request."""
    defaults = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.15}
    found = {name: config.get(name, default) for name, default in defaults.items()}
    if (name := next((name for name, value in found.items() if value is None), None)) is not None:
        return f"{name}: found null, expected a number"
    least, most, low, high = found.values()
    if least >= most:
        return f"max_image_seq_len: found {most}, expected more than base_image_seq_len, {least}"
    if not config.get("use_dynamic_shifting", False):
        return None
    shifts = [low + (high - low) / (most - least) * (patches - least) for patches in (1, _MOST_PATCHES)]
    smallest = _LEAST_SHIFT if config.get("time_shift_type") == "linear" else -MOST_SHIFT
    if min(shifts) >= smallest and max(shifts) <= MOST_SHIFT:
        return None
    return (
        f"max_shift: found {high}, with which the shift of an image is {min(shifts):g} to {max(shifts):g}, expected "
        f"{smallest:g} to {MOST_SHIFT:g}; base_shift is {low}, base_image_seq_len {least}, max_image_seq_len {most}"
    )


def _control_places(config: Config) -> str | None:
    places = config["control_layers_places"]
    if places[0] != 0 or any(one >= other for one, other in pairwise(places)):
        return f"control_layers_places: found {places}, expected rising numbers of layers from 0 on"
    kind, refining = config.get("add_control_noise_refiner"), config.get("control_refiner_layers_places")
    if kind is None:
        return None
    most = len(places) if kind == "control_layers" else config.get("n_refiner_layers", 2)
    if refining is None or len(refining) > most:
        return f"control_refiner_layers_places: found {refining}, expected a list of at most {most} with add_control_noise_refiner {kind!r}"
    return None


_RELATIONS: Mapping[str, tuple[Callable[[Config], str | None], ...]] = {
    "transformer/config.json": (_patches, _heads, _positions),
    "text_encoder/config.json": (_text_heads, _text_layers, _text_ids),
    "vae/config.json": (_groups,),
    CONTROL_CONFIG: (_control_places,),
    "scheduler/scheduler_config.json": (_sigmas, _shifts),
}
"""What holds between the fields of one config: each returns what is wrong, beginning with the field."""


def check_widths(small: Mapping[str, bytes]) -> None:
    """Check that the transformer takes what the text encoder and the VAE give.

    Raises:
        Rejection: `config_invalid`, as `check_configs`.
    """
    path = "transformer/config.json"
    transformer, text, vae = _of_networks(small)
    pairs = (
        (
            "cap_feat_dim",
            transformer.get("cap_feat_dim", 2560),
            "hidden_size of text_encoder",
            text.get("hidden_size", 4096),
        ),
        ("in_channels", transformer.get("in_channels", 16), "latent_channels of vae", vae.get("latent_channels", 4)),
    )
    for key, found, other, expected in pairs:
        if found != expected:
            raise Rejection(
                "config_invalid", f"{path}: {key}: found {found}, expected {expected}, the {other}/config.json"
            )
    if CONTROL_CONFIG in small:
        _check_control(config_object(small[CONTROL_CONFIG], CONTROL_CONFIG), transformer)


def _check_control(control: Config, transformer: Config) -> None:
    """Check that a ControlNet is made for the transformer beside it."""
    places = control["control_layers_places"]
    if places[-1] >= (layers := transformer.get("n_layers", 30)):
        raise Rejection(
            "config_invalid",
            f"{CONTROL_CONFIG}: control_layers_places: found {places}, expected numbers below n_layers of transformer/config.json, {layers}",
        )
    for key, default in {"dim": 3840, "n_heads": 30, "qk_norm": True}.items():
        found, expected = control.get(key, default), transformer.get(key, default)
        if found != expected:
            raise Rejection(
                "config_invalid",
                f"{CONTROL_CONFIG}: {key}: found {found}, expected {expected} as in transformer/config.json: it is a ControlNet for another model",
            )
    if control["control_in_dim"] < (channels := transformer.get("in_channels", 16)):
        raise Rejection(
            "config_invalid",
            f"{CONTROL_CONFIG}: control_in_dim: found {control['control_in_dim']}, expected at least in_channels of transformer/config.json, {channels}",
        )


def _of_networks(small: Mapping[str, bytes]) -> list[dict[str, Any]]:
    paths = [f"{name}/config.json" for name in ("transformer", "text_encoder", "vae")]
    return [config_object(small[path], path) for path in paths]


def check_together(small: Mapping[str, bytes], size: int, last_token: tuple[str, int]) -> None:
    """Check what holds between the configs of a version whose weights fit them: `size` is the side length in pixels that
    images have at least, `last_token` the tokenizer's token with the largest id.

    Raises:
        Rejection: `config_invalid`, as `check_configs`.
    """
    check_widths(small)
    transformer, text, _ = _of_networks(small)
    path = "transformer/config.json"
    rows, columns = transformer.get("axes_lens", [1024, 512, 512])[1:]
    if min(rows, columns) * LATENT_SCALE * _PATCH < size:
        raise Rejection(
            "config_invalid",
            f"{path}: axes_lens: found {rows} x {columns} positions, which are of {LATENT_SCALE * _PATCH} pixels each, expected "
            f"enough for an image of {size} x {size} pixels",
        )
    token, largest = last_token
    if largest >= (tokens := text.get("vocab_size", 151936)):
        raise Rejection(
            "config_invalid",
            f"{_origin(small, token)}: found the token {_shown(token)} with the id {largest}, expected ids below {tokens}, the "
            "vocab_size of text_encoder/config.json",
        )


def _origin(small: Mapping[str, bytes], token: str) -> str:
    """Return the file, and in the tokenizer's config the field, that adds a token to the vocabulary."""
    path = "tokenizer/tokenizer_config.json"
    for key, value in config_object(small[path], path).items():
        for one in value if isinstance(value, list) else value.values() if isinstance(value, dict) else (value,):
            if token == (one.get("content") if isinstance(one, dict) else one):
                return f"{path}: {key}"
    return "tokenizer/tokenizer.json"
