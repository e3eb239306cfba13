"""Which files of a directory a Z-Image pipeline needs: the rule over names that sealing and importing share.

What is needed is what the engine reads (`zwatch.engine.components` and the tokenizer's library), and what a version says of
itself. Everything else is left out by name. Nothing here opens a file: `read` gives the bytes of the few that decide.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from zwatch.deploy import golden
from zwatch.errors import Rejection

INDEX = "model_index.json"
PIPELINE = "ZImagePipeline"
WEIGHTS_SUFFIX = ".safetensors"
WEIGHTS = {
    "text_encoder": "text_encoder/model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "controlnet": "controlnet/diffusion_pytorch_model.safetensors",
}
"""The one weight file of each component that has weights; with `.index.json`, the index of its shards."""

REQUIRED = (
    INDEX, "scheduler/scheduler_config.json", "text_encoder/config.json", "tokenizer/tokenizer_config.json",
    "transformer/config.json", "vae/config.json",
)  # fmt: skip
"""Files without which no pipeline loads, besides weights and the tokenizer's vocabulary."""

CONTROLNET = "controlnet"
"""The component that a pipeline need not have: its files are needed where the index names it."""
CONTROL_CONFIG = f"{CONTROLNET}/config.json"

OPTIONAL = (
    golden.NAME, "zwatch.json", "text_encoder/generation_config.json", "tokenizer/added_tokens.json",
    "tokenizer/chat_template.jinja", "tokenizer/chat_template.json", "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json", "tokenizer/tokenizer.json", "tokenizer/vocab.json",
)  # fmt: skip
"""Files that belong to a pipeline where they are. transformers reads the tokenizer's, by these names."""

OPTIONAL_FOLDERS = ("tokenizer/additional_chat_templates/",)
"""Folders of which every file belongs to a pipeline."""

VOCABULARY = frozenset(
    f"tokenizer/{name}"
    for name in ("added_tokens.json", "merges.txt", "special_tokens_map.json", "tokenizer.json", "vocab.json")
)
"""The tokenizer's files that belong to one vocabulary."""
_VOCABULARIES = ({"tokenizer/tokenizer.json"}, {"tokenizer/vocab.json", "tokenizer/merges.txt"})
_COMPLETE = "complete the copy, or take it from another version: `zwatch import DIR NAME --base VERSION`"
_COMPONENTS = (CONTROLNET, "scheduler", "text_encoder", "tokenizer", "transformer", "vae")
_LORA = re.compile(r"(^|[^a-z])(lora|loha|lokr)([^a-z]|$)|^adapter_model\b")
_PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
_MOST_SHOWN = 20
_PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".svg", ".avif", ".bmp", ".tif", ".tiff", ".mp4", ".webm")
_TEXTS = re.compile(r"(readme|licen[cs]e|notice|copying|changelog|use_policy)(\W.*)?|.*\.(md|rst)")


@dataclass(frozen=True, slots=True)
class Selection:
    """The files of a pipeline directory: those that it needs, sorted, and why each other one is left out, by path."""

    needed: tuple[str, ...]
    left_out: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def summary(self) -> str:
        """What is left out, short: folders of which nothing is needed with how many files they have, then single files."""
        kept = {folder for path in self.needed for folder in _folders(path)}
        counts: Counter[str] = Counter()
        for path in self.left_out:
            counts[next((folder for folder in _folders(path) if folder not in kept), path)] += 1
        shown = sorted(counts)[:_MOST_SHOWN]
        names = [
            _printable(name) + (f" ({_files(counts[name])})" if name not in self.left_out else "") for name in shown
        ]
        rest = sum(counts.values()) - sum(counts[name] for name in shown)
        return ", ".join(names) + (f" and {_files(rest)} more" if rest else "")


