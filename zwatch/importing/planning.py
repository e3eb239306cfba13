"""What an import writes: which component comes from where, in which layout and dtype."""

import json
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from math import prod
from typing import Any

from zwatch.deploy import pipeline_files, provenance, seal
from zwatch.deploy.header import ITEM_BITS, VERSION_KEY, WEIGHTS_SUFFIX
from zwatch.engine.config_fields import FIELDS
from zwatch.errors import Refused, Rejection
from zwatch.importing import controlnets, goldens, origins, pieces, reading
from zwatch.importing.bases import Base
from zwatch.importing.plans import Ancestors, Plan, Wish
from zwatch.importing.reading import SourceFile
from zwatch.importing.recipes import Made
from zwatch.importing.sources import COMPONENTS, INDEX_SUFFIX, Found
from zwatch.importing.weights import Weights, merged, of_files, of_lone_file

DTYPES = {"bf16": "BF16", "fp16": "F16"}
"""What `--dtype` may be, and the format's names."""
_FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0")
_COMPUTED = ("BF16", "F16", "F32")
"""The dtypes that the engine takes, one a component: `zwatch.engine.components.COMPUTED`."""
_AS_IS = ("BF16", "F16")


def make(found: Found, base: Base | None, wish: Wish) -> Plan:
    """Return the plan for a source.

    Raises:
        Refused: the source lacks something, or is no Z-Image; the reason says what to do.
        OSError: a file cannot be read.
    """
    plan = Plan(notes=list(found.notes))
    weights = {component: of_files(component, files) for component, files in found.weights.items()}
    for file in found.files:
        held = of_lone_file(file)
        for one in held:
            if one.component in weights:
                raise Refused(f"{file.path}: this is a {one.component}, as another file of {found.path} is; give one of them")  # fmt: skip
            weights[one.component] = one
        if not held:
            plan.loras.append((file, 1.0 if wish.lora_scale is None else wish.lora_scale))
    if wish.lora_scale is not None and not plan.loras:
        raise Refused(f"{found.path}: --lora says that this is a LoRA, and it is none")
    plan.loras += found.loras
    _refuse_lacking(found, weights, base, plan.loras)
    of_source = frozenset(weights)
    if (
        lone := weights.get(pipeline_files.CONTROLNET)
    ) is not None and pipeline_files.CONTROL_CONFIG not in found.small:
        weights[lone.component] = controlnets.without_unused(lone, _latents(found, base))
    for one in weights.values():
        if one.layout:
            plan.remarks += [f"{one.component}: {note}" for note in (one.layout, *one.notes)]
            after = "diffusers' layout, BF16" if _is_dequantized(one) else "diffusers' layout"
            plan.conversions.append(provenance.Conversion(one.component, one.layout[:200], after))
    if base is not None and "transformer" not in weights:
        weights["transformer"] = of_files("transformer", base.weights("transformer"))
    if plan.loras:
        weights["transformer"] = merged(weights["transformer"], plan.loras)
        plan.remarks += weights["transformer"].notes
    for one in weights.values():
        _add_weights(plan, one, wish)
    _add_small(plan, found, set(weights), base)
    controlnets.complete(plan, weights)
    goldens.add(plan, found, base, of_source)
    check_complete(plan, found)
    _add_ancestors(plan, found, base, of_source)
    origins.check(plan, found, base, wish)
    return plan


def _add_ancestors(plan: Plan, found: Found, base: Base | None, of_source: AbstractSet[str]) -> None:
    """Add what the versions say of themselves that a plan takes anything of."""
    source, of_base = origins.stated(found), provenance.Provenance()
    if base is not None and origins.gives(plan, base):
        of_base = base.stated
    elif base is not None:
        plan.notes.append(f"nothing comes from {base.name}: the source lacks nothing")
    name = "" if base is None else base.name
    plan.ancestors = Ancestors(source, of_base, name, source if "transformer" in of_source else of_base)


