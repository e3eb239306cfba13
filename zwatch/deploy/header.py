"""The header of a `.safetensors` file: strict reading, and how it looks with a version in it.

The format: 8 bytes little-endian length, that many bytes of JSON, then the tensors' bytes. The safetensors
package accepts duplicate keys (the last one wins), so that a file could show one version and load another;
here everything unclear is rejected. This module is in `deploy` because sealing writes versions into headers and may not
import torch; `shadow` uses it to place tensors.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any

from zwatch.errors import Rejection

MAX_HEADER = 16 * 2**20
"""Longest accepted header, bytes. A full Z-Image transformer's is 0.06 MB; safetensors itself allows 100 MB."""
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8
LENGTH_BYTES = 8
VERSION_KEY = "version"
WEIGHTS_SUFFIX = ".safetensors"
LORA = "lora.safetensors"
"""The sealed path of a LoRA's factors; no version has one."""
MAX_VERSION = 64
"""Longest name of a version, characters."""
BLOCK = 4096
"""Blocks that two files can share are multiples of this long, bytes, on the usual file systems that can share."""
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip
"""Bits an element, by the format's dtype names. Sub-byte dtypes are not accepted: no component of ours has them."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: dtype by the format's name, shape, and its bytes as offsets from the start of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header. `raw` is the length field and the JSON as they stand in the file."""

    raw: bytes
    metadata: dict[str, str]
    tensors: dict[str, TensorInfo]
    file_size: int

    @property
    def data_start(self) -> int:
        """Offset of the first tensor byte from the start of the file."""
        return len(self.raw)

    @property
    def version(self) -> str | None:
        """The header version, if the header has one."""
        return self.metadata.get(VERSION_KEY)


def carries_version(path: str) -> bool:
    """Say whether the file at this sealed path must have a header version: the transformer's weights, or a LoRA's, and only they."""
    return path == LORA or (path.startswith("transformer/") and path.endswith(WEIGHTS_SUFFIX))


def read_header(fd: int, path: str) -> Header:
    """Read and check the header of the open file `fd`; `path` names it in errors.

    Raises:
        Rejection: `header_invalid`, with the path, the tensor and what is wrong.
        OSError: the file could not be read.
    """
    size = os.fstat(fd).st_size
    length_field = _read(fd, 0, LENGTH_BYTES)
    length = header_length(length_field, size, path)
    raw = length_field + _read(fd, LENGTH_BYTES, length)
    if len(raw) < LENGTH_BYTES + length:
        raise _bad(path, "the file ends inside its header")
    return parse_header(raw, size, path)


def _read(fd: int, begin: int, length: int) -> bytes:
    """Return so many bytes of a file, fewer only if it ends there: one call may return fewer at any place."""
    data = b""
    while len(data) < length and (piece := os.pread(fd, length - len(data), begin + len(data))):
        data += piece
    return data


def header_length(length_field: bytes, file_size: int, path: str) -> int:
    """Check the length field and return the length of the JSON behind it, bytes.

    Raises:
        Rejection: `header_invalid`.
    """
    if len(length_field) < LENGTH_BYTES:
        raise _bad(path, f"the file has {file_size} bytes, too short for a safetensors header")
    length = int.from_bytes(length_field, "little")
    if length > MAX_HEADER:
        raise _bad(path, f"the header says it is {length} bytes long, the limit is {MAX_HEADER}")
    if LENGTH_BYTES + length > file_size:
        raise _bad(path, f"the header says it is {length} bytes long, the file has only {file_size}")
    return length


def parse_header(raw: bytes, file_size: int, path: str) -> Header:
    """Check a whole header, given with its length field, against the size of its file.

    Raises:
        Rejection: `header_invalid`.
    """
    table = _parse_json(raw[LENGTH_BYTES:], path)
    metadata = _checked_metadata(table.pop("__metadata__", {}), path)
    if len(table) > MAX_TENSORS:
        raise _bad(path, f"{len(table)} tensors, the limit is {MAX_TENSORS}")
    tensors = {name: _checked_tensor(name, entry, len(raw), path) for name, entry in table.items()}
    _check_coverage(tensors, len(raw), file_size, path)
    return Header(raw, metadata, tensors, file_size)


def check_version(found: Header, expected: str, path: str) -> None:
    """Check that a transformer file has the version directory's name as its header version.

    Raises:
        Rejection: `version_mismatch`.
    """
    if found.version != expected:
        what = "no version" if found.version is None else f"version {_short(found.version)}"
        raise Rejection(
            "version_mismatch",
            f"{path}: the header has {what}, the directory is {expected!r}; if the weights are right, run `zwatch seal`",
        )


