"""The header of a `.safetensors` file: strict reading, and writing the version into it.

The format: 8 bytes little-endian length, that many bytes of JSON, then the tensors' bytes. The safetensors
package accepts duplicate keys (the last one wins), so that a file could show one version and load another;
here everything unclear is rejected. This module is in `deploy` because sealing writes versions into headers and may not
import torch; `shadow` uses it to place tensors.
"""

import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from zwatch.errors import Rejection

MAX_HEADER = 16 * 2**20
"""Longest accepted header, bytes. A full Z-Image transformer's is 0.06 MB; safetensors itself allows 100 MB."""
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8
LENGTH_BYTES = 8
VERSION_KEY = "version"
WRITING_SUFFIX = ".stamping"
_DATA_ALIGNMENT = 64  # the tensors of a file that was written here start on a cache line

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
    """Say whether the file at this sealed path must have a header version: the transformer's weights, and only they."""
    return path.startswith("transformer/") and path.endswith(".safetensors")


def read_header(fd: int, path: str) -> Header:
    """Read and check the header of the open file `fd`; `path` names it in errors.

    Raises:
        Rejection: `header_invalid`, with the path, the tensor and what is wrong.
        OSError: the file could not be read.
    """
    size = os.fstat(fd).st_size
    length_field = os.pread(fd, LENGTH_BYTES, 0)
    length = header_length(length_field, size, path)
    raw = length_field
    while len(raw) < LENGTH_BYTES + length:
        piece = os.pread(fd, LENGTH_BYTES + length - len(raw), len(raw))
        if not piece:
            raise _bad(path, "the file ends inside its header")
        raw += piece
    return parse_header(raw, size, path)


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


def write_version(path: Path, version: str, advance: Callable[[int], None] = lambda count: None) -> bool:
    """Write `version` into the header of the file at `path`; return False if it was there already. `advance` gets the bytes
    done since its last call, the whole file's in the end.

    The file is rewritten under a temporary name, fsynced and renamed, so a crash leaves the old file or the new one. (Not
    with `write_durably`: the tensors of some GB are streamed, and the owner is kept.)

    Raises:
        Rejection: the present header is not well formed.
        OSError: the file could not be read or written.
    """
    with open(path, "rb") as source:
        found = read_header(source.fileno(), str(path))
        if found.version == version:
            advance(os.fstat(source.fileno()).st_size)
            return False
        table = _parse_json(found.raw[LENGTH_BYTES:], str(path))
        metadata = {**found.metadata, VERSION_KEY: version}
        text = json.dumps(
            {"__metadata__": metadata, **{k: v for k, v in table.items() if k != "__metadata__"}}
        ).encode()
        if len(text) + _DATA_ALIGNMENT > MAX_HEADER:
            raise _bad(str(path), f"the header has no room for the version, the limit is {MAX_HEADER} bytes")
        text += b" " * (-(LENGTH_BYTES + len(text)) % _DATA_ALIGNMENT)
        temporary = _temporary(path)
        try:
            with open(temporary, "wb") as sink:
                sink.write(len(text).to_bytes(LENGTH_BYTES, "little") + text)
                source.seek(found.data_start)
                advance(found.data_start)
                while chunk := source.read(2**24):
                    sink.write(chunk)
                    advance(len(chunk))
                sink.flush()
                os.fsync(sink.fileno())
            status = os.fstat(source.fileno())
            os.chmod(temporary, status.st_mode & 0o7777)
            if status.st_uid != os.geteuid():  # root sealing for the service's user must not lock it out
                os.chown(temporary, status.st_uid, status.st_gid)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return True


def _bad(path: str, what: str) -> Rejection:
    return Rejection("header_invalid", f"{path}: {what}")


def _parse_json(text: bytes, path: str) -> dict[str, Any]:
    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates(path))
    except (ValueError, RecursionError) as error:
        raise _bad(path, f"the header is not JSON: {error}") from None
    if not isinstance(table, dict):
        raise _bad(path, f"the header is a JSON {type(table).__name__}, expected an object")
    return table


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


def remove_leftover(path: Path) -> None:
    """Remove what a crash in the middle of `write_version` left."""
    _temporary(path).unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}{WRITING_SUFFIX}")
