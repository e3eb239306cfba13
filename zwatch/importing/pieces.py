"""What is to be written, as data: files made of pieces of other files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from blake3 import blake3

from zwatch import __version__
from zwatch.deploy.header import BLOCK, ITEM_BITS, LENGTH_BYTES, MAX_HEADER, MAX_VERSION, VERSION_KEY, TensorInfo
from zwatch.errors import Refused
from zwatch.importing.reading import SourceFile
from zwatch.importing.recipes import Made

_ALIGNMENT = 64  # the tensors of a file that is written start on a cache line
_FORMAT = 2
"""To be raised when the same key could mean other bytes than before: what an earlier run wrote is then written anew."""

Table = Mapping[str, tuple[SourceFile, TensorInfo]]
"""Where each tensor lies, by the name that `Made.sources` uses."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes of an output: a range of a file as it is, or with another dtype (`cast`: from, to), or, with `made`, what that
    computes from whole tensors, stored as the second of `cast`. `size` is that of the result, bytes."""

    source: SourceFile
    begin: int
    end: int
    size: int
    cast: tuple[str, str] | None = None
    made: Made | None = None
    inputs: tuple[tuple[SourceFile, TensorInfo], ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether the bytes stay as they are."""
        return self.cast is None and self.made is None

    @property
    def read(self) -> int:
        """How many bytes are read for it."""
        return sum(info.end - info.begin for _, info in self.inputs) if self.made else self.end - self.begin


@dataclass(frozen=True, slots=True)
class Output:
    """One file to be written: its path in the version, its header, and the pieces behind it. Without a header it is the copy
    of one file. `layout` tells recipes apart that take the same tensors."""

    path: str
    header: bytes
    pieces: tuple[Piece, ...]
    layout: str = ""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + sum(piece.size for piece in self.pieces)

    @property
    def read(self) -> int:
        """How many bytes are read for it."""
        return sum(piece.read for piece in self.pieces)

    @property
    def needs_torch(self) -> bool:
        """Whether anything in it is converted or computed."""
        return any(piece.cast or piece.made for piece in self.pieces)

    @property
    def sources(self) -> tuple[SourceFile, ...]:
        """The files it is made from, each once."""
        files = [file for piece in self.pieces for file in (piece.source, *(one for one, _ in piece.inputs))]
        return tuple(dict.fromkeys(files))

    @property
    def key(self) -> str:
        """What decides about the file's bytes, as a hash: with another key it must be written anew."""
        text = [
            _FORMAT, __version__, self.path, self.header.hex(), self.layout,
            [[str(file.path), repr(file.identity)] for file in self.sources],
            [[str(one.source.path), one.begin, one.end, one.cast, one.made.name if one.made else None] for one in self.pieces],
        ]  # fmt: skip
        return blake3(json.dumps(text).encode(errors="surrogatepass")).hexdigest()


def copy_of(path: str, file: SourceFile) -> Output:
    """Return the output that is a file as it is."""
    return Output(path, b"", (Piece(file, 0, file.identity.size, file.identity.size),))


def identity(table: Table) -> tuple[Made, ...]:
    """Return the recipe that leaves all tensors as they are."""
    return tuple(Made(name, info.dtype, info.shape, (name,)) for name, (_, info) in table.items())


def file_of(
    path: str, made: Iterable[Made], table: Table, dtypes: Mapping[str, str], metadata: Mapping[str, str], layout: str = ""
) -> Output:  # fmt: skip
    """Return the output that has these tensors, in the order in which they are read. `dtypes` are what each dtype becomes.

    Raises:
        Refused: its header would be too long.
    """
    placed = sorted(
        ((_piece(one, table, dtypes), one) for one in made),
        key=lambda pair: (-ITEM_BITS[_stored(pair[1], dtypes)], str(pair[0].source.path), pair[0].begin),
    )
    entries: dict[str, object] = {}
    position = 0
    for piece, one in placed:
        entries[one.name] = {
            "dtype": _stored(one, dtypes),
            "shape": list(one.shape),
            "data_offsets": [position, position + piece.size],
        }
        position += piece.size
    joined = _joined([piece for piece, _ in placed])
    text = _json(dict(metadata), entries, joined[0].begin if len(joined) == 1 and joined[0].is_plain else None)
    if len(text) > MAX_HEADER:
        raise Refused(f"{path}: its header would have {len(text)} bytes, the limit is {MAX_HEADER}")
    header = len(text).to_bytes(LENGTH_BYTES, "little") + text
    return Output(path, header, joined, layout)


def _json(metadata: dict[str, str], entries: dict[str, object], begin: int | None) -> bytes:
    """Return a header's JSON. Where it has a version, room for the longest one is left as `header.with_version` leaves it. What
    follows lies in the blocks as in the source from `begin` on, if that is given, so that the files can share them."""
    head = b'{"__metadata__":' + _compact(metadata) if metadata else b"{"
    tail = (b"," if metadata and entries else b"") + _compact(entries)[1:]
    room = MAX_VERSION - len(metadata[VERSION_KEY]) if VERSION_KEY in metadata else 0
    end = LENGTH_BYTES + len(head) + room + len(tail)
    room += -end % _ALIGNMENT if begin is None else (begin - end) % BLOCK
    return head + b" " * room + tail


def _compact(table: Mapping[str, object]) -> bytes:
    return json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()


def _stored(made: Made, dtypes: Mapping[str, str]) -> str:
    return dtypes.get(made.dtype, made.dtype)


def _piece(made: Made, table: Table, dtypes: Mapping[str, str]) -> Piece:
    file, info = table[made.sources[0]]
    stored = _stored(made, dtypes)
    size = prod(made.shape) * ITEM_BITS[stored] // 8
    if made.compute is not None:
        inputs = tuple(table[name] for name in made.sources)
        return Piece(file, info.begin, info.end, size, (made.dtype, stored), made, inputs)
    begin, end = info.begin, info.end
    if made.rows is not None:
        row = (end - begin) // info.shape[0]
        begin, end = begin + made.rows[0] * row, begin + made.rows[1] * row
    return Piece(file, begin, end, size, None if stored == info.dtype else (info.dtype, stored))


def _joined(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Join pieces that follow each other in the same file and become the same dtype."""
    joined: list[Piece] = []
    for piece in pieces:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.made is None
            and piece.made is None
            and (last.source, last.end, last.cast) == (piece.source, piece.begin, piece.cast)
        ):
            joined[-1] = Piece(last.source, last.begin, piece.end, last.size + piece.size, last.cast)
        else:
            joined.append(piece)
    return tuple(joined)
