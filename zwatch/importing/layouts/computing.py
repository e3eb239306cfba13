"""The computations that recipes ask for. Each works on the sources of one tensor, keeps no state, and may run in any thread.

Values are computed in float32 and rounded once, a few million at a time, so that a tensor costs no second copy of itself in
float32.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zwatch.importing.layouts.parts import quoted, refusal

if TYPE_CHECKING:
    import torch

_STEP = 2**22
"""Elements that are computed at a time: 16 MiB in float32."""

FP8_FORMATS = ("float8_e4m3fn", "float8_e5m2")
"""ComfyUI's names of the formats that are a stored value times a scale (comfy/quant_ops.py, QUANT_ALGOS)."""


def check_format(format_of: object, layer: str) -> None:
    """Check what ComfyUI says of a quantized layer: `{"format": "float8_e4m3fn"}`, and at most how it is multiplied.

    Raises:
        Rejection: it is another format, or one with a transformation that is not known here.
    """
    known = {"format", "full_precision_matrix_mult"}
    if not isinstance(format_of, dict) or format_of.get("format") not in FP8_FORMATS or not known >= format_of.keys():
        raise refusal(
            f"{layer} is quantized as {json.dumps(format_of)[:200]}; known are {' and '.join(FP8_FORMATS)}. Take the file in bf16"
        )


def _pieces(rows: int, row: int) -> Iterator[slice]:
    step = max(1, _STEP // max(1, row))
    return (slice(begin, min(begin + step, rows)) for begin in range(0, rows, step))


@dataclass(frozen=True, slots=True)
class ToBfloat16:
    """Makes bf16 of a stored tensor, or of some of its rows, times its scale where it has one: one for the tensor or one a row.

    The sources are the tensor, its scale if `scaled`, and what ComfyUI says of its format if `described`.
    """

    shape: tuple[int, ...]
    rows: tuple[int, int] | None = None
    scaled: bool = False
    described: bool = False

    def __call__(self, sources: "Sequence[torch.Tensor]") -> "torch.Tensor":
        """Return the tensor, in the shape of the tensor to be written.

        Raises:
            Rejection: the format that the file states is not known, or its scale is no number.
        """
        import torch

        if self.described:
            check_format(_described(sources[-1]), "a tensor")
        stored = sources[0]
        begin, end = self.rows or (0, stored.shape[0] if stored.dim() else 1)
        stored = stored.reshape(stored.shape[0] if stored.dim() else 1, -1)[begin:end]
        scale = sources[1].to(torch.float32).reshape(-1, 1) if self.scaled else None
        if scale is not None and scale.shape[0] > 1:
            scale = scale[begin:end]
        if scale is not None and not torch.isfinite(scale).all():
            raise refusal("the scale of a tensor is infinite or not a number; fetch or make the file again")
        made = torch.empty(stored.shape, dtype=torch.bfloat16)
        for piece in _pieces(*stored.shape):
            values = stored[piece].to(torch.float32, copy=True)  # sources are not changed
            if scale is not None:
                values *= scale[piece] if scale.shape[0] > 1 else scale
            made[piece] = values
        return made.reshape(self.shape)


def _described(source: "torch.Tensor") -> Any:
    try:
        return json.loads(bytes(source.flatten().tolist()))
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class Addition:
    """One LoRA's part in a merged tensor, by its `module`: `scale` times alpha / rank times the product of two matrices.

    `alpha` is a number where it is known from the header; None means that the LoRA's `.alpha` is the last source. `divisor` is
    what alpha is divided by, the rank or its root. `rows` are those of a fused matrix. `kronecker` says of a LoKr how many
    matrices make each of its two factors, 1 or 2: their product is Kronecker's.
    """

    module: str
    scale: float
    divisor: float
    alpha: float | None
    rows: tuple[int, int] | None = None
    kronecker: tuple[int, int] | None = None

    @property
    def matrices(self) -> int:
        """How many matrices it takes."""
        return sum(self.kronecker) if self.kronecker else 2

    @property
    def sources(self) -> int:
        """How many sources it takes: the matrices, and alpha."""
        return self.matrices + (self.alpha is None)


@dataclass(frozen=True, slots=True)
class Merged:
    """Makes W + sum of the additions, in float32, rounded once to the dtype of W. The sources are W, then each addition's: A of
    shape (rank, in) and B of shape (out, rank), or a LoKr's factors, and alpha if it is a tensor."""

    additions: tuple[Addition, ...]

    def __call__(self, sources: "Sequence[torch.Tensor]") -> "torch.Tensor":
        """Return the merged tensor.

        Raises:
            Rejection: a LoRA has values that are no numbers.
        """
        import torch

        weight = sources[0]
        made = torch.empty_like(weight)
        added = list(self._added(sources[1:]))
        for piece in _pieces(*weight.shape):
            values = weight[piece].to(torch.float32, copy=True)
            for rows_of, factor in added:
                values += factor * rows_of(piece)
            made[piece] = values
        return made

    def _added(self, sources: "Sequence[torch.Tensor]") -> "Iterator[tuple[Callable[[slice], torch.Tensor], float]]":
        """Yield what gives some rows of each product, and what they are multiplied by."""
        import torch

        for addition in self.additions:
            own, sources = sources[: addition.sources], sources[addition.sources :]
            matrices = [one.to(torch.float32).flatten(1) for one in own[: addition.matrices]]
            alpha = addition.alpha if addition.alpha is not None else own[-1].to(torch.float32).reshape(()).item()
            if not math.isfinite(alpha) or not all(torch.isfinite(one).all() for one in matrices):
                raise refusal(f"the LoRA's {quoted(addition.module)} has values that are infinite or not numbers")
            yield _product(matrices, addition), addition.scale * alpha / addition.divisor


def _product(matrices: "list[torch.Tensor]", addition: Addition) -> "Callable[[slice], torch.Tensor]":
    import torch

    if addition.kronecker is None:
        down, up = matrices
        begin, end = addition.rows or (0, up.shape[0])
        up = up[begin:end]
        return lambda piece: up[piece] @ down
    left = addition.kronecker[0]
    first, second = (
        torch.linalg.multi_dot(one) if len(one) > 1 else one[0] for one in (matrices[:left], matrices[left:])
    )
    whole = torch.kron(first, second)
    begin, end = addition.rows or (0, whole.shape[0])
    return lambda piece: whole[begin:end][piece]


@dataclass(frozen=True, slots=True)
class Folded:
    """Makes a factor of a LoRA with its strength in it: alpha / divisor times some of its rows, in float32, rounded once. The sources
    are the factor and, if `alpha` is None, the LoRA's alpha."""

    module: str
    shape: tuple[int, int]
    dtype: str
    alpha: float | None
    divisor: float
    rows: tuple[int, int]

    def __call__(self, sources: "Sequence[torch.Tensor]") -> "torch.Tensor":
        """Return the factor as it is stored.

        Raises:
            Rejection: it has values that are no numbers, or that its dtype cannot hold.
        """
        import torch

        begin, end = self.rows
        up = sources[0].to(torch.float32).flatten(1)[begin:end]
        alpha = self.alpha if self.alpha is not None else sources[1].to(torch.float32).reshape(()).item()
        if not math.isfinite(alpha) or not torch.isfinite(up).all():
            raise refusal(f"the LoRA's {quoted(self.module)} has values that are infinite or not numbers")
        made = (up * (alpha / self.divisor)).to(getattr(torch, self.dtype))
        if not torch.isfinite(made).all():
            raise refusal(f"the LoRA's {quoted(self.module)} times its alpha {alpha:g} is too large for {self.dtype}")
        return made.reshape(self.shape)
