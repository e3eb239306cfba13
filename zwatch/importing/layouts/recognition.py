"""Which component a file of weights is, by its tensors' names and shapes, and what of it becomes which tensor."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from zwatch.deploy.header import TensorInfo
from zwatch.errors import Rejection
from zwatch.importing.layouts.computing import ToBfloat16
from zwatch.importing.layouts.controlnet import CONTROLNET
from zwatch.importing.layouts.families import family_of
from zwatch.importing.layouts.lora_names import is_lora, layout_of
from zwatch.importing.layouts.parts import Component, Piece, Shape, differences, listed, quoted, refusal
from zwatch.importing.layouts.prefixes import Names, grouped
from zwatch.importing.layouts.quantized import FLOATS, FP8, Scales, refuse_formats, split_scales
from zwatch.importing.layouts.text_encoder import TEXT_ENCODER
from zwatch.importing.layouts.transformer import TRANSFORMER
from zwatch.importing.layouts.vae import VAE
from zwatch.importing.recipes import Made, Translation

ALL = (TRANSFORMER, TEXT_ENCODER, VAE, CONTROLNET)
STORED = ("BF16", "F16", "F32")
"""The dtypes that a component is served in, as safetensors names them."""
_LONGEST_NAME = 1000
"""Characters: patterns are looked for in names, and those of modules have a hundred."""
WANTED = "expected Z-Image's transformer, its text encoder Qwen3-4B, FLUX.1's VAE, a checkpoint of all three, or a LoRA or a ControlNet for Z-Image"


@dataclass(frozen=True, slots=True)
class _Target:
    """A tensor to be made: of which stored one, of which of its rows, and the shape that these have."""

    source: str
    rows: tuple[int, int] | None
    shape: Shape


def recognise(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> tuple[Translation, ...]:
    """Return what a file of weights becomes, one translation for each component in it, from its header alone.

    `tensors` may be those of all shards together. A LoRA is one translation without tensors: see `lora.merge`.

    Raises:
        Rejection: `weights_mismatch`, with what the file was recognised as or how it differs from what is nearest, and what
            to do. The sentence does not name the file.
    """
    if not tensors:
        raise refusal(f"the file has no tensors; {WANTED}")
    if (longest := max(map(len, tensors))) > _LONGEST_NAME:
        raise refusal(f"a tensor's name of {longest} characters, expected at most {_LONGEST_NAME}")
    refuse_formats(tensors, metadata)
    if is_lora(tensors):
        return (Translation("lora", layout_of(tensors), (), ()),)
    weights, scales = split_scales(tensors)
    _refuse_family({name: name for name in weights})
    groups, counters = grouped(weights)
    if not groups:
        raise refusal(f"the file has no weights, only {quoted(next(iter(tensors)))}; {WANTED}")
    hinted = len(groups) > 1  # one component alone may be wrapped in anything
    found = [_translated(hint if hinted else "", names, weights, scales, counters) for hint, names in groups.items()]
    twice = [name for name, count in Counter(one.component for one in found).items() if count > 1]
    if twice:
        raise refusal(f"the file has {twice[0]} twice; save the one that is meant to a file of its own")
    return tuple(found)


def _translated(
    hint: str, names: Names, weights: Mapping[str, TensorInfo], scales: Scales, counters: list[str]
) -> Translation:
    component = _component_of(hint, names)
    targets, renamed, dropped = _targets(component, names, weights)
    shapes = {name: target.shape for name, target in targets.items()}
    try:
        wrong = differences(shapes, component, {name: target.source for name, target in targets.items()})
    except Rejection as rejection:
        raise refusal(f"recognised as {component.title}, but {rejection.reason}") from None
    if wrong:
        shard = (
            "; of several shards, import the directory"
            if sum(line.endswith(" is missing") for line in wrong) > 10
            else ""
        )
        raise refusal(f"recognised as {component.title}, but {len(wrong)} tensors differ: {listed(wrong)}{shard}")
    dtype, notes = _dtype(targets, weights, scales)
    expected = component.expected(shapes)
    made = tuple(
        _made(name, target, expected[name], weights[target.source].dtype, dtype or weights[target.source].dtype, scales)
        for name, target in targets.items()
    )
    if left := [*dropped, *counters]:
        notes.append(f"left out, as it is not used: {', '.join(map(quoted, left[:8]))}")
    return Translation(component.name, _layout(component, renamed, names, scales, targets, weights), made, tuple(notes))


def _component_of(hint: str, names: Names) -> Component:
    """Return the component that most names are of; where a checkpoint names it, the two must agree."""
    _refuse_family(names)
    counts = {one.name: _known(one, names) for one in ALL}
    best = max(ALL, key=lambda one: counts[one.name])
    if counts[best.name] * 2 < len(names) or not counts[best.name]:
        near = f"nearest is {best.title}, of which {counts[best.name]} names are known; " if counts[best.name] else ""
        first = [quoted(stored) for stored in sorted(names.values())]
        raise refusal(f"not recognised: {len(first)} tensors, {listed(first, 4)}; {near}{WANTED}")
    if hint and hint != best.name:
        raise refusal(f"the names say {hint}, the tensors are those of {best.title}")
    return best


def _refuse_family(names: Names) -> None:
    if (family := family_of(names)) is not None:
        raise refusal(f"this is {family[0]}, as {quoted(names[family[1]])} shows; {WANTED}")


def _known(component: Component, names: Names) -> int:
    rename = component.renaming(names)
    return sum(all(component.known.match(piece.target) for piece in rename(name)) for name in names if rename(name))


def _targets(
    component: Component, names: Names, weights: Mapping[str, TensorInfo]
) -> tuple[dict[str, _Target], list[str], list[str]]:
    """Return the tensors to be made by name, the names that are renamed, and the stored ones that are left out."""
    rename = component.renaming(names)
    targets: dict[str, _Target] = {}
    renamed, dropped = [], []
    for name, source in names.items():
        pieces = rename(name)
        if not pieces:
            dropped.append(source)
        for piece in pieces:
            if piece.target in targets:
                raise refusal(
                    f"{quoted(source)} and {quoted(targets[piece.target].source)} are both {piece.target!r}; which is meant?"
                )
            targets[piece.target] = _cut(piece, source, weights[source].shape)
        renamed += [name for piece in pieces if piece.target != name]
    return targets, renamed, dropped


def _cut(piece: Piece, source: str, shape: Shape) -> _Target:
    if piece.third is None:
        return _Target(source, None, shape)
    if not shape or shape[0] % 3:
        raise refusal(
            f"{quoted(source)} has the shape {list(shape)}, expected query, key and value of one size one below the other; a model "
            "that shares keys between heads, as Lumina-Image 2.0, is not Z-Image"
        )
    third = shape[0] // 3
    return _Target(source, (piece.third * third, (piece.third + 1) * third), (third, *shape[1:]))


def _dtype(
    targets: Mapping[str, _Target], weights: Mapping[str, TensorInfo], scales: Scales
) -> tuple[str | None, list[str]]:
    """Return the dtype of the component's tensors, None where they keep their several ones, and what is said of it."""
    sources = {target.source for target in targets.values()}
    counts = Counter(weights[source].dtype for source in sources)
    for source in sorted(sources):
        if weights[source].dtype not in FLOATS:
            raise refusal(f"{quoted(source)} is {weights[source].dtype}, expected one of {', '.join(STORED)}, or fp8")
    scaled = sources & scales.scale.keys()
    if not scaled and len(counts) == 1 and (only := next(iter(counts))) in STORED:
        return only, []
    quantized = sum(counts[dtype] for dtype in FP8)
    if not quantized and not scaled:
        return None, [f"stored as {_and(counts)}"]
    how = f"{len(scaled)} of them times their scales" if scaled else "without scales, a plain cast"
    note = f"fp8 weights dequantized to bf16 ({quantized} tensors, {how}): what fp8 rounded away does not come back"
    return "BF16", [note]