def _refuse_lacking(
    found: Found, weights: Mapping[str, Weights], base: Base | None, loras: Sequence[tuple[SourceFile, float]]
) -> None:
    if base is not None:
        return
    if loras and "transformer" not in weights:
        raise Refused(f"{loras[0][0].path}: this is a LoRA, which changes a transformer; merge it into a version, --base VERSION, or keep it for requests, `--lora` alone")  # fmt: skip
    lacking = [one for one in COMPONENTS if one not in weights and not _is_given(found, one)]
    if pipeline_files.INDEX not in found.small:
        lacking.insert(0, pipeline_files.INDEX)
    if lacking:
        raise Refused(f"{found.path}: lacks {', '.join(lacking)}; take what is lacking from a version: --base VERSION")


def _is_given(found: Found, component: str) -> bool:
    """Say whether a source has a component without weights."""
    return component not in pipeline_files.WEIGHTS and any(
        path.startswith(f"{component}/") and path in found.small for path in pipeline_files.REQUIRED
    )


def _add_weights(plan: Plan, weights: Weights, wish: Wish) -> None:
    """Add a component's files to the plan."""
    add_files(plan, weights, wish.name, _dtypes(plan, weights, wish))


def add_files(plan: Plan, weights: Weights, name: str, dtypes: Mapping[str, str]) -> None:
    """Add a component's files to the plan of the version of this name; `dtypes` is what each dtype becomes."""
    by_file: dict[SourceFile, list[Made]] = {file: [] for _, file in weights.files}
    for one in weights.made:
        by_file[weights.table[one.sources[0]][0]].append(one)
    plan.shapes[weights.component] = {one.name: one.shape for one in weights.made}
    for file_name, file in weights.files:
        path = f"{weights.component}/{file_name}"
        if weights.component != "transformer" and not weights.layout and not dtypes:
            plan.outputs.append(pieces.copy_of(path, file))
            continue
        own = weights.metadata[file] if not weights.layout else {}
        metadata = {"format": "pt", **{key: value for key, value in own.items() if key != VERSION_KEY}}
        if weights.component == "transformer":
            metadata[VERSION_KEY] = name
        plan.outputs.append(pieces.file_of(path, by_file[file], weights.table, dtypes, metadata, weights.layout))
    if len(weights.files) > 1:
        stem = pipeline_files.WEIGHTS[weights.component].removesuffix(WEIGHTS_SUFFIX)
        names = {one.name: file_name for file_name, file in weights.files for one in by_file[file]}
        total = sum(prod(one.shape) * ITEM_BITS[dtypes.get(one.dtype, one.dtype)] // 8 for one in weights.made)
        index = {"metadata": {"total_size": total}, "weight_map": {tensor: names[tensor] for tensor in sorted(names)}}
        plan.texts[f"{stem}{INDEX_SUFFIX}"] = f"{json.dumps(index, indent=2, ensure_ascii=False)}\n".encode()


def _dtypes(plan: Plan, weights: Weights, wish: Wish) -> dict[str, str]:
    """Return what each dtype of a component becomes: the engine takes one dtype a component."""
    there = sorted({one.dtype for one in weights.made if one.dtype in _FLOATS})
    stored = sorted({weights.table[one.sources[0]][1].dtype for one in weights.made} & {"F64", *_COMPUTED})
    if wish.dtype is None:
        if len(stored) > 1 or not set(there) <= set(_COMPUTED):
            raise Refused(f"{weights.files[0][1].path.parent}: {weights.component}: has {' and '.join(stored)}, the engine takes one of {', '.join(_COMPUTED)}; import it without --keep-dtype")  # fmt: skip
        return {}
    if not _is_dequantized(weights) and len(there) == 1 and there[0] in _AS_IS:
        return {}
    target = DTYPES[wish.dtype]
    changed = [dtype for dtype in there if dtype != target]
    if changed:
        plan.conversions.append(provenance.Conversion(weights.component, " and ".join(changed), target))
        plan.notes.append(f"{weights.component}: {' and '.join(changed)} becomes {target}")
    return dict.fromkeys(changed, target)


def _is_dequantized(weights: Weights) -> bool:
    """Say whether a layout makes bf16 of what is stored in fp8 or in GGUF."""
    return any(one.compute is not None and one.dtype != weights.table[one.sources[0]][1].dtype for one in weights.made)


def _add_small(plan: Plan, found: Found, weighted: set[str], base: Base | None) -> None:
    """Add all other files: those of the source, and of the base those that the source lacks."""
    taken = {path: file for path, file in found.small.items() if path != provenance.NAME}
    for component in () if base is None else (*COMPONENTS, *_control_of(taken, base, weighted)):
        assert base is not None
        own = {path for path in taken if path.startswith(f"{component}/")}
        files = {path: file for path, file in base.files.items() if path.startswith(f"{component}/") and path not in own}  # fmt: skip
        if component in weighted:
            files = {path: file for path, file in files.items() if not _is_weights(path)}
        files = _lacking(component, own, files, has_weights=component in found.weights)
        given = {path.rpartition("/")[2] for path in files}
        if component == "transformer" and component not in found.weights:
            given.add("weights")
        if own and given:
            names = ", ".join(sorted(given))
            plan.notes.append(f"{component}: {names} of {base.name}, the rest of the source")
        plan.shared |= files
    if base is not None and pipeline_files.INDEX not in taken:
        plan.shared[pipeline_files.INDEX] = base.files[pipeline_files.INDEX]
    plan.outputs += [pieces.copy_of(path, file) for path, file in sorted(taken.items())]
    for path in sorted({*taken, *plan.shared}):
        file = taken.get(path) or plan.shared[path]
        if path in _READ:
            plan.small[path] = reading.read_whole(file)
        elif pipeline_files.is_config(path):
            _check_json(found, path, reading.read_whole(file))


def _control_of(taken: Mapping[str, SourceFile], base: Base, weighted: AbstractSet[str]) -> tuple[str, ...]:
    """Return the base's ControlNet, if it is to be taken: the index names one, and the source has none."""
    index = taken.get(pipeline_files.INDEX) or base.files[pipeline_files.INDEX]
    is_named = pipeline_files.names_control(_object(index))
    return (pipeline_files.CONTROLNET,) if is_named and pipeline_files.CONTROLNET not in weighted else ()


def _latents(found: Found, base: Base | None) -> int:
    """Return how many channels of latents the transformer takes."""
    path = "transformer/config.json"
    config = found.small.get(path) or (None if base is None else base.files[path])
    channels = 16 if config is None else _object(config).get("in_channels", 16)
    return channels if type(channels) is int else 16


def _object(file: SourceFile) -> dict[str, Any]:
    """Return the object in a file; empty if there is none, which is refused elsewhere."""
    try:
        found = json.loads(reading.read_whole(file))
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


_READ = (pipeline_files.INDEX, *FIELDS)
"""The files that the fit of the weights is judged by, which checks them, too."""


def _lacking(
    component: str, own: AbstractSet[str], files: Mapping[str, SourceFile], *, has_weights: bool
) -> dict[str, SourceFile]:
    """Return which of the base's files, none of which the source has, complete the source's own files of a component."""
    marks = [path for path in pipeline_files.REQUIRED if path.startswith(f"{component}/")]
    if own >= set(marks) and (has_weights or component == "scheduler"):
        return {}
    if component == "tokenizer" and own & pipeline_files.VOCABULARY:  # the files of two vocabularies do not go together
        return {path: files[path] for path in marks if path in files}
    return dict(files)


def _is_weights(path: str) -> bool:
    return path.endswith((WEIGHTS_SUFFIX, INDEX_SUFFIX))


def _check_json(found: Found, path: str, data: bytes) -> None:
    try:
        pipeline_files.check_config(path, data)
    except Rejection as rejection:
        raise Refused(f"{found.path}: {rejection.reason}") from None


def check_complete(plan: Plan, found: Found) -> None:
    """Check by the rule that sealing has that the version will be whole; leave out what it does not need, and say so."""

    def read(path: str) -> bytes:
        return plan.texts.get(path) or plan.small.get(path) or reading.read_whole(plan.shared[path])

    try:
        selection = pipeline_files.select([*paths_of(plan), *found.others], read)
    except Rejection as rejection:
        raise Refused(f"{found.path}: {rejection.reason}") from None
    for path in selection.needed:
        if (problem := seal.path_problem(path)) is not None:
            raise Refused(f"{found.path}: {path!r} {problem}; rename it")
    plan.outputs = [output for output in plan.outputs if output.path in selection.needed]
    if selection.left_out:
        plan.notes.append(f"left out: {selection.summary}")


def paths_of(plan: Plan) -> Iterable[str]:
    """Return the paths of all files that a plan makes, but the provenance and the seal."""
    return [*(output.path for output in plan.outputs), *plan.shared, *plan.texts]