def select(names: Iterable[str], read: Callable[[str], bytes]) -> Selection:
    """Select what a pipeline needs from the relative paths of all files of its directory.

    `read` returns the bytes of a file by its path; it is called for `model_index.json`, `golden.json` and the indexes of shards alone.

    Raises:
        Rejection: the directory cannot serve; the reason names the file and what to do.
        Whatever `read` raises.
    """
    there = set(names)
    if loras := sorted(filter(is_lora_name, there)):
        raise lora(loras[0])
    _check_index(there, read)
    needed = {
        path for path in there if path in OPTIONAL or (path.startswith(OPTIONAL_FOLDERS) and not _is_hidden(path))
    }
    needed |= _golden_images(there, read)
    for path in REQUIRED:
        if path not in there:
            raise Rejection("file_missing", f"{path}: it is not there, every pipeline needs it; {_COMPLETE}")
        needed.add(path)
    has_control = names_control(_json(INDEX, read))
    if has_control:
        if CONTROL_CONFIG not in there:
            raise Rejection(
                "file_missing", f"{CONTROL_CONFIG}: it is not there, and {INDEX} names a {CONTROLNET}; {_COMPLETE}"
            )
        needed.add(CONTROL_CONFIG)
    for component in WEIGHTS:
        if component != CONTROLNET or has_control:
            needed |= _weights(component, there, read)
    if not any(there >= vocabulary for vocabulary in _VOCABULARIES):
        raise Rejection(
            "file_missing",
            f"tokenizer/tokenizer.json: it is not there, and neither are tokenizer/vocab.json and merges.txt; {_COMPLETE}",
        )
    return Selection(tuple(sorted(needed)), MappingProxyType({path: _reason(path) for path in sorted(there - needed)}))


def names_control(index: Mapping[str, Any]) -> bool:
    """Say whether a pipeline's index names a ControlNet; one that is left out is [null, null]."""
    entry = index.get(CONTROLNET)
    return isinstance(entry, list) and entry != [None, None]


def _golden_images(there: Collection[str], read: Callable[[str], bytes]) -> set[str]:
    """Return the images that golden.json names, if it is there."""
    if golden.NAME not in there:
        return set()
    named = [picture.image for picture in golden.parse(read(golden.NAME))]
    if missing := [path for path in named if path not in there]:
        raise Rejection(
            "file_missing",
            f"{missing[0]}{_and_more(missing)}: {golden.NAME} names it, it is not there; complete the copy, make the images with "
            f"`zwatch golden NAME --prompts FILE`, or remove {golden.NAME}",
        )
    return set(named)


def is_lora_name(path: str) -> bool:
    """Say whether a file's name says that it is a LoRA: weights that change a transformer's."""
    folder, _, name = path.lower().rpartition("/")
    return (
        not _is_hidden(path)
        and folder in ("", *_COMPONENTS)
        and name.endswith((WEIGHTS_SUFFIX, *_PICKLES))
        and _LORA.search(name) is not None
    )


def lora(path: str) -> Rejection:
    """Return the rejection of a LoRA inside a pipeline."""
    return Rejection(
        "weights_mismatch",
        f"{path}: this is a LoRA, and nothing in a version applies it; merge it into a version of its own with "
        "`zwatch import FILE NAME --base VERSION`, FILE being its path, or move it out of the directory",
    )


def _check_index(there: Collection[str], read: Callable[[str], bytes]) -> None:
    """Check that the directory has the index of a Z-Image pipeline."""
    if not there:
        raise Rejection("file_missing", "the directory is empty; make a version with `zwatch import SOURCE NAME`")
    if INDEX not in there:
        raise Rejection(
            "file_missing",
            f"{INDEX}: it is not there, so this is no diffusers pipeline; if these are weights of Z-Image in another layout, "
            "make a version of them with `zwatch import SOURCE NAME`",
        )
    found = _json(INDEX, read).get("_class_name")
    if found != PIPELINE:
        raise Rejection(
            "class_not_allowed",
            f"{INDEX}: _class_name is {str(found)[:80]!r}, expected {PIPELINE!r}: only Z-Image can be served",
        )


