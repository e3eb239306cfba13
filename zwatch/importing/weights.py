"""A component's weights, as they are stored and as they will be: recognised by their tensors, before dtypes are decided."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zwatch.deploy import pipeline_files
from zwatch.deploy.header import TensorInfo
from zwatch.errors import Refused, Rejection
from zwatch.importing import pieces, reading
from zwatch.importing.pieces import Table
from zwatch.importing.reading import SourceFile
from zwatch.importing.recipes import Made, Translation, lora_source

ADAPTER_CONFIG = "adapter_config.json"
"""PEFT's config beside the file of a LoRA."""
_OF_CAUSAL_LM = "model."
_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class Weights:
    """A component's weights: the files they will be in, these files' metadata, how each tensor is made, and where its sources
    lie. `layout` is empty where names and values stay; otherwise it and `notes` say what they were."""

    component: str
    files: tuple[tuple[str, SourceFile], ...]
    metadata: Mapping[SourceFile, Mapping[str, str]]
    made: tuple[Made, ...]
    table: Table
    layout: str = ""
    notes: tuple[str, ...] = ()


def of_files(component: str, files: tuple[tuple[str, SourceFile], ...]) -> Weights:
    """Return the weights that the files in a component's folder hold, translated if they are in a layout of others.

    Raises:
        Refused: a file is damaged or is a LoRA, or two files have the same tensor.
        OSError: a file cannot be read.
    """
    headers = {file: reading.read_header(file) for _, file in files}
    table: dict[str, tuple[SourceFile, TensorInfo]] = {}
    for file, found in headers.items():
        if twice := sorted(table.keys() & found.tensors.keys()):
            raise Refused(f"{file.path}: has {twice[0]!r}, which {table[twice[0]][0].path} has too")
        table.update({name: (file, info) for name, info in found.tensors.items()})
    stem = pipeline_files.WEIGHTS[component].rpartition("/")[2]
    named = files if len(files) > 1 else ((stem, files[0][1]),)
    metadata = {file: one.metadata for file, one in headers.items()}
    weights = Weights(component, named, metadata, pieces.identity(table), table)
    try:
        translations = _recognised(table, metadata[files[0][1]])
    except Rejection:  # the comparison with the config names what differs
        return weights
    if any(one.component == "lora" for one in translations):
        raise Refused(f"{files[0][1].path}: this is a LoRA; import it alone: `zwatch import FILE NAME --base VERSION`")
    own = [one for one in translations if one.component == component]
    return _translated(weights, own[0]) if len(own) == len(translations) == 1 else weights


def of_lone_file(file: SourceFile) -> list[Weights]:
    """Return the weights that one file holds, of several components if it is a checkpoint; none if it is a LoRA.

    Raises:
        Refused: it is damaged, or not recognised.
        OSError: it cannot be read.
    """
    metadata: Mapping[str, str] = {}
    try:
        if file.path.name.lower().endswith(".gguf"):
            from zwatch.importing.layouts import gguf

            with reading.opened(file):
                read = gguf.read(str(file.path))
            tensors, translations = read.tensors, read.translations
        else:
            found = reading.read_header(file)
            tensors, metadata = found.tensors, found.metadata
            translations = _recognised({name: (file, info) for name, info in tensors.items()}, metadata)
    except Rejection as rejection:
        reason = rejection.reason
        raise Refused(reason if reason.startswith(str(file.path)) else f"{file.path}: {reason}") from None
    table = {name: (file, info) for name, info in tensors.items()}
    made = []
    for one in translations:
        if one.component == "lora":
            return []
        stem = pipeline_files.WEIGHTS[one.component].rpartition("/")[2]
        plain = Weights(one.component, ((stem, file),), {file: metadata}, pieces.identity(table), table)
        made.append(_translated(plain, one))
    return made


def _recognised(table: Table, metadata: Mapping[str, str]) -> tuple[Translation, ...]:
    from zwatch.importing import layouts

    return layouts.recognise({name: info for name, (_, info) in table.items()}, metadata)


def _translated(weights: Weights, translation: Translation) -> Weights:
    """Return weights as a translation makes them."""
    if _is_loaded_as_it_is(weights, translation):
        return weights
    return Weights(
        weights.component, weights.files, weights.metadata, translation.made, weights.table, translation.layout,
        translation.notes,
    )  # fmt: skip


def _is_loaded_as_it_is(weights: Weights, translation: Translation) -> bool:
    """Say whether the engine takes the file's tensors by the names that they have. A text encoder that was saved with its
    language head is taken too, so that the published file stays as it is."""
    prefixes = ("", _OF_CAUSAL_LM) if weights.component == "text_encoder" else ("",)
    left = weights.table.keys() - {one.sources[0] for one in translation.made}
    return any(
        all(
            one.compute is None and one.rows is None and one.sources == (prefix + one.name,) for one in translation.made
        )
        and left <= ({_HEAD} if prefix else set())
        for prefix in prefixes
    )


def merged(weights: Weights, loras: Sequence[tuple[SourceFile, float]]) -> Weights:
    """Return the transformer's weights with LoRAs in them, each with its scale: their changes are added up before the sum is
    rounded.

    Raises:
        Refused: one does not fit, or is given twice.
        OSError: one cannot be read.
    """
    from zwatch.importing import layouts
    from zwatch.importing.layouts.lora import Lora

    if weights.layout:
        raise Refused(
            f"{weights.files[0][1].path}: LoRAs are merged into diffusers' layout, and this is {weights.layout}; import it alone "
            "first, then merge them into that version: `zwatch import LORA NAME --base VERSION`"
        )
    base = {name: info for name, (_, info) in weights.table.items()}
    table, given, layout = dict(weights.table), [], []
    for number, (file, scale) in enumerate(loras):
        if any(other.path.samefile(file.path) for other, _ in loras[:number]):
            raise Refused(f"{file.path}: this LoRA is given twice; give it once, with the sum of the scales")
        found, config = reading.read_header(file), adapter_config(file)
        one = Lora(found.tensors, found.metadata, scale, config)
        try:
            layouts.merge(base, [one])
        except Rejection as rejection:
            raise Refused(f"{file.path}: {rejection.reason}") from None
        table |= {lora_source(number, name): (file, info) for name, info in found.tensors.items()}
        given.append(one)
        layout.append(f"{scale!r} {config!r}")  # part of what decides about the bytes
    translation = layouts.merge(base, given)
    return Weights(weights.component, weights.files, weights.metadata, translation.made, table, f"{translation.layout} x {layout}", translation.notes)  # fmt: skip


def adapter_config(lora: SourceFile) -> dict[str, Any] | None:
    """Return PEFT's adapter_config.json beside a LoRA's file, if there is one.

    Raises:
        Refused: it is no JSON object.
        OSError: it cannot be read.
    """
    path = lora.path.with_name(ADAPTER_CONFIG)
    return reading.read_object(path) if path.exists() else None
