"""Writing one file while its bytes are hashed: reading, writing and both hashes go on at the same time, a few buffers apart.

torch is imported only where something is converted.
"""

import json
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from zwatch.deploy.header import BLOCK, ITEM_BITS, LENGTH_BYTES
from zwatch.deploy.parallel import parallel_hasher
from zwatch.errors import Refused, Rejection
from zwatch.importing import reading
from zwatch.importing.cloning import clone, clone_range
from zwatch.importing.converting import converted, is_finite, overflow, tensor_of
from zwatch.importing.pieces import Output, Piece
from zwatch.importing.reading import SourceFile

_CHUNK = 2 * 2**20  # a few of them stay in the cache, and hashing one still takes all cores
_BUFFERS = 8


class _WholeHash:
    """Hashes a whole file from parts of it that come mostly in order: what was left out is read once more from the file."""

    def __init__(self, file: SourceFile, fd: int) -> None:
        self._file, self._fd = file, fd
        self._hasher = parallel_hasher()
        self._position = 0

    def feed(self, begin: int, data: memoryview) -> None:
        """Take bytes from this offset on."""
        self._read_until(begin)
        if (new := begin + len(data) - self._position) > 0:
            self._hasher.update(data[len(data) - new :])
            self._position += new

    def finish(self) -> str:
        """Return the file's hash."""
        self._read_until(self._file.identity.size)
        return self._hasher.hexdigest()

    def _read_until(self, end: int) -> None:
        while self._position < end:
            data = os.pread(self._fd, min(_CHUNK, end - self._position), self._position)
            if not data:
                raise _shorter(self._file)
            self._hasher.update(data)
            self._position += len(data)


def _shorter(file: SourceFile) -> Refused:
    return Refused(f"{file.path}: became shorter while it was imported; import again when it is whole")


class FileWriter:
    """Writes outputs, one after the other. `hashes` are the blake3 of the source files so far, `cloned` how many bytes of each
    output share blocks with their source."""

    def __init__(self, advance: Callable[[str, int], None]) -> None:
        """`advance` gets an output's path and how many more bytes were read for it."""
        self._advance = advance
        self._threads = [ThreadPoolExecutor(1, f"zwatch-import-{what}") for what in ("write", "hash", "source")]
        self._pending: deque[list[Future[Any]]] = deque()
        self._rings: dict[str, deque[memoryview]] = {}
        self.hashes: dict[SourceFile, str] = {}
        self.cloned: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for thread in self._threads:
            thread.shutdown(wait=True, cancel_futures=True)

    def write(self, output: Output, sink: int) -> str:
        """Write an output to an empty open file and return its blake3.

        Raises:
            Refused: a source changed, or differs from its seal, or has what cannot be converted.
            OSError: it could not be read or written; the file is not whole then.
        """
        with ExitStack() as stack:
            files = {file: stack.enter_context(reading.opened(file)) for file in output.sources}
            try:
                if not output.header:
                    return self._copy(output, files[output.sources[0]], sink)
                return _Made(self, output, files, sink).write()
            finally:
                self.settle()

    def _copy(self, output: Output, fd: int, sink: int) -> str:
        """Copy a whole file: its hash is that of the source."""
        [piece] = output.pieces
        is_cloned = piece.size > 0 and clone(fd, sink)
        self.cloned[output.path] = piece.size if is_cloned else 0
        hasher = parallel_hasher()
        for begin in range(0, piece.end, _CHUNK):
            data = self.read(output, piece.source, fd, begin, min(begin + _CHUNK, piece.end), self.buffer())
            self.submit(None if is_cloned else (_write_all, sink, data), (hasher.update, data), None)
        self.settle(check=True)
        found = hasher.hexdigest()
        self.note(piece.source, found)
        return found

    def note(self, file: SourceFile, found: str) -> None:
        """Keep a source's hash.

        Raises:
            Refused: it comes from a sealed version, and the seal says another.
        """
        if file.sealed is not None and found != file.sealed:
            raise Refused(
                f"{file.path}: blake3 is {found}, the seal beside it says {file.sealed}; take it from where it is whole, or, "
                "if the change is meant, run `zwatch seal` there first"
            )
        self.hashes[file] = found

    def read(self, output: Output, file: SourceFile, fd: int, begin: int, end: int, into: memoryview) -> memoryview:
        """Read a range of a source into a buffer."""
        view = into[: end - begin]
        done = 0
        while done < len(view):
            count = os.preadv(fd, [view[done:]], begin + done)
            if count == 0:
                raise _shorter(file)
            done += count
        self._advance(output.path, done)
        return view

    def buffer(self, purpose: str = "read") -> memoryview:
        """Return memory that nothing uses any more, of a ring of its own for each purpose. One of each goes into a `submit`."""
        while len(self._pending) >= _BUFFERS:
            self._finish_oldest()
        ring = self._rings.setdefault(purpose, deque())
        if len(ring) <= _BUFFERS:
            ring.append(memoryview(bytearray(_CHUNK)))
        else:
            ring.rotate(-1)
        return ring[-1]

    def submit(self, *calls: tuple[Any, ...] | None) -> None:
        """Let each thread do its call: writing, hashing what is written, hashing the source."""
        while len(self._pending) >= _BUFFERS:
            self._finish_oldest()
        self._pending.append(
            [thread.submit(*call) for thread, call in zip(self._threads, calls, strict=True) if call is not None]
        )

    def _finish_oldest(self) -> None:
        for future in self._pending.popleft():
            future.result()

    def settle(self, *, check: bool = False) -> None:
        """Wait for what was submitted; with `check` its errors are raised."""
        while self._pending:
            for future in self._pending.popleft():
                if check:
                    future.result()
                else:
                    future.exception()


