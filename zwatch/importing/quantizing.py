"""`zwatch quantize`: a version of which the matrices of the blocks are stored in fp8 or int8; it shares all else with another one.

What is written is what `zwatch serve --quantize` makes at a load: the same numbers, so the same pictures.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from zwatch.deploy import pipeline_files, provenance
from zwatch.deploy.contents import SCALE, scale_of
from zwatch.deploy.signals import Ending
from zwatch.engine.config_fields import FIELDS
from zwatch.errors import Refused
from zwatch.importing import goldens, planning, reading
from zwatch.importing.bases import Base, open_base
from zwatch.importing.plans import Ancestors, Plan, Wish
from zwatch.importing.recipes import Compute, Made
from zwatch.importing.room import Say
from zwatch.importing.run import Imported, carry_out
from zwatch.importing.sources import INDEX_SUFFIX, Found
from zwatch.importing.weights import Weights, of_files
from zwatch.progress import Progress

if TYPE_CHECKING:
    import torch

    from zwatch.signing.keys import SigningKey

_QUANTIZED = ("transformer", "text_encoder")
_STORED = {"fp8": "F8_E4M3", "int8": "I8"}
"""The format's name of the dtype of each kind."""
_FLOATS = ("F64", "F32", "F16", "BF16")
_REST = "BF16"
"""What the other weights of a quantized component are stored in: it is what the engine computes in beside fp8."""


def quantize(
    version: str, root: Path, name: str, kind: str, say: Say, ending: Ending, key: "SigningKey | None" = None
) -> Imported:
    """Make `name` of a version under the models root; `kind` is `fp8` or `int8`. Its bytes are compared with its seal.

    Raises:
        Refused: it cannot be quantized, with the reason and what to do.
        OSError: a file could not be read or written.
        KeyboardInterrupt: it was interrupted.
    """
    with Progress("quantizing") as progress:
        progress.step("looking at the version")
        base = open_base(root, version)
        found = Found("version", base.directory)
        plan = _planned(base, name, kind, found)
    return carry_out(plan, root, found, base, Wish(name, None), say, ending, key)


def _planned(base: Base, name: str, kind: str, found: Found) -> Plan:
    plan = Plan(ancestors=Ancestors(source=base.stated, transformer=base.stated), quantization=kind)
    written = set()
    for component in _QUANTIZED:
        stored = of_files(component, base.weights(component))
        if any(tensor.endswith(f".{SCALE}") for tensor in stored.table):
            raise Refused(
                f"{base.directory}: its {component} is quantized already; quantize the version that it was made from"
            )
        quantized = _quantized(stored, kind)
        planning.add_files(plan, quantized, name, {})
        plan.shapes[component] = {one.name: one.shape for one in stored.made}
        plan.conversions.append(provenance.Conversion(component, _dtypes_of(stored), _STORED[kind]))
        written |= {f"{component}/{file}" for file, _ in stored.files}
    plan.shared = {
        path: file
        for path, file in base.files.items()
        if path not in written and not (path.startswith(_QUANTIZED) and path.endswith(INDEX_SUFFIX))
    }
    for path in (pipeline_files.INDEX, *FIELDS):
        if path in base.files:  # a ControlNet need not be there
            plan.small[path] = reading.read_whole(base.files[path])
    goldens.add_to_quantized(plan, base, kind)
    planning.check_complete(plan, found)
    return plan


def _dtypes_of(weights: Weights) -> str:
    return " and ".join(sorted({one.dtype for one in weights.made}))


def _quantized(weights: Weights, kind: str) -> Weights:
    """Return how a component's weights are quantized. A layout of its own name: nothing is copied as it is."""
    from zwatch.shadow.quantized import is_quantizable

    made: list[Made] = []
    for one in weights.made:
        if one.dtype in _FLOATS and is_quantizable(one.name, one.shape):
            values, scales = (partial(_rows, part, kind, one.compute) for part in ("values", "scales"))
            made.append(replace(one, dtype=_STORED[kind], compute=values))
            made.append(Made(scale_of(one.name), "F32", (one.shape[0], 1), one.sources, compute=scales))
        elif one.dtype in _FLOATS and one.dtype != _REST:
            made.append(replace(one, dtype=_REST, compute=partial(_as_rest, one.compute)))
        else:
            made.append(one)
    return replace(weights, made=tuple(made), layout=kind)


def _rows(part: str, kind: str, compute: Compute | None, given: "Sequence[torch.Tensor]") -> "torch.Tensor":
    from zwatch.shadow.quantized import KINDS, Rows

    found: torch.Tensor = getattr(Rows.of(_plain(compute, given), KINDS[kind]), part)
    return found


def _as_rest(compute: Compute | None, given: "Sequence[torch.Tensor]") -> "torch.Tensor":
    import torch

    return _plain(compute, given).to(torch.bfloat16)


def _plain(compute: Callable[..., "torch.Tensor"] | None, given: "Sequence[torch.Tensor]") -> "torch.Tensor":
    return given[0] if compute is None else compute(given)
