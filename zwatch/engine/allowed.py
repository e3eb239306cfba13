"""What a version's configs say before anything is built, without torch: which classes its components have, whether zwatch's own
networks cover them, and under which names their tensors are loaded."""

from collections.abc import Mapping
from typing import Any, TypeVar

from zwatch.deploy.pipeline_files import CONTROL_CONFIG, CONTROLNET
from zwatch.engine.config_fields import FIELDS
from zwatch.engine.configs import config_object
from zwatch.engine.networks.configs import AutoencoderConfig, TextConfig, TransformerConfig
from zwatch.errors import Rejection

INDEX = "model_index.json"
PIPELINE = "ZImagePipeline"
ALLOWED: Mapping[str, tuple[tuple[str, str], ...]] = {
    "tokenizer": (("transformers", "Qwen2Tokenizer"), ("transformers", "Qwen2TokenizerFast")),
    "scheduler": (("diffusers", "FlowMatchEulerDiscreteScheduler"),),
    "text_encoder": (("transformers", "Qwen3Model"),),
    "vae": (("diffusers", "AutoencoderKL"),),
    "transformer": (("diffusers", "ZImageTransformer2DModel"),),
    CONTROLNET: (("diffusers", "ZImageControlNetModel"),),
}
"""The (library, class) pairs that may be built for each component."""
OPTIONAL = CONTROLNET
"""The component that a version need not have."""
CALLING = frozenset({
    "attn_implementation", "experts_implementation", "chunk_size_feed_forward", "id2label", "is_encoder_decoder", "label2id",
    "num_labels", "output_attentions", "output_hidden_states", "problem_type", "return_dict",
})  # fmt: skip
"""Fields of every library's config that say how a model is called, not what it computes: the pipeline decides that, and an
implementation can name code on a hub."""

Value = TypeVar("Value")


def component_classes(small: Mapping[str, bytes]) -> dict[str, tuple[str, str]]:
    """Return (library, class) by component from the pipeline's index, each checked against the allow-list.

    Raises:
        Rejection: `file_missing`, `config_invalid` or `class_not_allowed`.
    """
    if INDEX not in small:
        raise Rejection("file_missing", f"{INDEX}: the seal does not name it; is this a diffusers pipeline?")
    index = config_object(small[INDEX], INDEX)
    if index.get("_class_name") != PIPELINE:
        raise Rejection(
            "class_not_allowed", f"{INDEX}: _class_name is {index.get('_class_name')!r}, expected {PIPELINE!r}"
        )
    needed = set(ALLOWED) - {OPTIONAL}
    # Besides components there may be settings, which are no lists, and components that are left out, [null, null].
    entries = {
        name: entry
        for name, entry in index.items()
        if name in needed or (isinstance(entry, list) and entry != [None, None] and not name.startswith("_"))
    }
    if set(entries) - {OPTIONAL} != needed:
        raise Rejection(
            "config_invalid",
            f"{INDEX}: has the components {sorted(entries)}, expected {sorted(needed)}, and perhaps {OPTIONAL}",
        )
    for name, entry in entries.items():
        if not isinstance(entry, list) or tuple(map(str, entry)) not in ALLOWED[name]:
            allowed = " or ".join(".".join(pair) for pair in ALLOWED[name])
            raise Rejection("class_not_allowed", f"{INDEX}: {name} is {entry!r}, only {allowed} is allowed")
    if OPTIONAL in entries and CONTROL_CONFIG not in small:
        raise Rejection("file_missing", f"{CONTROL_CONFIG}: the seal does not name it, but {INDEX} names a {OPTIONAL}")
    return {name: (entry[0], entry[1]) for name, entry in entries.items()}


def is_known(path: str, config: Mapping[str, Any]) -> bool:
    """Return whether every field of a config is one that is known: what a newer library's field means only it can tell."""
    return all(name in FIELDS[path] or name in CALLING or name.startswith("_") for name in config)


def own_transformer(config: Mapping[str, Any]) -> TransformerConfig | None:
    """Return the config of zwatch's own transformer; None if it does not cover this one."""
    return TransformerConfig.of(config) if is_known("transformer/config.json", config) else None


def own_vae(config: Mapping[str, Any]) -> AutoencoderConfig | None:
    """Return the config of zwatch's own autoencoder; None if it does not cover this one."""
    return AutoencoderConfig.of(config) if is_known("vae/config.json", config) else None


def own_text_encoder(config: Mapping[str, Any]) -> TextConfig | None:
    """Return the config of zwatch's own text encoder; None if it does not cover this one."""
    return TextConfig.of(config) if is_known("text_encoder/config.json", config) else None


def computing(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a text encoder's config that say what it computes."""
    return {name: value for name, value in config.items() if name not in CALLING and not name.startswith("_")}


def without_head(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """Return tensors as Qwen3Model names them. Files saved from Qwen3ForCausalLM have them under "model.", and a language head,
    which is not used."""
    if all(name.startswith("model.") or name == "lm_head.weight" for name in tensors):
        return {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    return dict(tensors)


def as_loaded(component: str, tensors: Mapping[str, Value]) -> dict[str, Value]:
    """Return what a component's files have, by the names under which it is loaded."""
    return without_head(tensors) if component == "text_encoder" else dict(tensors)
