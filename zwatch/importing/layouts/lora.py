"""Merging LoRAs into a transformer: W + scale * alpha / rank * (B @ A) for each weight that they change.

Alpha is what the LoRA's file says: a tensor `.alpha` beside the factors, or the configuration that diffusers writes into the
header (`lora_adapter_metadata`), or PEFT's adapter_config.json. Where none says anything it is the rank, as diffusers has it.
"""

import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from zwatch.deploy.header import TensorInfo
from zwatch.importing.layouts.computing import Addition, Merged
from zwatch.importing.layouts.lora_names import FUSED, Factors, layout_of, order_of, parse, targets_of, weights_of
from zwatch.importing.layouts.parts import count_of, listed, quoted, refusal
from zwatch.importing.recipes import Made, Translation, lora_source

METADATA = "lora_adapter_metadata"
"""diffusers' key in the header (loaders/lora_base.py), JSON of PEFT's LoraConfig, its fields under the component's name."""
_BEYOND = (
    "use_dora", "use_qalora", "lora_bias", "fan_in_fan_out", "megatron_config", "layer_replication", "modules_to_save",
    "target_parameters", "trainable_token_indices", "alora_invocation_tokens",
)  # fmt: skip
"""Fields of PEFT's LoraConfig (0.21) that make a merge something else."""
_BEGINNINGS = ("pissa", "olora", "corda", "loftq")
"""Values of its `init_lora_weights` that take a part out of the base's weights, which the file does not bring."""
FLOATS = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F64")
_BASES = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Lora:
    """A LoRA to be merged: its header, with which strength, and PEFT's adapter_config.json if it has one."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)
    scale: float = 1.0
    adapter_config: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class _Part:
    """What one module of one LoRA adds to one weight."""

    addition: Addition
    sources: tuple[str, ...]
    order: int


@dataclass(frozen=True, slots=True)
class Change:
    """The matrices of a module, their rank where alpha is divided by one, and the shape of what they make, None where they do
    not fit each other."""

    names: tuple[str, ...]
    rank: int | None
    shape: tuple[int, int] | None
    kronecker: tuple[int, int] | None = None


def merge(base: Mapping[str, TensorInfo], loras: Sequence[Lora]) -> Translation:
    """Return how a transformer in diffusers' layout, of the tensors `base`, becomes one with the LoRAs in it.

    Weights that no LoRA changes are taken as they are; `Made.sources` names a LoRA's tensors by `recipes.lora_source`, its
    number being its place in `loras`.

    Raises:
        Rejection: `weights_mismatch`: a LoRA cannot be merged, or does not fit, with the list of differences.
    """
    matrices = {name for name, info in base.items() if name.endswith(".weight") and len(info.shape) == 2}
    targets = targets_of(matrices)
    parts: dict[str, list[_Part]] = {}
    notes = []
    for number, lora in enumerate(loras):
        own = _parts_of(number, lora, base, targets)
        for weight, part in own.items():
            parts.setdefault(weight, []).append(part)
        notes.append(f"merged {layout_of(lora.tensors)}, into {len(own)} tensors with the scale {lora.scale:g}")
    made = tuple(_made(name, info, parts.get(name, [])) for name, info in base.items())
    return Translation("transformer", "diffusers' layout, with a LoRA merged", made, tuple(notes))


def _made(name: str, info: TensorInfo, parts: Sequence[_Part]) -> Made:
    if not parts:
        return Made(name, info.dtype, info.shape, (name,))
    if info.dtype not in _BASES:
        raise refusal(f"the base's {quoted(name)} is {info.dtype}, expected one of {', '.join(_BASES)}")
    sources = (name, *(source for part in parts for source in part.sources))
    return Made(name, info.dtype, info.shape, sources, None, Merged(tuple(part.addition for part in parts)))


def _parts_of(
    number: int, lora: Lora, base: Mapping[str, TensorInfo], targets: Mapping[str, tuple[str, ...]]
) -> dict[str, _Part]:
    if not math.isfinite(lora.scale):
        raise refusal(f"the scale of a LoRA is {lora.scale}, expected a finite number")
    named = parse(lora.tensors)
    config = Config.of(lora, peft=named.peft)
    parts: dict[str, _Part] = {}
    wrong: list[str] = []
    for module, factors in named.modules.items():
        weights = weights_of(module, targets)
        if weights is None:
            wrong.append(f"{quoted(module)} is no module of the base")
            continue
        change = change_of(lora.tensors, factors)
        problems = _problems(lora.tensors, change, factors.alpha, [base[one].shape for one in weights])
        wrong += problems
        if problems:
            continue
        addition, names = _scaled(module, lora.scale, change, factors.alpha, config)
        sources = tuple(lora_source(number, one) for one in names)
        for weight, rows in _rows_of(weights, base):
            _add(parts, weight, _Part(replace(addition, rows=rows), sources, order_of(module, weights)))
    if wrong:
        raise refusal(f"the LoRA does not fit the base, {len(wrong)} differences: {listed(wrong)}")
    _check_fused(parts)
    return parts


def _rows_of(weights: tuple[str, ...], base: Mapping[str, TensorInfo]) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """Yield the weights of a module, and which rows of what it adds are theirs; all rows of a weight alone."""
    begin = 0
    for weight in weights:
        end = begin + base[weight].shape[0]
        yield weight, (begin, end) if len(weights) > 1 else None
        begin = end


def divisor(rank: int, config: "Config", *, is_kronecker: bool = False) -> float:
    """Return what alpha is divided by: the rank, or its root for PEFT's rank-stabilised LoRA."""
    return math.sqrt(rank) if config.root and not is_kronecker else float(rank)


