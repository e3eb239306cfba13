"""Computing in a dtype that the processor has no instructions for.

A CPU without bfloat16 instructions (AVX-512 or newer on x86-64) computes convolutions in bfloat16 a hundred times slower than
in float32: decoding 256 x 256 took 38 s, and 0.5 s in float32 (one core of an AMD EPYC with AVX2). So there each product is
computed in float32 and rounded to the module's dtype, which is what processors with such instructions do inside. The weights
stay as they were verified.
"""

import torch
from torch import nn

from zwatch.engine.networks import layers


class _Conv2d(nn.Conv2d):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's own name)
        bias = None if self.bias is None else self.bias.float()
        product: torch.Tensor = self._conv_forward(input.float(), self.weight.float(), bias)
        return product.to(input.dtype)


class _Linear(nn.Linear):
    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 (torch's own name)
        bias = None if self.bias is None else self.bias.float()
        return nn.functional.linear(input.float(), self.weight.float(), bias).to(input.dtype)


_IN_FLOAT32: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: _Conv2d, nn.Linear: _Linear, layers.Conv2d: _Conv2d, layers.Linear: _Linear,
}  # fmt: skip


def adapt(module: nn.Module, device: torch.device) -> None:
    """Let a module compute its products in float32 where `device` has no instructions for its dtype."""
    dtype = next((parameter.dtype for parameter in module.parameters()), torch.float32)
    if has_instructions(device, dtype):
        return
    for part in module.modules():
        # The class, not the method: a method bound to the part would be in a ring with it, and keep its memory.
        if (replacement := _IN_FLOAT32.get(type(part))) is not None:
            part.__class__ = replacement


def has_instructions(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether a device computes in a dtype by itself."""
    if device.type != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return True
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    checks = torch.ops.mkldnn
    supported = checks._is_mkldnn_bf16_supported if dtype is torch.bfloat16 else checks._is_mkldnn_fp16_supported  # noqa: SLF001
    return bool(supported())
