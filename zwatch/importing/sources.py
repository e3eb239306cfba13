"""What SOURCE is: a pipeline's directory, a component's, ComfyUI's directories, or one file; and which of its files count."""

import json
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from zwatch.deploy import contents, golden, pipeline_files
from zwatch.deploy.header import WEIGHTS_SUFFIX
from zwatch.deploy.seal import SEAL_NAME, parse_seal
from zwatch.errors import Refused, Rejection
from zwatch.importing import caches, reading
from zwatch.importing.reading import SourceFile

COMPONENTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")
_FOLDERS = (*COMPONENTS, pipeline_files.CONTROLNET)
INDEX_SUFFIX = f"{WEIGHTS_SUFFIX}.index.json"
_COMFY = {"diffusion_models": "transformer", "unet": "transformer", "text_encoders": "text_encoder", "clip": "text_encoder", "vae": "vae"}  # fmt: skip
"""ComfyUI's folders of models, old names and new, and the components in them."""
_CLASSES = {
    "ZImageTransformer2DModel": "transformer", "AutoencoderKL": "vae", "Qwen3Model": "text_encoder",
    "Qwen3ForCausalLM": "text_encoder", "ZImageControlNetModel": pipeline_files.CONTROLNET,
}  # fmt: skip
_VARIANT = re.compile(
    r"(?P<stem>[A-Za-z0-9_]+?)(?:\.(?P<early>[A-Za-z0-9_]+))?(?P<shard>-[0-9]+-of-[0-9]+)?(?:\.(?P<late>[A-Za-z0-9_]+))?\.safetensors"
)
_INDEX = re.compile(r"(?P<stem>[A-Za-z0-9_]+)\.safetensors\.index(?:\.(?P<variant>[A-Za-z0-9_]+))?\.json")
_LONE = (WEIGHTS_SUFFIX, ".gguf")
"""What a lone file of weights may end in."""
_OWN = (SEAL_NAME, "BLAKE3SUMS.sig", "model.sig")
"""What a version has beside its files: it is made anew."""
_MOST_NAMES = 100_000


@dataclass(frozen=True, slots=True)
class Found:
    """What a source has. `small` are all files but weights, by their path in a version; `weights` are the files of a component's
    weights with their names in its folder; `files` are lone files whose layout is to be recognised; `others` are the paths of what is not
    taken; `watched` decided about what is, and must stay as they are, too; `loras` are merged beside, with their scales; `golden` are
    golden.json and the images that it names."""

    kind: str
    path: Path
    repository: str | None = None
    revision: str | None = None
    licence: str | None = None
    small: Mapping[str, SourceFile] = field(default_factory=dict)
    weights: Mapping[str, tuple[tuple[str, SourceFile], ...]] = field(default_factory=dict)
    files: tuple[SourceFile, ...] = ()
    notes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    watched: tuple[SourceFile, ...] = ()
    loras: tuple[tuple[SourceFile, float], ...] = ()
    golden: Mapping[str, SourceFile] = field(default_factory=dict)


def find(source: Path, preferred: str | None) -> Found:
    """Look at a source. `preferred` is the variant (`bf16`) that is taken where there are several, None the plain names.

    Raises:
        Refused: it is nothing that can be imported; the reason says what to do.
        OSError: it cannot be read.
    """
    if not source.exists():
        if caches.is_hub_name(str(source)):
            raise Refused(f"{source}: no such file or directory, and nothing is downloaded here; run `hf download {source}` and give the directory that it prints")  # fmt: skip
        if source.is_symlink():
            raise Refused(f"{source}: the link leads to {os.readlink(source)}, which is not there; is the download complete?")  # fmt: skip
        raise Refused(f"{source}: no such file or directory")
    source = source.absolute()  # an interrupted import may go on from another directory
    if not source.is_dir():
        file = _lone(source, source.name)
        repository, revision = caches.of_file(source)
        return Found("single_file", source, repository, revision, files=(file,))
    origin = caches.origin(source)
    directory = origin.directory
    licence = caches.licence(directory) or (caches.licence(origin.whole) if origin.whole else None)
    found = _directory(directory, preferred)
    if found.kind == "diffusers" and not found.files:
        sealed = (directory / SEAL_NAME).is_file() and pipeline_files.INDEX in found.small
        kind = "version" if sealed and origin.kind == "diffusers" else origin.kind
        found = replace(found, kind="transformer" if kind == "diffusers" and set(found.weights) == {"transformer"} and pipeline_files.INDEX not in found.small else kind)  # fmt: skip
    return replace(found, path=source, repository=origin.repository, revision=origin.revision, licence=licence)


