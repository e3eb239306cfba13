"""Rows of fp8 or int8 numbers, each with a scale of its own, and products with them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from zwatch.shadow.quantized import Rows

FP8 = torch.float8_e4m3fn
_MULTIPLE = 16
"""Of the sides of matrices that CUDA multiplies in fp8."""


@dataclass(frozen=True, slots=True)
class Scaled:
    """What `values * scales` stands for: `values` are fp8 of shape (..., width), `scales` float32 of shape (..., 1)."""

    values: Tensor
    scales: Tensor

    @classmethod
    def of(cls, x: Tensor) -> "Scaled":
        """Return numbers with the largest of each row at fp8's largest; NaN stays NaN."""
        rows = Rows.of(x, FP8)
        return cls(rows.values, rows.scales)

    def float(self) -> Tensor:
        """Return the numbers in float32."""
        return self.values.float() * self.scales


Activations = Tensor | Scaled
"""What a product takes."""


class QuantizedLinear(nn.Module):
    """A `Linear` whose weight is fp8 or int8 with a scale for each output: 1 byte instead of 2 for a number.

    With an fp8 weight, a GPU that multiplies fp8 numbers gets its input as fp8, too. Everywhere else the weight is multiplied out.
    """

    def __init__(self, width: int, out: int, dtype: torch.dtype, *, bias: bool = False) -> None:
        """Make one without values: `width` numbers go in, `out` come out; `dtype` is the weight's."""
        super().__init__()
        self.weight = nn.Parameter(torch.empty((out, width), dtype=dtype, device="meta"), requires_grad=False)
        self.weight_scale = nn.Parameter(torch.empty((out, 1), device="meta"), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out, device="meta"), requires_grad=False) if bias else None
        self.dtype = torch.bfloat16
        """Of what comes out where fp8 goes in."""

    @classmethod
    def of(cls, weight: Tensor, dtype: torch.dtype = FP8) -> "QuantizedLinear":
        """Convert a weight of shape (out, in)."""
        rows = Rows.of(weight, dtype)
        made = cls(weight.shape[1], weight.shape[0], dtype)
        made.weight = nn.Parameter(rows.values, requires_grad=False)
        made.weight_scale = nn.Parameter(rows.scales, requires_grad=False)
        made.dtype = weight.dtype
        return made

    def forward(self, x: Activations) -> Tensor:
        """Return shape (..., out) for x of shape (..., in), in the dtype of x, or that of `dtype` for fp8."""
        dtype = self.dtype if isinstance(x, Scaled) else x.dtype
        if self.weight.dtype is FP8 and _multiplies_fp8(self.weight):
            return self._fp8(x if isinstance(x, Scaled) else Scaled.of(x), dtype)
        exact = x.float() if isinstance(x, Scaled) or not x.is_cuda else x
        weight = (self.weight.float() * self.weight_scale).to(exact.dtype)
        bias = None if self.bias is None else self.bias.to(exact.dtype)
        return functional.linear(exact, weight, bias).to(dtype)

    def _fp8(self, x: Scaled, dtype: torch.dtype) -> Tensor:
        product: Tensor = torch._scaled_mm(  # noqa: SLF001  # what torch.nn.functional.scaled_mm calls
            x.values.flatten(0, -2), self.weight.t(), x.scales.reshape(-1, 1), self.weight_scale.reshape(1, -1),
            out_dtype=torch.bfloat16, use_fast_accum=True,
        )  # fmt: skip
        product = product.view(*x.values.shape[:-1], -1).to(dtype)
        return product if self.bias is None else product + self.bias


def _multiplies_fp8(weight: Tensor) -> bool:
    """Return whether the device multiplies a matrix in fp8: a GPU since Ada (compute capability 8.9)."""
    if not weight.is_cuda or any(side % _MULTIPLE for side in weight.shape):
        return False
    return torch.cuda.get_device_capability(weight.device) >= (8, 9)


def quantized_dtype(module: nn.Module) -> torch.dtype | None:
    """Return the dtype of a module's quantized weights; None if it has none."""
    found = {part.weight.dtype for part in module.modules() if isinstance(part, QuantizedLinear)}
    return found.pop() if len(found) == 1 else None


def take_quantized(module: nn.Module, tensors: dict[str, Tensor], dtype: torch.dtype) -> None:
    """Replace those linear layers of a module on the meta device for whose weights there is a scale among the tensors; `dtype` is
    what the module computes in."""
    for name in tensors:
        path, _, last = name.rpartition(".")
        if last != "weight_scale" or not isinstance(linear := _part(module, path), nn.Linear):
            continue
        weight = tensors.get(f"{path}.weight")
        if weight is None or weight.dtype not in (FP8, torch.int8):
            continue
        made = QuantizedLinear(linear.in_features, linear.out_features, weight.dtype, bias=linear.bias is not None)
        made.dtype = dtype
        parent, _, own = path.rpartition(".")
        setattr(_part(module, parent), own, made)


def _part(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None