def _weights(component: str, there: Collection[str], read: Callable[[str], bytes]) -> set[str]:
    """Return the weight files of a component, and the index that names them if there is one."""
    one = WEIGHTS[component]
    index = f"{one}.index.json"
    if index not in there:
        if one not in there:
            raise Rejection("file_missing", _no_weights(component, one, there))
        return {one}
    named = _json(index, read).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise Rejection("config_invalid", f"{index}: its weight_map must be an object that names files")
    shards = {f"{component}/{name}" for name in named.values()}
    if odd := sorted(shard for shard in shards if not shard.endswith(WEIGHTS_SUFFIX)):
        raise Rejection("config_invalid", f"{index}: names {odd[0]}, expected files that end in {WEIGHTS_SUFFIX}")
    if missing := sorted(shards - set(there)):
        raise Rejection(
            "file_missing", f"{missing[0]}{_and_more(missing)}: {index} names it, it is not there; {_COMPLETE}"
        )
    return {index, *shards}


def _no_weights(component: str, one: str, there: Collection[str]) -> str:
    """Return why a component has no weights that can be read, by what is there instead, and what to do."""
    stem = one.removesuffix(WEIGHTS_SUFFIX)
    beside = sorted(path for path in there if path.startswith(f"{component}/"))
    shards = [path for path in beside if re.fullmatch(rf"{re.escape(stem)}-\d+-of-\d+\.safetensors", path)]
    variants = [path for path in beside if path.startswith(f"{stem}.") and WEIGHTS_SUFFIX in path]
    pickles = [path for path in beside if path.endswith(_PICKLES)]
    others = [path for path in beside if path.endswith((WEIGHTS_SUFFIX, ".gguf"))]
    for found, what in (
        (shards, f"a shard, but {one}.index.json, which says what is in which shard, is not there; {_COMPLETE}"),
        (variants, f"the name of a variant, expected {one}; `zwatch import DIR NAME` makes a version of it"),
        (pickles, f"a pickle, which can run code and is never read, expected {one}; save it as safetensors"),
        (others, f"not a name that is read, expected {one}; `zwatch import DIR NAME` makes a version of other layouts"),
    ):
        if found:
            return f"{found[0]}{_and_more(found)}: this is {what}"
    return f"{one}: it is not there, and neither is {one}.index.json; {_COMPLETE}"


def is_config(path: str) -> bool:
    """Say whether a file of a pipeline is JSON, an object each."""
    return path in (*REQUIRED, CONTROL_CONFIG, *OPTIONAL) and path.endswith(".json")


def check_config(path: str, data: bytes) -> None:
    """Check that the bytes of a file of a pipeline are a JSON object.

    Raises:
        Rejection: `config_invalid`: they are none.
    """
    _json(path, lambda path: data)


def _json(path: str, read: Callable[[str], bytes]) -> dict[str, Any]:
    try:
        found = json.loads(read(path))
    except (ValueError, RecursionError) as error:
        raise Rejection("config_invalid", f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Rejection("config_invalid", f"{path}: expected a JSON object, found {type(found).__name__}")
    return found


def _reason(path: str) -> str:
    """Return why a file is left out."""
    name = path.lower().rpartition("/")[2]
    if _is_hidden(path):
        return "a hidden file"
    if _TEXTS.fullmatch(name):
        return "a text for people"
    if name.endswith(_PICTURES):
        return "a picture"
    if name.endswith(_PICKLES):
        return "a pickle, which is never read"
    if name.endswith(WEIGHTS_SUFFIX):
        return "weights that no component names"
    return "nothing reads it"


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") for part in path.split("/"))


def _folders(path: str) -> list[str]:
    """Return the folders that hold a path, the outermost first."""
    parts = path.split("/")
    return ["/".join(parts[:number]) for number in range(1, len(parts))]


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)[1:-1]


def _and_more(paths: Collection[str]) -> str:
    return f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