def _and(counts: Counter[str]) -> str:
    return " and ".join(f"{dtype} ({count} tensors)" for dtype, count in sorted(counts.items()))


def _made(name: str, target: _Target, shape: Shape, stored: str, dtype: str, scales: Scales) -> Made:
    scale, described = scales.scale.get(target.source), scales.described.get(target.source)
    if stored == dtype and scale is None:
        return Made(name, dtype, shape, (target.source,), target.rows)
    sources = tuple(one for one in (target.source, scale, described) if one is not None)
    compute = ToBfloat16(shape, target.rows, scale is not None, described is not None)
    return Made(name, dtype, shape, sources, None, compute)


def _layout(
    component: Component,
    renamed: list[str],
    names: Names,
    scales: Scales,
    targets: Mapping[str, _Target],
    weights: Mapping[str, TensorInfo],
) -> str:
    """Return the layout's name for people."""
    own, other = {
        "transformer": ("diffusers' layout", "ComfyUI's layout"),
        "text_encoder": ("transformers' layout", "ComfyUI's layout"),
        "vae": ("diffusers' layout", "the original layout (LDM)"),
        "controlnet": ("diffusers' layout", "ComfyUI's layout"),
    }[component.name]
    layout = other if renamed else own
    sources = {target.source for target in targets.values()}
    if any(weights[source].dtype in FP8 for source in sources):
        layout += ", fp8 with scales" if sources & scales.scale.keys() else ", fp8"
    bare, stored = next(iter(names.items()))
    prefix = stored.removesuffix(bare) if stored.endswith(bare) else ""
    return f"{component.title} in {layout}" + (f", names under {prefix!r}" if prefix else "")