def with_version(found: Header, version: str, path: str) -> bytes:
    """Return a header that has `version`, its length field included, as long as the present one where that has room.

    Spaces behind `__metadata__` are the room: the next version changes some bytes in the first sector and nothing else. A longer
    header is longer by a multiple of `BLOCK`, so that a file system can share the tensors' blocks between two files.

    Raises:
        Rejection: it would be longer than the limit.
    """
    table = _parse_json(found.raw[LENGTH_BYTES:], path)
    table.pop("__metadata__", None)
    metadata = _compact({**found.metadata, VERSION_KEY: version})
    head, tail = b'{"__metadata__":' + metadata, (b"," if table else b"") + _compact(table)[1:]
    length = len(found.raw) - LENGTH_BYTES
    if len(head) + len(tail) > length:
        longest = len(head) + len(tail) + MAX_VERSION - len(version)
        length += -(-(longest - length) // BLOCK) * BLOCK
    if length > MAX_HEADER:
        raise _bad(path, f"the header has no room for the version, the limit is {MAX_HEADER} bytes")
    room = b" " * (length - len(head) - len(tail))
    return length.to_bytes(LENGTH_BYTES, "little") + head + room + tail


def _compact(table: Mapping[str, Any]) -> bytes:
    return json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()


def _bad(path: str, what: str) -> Rejection:
    return Rejection("header_invalid", f"{path}: {what}")


def _parse_json(raw: bytes, path: str) -> dict[str, Any]:
    """Parse a header as the safetensors package does: it refuses some JSON that Python's parser accepts."""
    try:
        text = raw.decode("utf-8")
        # A function for each number takes a third of the time, so only where one may differ.
        whole = _whole if "-0" in text else None
        table = json.loads(text, object_pairs_hook=_without_duplicates(path), parse_int=whole)
        if _ESCAPED_SURROGATE.search(text):
            json.dumps(table, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise _bad(path, "the header is not JSON: half of a surrogate pair, which is no character") from None
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"the header is not JSON: {error}") from None
    if not isinstance(table, dict):
        raise _bad(path, f"the header is a JSON {type(table).__name__}, expected an object")
    return table


def _whole(digits: str) -> int:
    if digits == "-0":
        raise ValueError("-0 is no size")
    return int(digits)


def _without_duplicates(path: str) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) != len(pairs):
            [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
            raise _bad(path, f"the header has the key {twice[:200]!r} twice")
        return table

    return build


def _checked_metadata(metadata: object, path: str) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _bad(path, "__metadata__ must be an object of strings")
    return metadata


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _checked_tensor(name: str, entry: object, data_start: int, path: str) -> TensorInfo:
    where = f"tensor {name[:200]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _bad(path, f"{where} must have exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BITS:
        raise _bad(path, f"{where} has the unknown dtype {_short(dtype)}")
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_is_size, shape)):
        raise _bad(path, f"{where} has the shape {_short(shape)}, expected a list of at most {MAX_DIMENSIONS} sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)) or offsets[0] > offsets[1]:
        raise _bad(path, f"{where} has the data_offsets {_short(offsets)}, expected [begin, end]")
    expected = prod(shape) * ITEM_BITS[dtype] // 8
    if offsets[1] - offsets[0] != expected:
        raise _bad(path, f"{where} spans {offsets[1] - offsets[0]} bytes, {dtype} {shape} needs {expected}")
    if any(
        product >= 2**64 for product in accumulate(shape, mul)
    ):  # of an empty tensor: the package multiplies in this order
        raise _bad(path, f"{where} has the shape {_short(shape)}, which no file can hold")
    return TensorInfo(dtype, tuple(shape), data_start + offsets[0], data_start + offsets[1])


def _check_coverage(tensors: dict[str, TensorInfo], data_start: int, file_size: int, path: str) -> None:
    """Every byte behind the header belongs to exactly one tensor."""
    position = data_start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != position:
            what = "overlaps the tensor before it" if info.begin < position else "leaves a gap before it"
            raise _bad(path, f"tensor {name[:200]!r} {what}")
        position = info.end
    if position != file_size:
        raise Rejection(
            "size_mismatch", f"{path}: {file_size} bytes, its header accounts for {position}; is the copy complete?"
        )