def find_lora(path: Path) -> Found:
    """Look at a LoRA: `files` has its one file.

    Raises:
        Refused: it is none.
        OSError: it cannot be read.
    """
    found = find(path, None)
    if len(found.files) == 1 and not found.path.name.lower().endswith(".gguf") and contents.is_lora(reading.read_header(found.files[0])):  # fmt: skip
        return replace(found, kind="lora")
    raise Refused(f"{path}: --lora names this, and it is no LoRA; give a LoRA's file, or its directory")


def _directory(directory: Path, preferred: str | None) -> Found:
    if not any(directory.iterdir()):
        raise Refused(f"{directory}: the directory is empty")
    if (directory / pipeline_files.INDEX).exists() or any(map(_is_component, _folders(directory))):
        return _pipeline(directory, preferred)
    if (directory / "config.json").exists():
        component = _component_of(directory)
        names = {path: f"{component}/{path}" for path in _names(directory) if "/" not in path}
        return _sorted_out(directory, names, preferred)
    for place in (directory, directory / "split_files", directory / "models"):
        if any((place / folder).is_dir() for folder in _COMFY):
            return _comfy(place)
    weights = [path for path in sorted(directory.iterdir()) if path.name.endswith(WEIGHTS_SUFFIX)]
    if len(weights) == 1:
        return Found("single_file", directory, files=(_lone(weights[0], weights[0].name),))
    for path in sorted(directory.iterdir()):
        reading.refuse_pickle(path)
    there = sorted(path.name for path in directory.iterdir())
    raise Refused(
        f"{directory}: expected {pipeline_files.INDEX}, a component's folder ({', '.join(_FOLDERS)}), config.json beside "
        f"weights, ComfyUI's folders, or one {WEIGHTS_SUFFIX} file; found {', '.join(there[:10])}"
        + (f" and {len(there) - 10} more" if len(there) > 10 else "")
    )


def _lone(path: Path, name: str) -> SourceFile:
    """Return one file that is to be recognised by its tensors."""
    reading.refuse_pickle(path)
    if not path.name.lower().endswith(_LONE):
        raise Refused(f"{path}: expected a {WEIGHTS_SUFFIX} file or a directory")
    return reading.find(path, name)


def _folders(directory: Path) -> Iterator[Path]:
    return (directory / name for name in _FOLDERS if (directory / name).is_dir())


def _is_component(folder: Path) -> bool:
    """Say whether a folder holds a component as diffusers saves it, perhaps without its config: ComfyUI has a folder `vae` too."""
    names = ("config.json", "scheduler_config.json", "tokenizer_config.json")
    return any((folder / name).exists() for name in names) or (
        folder.name != "vae" and any(path.name.endswith(WEIGHTS_SUFFIX) for path in folder.iterdir())
    )


def _component_of(directory: Path) -> str:
    """Return which component a lone component's directory is, by its config's class."""
    config = reading.read_object(directory / "config.json")
    classes = [config.get("_class_name"), *(config.get("architectures") or [])]
    for name in classes:
        if name in _CLASSES:
            return _CLASSES[name]
    raise Refused(f"{directory / 'config.json'}: its class is {classes[0] or classes[1:]!r}, expected one of {', '.join(_CLASSES)}: only Z-Image can be served")  # fmt: skip


def _comfy(place: Path) -> Found:
    """Return the one file of each of ComfyUI's folders."""
    found: dict[str, SourceFile] = {}
    for folder, component in _COMFY.items():
        files = sorted(path for path in (place / folder).rglob("*") if path.name.endswith(_LONE)) if (place / folder).is_dir() else []  # fmt: skip
        if len(files) > 1 or (files and component in found):
            names = ", ".join(path.relative_to(place).as_posix() for path in files)
            raise Refused(f"{place}: several files may be the {component}: {names}; import one after the other: `zwatch import FILE NAME --base VERSION`")  # fmt: skip
        for path in files:
            found[component] = _lone(path, path.relative_to(place).as_posix())
    if not found:
        raise Refused(f"{place}: ComfyUI's folders {', '.join(_COMFY)} hold no {WEIGHTS_SUFFIX} file")
    return Found("single_file", place, files=tuple(found.values()))


