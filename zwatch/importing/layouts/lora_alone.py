"""A LoRA in the one layout that the LoRA root has (`zwatch.deploy.loras`), made of what trainers write, without a base.

Names become those of the transformer's weights in diffusers' layout, a fused attention becomes its three parts, and alpha / rank
is put into B. Which modules a transformer has follows from the names alone; whether a LoRA fits a version is found where it is drawn
with.
"""

import re
from collections.abc import Iterable, Mapping

from zwatch.deploy.header import TensorInfo
from zwatch.importing.layouts.computing import Folded
from zwatch.importing.layouts.lora import FLOATS, Config, Lora, change_of, divisor, flat
from zwatch.importing.layouts.lora_names import FUSED, Factors, layout_of, order_of, parse, targets_of, weights_of
from zwatch.importing.layouts.parts import count_of, listed, quoted, refusal
from zwatch.importing.layouts.transformer import PATCH
from zwatch.importing.recipes import Made, Translation

_BLOCK = re.compile(r"(?:^|[._])(layers|noise_refiner|context_refiner)[._](\d{1,4})(?=[._])")
_IN_BLOCK = (
    "attention.to_q", "attention.to_k", "attention.to_v", "attention.to_out.0", "feed_forward.w1", "feed_forward.w2",
    "feed_forward.w3", "adaLN_modulation.0",
)  # fmt: skip
_BESIDE = (
    f"all_x_embedder.{PATCH}", f"all_final_layer.{PATCH}.linear", f"all_final_layer.{PATCH}.adaLN_modulation.1",
    "cap_embedder.1", "t_embedder.mlp.0", "t_embedder.mlp.2",
)  # fmt: skip
_STORED = {"F64": "F32", "F8_E4M3": "BF16", "F8_E5M2": "BF16"}
"""What a dtype becomes that the LoRA root does not have; bf16 holds every value of fp8."""
_TORCH = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def alone(lora: Lora) -> Translation:
    """Return how a LoRA of any known layout becomes one in the LoRA root's.

    Raises:
        Rejection: `weights_mismatch`: it cannot be used, with the list of what is wrong.
    """
    named = parse(lora.tensors)
    config = Config.of(lora, peft=named.peft)
    targets = targets_of(_matrices(named.modules))
    dtype = _dtype(lora.tensors)
    taken: dict[str, tuple[int, str, list[Made]]] = {}
    wrong: list[str] = []
    for module, factors in named.modules.items():
        weights = weights_of(module, targets)
        problem = f"{quoted(module)} is no module of Z-Image's transformer" if weights is None else _problem(lora, factors, len(weights))  # fmt: skip
        if weights is None or problem is not None:
            wrong.append(problem or "")
            continue
        if factors.alpha is None:
            config.check_known()
        for number, weight in enumerate(weights):
            pair = _made(lora, module, factors, config, dtype, (weight, number, len(weights)))
            _take(taken, weight, order_of(module, weights), module, pair)
    if wrong:
        raise refusal(f"the LoRA cannot be used by requests, {len(wrong)} reasons: {listed(wrong)}")
    _check_fused(taken.values())
    made = tuple(one for _, _, pair in taken.values() for one in pair)
    notes = () if dtype in {info.dtype for info in lora.tensors.values()} else (f"its factors become {dtype}",)
    return Translation("lora", layout_of(lora.tensors), made, notes)


def _matrices(modules: Iterable[str]) -> list[str]:
    """Return the weights of a transformer that has all the blocks that are named."""
    blocks = sorted({(match[1], int(match[2])) for module in modules for match in _BLOCK.finditer(module)})
    inside = [f"{kind}.{number}.{part}.weight" for kind, number in blocks for part in _IN_BLOCK]
    return [*inside, *(f"{module}.weight" for module in _BESIDE)]


def _dtype(tensors: Mapping[str, TensorInfo]) -> str:
    """Return the one dtype that the factors are stored in: as they are, the widest if there are several."""
    there = {_STORED.get(info.dtype, info.dtype) for name, info in tensors.items() if not name.endswith(".alpha")}
    there &= set(_TORCH)
    return there.pop() if len(there) == 1 else "F32"


def _problem(lora: Lora, factors: Factors, parts: int) -> str | None:
    """Return why the factors of a module cannot be kept as two matrices; None if they can."""
    tensors = lora.tensors
    change = change_of(tensors, factors)
    names = (*change.names, *(() if factors.alpha is None else (factors.alpha,)))
    for name in names:
        if tensors[name].dtype not in FLOATS:
            return f"{quoted(name)} is {tensors[name].dtype}, expected a float"
    if factors.alpha is not None and count_of(tensors[factors.alpha].shape) != 1:
        return f"{quoted(factors.alpha)} has the shape {list(tensors[factors.alpha].shape)}, expected one number"
    if factors.kronecker:
        return f"{quoted(change.names[0])} is a factor of a LoKr, which has no low rank; merge it into a version with --base"
    if change.shape is None or change.rank == 0 or 0 in change.shape or change.shape[0] % parts:
        shapes = " and ".join(f"{quoted(name)} {list(tensors[name].shape)}" for name in change.names)
        return f"{shapes} do not fit each other, expected (rank, in) and (out{' of three equal parts' if parts > 1 else ''}, rank)"
    return None


def _made(
    lora: Lora, module: str, factors: Factors, config: Config, dtype: str, place: tuple[str, int, int]
) -> list[Made]:
    """Return A and B of one weight, which is the `number`th of `parts` of the module's rows."""
    weight, number, parts = place
    assert factors.down is not None
    assert factors.up is not None
    down, up = (lora.tensors[name] for name in (factors.down, factors.up))
    (rank, columns), (rows, _) = flat(down.shape), flat(up.shape)
    name, share = weight.removesuffix(".weight"), rows // parts
    alpha = None if factors.alpha is not None else config.alpha(module, rank)
    kind, own = _TORCH[dtype], (number * share, (number + 1) * share)
    # Computed even where nothing changes: values that are no numbers must not get into a picture.
    first = Folded(module, (rank, columns), kind, 1.0, 1.0, (0, rank))
    second = Folded(module, (share, rank), kind, alpha, divisor(rank, config), own)
    sources = (factors.up,) if factors.alpha is None else (factors.up, factors.alpha)
    return [
        Made(f"{name}.lora_A.weight", dtype, first.shape, (factors.down,), None, first),
        Made(f"{name}.lora_B.weight", dtype, second.shape, sources, None, second),
    ]


def _take(
    taken: dict[str, tuple[int, str, list[Made]]], weight: str, order: int, module: str, made: list[Made]
) -> None:
    """Take the factors of a weight, or leave them where the file has the same by a better name, as a merge does."""
    before = taken.get(weight)
    if before is None or order < before[0]:
        taken[weight] = (order, module, made)
    elif before[0] == order:
        raise refusal(f"{quoted(before[1])} and {quoted(module)} both change {weight!r}; which is meant?")


def _check_fused(taken: Iterable[tuple[int, str, list[Made]]]) -> None:
    """Check that of each fused attention all three parts are taken, or none."""
    fused = [module for order, module, _ in taken if order == FUSED]
    for module in dict.fromkeys(fused):
        if fused.count(module) != 3:
            raise refusal(f"the LoRA has {quoted(module)} and some of its three parts by themselves; which is meant?")
