"""Triton's kernels without a GPU: its interpreter, with the rounding that a GPU has. `tests/conftest.py` chooses it."""

import pytest
import torch


def triton_operations():
    """Return the operations in Triton; the tests of a module that imports this are skipped without it."""
    pytest.importorskip("triton", reason="triton is not installed: it comes with torch's builds for GPUs")
    if not torch.cuda.is_available():
        _mend()
    from zwatch.engine.fast.triton_operations import TritonOperations

    return TritonOperations()


def _mend():
    """Let the interpreter round as GPUs do (it cuts bfloat16 off, and loses a carry into fp8's exponent), and count with a
    newer numpy, for which an array with one number is not that number."""
    from triton.language import bfloat16, float8e4nv, float32
    from triton.runtime import interpreter

    original, patch = interpreter._convert_float, interpreter._patch_lang_tensor
    if original.__name__ == "convert":
        return
    rounded = {bfloat16: (torch.bfloat16, torch.uint16), float8e4nv: (torch.float8_e4m3fn, torch.uint8)}

    def convert(values, source, target, mode):
        if source != float32 or target not in rounded:
            return original(values, source, target, mode)
        dtype, bits = rounded[target]
        exact = torch.frombuffer(bytearray(values.tobytes()), dtype=torch.float32)
        return exact.to(dtype).view(bits).numpy().reshape(values.shape)

    def patch_more(tensor, scope):
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._convert_float, interpreter._patch_lang_tensor = convert, patch_more
