"""Bytes as tensors and back, in another dtype. torch is imported by the functions."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from zwatch.deploy.header import TensorInfo

if TYPE_CHECKING:
    import torch

_TORCH = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U8": "uint8", "BOOL": "bool", "U16": "uint16", "U32": "uint32", "U64": "uint64",
}  # fmt: skip
"""torch's names of the dtypes."""
_SWITCH_SECONDS = 0.0002
"""While torch is imported: the threads that copy must not wait 5 ms for the interpreter at each piece."""


@contextmanager
def importing_torch() -> Iterator[None]:
    """Import torch beside the block, which copies first what needs no torch."""

    def load() -> None:
        with suppress(Exception):  # what needs it says why it cannot be imported
            import torch  # noqa: F401

    before = sys.getswitchinterval()
    sys.setswitchinterval(_SWITCH_SECONDS)
    try:
        with ThreadPoolExecutor(1, "zwatch-import-torch") as thread:
            thread.submit(load)
            yield
    finally:
        sys.setswitchinterval(before)


def tensor_of(data: memoryview, dtype: str, info: TensorInfo | None = None) -> "torch.Tensor":
    """Return bytes as a tensor, flat or as its `info` says."""
    import torch

    if not len(data):
        return torch.empty(info.shape if info else 0, dtype=getattr(torch, _TORCH[dtype]))
    flat = torch.frombuffer(data, dtype=getattr(torch, _TORCH[dtype]))
    return flat if info is None else flat.view(info.shape)


def converted(tensor: "torch.Tensor", dtype: str, into: memoryview | None = None) -> memoryview:
    """Return a tensor's bytes with this dtype, in the memory that is given if it has room."""
    import torch

    kind = getattr(torch, _TORCH[dtype])
    size = tensor.numel() * kind.itemsize
    out = into[:size] if into is not None and size <= len(into) else memoryview(bytearray(size))
    if size:
        torch.frombuffer(out, dtype=kind).copy_(tensor.reshape(-1))
    return out


def overflow(tensor: "torch.Tensor", data: memoryview, dtype: str) -> int | None:
    """Return the place of the first finite number that became infinite as it was converted, None if none did."""
    import torch

    kind = getattr(torch, _TORCH[dtype])
    if not (tensor.numel() and tensor.is_floating_point() and kind.is_floating_point):
        return None
    most = torch.finfo(kind).max
    if torch.finfo(tensor.dtype).max <= most or kind.itemsize == 1:
        return None
    wide = tensor if tensor.itemsize > 1 else tensor.float()
    least, greatest = torch.aminmax(wide)
    if -most <= least and greatest <= most:  # not so if any is no number
        return None
    lost = torch.isinf(torch.frombuffer(data, dtype=kind)) & torch.isfinite(wide)
    return int(lost.nonzero()[0]) if lost.any() else None


def is_finite(tensor: "torch.Tensor") -> bool:
    """Say whether a tensor has neither infinite values nor such as are no numbers."""
    if not tensor.is_floating_point():
        return True
    return bool((tensor if tensor.itemsize > 1 else tensor.float()).isfinite().all())
