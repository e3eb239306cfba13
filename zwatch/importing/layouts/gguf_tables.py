"""A check of a GGUF file's counts and lengths, before the `gguf` package reads it: it would follow a damaged count for hours.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Magic, version, number of tensors, number of key-value
pairs, these pairs, and the tensors' names, sizes, types and offsets; numbers little-endian.
"""

import mmap
import struct
from dataclasses import dataclass

from zwatch.deploy.header import MAX_TENSORS
from zwatch.importing.layouts.parts import quoted

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by the number of its type."""
_STRING, _ARRAY = 8, 9
_MOST_PAIRS = 100_000
_LONGEST_NAME = 65_535  # bytes, as the format says of keys; of tensors it says 64


@dataclass(slots=True)
class _Walk:
    """A place in the file that moves on and never leaves it."""

    data: mmap.mmap
    place: int = 0

    def number(self, form: str) -> int:
        """Return the next number."""
        size = struct.calcsize(form)
        self.skip(size)
        return int(struct.unpack_from(f"<{form}", self.data, self.place - size)[0])

    def skip(self, size: int) -> int:
        """Move on, and return where it was."""
        if size > len(self.data) - self.place:
            raise ValueError("it ends inside its tables; is the copy complete?")
        self.place += size
        return self.place - size

    def text(self, longest: int) -> str:
        """Return the next text."""
        length = self.number("Q")
        if length > longest:
            raise ValueError(f"a text of {length} bytes, expected at most {longest}")
        begin = self.skip(length)
        return self.data[begin : begin + length].decode("utf-8")


def check(path: str) -> None:
    """Walk through a GGUF file's tables.

    Raises:
        ValueError: they are not well formed; the message says what.
        OSError: the file could not be read.
    """
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        walk = _Walk(data)
        if data[: len(MAGIC)] != MAGIC:
            raise ValueError(f"it begins with {data[: len(MAGIC)]!r}, expected {MAGIC!r}")
        walk.skip(len(MAGIC))
        version, tensors, pairs = walk.number("I"), walk.number("Q"), walk.number("Q")
        if version not in VERSIONS:
            raise ValueError(f"version {version}, known are {' and '.join(map(str, VERSIONS))}")
        if tensors > MAX_TENSORS or pairs > _MOST_PAIRS:
            raise ValueError(f"{tensors} tensors and {pairs} keys, the limits are {MAX_TENSORS} and {_MOST_PAIRS}")
        for _ in range(pairs):
            key = walk.text(_LONGEST_NAME)
            _skip_value(walk, walk.number("I"), key)
        for _ in range(tensors):
            name = walk.text(_LONGEST_NAME)
            dimensions = walk.number("I")
            if not 1 <= dimensions <= 4:
                raise ValueError(f"tensor {quoted(name)} has {dimensions} dimensions, expected 1 to 4")
            walk.skip(dimensions * 8 + 4 + 8)


def _skip_value(walk: _Walk, kind: int, key: str) -> None:
    if kind == _STRING:
        walk.skip(walk.number("Q"))
    elif kind == _ARRAY:
        of, length = walk.number("I"), walk.number("Q")
        if of == _STRING:
            for _ in range(length):
                walk.skip(walk.number("Q"))
        elif of in _SIZES:
            walk.skip(length * _SIZES[of])
        else:
            raise ValueError(f"{quoted(key)} is an array of the type {of}, which is not known")
    elif kind in _SIZES:
        walk.skip(_SIZES[kind])
    else:
        raise ValueError(f"{quoted(key)} has the type {kind}, which is not known")
