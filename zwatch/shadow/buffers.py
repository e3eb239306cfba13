"""Flat buffers on a device: one per weight file, holding its bytes exactly as on disk, and the tensors in them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from zwatch.deploy.header import Header
from zwatch.errors import Rejection
from zwatch.shadow.hashing import Between, Hashing
from zwatch.shadow.host import Shadow, copy_bytes

DATA_ALIGNMENT = 256
"""A file is placed so that its first tensor starts at a multiple of this, bytes: the alignment of CUDA's own allocator."""
KERNEL_ALIGNMENT = 16
"""Vectorised kernels load 16 bytes at a time (cuBLAS and cuDNN require it); a misaligned tensor gets an aligned copy."""

TORCH_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu, "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16,
    "BF16": torch.bfloat16, "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32, "I64": torch.int64,
    "U64": torch.uint64, "F64": torch.float64,
}  # fmt: skip
"""torch's dtype for each dtype name of the format."""


class FileBuffer:
    """The bytes of one weight file on a device, uint8, shape (size,), and the hash they were verified to have.

    `derived` holds aligned copies of the misaligned tensors, uint8, made from verified bytes and hashed when made.
    """

    def __init__(self, path: str, header: Header, shadow: Shadow) -> None:
        self.path = path
        self.header = header
        self.shadow = shadow
        pad = -header.data_start % DATA_ALIGNMENT
        self._whole = shadow.allocate(self, pad + header.file_size)
        self.data = self._whole[pad:]
        self.digest: str | None = None
        self.derived: torch.Tensor | None = None
        self._derived_digest: str | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held on the device, derived copies included."""
        return self._whole.nbytes + (0 if self.derived is None else self.derived.nbytes)

    @property
    def size(self) -> int:
        """Bytes of memory that the file's own bytes take, without derived copies."""
        return self._whole.numel()

    @property
    def sizes(self) -> list[int]:
        """Bytes of each piece of device memory that loading it takes."""
        return [piece.numel() for piece in (self._whole, self.derived) if piece is not None]

    @property
    def _where(self) -> str:
        return "in host memory" if self.shadow.is_host else "on the device"

    def begin_hash(self, between: Between = lambda: None) -> Hashing:
        """Begin to hash the file's bytes in place, while they may still be arriving; see `Hasher.begin`."""
        return self.shadow.hasher.begin(self.data, between)

    def begin_check(self) -> Callable[[], str | None]:
        """Begin to hash all bytes held here, in place; the returned function waits, and returns a sentence that names
        what changed, or None."""
        whole = self.begin_hash()
        whole.finish()
        derived = None if self.derived is None else self.shadow.hasher.begin(self.derived)
        if derived is not None:
            derived.finish()

        def compare() -> str | None:
            if (found := whole.hexdigest()) != self.digest:
                return f"{self.path}: blake3 {self._where} is {found}, it was loaded as {self.digest}"
            if derived is not None and derived.hexdigest() != self._derived_digest:
                return f"{self.path}: the aligned copy of its tensors {self._where} has changed"
            return None

        return compare

    def moved(self, to: Shadow) -> "FileBuffer":
        """Return a copy of the verified bytes in another memory; on a device, the copy is hashed again.

        Raises:
            Rejection: `device_error`, other bytes landed.
            torch.OutOfMemoryError, MemoryError: `to` has not enough memory.
        """
        other = FileBuffer(self.path, self.header, to)
        copy_bytes(other._whole, self._whole)
        if not to.is_host and (found := other.begin_hash().hexdigest()) != self.digest:
            raise Rejection(
                "device_error", f"{self.path}: blake3 of what landed on the device is {found}, expected {self.digest}"
            )
        other.digest = self.digest
        return other

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return every tensor of the file as a view; misaligned ones are copied, once."""
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

    def tensor(self, name: str) -> torch.Tensor:
        """Return one tensor of the file: a view, or a copy where its dtype's own alignment forbids a view."""
        info = self.header.tensors[name]
        found = self._view(name, self.data, info.begin)
        return self._view(name, self.data[info.begin : info.end].clone(), 0) if found is None else found  # type: ignore[return-value]

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
        derived = self.shadow.allocate(self, sum(map(self._span, names))).zero_()
        position = 0
        for name in names:
            info = self.header.tensors[name]
            derived[position : position + info.end - info.begin].copy_(self.data[info.begin : info.end])
            position += self._span(name)
        self.derived = derived
        self._derived_digest = self.shadow.hasher.begin(derived).hexdigest()


@dataclass(frozen=True, slots=True)
class Footprint:
    """Most device bytes that a header's file will take: the file itself and aligned copies of misaligned tensors."""

    file: int
    derived: int

    @classmethod
    def of(cls, header: Header) -> "Footprint":
        """Compute it from a header, before anything is allocated."""
        pad = -header.data_start % DATA_ALIGNMENT
        off = [
            info.end - info.begin
            for info in header.tensors.values()
            if (info.begin - header.data_start) % KERNEL_ALIGNMENT
        ]
        return cls(pad + header.file_size, sum(-(-size // DATA_ALIGNMENT) * DATA_ALIGNMENT for size in off))

    @property
    def total(self) -> int:
        """All bytes."""
        return self.file + self.derived
