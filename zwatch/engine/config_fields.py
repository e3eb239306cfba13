"""The fields of a version's configs that the allowed classes read: the type and the range of each.

Fields that are not listed are left to the libraries, because their newer versions add fields.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from zwatch.deploy.pipeline_files import CONTROL_CONFIG

MAX_PROMPT_TOKENS = 512
"""`max_sequence_length` of ZImagePipeline; longer prompts are truncated."""
LATENT_SCALE = 8
"""How many times smaller the sides of the VAE's latents are than those of the image."""
WARM_SIZE = 256
"""Largest side of the warm-up's image, pixels."""
_LEVELS = 4
"""Of the VAE: each but the first halves the sides, so that it shrinks images 8 times."""
MOST_SHIFT = 50.0
"""`exp` of more is no useful shift of the timesteps."""


class Rule(NamedTuple):
    """What a field may be, in words and as a predicate; `fields` are the rules of an object's own fields."""

    expected: str
    accepts: Callable[[Any], bool]
    fields: "Mapping[str, Rule] | None" = None
    required: bool = False


def _whole(least: int, most: int) -> Rule:
    return Rule(f"a whole number from {least} to {most}", lambda value: type(value) is int and least <= value <= most)


def _number(least: float, most: float) -> Rule:
    # NaN is in no range.
    return Rule(
        f"a number from {least:g} to {most:g}",
        lambda value: type(value) in (int, float) and least <= value <= most,
    )


def _one_of(*values: object) -> Rule:
    shown = " or ".join(json.dumps(value) for value in values)
    return Rule(shown, lambda value: any(type(value) is type(one) and value == one for one in values))


def _list_of(rule: Rule, least: int = 1, most: int = 64) -> Rule:
    return Rule(
        f"a list of {least if least == most else f'{least} to {most}'}, each {rule.expected}",
        lambda value: isinstance(value, list) and least <= len(value) <= most and all(map(rule.accepts, value)),
    )


def _levels(rule: Rule) -> Rule:
    """Return the rule of a list with an entry for each level of the VAE."""
    return _list_of(rule, _LEVELS, _LEVELS)


def _either(*rules: Rule) -> Rule:
    return Rule(
        " or ".join(rule.expected for rule in rules),
        lambda value: any(rule.accepts(value) for rule in rules),
        next((rule.fields for rule in rules if rule.fields), None),
    )


def _required(rule: Rule) -> Rule:
    return rule._replace(required=True)


_FLAG = Rule("true or false", lambda value: type(value) is bool)
_TEXT = Rule("a string", lambda value: isinstance(value, str))
_NULL = Rule("null", lambda value: value is None)
_OBJECT = Rule("an object", lambda value: isinstance(value, dict))
_WIDTH = _whole(1, 2**18)
_LAYERS = _whole(1, 512)
_EPSILON = _number(1e-15, 0.1)
_THETA = _number(1, 1e10)
_TOKEN_ID = _whole(0, 2**24)
_POSITIVE = _number(1e-6, 1e6)
_ACTIVATION = _one_of("silu", "swish", "mish", "gelu", "relu")
_ANY_CASE = Rule(
    f"{_ACTIVATION.expected}, in any case", lambda value: isinstance(value, str) and _ACTIVATION.accepts(value.lower())
)
"""As diffusers takes it."""
_TEXT_ACTIVATION = _one_of(
    "silu", "swish", "mish", "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "quick_gelu", "relu", "relu2", "relu6", "sigmoid",
    "sqrtsoftplus", "tanh",
)  # fmt: skip
"""Of transformers, those without weights of their own."""
_ADDED = "AddedToken"
_TOKEN = Rule(
    "a string or an AddedToken with its content",
    lambda value: (
        isinstance(value, str)
        or (isinstance(value, dict) and value.get("__type") == _ADDED and isinstance(value.get("content"), str))
    ),
)
_TOKENS = _list_of(_TOKEN, 0, 4096)
_NAMED_TOKENS = Rule(
    "an object of tokens", lambda value: isinstance(value, dict) and all(map(_TOKEN.accepts, value.values()))
)
_LAYER_TYPES = _list_of(_one_of("full_attention", "sliding_attention"), 1, 512)