def _scaled(
    module: str, scale: float, change: Change, alpha: str | None, config: "Config"
) -> tuple[Addition, tuple[str, ...]]:
    """Return what a module adds, and the names of its sources. A LoKr of whole factors has no rank and takes no alpha (LyCORIS,
    and diffusers' `_bake_lokr_alpha_`)."""
    if alpha is None:
        config.check_known()
    if change.rank is None:
        return Addition(module, scale, 1.0, 1.0, None, change.kronecker), change.names
    divided = divisor(change.rank, config, is_kronecker=change.kronecker is not None)
    if alpha is not None:
        return Addition(module, scale, divided, None, None, change.kronecker), (*change.names, alpha)
    value = float(change.rank) if change.kronecker else config.alpha(module, change.rank)
    return Addition(module, scale, divided, value, None, change.kronecker), change.names


def _add(parts: dict[str, _Part], weight: str, part: _Part) -> None:
    """Take a part, or leave it where the file has the same by a better name: some trainers write a fused attention beside its
    three parts, and an output by both of its names (diffusers leaves these out too)."""
    before = parts.get(weight)
    if before is None or part.order < before.order:
        parts[weight] = part
    elif before.order == part.order:
        raise refusal(
            f"{quoted(before.addition.module)} and {quoted(part.addition.module)} both change {weight!r}; which is meant?"
        )


def _check_fused(parts: Mapping[str, _Part]) -> None:
    """Check that of each fused attention all three parts are taken, or none."""
    taken = Counter(part.addition.module for part in parts.values() if part.order == FUSED)
    for module, count in taken.items():
        if count != 3:
            raise refusal(f"the LoRA has {quoted(module)} and some of its three parts by themselves; which is meant?")


def change_of(tensors: Mapping[str, TensorInfo], factors: Factors) -> Change:
    """Return what the factors of a module make."""
    if not factors.kronecker:
        assert factors.down is not None
        assert factors.up is not None
        down, up = (flat(tensors[name].shape) for name in (factors.down, factors.up))
        fits = len(down) == len(up) == 2 and down[0] == up[1]
        return Change((factors.down, factors.up), down[0] if down else 0, (up[0], down[1]) if fits else None)
    names: list[str] = []
    counts, shapes = [], []
    for one in ("w1", "w2"):
        own = [factors.kronecker[part] for part in (one, f"{one}_a", f"{one}_b") if part in factors.kronecker]
        names += own
        counts.append(len(own))
        first, last = tensors[own[0]].shape, tensors[own[-1]].shape
        fits = len(first) == len(last) == 2 and (len(own) == 1 or first[1] == last[0])
        shapes.append((first[0], last[1]) if fits else None)
    low = factors.kronecker.get("w2_b", factors.kronecker.get("w1_b"))
    whole = None if None in shapes else (shapes[0][0] * shapes[1][0], shapes[0][1] * shapes[1][1])  # type: ignore[index]
    return Change(
        tuple(names), tensors[low].shape[0] if low and tensors[low].shape else None, whole, (counts[0], counts[1])
    )