def _pipeline(directory: Path, preferred: str | None) -> Found:
    return _sorted_out(directory, {path: path for path in _names(directory)}, preferred)


def _names(directory: Path) -> list[str]:
    """Return the paths of all files below a directory. Links to directories are followed where a component may be one."""
    found: list[str] = []
    roots = [directory, *(folder for folder in _folders(directory) if folder.is_symlink())]
    for root in roots:
        for folder, folders, names in os.walk(root, onerror=_raise):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            found += [(Path(folder) / name).relative_to(directory).as_posix() for name in sorted(names)]
            if len(found) > _MOST_NAMES:
                raise Refused(f"{directory}: more than {_MOST_NAMES} files; is this the pipeline's own directory?")
    return found


def _raise(error: OSError) -> None:
    raise error


def _sorted_out(directory: Path, names: Mapping[str, str], preferred: str | None) -> Found:
    """Sort a directory's files into weights and others. `names` are their paths in a version, by those below the directory."""
    seals = _sealed_hashes(directory) if SEAL_NAME in names else {}
    weights: dict[str, tuple[tuple[str, SourceFile], ...]] = {}
    small: dict[str, SourceFile] = {}
    notes: list[str] = []
    others: list[str] = []
    beside: dict[str, dict[str, str]] = defaultdict(dict)
    of_golden = {path: reading.find(directory / path, path, seals.get(path)) for path in _golden(directory, names)}
    for path, inside in names.items():
        component, _, name = inside.rpartition("/")
        if component in pipeline_files.WEIGHTS and _may_be_weights(name):
            beside[component][name] = path
        elif _is_small(inside):
            small[inside] = reading.find(directory / path, path, seals.get(path))
        elif inside not in _OWN and path not in of_golden:
            others.append(inside)
            _refuse_lora(directory / path)
    watched: list[SourceFile] = []
    for component, files in beside.items():
        watched += [reading.find(directory / path, path) for name, path in files.items() if _INDEX.fullmatch(name)]
        chosen, note = _weights_of(directory, component, files, preferred)
        weights[component] = tuple(
            (name, reading.find(directory / path, path, seals.get(path))) for name, path in chosen
        )
        taken = {path for _, path in chosen}
        left = {name: path for name, path in files.items() if path not in taken and not _INDEX.fullmatch(name)}
        others += [f"{component}/{name}" for name in left]
        for path in left.values():
            _refuse_lora(directory / path)
        notes += note
    return Found(
        "diffusers",
        directory,
        small=small,
        weights=weights,
        notes=tuple(notes),
        others=tuple(others),
        watched=tuple(watched),
        golden=of_golden,
    )


def _golden(directory: Path, names: Mapping[str, str]) -> list[str]:
    """Return the paths of a pipeline's golden.json and of the images that it names."""
    if names.get(golden.NAME) != golden.NAME:
        return []
    file = reading.find(directory / golden.NAME, golden.NAME)
    try:
        pictures = golden.parse(reading.read_whole(file))
    except Rejection as rejection:
        raise Refused(f"{directory}: {rejection.reason}") from None
    for picture in pictures:
        if picture.image not in names:
            raise Refused(f"{directory / picture.image}: {golden.NAME} names it, it is not there; is the copy complete?")  # fmt: skip
    return [golden.NAME, *(picture.image for picture in pictures)]


def _refuse_lora(path: Path) -> None:
    """Refuse a file that would be left out and is a LoRA by its tensors: it would seem to be part of the version."""
    if not path.name.endswith(WEIGHTS_SUFFIX) or path.name.startswith("."):
        return
    try:
        found = reading.read_header(reading.find(path, path.name))
    except (Refused, OSError):  # nothing reads it
        return
    if contents.is_lora(found):
        raise Refused(f"{path}: this is a LoRA, and nothing in a version applies it; merge it into a version of its own with `zwatch import {path} NAME --base VERSION`, or move it out of the directory")  # fmt: skip


def _may_be_weights(name: str) -> bool:
    is_lora = pipeline_files.is_lora_name(name)
    return not is_lora and (
        _INDEX.fullmatch(name) is not None or name.lower().endswith((WEIGHTS_SUFFIX, ".gguf", *reading.PICKLES))
    )


