"""How one layout of weights becomes another: which tensors are made from which, as pure data.

A layout's module looks only at tables of tensors and returns a recipe; what reads, converts and writes follows it. torch is
needed by what computes only, so it is imported inside of a recipe's functions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Compute = Callable[["Sequence[torch.Tensor]"], "torch.Tensor"]
"""Makes a tensor from its sources, given in the order of `Made.sources` as stored (dtype and shape), on the CPU."""


def lora_source(number: int, name: str) -> str:
    """Return how `Made.sources` names a tensor of the LoRA of this number, from 0: names without it are the base's."""
    return f"lora{number}:{name}"


@dataclass(frozen=True, slots=True)
class Made:
    """One tensor of the file to be written. `dtype` is safetensors' name; `rows` are the begin and end of a slice of the one
    source's first dimension. Without `compute` the source's bytes are taken as they are."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sources: tuple[str, ...]
    rows: tuple[int, int] | None = None
    compute: Compute | None = None


@dataclass(frozen=True, slots=True)
class Translation:
    """What one file of weights becomes: a component (`transformer`, `text_encoder`, `vae`, or `lora`, of which nothing is
    made without a base), the layout's name for people, its tensors, and what was converted, for the provenance."""

    component: str
    layout: str
    made: tuple[Made, ...]
    notes: tuple[str, ...] = ()
