"""The tensors of a weight file in another dtype than it is stored in."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import torch

from zwatch.deploy.contents import scale_of
from zwatch.deploy.header import Header, TensorInfo
from zwatch.errors import Rejection
from zwatch.shadow.buffers import DATA_ALIGNMENT, TORCH_DTYPES, FileBuffer
from zwatch.shadow.host import Shadow, copy_bytes
from zwatch.shadow.quantized import Rows, is_quantizable

CONVERTED_PIECE = 32 * 2**20
"""Bytes of a tensor as stored that are converted at a time."""
CONVERSION_ROOM = 16 * CONVERTED_PIECE
"""Bytes that a conversion takes beside what it makes: a piece as stored, and a few copies of it in float32, of twice its bytes."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """The dtype that floating tensors are converted to, and the one for matrices: two-dimensional tensors named `….weight`. With
    `quantized`, fp8 or int8, those that `is_quantizable` names become that, with a scale for each row beside them. The tensors
    named in `kept` stay as they are stored: those that are quantized already, and their scales."""

    dtype: torch.dtype
    matrices: torch.dtype
    quantized: torch.dtype | None = None
    kept: frozenset[str] = frozenset()

    def quantizes(self, name: str, info: TensorInfo) -> bool:
        """Return whether a tensor becomes quantized."""
        is_floating = TORCH_DTYPES[info.dtype].is_floating_point
        is_plain = is_floating and name not in self.kept
        return self.quantized is not None and is_plain and is_quantizable(name, info.shape)

    def of(self, name: str, info: TensorInfo) -> torch.dtype:
        """Return the dtype of a tensor after the conversion."""
        stored = TORCH_DTYPES[info.dtype]
        if not stored.is_floating_point or name in self.kept:
            return stored
        return self.matrices if len(info.shape) == 2 and name.endswith(".weight") else self.dtype


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor is: `begin` and `nbytes` in bytes of the buffer."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    nbytes: int


class ConvertedBuffer:
    """The tensors of one weight file in other dtypes, on a device: uint8, shape (size,).

    It is made from verified bytes and hashed when it is made; `digest` is the file's, whose own bytes it does not hold.
    """

    def __init__(self, path: str, digest: str | None, places: dict[str, _Place], shadow: Shadow) -> None:
        self.path = path
        self.digest = digest
        self.shadow = shadow
        self._places = places
        self._file_size = 0
        self._data = shadow.allocate(self, _end(places))
        self._hash = ""

    @classmethod
    def of(
        cls, file: FileBuffer, conversion: Conversion, into: Shadow, between: Callable[[], None] = lambda: None, *,
        is_alone: bool = False,
    ) -> "ConvertedBuffer":  # fmt: skip
        """Convert the verified bytes of a file into a memory, which may be another: then they get there in pieces, one at a time.
        `between` is called before each piece, and may raise to stop. `is_alone`: the file is freed before the next is read.

        Raises:
            Rejection: `weights_mismatch`, a number is too large for its new dtype.
            torch.OutOfMemoryError, MemoryError: that memory is not large enough.
        """
        made = cls(file.path, file.digest, _places(file.header, conversion), into)
        made._file_size = file.size if file.shadow is into and not is_alone else 0
        made._data.zero_()  # the gaps are hashed, too
        tensors = made.tensors()
        for name, info in file.header.tensors.items():
            source = file.tensor(name)
            if conversion.quantizes(name, info):
                values, scales = tensors[name], tensors[scale_of(name)]
                for part in _parts(source):
                    between()
                    rows = Rows.of(source[part].to(values.device), values.dtype)
                    values[part].copy_(rows.values)
                    scales[part].copy_(rows.scales)
                continue
            flat, target = source.reshape(-1), tensors[name].view(-1)
            for part in _parts(flat):
                between()
                _copy(target[part], flat[part].to(target.device), f"{file.path}: {name!r}")
        made._hash = made.shadow.hasher.begin(made._data).hexdigest()
        return made

    @property
    def nbytes(self) -> int:
        """Bytes held on the device."""
        return self._data.nbytes

    @property
    def size(self) -> int:
        """Bytes held on the device."""
        return self._data.numel()

    @property
    def sizes(self) -> list[int]:
        """Bytes of each piece of its memory that loading it takes: the file's, if it was there for a moment beside others, and its own."""
        return [size for size in (self._file_size, self.size) if size]

    def begin_check(self) -> Callable[[], str | None]:
        """As `FileBuffer.begin_check`."""
        hashing = self.shadow.hasher.begin(self._data)
        hashing.finish()

        def compare() -> str | None:
            if hashing.hexdigest() != self._hash:
                where = "in host memory" if self.shadow.is_host else "on the device"
                return f"{self.path}: the converted copy of its tensors {where} has changed"
            return None

        return compare

    def moved(self, to: Shadow) -> "ConvertedBuffer":
        """As `FileBuffer.moved`."""
        other = ConvertedBuffer(self.path, self.digest, self._places, to)
        other._file_size = self._file_size
        copy_bytes(other._data, self._data)
        if not to.is_host and (found := to.hasher.begin(other._data).hexdigest()) != self._hash:
            raise Rejection(
                "device_error",
                f"{self.path}: blake3 of what landed on the device is {found}, expected {self._hash} of its converted tensors",
            )
        other._hash = self._hash
        return other

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return every tensor as a view."""
        return {
            name: self._data[place.begin : place.begin + place.nbytes].view(place.dtype).view(place.shape)
            for name, place in self._places.items()
        }


def _parts(tensor: torch.Tensor) -> Iterator[slice]:
    """Return what of a tensor's first dimension is converted at a time."""
    length = len(tensor)
    step = max(1, CONVERTED_PIECE * length // max(1, tensor.nbytes))
    return (slice(begin, begin + step) for begin in range(0, length, step))


def _copy(to: torch.Tensor, source: torch.Tensor, what: str) -> None:
    to.copy_(source)
    if not source.is_floating_point() or torch.finfo(to.dtype).max >= torch.finfo(source.dtype).max:
        return
    too_large = torch.isfinite(source) & ~torch.isfinite(to)
    if too_large.any():
        found = source[too_large].abs().max().item()
        most = torch.finfo(to.dtype).max
        raise Rejection(
            "weights_mismatch",
            f"{what} has the number {found:g}, too large for {to.dtype}, whose largest is {most:g}; give --dtype fp32",
        )


def converted_bytes(header: Header, conversion: Conversion) -> int:
    """Return the device bytes that the converted tensors of a file will take."""
    return _end(_places(header, conversion))


def _places(header: Header, conversion: Conversion) -> dict[str, _Place]:
    places: dict[str, _Place] = {}
    position = 0

    def add(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
        nonlocal position
        places[name] = _Place(dtype, shape, position, prod(shape) * dtype.itemsize)
        position += _span(places[name].nbytes)

    for name, info in header.tensors.items():
        if conversion.quantizes(name, info):
            assert conversion.quantized is not None
            add(name, conversion.quantized, info.shape)
            add(scale_of(name), torch.float32, (info.shape[0], 1))
        else:
            add(name, conversion.of(name, info), info.shape)
    return places


def _end(places: dict[str, _Place]) -> int:
    return max(DATA_ALIGNMENT, sum(_span(place.nbytes) for place in places.values()))


def _span(nbytes: int) -> int:
    return -(-nbytes // DATA_ALIGNMENT) * DATA_ALIGNMENT


Buffer = FileBuffer | ConvertedBuffer
"""What holds the tensors of a weight file on a device."""
