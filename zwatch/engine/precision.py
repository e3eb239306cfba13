"""Which dtype a component is computed in, and computing in one that the processor has no instructions for.

A CPU without bfloat16 instructions (AVX-512 or newer on x86-64) computes convolutions in bfloat16 a hundred times slower than
in float32: decoding 256 x 256 took 38 s, and 0.5 s in float32 (one core of an AMD EPYC with AVX2). So there each product is
computed in float32 and rounded to the module's dtype, which is what processors with such instructions do inside. The weights
stay as they were verified.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from zwatch.engine.networks import layers
from zwatch.engine.scaled import QuantizedLinear, quantized_dtype
from zwatch.shadow.converted import Conversion
from zwatch.shadow.quantized import KINDS

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""The dtypes that can be asked for."""
_STORED = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
"""Dtypes of weights that can be converted, by their names in files."""
_NAMES = {dtype: name for name, dtype in _STORED.items()}


@dataclass(frozen=True, slots=True)
class Precision:
    """What was asked for: `dtype` is `auto` or a key of `DTYPES`, `quantize` None or a key of `KINDS`."""

    dtype: str = "auto"
    quantize: str | None = None


def conversion_of(component: str, stored: Iterable[str], asked: Precision, device: torch.device) -> Conversion | None:
    """Return how a component's weights are converted before it is computed; None if they stay as they are. `stored` has the
    names of the dtypes in its files, which are not quantized.

    By default they become bfloat16 where the device computes in it, whatever the files hold: the published Z-Image-Turbo has its
    transformer in float32, twice the bytes and half the speed. Elsewhere they become float32, but on a CPU weights in bfloat16
    stay: their products are computed in float32.
    """
    floating = {name for name in stored if name.startswith(("F", "BF"))}
    if not floating or not floating <= _STORED.keys():
        return None  # fp8 without scales is not a matter of rounding: building the component refuses it
    quantized = None if asked.quantize is None or component == "vae" else KINDS[asked.quantize]
    if asked.dtype == "fp16":
        # Activations of Z-Image overflow in float16 (NaN, black images): they, and all but the matrices, are float32.
        return Conversion(torch.float32, torch.float32 if component == "vae" else torch.float16, quantized)
    if asked.dtype != "auto":
        wanted = DTYPES[asked.dtype]
    elif has_bfloat16(device) or (device.type == "cpu" and floating == {"BF16"}):
        wanted = torch.bfloat16
    else:
        wanted = torch.float32
    is_stored = floating == {_NAMES[wanted]} and quantized is None
    return None if is_stored else Conversion(wanted, wanted, quantized)


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16 by itself; CUDA devices do since Ampere (compute capability 8.0)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return has_instructions(device, torch.bfloat16)


class _Conv2d(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's own name)
        bias = None if self.bias is None else self.bias.float()
        product: torch.Tensor = self._conv_forward(input.float(), self.weight.float(), bias)
        return product.to(input.dtype)


class _Linear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's own name)
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(input.float(), self.weight.float(), bias).to(input.dtype)


class _HalfLinear(nn.Linear):
    """A weight in float16 between activations in float32: the product is computed from float16 numbers and added up in
    float32, each row of the input divided by its largest number, so that nothing overflows."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's own name)
        x = input.float()
        if not x.is_cuda:
            return nn.functional.linear(x, self.weight.float(), self.bias)
        rows = x.reshape(-1, x.shape[-1])
        largest = rows.abs().amax(-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        product = torch.mm((rows / largest).half(), self.weight.t(), out_dtype=torch.float32) * largest
        if self.bias is not None:
            product += self.bias
        return product.view(*x.shape[:-1], -1)


class _HalfEmbedding(nn.Embedding):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's own name)
        return super().forward(input).float()


_HALF_WEIGHTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: _HalfLinear, layers.Linear: _HalfLinear, nn.Embedding: _HalfEmbedding, layers.Embedding: _HalfEmbedding,
}  # fmt: skip
_IN_FLOAT32: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _Conv2d, nn.Linear: _Linear, layers.Conv2d: _Conv2d, layers.Linear: _Linear,
}  # fmt: skip


def adapt(module: nn.Module, device: torch.device) -> None:
    """Let a module compute its products in float32 where `device` has no instructions for its dtype, and where only its matrices
    are in float16."""
    dtypes = _dtypes(module)
    if is_mixed(module):
        replacements = _HALF_WEIGHTS
    elif not dtypes or has_instructions(device, next(iter(dtypes))):
        return
    else:
        replacements = _IN_FLOAT32
    for part in module.modules():
        # The class, not the method: a method bound to the part would be in a ring with it, and keep its memory.
        if (replacement := replacements.get(type(part))) is not None:
            part.__class__ = replacement


def is_mixed(module: nn.Module) -> bool:
    """Return whether a module has its matrices in float16 and the rest in float32."""
    return _dtypes(module) == {torch.float16, torch.float32}


def _dtypes(module: nn.Module) -> set[torch.dtype]:
    """Return the dtypes of all weights but the quantized ones, which compute by themselves."""
    parts = [part for part in module.modules() if not isinstance(part, QuantizedLinear)]
    return {parameter.dtype for part in parts for parameter in part.parameters(recurse=False)}


def has_instructions(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a device computes in a dtype by itself."""
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return True
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    checks = torch.ops.mkldnn
    supported = checks._is_mkldnn_bf16_supported if dtype is torch.bfloat16 else checks._is_mkldnn_fp16_supported  # noqa: SLF001
    return bool(supported())


def name_of(*modules: nn.Module) -> str:
    """Return what the precision of modules is called: fp8, int8, fp16, bf16 or fp32, each once and joined by `+`."""
    return "+".join(dict.fromkeys(map(_name_of, modules)))


def _name_of(module: nn.Module) -> str:
    if (quantized := quantized_dtype(module)) is not None:
        return next(name for name, dtype in KINDS.items() if dtype is quantized)
    if is_mixed(module):
        return "fp16"
    dtypes = _dtypes(module)
    return next((name for name, dtype in DTYPES.items() if dtypes == {dtype}), "mixed")