def _is_small(inside: str) -> bool:
    if inside == golden.NAME:
        return False
    return inside in (
        *pipeline_files.REQUIRED,
        pipeline_files.CONTROL_CONFIG,
        *pipeline_files.OPTIONAL,
    ) or inside.startswith(pipeline_files.OPTIONAL_FOLDERS)


def _sealed_hashes(directory: Path) -> Mapping[str, str]:
    try:
        return parse_seal((directory / SEAL_NAME).read_bytes()).files
    except Rejection as rejection:
        raise Refused(f"{directory}: {rejection.reason}") from None


def _weights_of(
    directory: Path, component: str, files: Mapping[str, str], preferred: str | None
) -> tuple[list[tuple[str, str]], list[str]]:
    """Return the weight files of a component, (name in a version, path below the directory), and what to say about the choice."""
    stem = pipeline_files.WEIGHTS[component].rpartition("/")[2].removesuffix(WEIGHTS_SUFFIX)
    variants: dict[str, list[tuple[str, str]]] = {}
    for name in files:  # indexes first: what they name counts
        if (index := _INDEX.fullmatch(name)) and index["stem"] == stem:
            variants[index["variant"] or ""] = _shards(directory, files[name], files)
    for name, path in files.items():
        match = _VARIANT.fullmatch(name)
        if match and match["stem"] == stem and not match["shard"]:
            variants.setdefault(match["early"] or match["late"] or "", [(f"{stem}{WEIGHTS_SUFFIX}", path)])
    if not variants:
        return _oddly_named(directory, component, files, stem), []
    if preferred in variants or "" in variants:
        choice = preferred if preferred in variants else ""
    elif len(variants) == 1:
        [choice] = variants
    else:
        raise Refused(f"{directory / component}: has the variants {', '.join(sorted(variants))}, and none of them is {preferred or 'plain'}; keep one of them")  # fmt: skip
    assert choice is not None
    others = sorted((other or "the plain one") for other in variants if other != choice)
    note = [f"{component}: took the variant {choice}" + (f", not {', '.join(others)}" if others else "")] if choice else []  # fmt: skip
    return variants[choice], note


def _shards(directory: Path, index: str, files: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return the files that an index of shards names."""
    found = reading.read_whole(reading.find(directory / index, index))
    try:
        named = json.loads(found).get("weight_map")
    except (ValueError, AttributeError, RecursionError) as error:
        raise Refused(f"{directory / index}: not JSON of an index: {error}") from None
    if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
        raise Refused(f"{directory / index}: its weight_map must be an object that names files")
    shards = []
    for name in sorted(set(named.values())):
        reading.refuse_pickle(name)
        if name not in files:
            raise Refused(f"{directory / index}: names {name}, which is not there; is the download complete?")
        match = _VARIANT.fullmatch(name)
        plain = f"{match['stem']}{match['shard'] or ''}{WEIGHTS_SUFFIX}" if match else name
        shards.append((plain, files[name]))
    if len({plain for plain, _ in shards}) < len(shards):
        raise Refused(f"{directory / index}: names files of several variants")
    return shards


def _oddly_named(directory: Path, component: str, files: Mapping[str, str], stem: str) -> list[tuple[str, str]]:
    """Return a component's weights where none has a name that diffusers gives: one file, or shards without an index."""
    weights = sorted(name for name in files if name.endswith(WEIGHTS_SUFFIX))
    if len(weights) == 1 and not re.search("-[0-9]+-of-[0-9]+", weights[0]):
        return [(f"{stem}{WEIGHTS_SUFFIX}", files[weights[0]])]
    matches = [match for name in weights if (match := _VARIANT.fullmatch(name)) and match["shard"]]
    if matches and len(matches) == len(weights) == int(matches[0]["shard"].rpartition("-")[2]):
        return [(f"{stem}{match['shard']}{WEIGHTS_SUFFIX}", files[match.group()]) for match in matches]
    for name in files if not weights else ():
        reading.refuse_pickle(directory / component / name)
    raise Refused(
        f"{directory / component}: expected {stem}{WEIGHTS_SUFFIX}, or shards with their {stem}{INDEX_SUFFIX}; "
        f"found {', '.join(sorted(files))}; is the download complete?"
    )
