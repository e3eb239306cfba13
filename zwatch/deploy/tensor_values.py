"""How much the values of two stored tensors differ, computed in blocks: memory does not grow with the tensors."""

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zwatch.deploy.header import ITEM_BITS, TensorInfo

BLOCK = 2**16
"""Elements that are compared at a time: in float32 they fit into a core's cache."""
_Array = NDArray[np.floating[Any]]
_PLAIN = {
    "BOOL": "u1", "U8": "u1", "I8": "i1", "I16": "<i2", "U16": "<u2", "I32": "<i4", "U32": "<u4", "I64": "<i8", "U64": "<u8",
    "F16": "<f2", "F32": "<f4", "F64": "<f8",
}  # fmt: skip
_SMALL = frozenset({"BOOL", "U8", "I8", "I16", "U16", "F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E8M0"})
"""Dtypes whose values float32 has exactly."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor in an open file; `path` names the file in errors."""

    fd: int
    path: str
    info: TensorInfo

    @property
    def elements(self) -> int:
        """How many elements it has."""
        return math.prod(self.info.shape)

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return self.info.end - self.info.begin


@dataclass(slots=True)
class Difference:
    """By how much two tensors of one shape differ. `maximum`, `mean` (of the absolute differences) and `relative` (the norm of
    the difference by the norm of the first) are over the elements that are finite in both; None where none is, or where the
    first is 0 everywhere. `different` counts elements with another value, `not_finite` those that are NaN or infinite, in the
    first and in the second."""

    elements: int
    different: int = 0
    maximum: float | None = None
    mean: float | None = None
    relative: float | None = None
    not_finite: tuple[int, int] = (0, 0)


def compare(first: Stored, second: Stored, advance: Callable[[int], None]) -> Difference | None:
    """Return how much the second tensor differs from the first, which has the same shape; None if it is equal, bit for bit.
    `advance` gets the bytes of both that were read since its last call, each once.

    Raises:
        OSError: a file could not be read, or has become shorter.
    """
    seen = 0
    if first.info.dtype == second.info.dtype:
        for count, one, other in _blocks(first, second):
            if not np.array_equal(one, other):
                break
            seen += count
            advance(one.nbytes + other.nbytes)
        else:
            return None
    sums = _Sums()
    position = 0
    for count, one, other in _blocks(first, second):
        with np.errstate(all="ignore"):  # NaN and infinity are what is counted
            sums.add(_floats(one, first.info.dtype), _floats(other, second.info.dtype))
        if position >= seen:
            advance(one.nbytes + other.nbytes)
        position += count
    return sums.difference(first.elements)


def _blocks(first: Stored, second: Stored) -> Iterator[tuple[int, NDArray[np.uint8], NDArray[np.uint8]]]:
    sizes = [ITEM_BITS[one.info.dtype] // 8 for one in (first, second)]
    buffers = [np.empty(BLOCK * size, np.uint8) for size in sizes]
    for begin in range(0, first.elements, BLOCK):
        count = min(BLOCK, first.elements - begin)
        pair = [buffer[: count * size] for buffer, size in zip(buffers, sizes, strict=True)]
        for stored, size, part in zip((first, second), sizes, pair, strict=True):
            _read(stored, stored.info.begin + begin * size, part)
        yield count, pair[0], pair[1]


def _read(stored: Stored, offset: int, into: NDArray[np.uint8]) -> None:
    view, done = memoryview(into.data), 0
    while done < len(view):
        count = os.preadv(stored.fd, [view[done:]], offset + done)
        if count == 0:
            raise OSError(None, "it has become shorter while it was read", stored.path)
        done += count


def _floats(raw: NDArray[np.uint8], dtype: str) -> _Array:
    """Return the values of stored bytes as float32, or as float64 where that does not have them exactly."""
    if dtype == "BF16":  # the upper half of a float32
        halves = np.zeros(raw.size, np.uint16)
        halves[1::2] = raw.view("<u2")
        return halves.view("<f4")
    if dtype == "F8_E5M2":
        return (raw.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
    if dtype in _TABLES:
        return _TABLES[dtype][raw]
    return raw.view(_PLAIN[dtype]).astype(np.float32 if dtype in _SMALL else np.float64)


def _e4m3() -> NDArray[np.float32]:
    """The values of float8_e4m3fn: no infinity, the largest code of each sign is NaN (OCP 8-bit floating point, 1.0)."""
    codes = np.arange(128)
    exponents, fractions = codes >> 3, codes & 7
    values = np.where(exponents == 0, fractions / 8 * 2.0**-6, (1 + fractions / 8) * 2.0 ** (exponents - 7.0))
    values[127] = np.nan
    return np.concatenate([values, -values]).astype(np.float32)


def _e8m0() -> NDArray[np.float32]:
    """The values of float8_e8m0fnu: powers of two (OCP microscaling formats, 1.0)."""
    values = 2.0 ** (np.arange(256) - 127.0)
    values[255] = np.nan
    return values.astype(np.float32)


_TABLES = {"F8_E4M3": _e4m3(), "F8_E8M0": _e8m0()}


class _Sums:
    """Sums over blocks of two tensors."""

    def __init__(self) -> None:
        self.different, self.not_finite = 0, [0, 0]
        self.finite, self.maximum, self.total = 0, 0.0, 0.0
        self.squares = [0.0, 0.0]

    def add(self, one: _Array, other: _Array) -> None:
        """Add a block."""
        if self._add(one, other):
            return
        # Something is not finite, or its square is not in this precision.
        one, other = one.astype(np.float64), other.astype(np.float64)
        finite = [np.isfinite(one), np.isfinite(other)]
        for side in (0, 1):
            self.not_finite[side] += int(one.size - np.count_nonzero(finite[side]))
        both = finite[0] & finite[1]
        same = (one == other) | (np.isnan(one) & np.isnan(other))
        self.different += int(np.count_nonzero(~same & ~both))
        self._add(one[both], other[both], is_last=True)

    def _add(self, one: _Array, other: _Array, *, is_last: bool = False) -> bool:
        if not one.size:
            return True
        gap = one - other
        np.abs(gap, out=gap)
        maximum, total = float(gap.max()), float(gap.sum())
        squares = [float(np.dot(values, values)) for values in (gap, one)]
        if not is_last and not all(map(math.isfinite, (maximum, total, *squares))):
            return False
        self.different += int(np.count_nonzero(one != other))
        self.finite += one.size
        self.maximum, self.total = max(self.maximum, maximum), self.total + total
        self.squares = [before + more for before, more in zip(self.squares, squares, strict=True)]
        return True

    def difference(self, elements: int) -> Difference:
        """Return what the sums say."""
        found = Difference(elements, self.different, not_finite=(self.not_finite[0], self.not_finite[1]))
        if self.finite:
            found.maximum, found.mean = _or_none(self.maximum), _or_none(self.total / self.finite)
            if self.squares[1] > 0:
                found.relative = _or_none(math.sqrt(self.squares[0] / self.squares[1]))
        return found


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
