"""Flat buffers on a device: one a weight file, holding its bytes as they stand on disk, and the tensors in them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from blake3 import blake3

from zwatch.deploy.header import Header
from zwatch.shadow.device import Device

DATA_ALIGNMENT = 256
"""A file is placed so that its first tensor starts at a multiple of this, bytes: what CUDA's allocator itself gives."""
KERNEL_ALIGNMENT = 16
"""Vectorised kernels load 16 bytes at a time (cuBLAS and cuDNN ask for it); a tensor off it gets a copy of its own."""
HASH_SLICE = 64 * 2**20

TORCH_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu, "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16,
    "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32, "I64": torch.int64,
    "U64": torch.uint64, "F64": torch.float64,
}  # fmt: skip
"""torch's dtype for each dtype name of the format."""


class FileBuffer:
    """The bytes of one weight file on a device, uint8, shape (size,), and the hash they were verified to have.

    `derived` holds copies of the tensors that lie off their kernels' alignment, uint8, made from verified bytes and
    hashed when made.
    """

    def __init__(self, path: str, header: Header, device: Device) -> None:
        self.path = path
        self.header = header
        self._device = device
        pad = -header.data_start % DATA_ALIGNMENT
        self._whole = device.allocate(self, pad + header.file_size)
        self.data = self._whole[pad:]
        self.digest: str | None = None
        self.derived: torch.Tensor | None = None
        self._derived_digest: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held on the device, derived copies included."""
        return self._whole.nbytes + (0 if self.derived is None else self.derived.nbytes)

    def hash(self, between: Callable[[], None] = lambda: None) -> str:
        """Return the blake3 of the file's bytes as they lie on the device now, as hex. See `hash_bytes`."""
        return hash_bytes(self.data, self._device, between)

    def check_again(self) -> str | None:
        """Hash everything here in place; return a sentence about what changed, or None."""
        found = self.hash()
        if found != self.digest:
            return f"{self.path}: blake3 on the device is {found}, it was loaded as {self.digest}"
        if self.derived is not None and hash_bytes(self.derived, self._device) != self._derived_digest:
            return f"{self.path}: the aligned copy of its tensors on the device has changed"
        return None

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return every tensor of the file as a view, copying those that are off alignment (once)."""
        views = {name: self._view(name, self.data, info.begin) for name, info in self.header.tensors.items()}
        misaligned = [name for name, view in views.items() if view is None or view.data_ptr() % KERNEL_ALIGNMENT]
        if misaligned and self.derived is None:
            self._derive(misaligned)
        position = 0
        for name in misaligned:
            assert self.derived is not None  # _derive made it for exactly these names
            views[name] = self._view(name, self.derived, position)
            position += self._span(name)
        return {name: view for name, view in views.items() if view is not None}

    def _view(self, name: str, source: torch.Tensor, begin: int) -> torch.Tensor | None:
        """View `source` from `begin` on as the tensor `name`; None where the dtype's own alignment forbids it."""
        info = self.header.tensors[name]
        dtype = TORCH_DTYPES[info.dtype]
        piece = source[begin : begin + info.end - info.begin]
        if piece.storage_offset() % dtype.itemsize:
            return None
        return piece.view(dtype).view(info.shape)

    def _span(self, name: str) -> int:
        info = self.header.tensors[name]
        return -(-(info.end - info.begin) // DATA_ALIGNMENT) * DATA_ALIGNMENT

    def _derive(self, names: list[str]) -> None:
        derived = self._device.allocate(self, sum(map(self._span, names))).zero_()
        position = 0
        for name in names:
            info = self.header.tensors[name]
            derived[position : position + info.end - info.begin].copy_(self.data[info.begin : info.end])
            position += self._span(name)
        self.derived = derived
        self._derived_digest = hash_bytes(derived, self._device)


def hash_bytes(data: torch.Tensor, device: Device, between: Callable[[], None] = lambda: None) -> str:
    """Return the blake3 of a uint8 tensor of shape (n,), on any device, as hex.

    On a CPU the bytes are hashed where they lie; from a GPU they come back to the host, a slice at a time. `between`
    is called between two slices and may raise to stop.
    """
    hasher = blake3(max_threads=blake3.AUTO)
    for begin in range(0, data.numel(), HASH_SLICE):
        between()
        hasher.update(device.host_view(data[begin : begin + HASH_SLICE]))
    return hasher.hexdigest()


@dataclass(frozen=True, slots=True)
class Footprint:
    """Device bytes that a header's file will take: the file itself and copies of misaligned tensors, at most."""

    file: int
    derived: int

    @classmethod
    def of(cls, header: Header) -> "Footprint":
        """Plan from a header, before anything is allocated."""
        pad = -header.data_start % DATA_ALIGNMENT
        off = [
            info.end - info.begin
            for info in header.tensors.values()
            if (info.begin - header.data_start) % KERNEL_ALIGNMENT
        ]
        return cls(pad + header.file_size, sum(-(-size // DATA_ALIGNMENT) * DATA_ALIGNMENT for size in off))

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.file + self.derived