def _problems(
    tensors: Mapping[str, TensorInfo], change: Change, alpha: str | None, weights: Sequence[tuple[int, ...]]
) -> list[str]:
    expected = (sum(shape[0] for shape in weights), weights[0][1])
    problems = [
        f"{quoted(name)} is {tensors[name].dtype}, expected a float"
        for name in (*change.names, alpha)
        if name is not None and tensors[name].dtype not in FLOATS
    ]
    if alpha is not None and count_of(tensors[alpha].shape) != 1:
        problems.append(f"{quoted(alpha)} has the shape {list(tensors[alpha].shape)}, expected one number")
    if change.shape != expected or change.rank == 0:
        shapes = " and ".join(f"{quoted(name)} {list(tensors[name].shape)}" for name in change.names)
        problems.append(f"{shapes} do not make a matrix {list(expected)}")
    return problems


def flat(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape without the last two sizes of a convolution of one pixel."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape


@dataclass(frozen=True, slots=True)
class Config:
    """PEFT's LoraConfig, as far as it says how a merge is scaled."""

    stated: bool
    value: float | None = None
    patterns: tuple[tuple[str, float], ...] = ()
    root: bool = False
    peft: bool = False

    @classmethod
    def of(cls, lora: Lora, *, peft: bool) -> "Config":
        """Return what a LoRA's own configuration says, in its header or beside it.

        Raises:
            Rejection: it is not valid, or makes it another thing than a LoRA.
        """
        found = lora.adapter_config if lora.adapter_config is not None else _in_header(lora.metadata)
        if found is None:
            return cls(stated=False, peft=peft)
        _refuse_changed(found)
        patterns, value = found.get("alpha_pattern") or {}, found.get("lora_alpha")
        if not isinstance(patterns, dict) or not all(map(_is_number, (value, *patterns.values()))):
            shown = f"lora_alpha {value!r} and alpha_pattern {patterns!r}"
            raise refusal(f"the LoRA's configuration has {shown[:300]}, expected numbers")
        assert value is not None
        pairs = tuple((name, float(one)) for name, one in patterns.items())
        return cls(True, float(value), pairs, bool(found.get("use_rslora")), peft)

    def check_known(self) -> None:
        """Refuse a file as PEFT saves it, without the file that says how strong it is.

        Raises:
            Rejection: with what to do.
        """
        if not self.stated and self.peft:
            raise refusal(
                "a LoRA as PEFT saves it: its alpha is in adapter_config.json, which belongs beside it; put both into one directory"
            )

    def alpha(self, module: str, rank: int) -> float:
        """Return alpha of a module whose file has no tensor of it."""
        if self.value is None:
            return float(rank)
        for name, value in self.patterns:
            if module == name or module.endswith(f".{name.removeprefix('^')}"):
                return value
        return self.value


def _refuse_changed(config: Mapping[str, Any]) -> None:
    """Refuse what PEFT can do to a LoRA beyond B @ A, and beginnings that change the weights beside it."""
    kind, beginning = config.get("peft_type") or "LORA", config.get("init_lora_weights")
    if kind != "LORA":
        raise refusal(f"the adapter's configuration says peft_type {str(kind)[:80]!r}, expected 'LORA'")
    found = [name for name in _BEYOND if config.get(name)]
    if isinstance(beginning, str) and beginning.startswith(_BEGINNINGS):
        found.append("init_lora_weights")
    if found:
        shown = ", ".join(f"{name} = {str(config[name])[:80]}" for name in found)
        raise refusal(
            f"the LoRA's configuration has {shown}, which is not merged; merge it with the tool that trained it"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _in_header(metadata: Mapping[str, str]) -> dict[str, Any] | None:
    if METADATA not in metadata:
        return None
    try:
        found = json.loads(metadata[METADATA])
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise refusal(f"{METADATA} in the LoRA's header is not a JSON object")
    own = {name.removeprefix("transformer."): value for name, value in found.items() if name.startswith("transformer.")}
    return own or found