class _Made:
    """One output with a header of its own, made of pieces."""

    def __init__(self, writer: FileWriter, output: Output, files: dict[SourceFile, int], sink: int) -> None:
        self._writer, self._output, self._files, self._sink = writer, output, files, sink
        self._hasher = parallel_hasher()
        self._position = 0
        self._sources = {file: _WholeHash(file, fd) for file, fd in files.items() if file not in writer.hashes}

    def write(self) -> str:
        """Write all and return the hash of the output."""
        self._emit(memoryview(self._output.header))
        for piece in self._output.pieces:
            if piece.made is None:
                self._range(piece)
            else:
                self._computed(piece)
        self._writer.settle(check=True)
        for file, whole in self._sources.items():
            self._writer.note(file, whole.finish())
        return self._hasher.hexdigest()

    def _emit(
        self, data: memoryview, file: SourceFile | None = None, begin: int = 0, read: memoryview | None = None, *, is_there: bool = False
    ) -> None:  # fmt: skip
        """Write bytes; beside it the bytes `read` from a source at `begin` are hashed."""
        whole = self._sources.get(file) if file is not None else None
        self._position += len(data)
        fed = None if whole is None or read is None else (whole.feed, begin, read)
        written = None if is_there else (_write_all, self._sink, data)
        self._writer.submit(written, (self._hasher.update, data), fed)

    def _range(self, piece: Piece) -> None:
        begin, end = self._blocks(piece)
        self._bytes(piece, piece.begin, begin)
        if begin < end:
            self._writer.settle(check=True)
            place = self._position
            if is_cloned := clone_range(self._files[piece.source], begin, end, self._sink, place):
                os.lseek(self._sink, place + end - begin, os.SEEK_SET)
                self._writer.cloned[self._output.path] = self._writer.cloned.get(self._output.path, 0) + end - begin
            self._bytes(piece, begin, end, is_there=is_cloned)
        self._bytes(piece, end, piece.end)

    def _blocks(self, piece: Piece) -> tuple[int, int]:
        """Return which part of a range lies in the output's blocks as in the source's: an empty one if none does."""
        begin = -(-piece.begin // BLOCK) * BLOCK
        end = piece.end if piece.end == piece.source.identity.size else piece.end // BLOCK * BLOCK
        is_alike = piece.is_plain and (self._position - piece.begin) % BLOCK == 0
        return (begin, end) if is_alike and begin < end else (piece.end, piece.end)

    def _bytes(self, piece: Piece, first: int, last: int, *, is_there: bool = False) -> None:
        """Write a part of a range, unless it `is_there`, and hash it."""
        for begin in range(first, last, _CHUNK):
            end = min(begin + _CHUNK, last)
            read = self._writer.read(
                self._output, piece.source, self._files[piece.source], begin, end, self._writer.buffer()
            )
            data = read
            if piece.cast is not None:
                tensor = tensor_of(read, piece.cast[0])
                data = converted(tensor, piece.cast[1], self._writer.buffer("converted"))
                if (place := overflow(tensor, data, piece.cast[1])) is not None:
                    raise self._too_large(piece, place, float(tensor[place]))
            self._emit(data, piece.source, begin, read, is_there=is_there)

    def _computed(self, piece: Piece) -> None:
        assert piece.made is not None
        assert piece.made.compute is not None
        assert piece.cast is not None
        inputs, reads = [], []
        for file, info in piece.inputs:
            size = info.end - info.begin
            read = self._writer.read(
                self._output, file, self._files[file], info.begin, info.end, memoryview(bytearray(size))
            )
            inputs.append(tensor_of(read, info.dtype, info))
            reads.append((file, info.begin, read))
        for file, begin, read in reads:
            if (whole := self._sources.get(file)) is not None:
                self._writer.submit(None, None, (whole.feed, begin, read))
        try:
            made = piece.made.compute(inputs)
        except Rejection as rejection:
            files = dict.fromkeys(str(file.path) for file, _ in reversed(piece.inputs))  # a LoRA's comes last
            raise Refused(f"{' and '.join(files)}: {rejection.reason}") from None
        if tuple(made.shape) != piece.made.shape:
            raise Refused(
                f"{self._output.path}: {piece.made.name} became {list(made.shape)}, expected {list(piece.made.shape)}"
            )
        data = converted(made, piece.cast[1])
        if (place := overflow(made.reshape(-1), data, piece.cast[1])) is not None:
            raise self._too_large(piece, place, float(made.reshape(-1)[place]))
        if made.itemsize > 1 and not is_finite(made) and all(map(is_finite, inputs)):
            raise Refused(f"{piece.source.path}: {piece.made.name} would have infinite values in {self._output.path}")
        self._emit(data)

    def _too_large(self, piece: Piece, place: int, value: float) -> Refused:
        """Return why a value cannot be stored; `place` counts the elements behind what is written so far."""
        assert piece.cast is not None
        kind = piece.cast[1]
        position = self._position - len(self._output.header) + place * ITEM_BITS[kind] // 8
        entries = json.loads(self._output.header[LENGTH_BYTES:])
        entries.pop("__metadata__", None)
        [name] = [name for name, one in entries.items() if one["data_offsets"][0] <= position < one["data_offsets"][1]]
        other = "--dtype bf16, or with --keep-dtype" if kind == "F16" else "--keep-dtype"
        return Refused(
            f"{piece.source.path}: {name} has the value {value:g}, which {kind} cannot hold; import with {other}"
        )


def _write_all(fd: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(fd, data) :]
