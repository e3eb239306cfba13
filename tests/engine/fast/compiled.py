"""Compile every kernel for one kind of GPU, which need not be there, at the published widths; print what each became as JSON.

TRITON_INTERPRET=0 python -m tests.engine.fast.compiled
"""

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from zwatch.engine.fast.operations import GroupNorm, Norm, Rotation
from zwatch.engine.fast.triton_operations import TritonOperations

HOPPER = GPUTarget("cuda", 90, 32)
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float8_e4m3fn: "*fp8e4nv"}
found: dict[str, dict[str, object]] = {}


def compile_instead(kernel, grid):
    """Stand in for a launch."""

    def launch(*given, num_warps, **constants):
        signature, attributes = {}, {}
        values = dict(zip([parameter.name for parameter in kernel.params], given, strict=False)) | constants
        for number, parameter in enumerate(kernel.params):
            value = values[parameter.name]
            if isinstance(value, torch.Tensor):
                attributes[number,] = [["tt.divisibility", 16]]
            signature[parameter.name] = (
                "constexpr" if parameter.is_constexpr else TYPES[value.dtype] if isinstance(value, torch.Tensor)
                else "fp32" if isinstance(value, float) else "i32"
            )  # fmt: skip
        fixed = {name: values[name] for name, kind in signature.items() if kind == "constexpr"}
        name = f"{kernel.__name__} {fixed}"
        if name not in found:
            made = triton.compile(
                ASTSource(kernel, signature, fixed, attributes), target=HOPPER, options={"num_warps": num_warps}
            )
            found[name] = facts(made.asm)

    return launch


def facts(code):
    """Return a compiled kernel's registers and stack, and how many bytes its widest read of memory has."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code["cubin"])
        file.flush()
        told = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    registers, stack, local = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", told.stdout).groups()
    reads = re.findall(r"ld\.global(?:\.v(\d))?\.b(\d+)", code["ptx"])
    widest = max(int(count or 1) * int(bits) // 8 for count, bits in reads)
    return {"registers": int(registers), "stack": int(stack) + int(local), "widest_read": widest}


def main():
    """Launch each kernel as the published networks do."""
    JITFunction.__getitem__ = compile_instead
    made = TritonOperations()

    def numbers(*shape, dtype=torch.bfloat16):
        return torch.empty(shape, dtype=dtype)

    x, text, hidden = numbers(1, 8, 3840), numbers(1, 8, 2560), numbers(1, 8, 10240)
    norm, plain = Norm(numbers(1, 3840, dtype=torch.float32), 1e-5), Norm(numbers(1, 2560), 1e-6)
    for scaled in (False, True):
        made.norm(x, norm, scaled=scaled)
        made.residual_norm(x, x, norm, norm, scaled=scaled)
        made.gated(hidden, hidden, scaled=scaled)
    made.norm(x, Norm(norm.factor, 1e-6, centred=True))
    made.residual(x, x, norm)
    made.residual_norm(text, text, None, plain)
    made.scaled(x)
    head = Norm(numbers(1, 128), 1e-5)
    angles = numbers(8, 64, dtype=torch.float32)
    made.heads(*[numbers(1, 8, 30, 128)] * 2, (head, head), Rotation(angles, angles, interleaved=True))
    made.heads(numbers(1, 8, 32, 128), numbers(1, 8, 8, 128), (head, head), Rotation(angles, angles, interleaved=False))
    for width in (128, 512):
        image = numbers(1, width, 32, 32).contiguous(memory_format=torch.channels_last)
        group = GroupNorm(numbers(width), numbers(width), 32, 1e-6)
        made.group_norm(image, group, bias=numbers(width))
        made.group_norm(image, group, bias=numbers(width), shortcut=image)
        made.doubled(image, bias=numbers(width), shortcut=image)
    print(json.dumps(found))


if __name__ == "__main__":
    assert os.environ.get("TRITON_INTERPRET", "0") == "0"
    main()