def _class(name: str) -> dict[str, Rule]:
    return {"_class_name": _one_of(name), "_diffusers_version": _TEXT}


_ROPE = Rule(
    "an object", _OBJECT.accepts,
    {
        "rope_theta": _THETA,
        "rope_type": _one_of("default", "linear", "dynamic", "yarn", "longrope", "llama3"),
        "type": _one_of("default", "linear", "dynamic", "yarn", "longrope", "llama3"),
        "factor": _number(1, 1e4),
        "original_max_position_embeddings": _whole(1, 2**24),
        "partial_rotary_factor": _number(0.01, 1),
        "short_factor": _list_of(_POSITIVE, 1, 4096),
        "long_factor": _list_of(_POSITIVE, 1, 4096),
        "truncate": _FLAG,
        **dict.fromkeys(
            ("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "low_freq_factor", "high_freq_factor"),
            _either(_POSITIVE, _NULL),
        ),
    },
)  # fmt: skip

FIELDS: Mapping[str, Mapping[str, Rule]] = {
    "transformer/config.json": {
        **_class("ZImageTransformer2DModel"),
        "all_patch_size": _list_of(_whole(1, 64), 1, 8),
        "all_f_patch_size": _list_of(_whole(1, 64), 1, 8),
        "in_channels": _whole(1, 1024),
        "dim": _WIDTH,
        "n_layers": _LAYERS,
        "n_refiner_layers": _LAYERS,
        "n_heads": _whole(1, 4096),
        "n_kv_heads": _whole(1, 4096),
        "norm_eps": _EPSILON,
        "qk_norm": _FLAG,
        "cap_feat_dim": _WIDTH,
        "siglip_feat_dim": _either(_WIDTH, _NULL),
        "rope_theta": _THETA,
        "t_scale": _number(1e-3, 1e6),
        "axes_dims": _list_of(_whole(2, 4096), 3, 3),
        "axes_lens": _list_of(_whole(1, 2**16), 3, 3),
    },
    "text_encoder/config.json": {
        "model_type": _one_of("qwen3"),
        "architectures": _either(_list_of(_TEXT), _NULL),
        "vocab_size": _whole(1, 2**24),
        "hidden_size": _WIDTH,
        "intermediate_size": _WIDTH,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _whole(1, 4096),
        "num_key_value_heads": _either(_whole(1, 4096), _NULL),
        "head_dim": _whole(2, 4096),
        "hidden_act": _TEXT_ACTIVATION,
        "max_position_embeddings": _whole(MAX_PROMPT_TOKENS, 2**24),
        "initializer_range": _number(0, 100),
        "rms_norm_eps": _EPSILON,
        "use_cache": _FLAG,
        "tie_word_embeddings": _FLAG,
        "rope_theta": _either(_THETA, _NULL),
        "rope_scaling": _either(_ROPE, _NULL),
        "rope_parameters": _either(_ROPE, _NULL),
        "partial_rotary_factor": _number(0.01, 1),
        "attention_bias": _FLAG,
        "attention_dropout": _number(0, 1),
        "use_sliding_window": _FLAG,
        "sliding_window": _either(_whole(1, 2**24), _NULL),
        "max_window_layers": _whole(0, 2**16),
        "layer_types": _either(_LAYER_TYPES, _NULL),
        "pad_token_id": _either(_TOKEN_ID, _NULL),
        "bos_token_id": _either(_TOKEN_ID, _NULL),
        "eos_token_id": _either(_TOKEN_ID, _list_of(_TOKEN_ID), _NULL),
        **dict.fromkeys(("dtype", "torch_dtype"), _either(_one_of("bfloat16", "float16", "float32"), _NULL)),
        "transformers_version": _either(_TEXT, _NULL),
    },
    "vae/config.json": {
        **_class("AutoencoderKL"),
        **dict.fromkeys(("in_channels", "out_channels"), _one_of(3)),
        "down_block_types": _required(_levels(_one_of("DownEncoderBlock2D", "AttnDownEncoderBlock2D"))),
        "up_block_types": _required(_levels(_one_of("UpDecoderBlock2D", "AttnUpDecoderBlock2D"))),
        "block_out_channels": _required(_levels(_whole(1, 2**16))),
        "layers_per_block": _whole(1, 64),
        "act_fn": _ANY_CASE,
        "latent_channels": _whole(1, 1024),
        "norm_num_groups": _whole(1, 2**16),
        "sample_size": _either(_whole(1, 2**16), _list_of(_whole(1, 2**16), 2, 2)),
        "scaling_factor": _number(1e-3, 1e3),
        "shift_factor": _required(_number(-1e3, 1e3)),
        **dict.fromkeys(("latents_mean", "latents_std"), _either(_list_of(_number(-1e6, 1e6), 1, 1024), _NULL)),
        **dict.fromkeys(("force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"), _FLAG),
    },
    CONTROL_CONFIG: {
        **_class("ZImageControlNetModel"),
        "control_layers_places": _required(_list_of(_whole(0, 511), 1, 512)),
        "control_refiner_layers_places": _either(_list_of(_whole(0, 511), 1, 512), _NULL),
        "control_in_dim": _required(_whole(1, 1024)),
        "add_control_noise_refiner": _either(_one_of("control_layers", "control_noise_refiner"), _NULL),
        "all_patch_size": _list_of(_one_of(2), 1, 1),
        "all_f_patch_size": _list_of(_one_of(1), 1, 1),
        "dim": _WIDTH,
        "n_refiner_layers": _LAYERS,
        "n_heads": _whole(1, 4096),
        "n_kv_heads": _whole(1, 4096),
        "norm_eps": _EPSILON,
        "qk_norm": _FLAG,
    },
    "scheduler/scheduler_config.json": {
        **_class("FlowMatchEulerDiscreteScheduler"),
        "num_train_timesteps": _whole(2, 100_000),
        "shift": _number(1e-3, 1e3),
        **dict.fromkeys(("base_shift", "max_shift"), _either(_number(-MOST_SHIFT, MOST_SHIFT), _NULL)),
        **dict.fromkeys(("base_image_seq_len", "max_image_seq_len"), _either(_whole(1, 2**24), _NULL)),
        "shift_terminal": _either(_number(0, 0.99), _NULL),
        "time_shift_type": _one_of("exponential", "linear"),
        **dict.fromkeys(
            (
                "use_dynamic_shifting", "invert_sigmas", "use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas",
                "stochastic_sampling",
            ),
            _either(_FLAG, _NULL),
        ),
    },
    "tokenizer/tokenizer_config.json": {
        # Not used: the pipeline says how long a prompt may be.
        "model_max_length": _either(_number(1, 1e31), _NULL),
        "chat_template": _either(_TEXT, _list_of(_OBJECT), _NULL),
        "add_prefix_space": _either(_FLAG, _NULL),
        **dict.fromkeys(("bos_token", "eos_token", "unk_token"), _either(_TOKEN, _NULL)),
        "pad_token": _TOKEN,
        "extra_special_tokens": _either(_TOKENS, _NAMED_TOKENS),
        "additional_special_tokens": _either(_TOKENS, _NULL),
        "added_tokens_decoder": _OBJECT,
        **dict.fromkeys(("padding_side", "truncation_side"), _one_of("left", "right")),
        **dict.fromkeys(("clean_up_tokenization_spaces", "split_special_tokens", "errors"), _either(_FLAG, _TEXT, _NULL)),
        # A path here would be read although the seal does not name it.
        **dict.fromkeys(("vocab_file", "merges_file", "tokenizer_file", "vocab", "merges"), _NULL),
        "init_inputs": _list_of(_NULL, 0, 0),
    },
}  # fmt: skip
"""The rules of each config, by path and field."""
