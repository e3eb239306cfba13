"""Writing one file while its bytes are hashed: reading, writing and both hashes go on at the same time, a few buffers apart.

torch is imported only where something is converted.
"""

import errno
import fcntl
import json
import os
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from blake3 import blake3

from zwatch.deploy.header import ITEM_BITS, LENGTH_BYTES, TensorInfo
from zwatch.errors import Refused, Rejection
from zwatch.importing import reading
from zwatch.importing.pieces import Output, Piece
from zwatch.importing.reading import SourceFile

if TYPE_CHECKING:
    import torch

_CHUNK = 8 * 2**20
_BUFFERS = 4
_FICLONE = 0x40049409  # linux/fs.h
_NO_CLONE = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ENOSYS, errno.ETXTBSY, errno.EBADF)  # fmt: skip
_TORCH = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U8": "uint8", "BOOL": "bool", "U16": "uint16", "U32": "uint32", "U64": "uint64",
}  # fmt: skip
"""torch's names of the dtypes."""


def clone(source: int, sink: int) -> bool:
    """Let an empty open file share the blocks of another, where the file system can; return whether it did.

    Raises:
        OSError: it failed otherwise.
    """
    try:
        fcntl.ioctl(sink, _FICLONE, source)
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
        return False
    return True


class _WholeHash:
    """Hashes a whole file from parts of it that come mostly in order: what was left out is read once more from the file."""

    def __init__(self, file: SourceFile, fd: int) -> None:
        self._file, self._fd = file, fd
        self._hasher = blake3(max_threads=blake3.AUTO)
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
    """Writes outputs, one after the other. `hashes` are the blake3 of the source files so far."""

    def __init__(self, advance: Callable[[str, int], None]) -> None:
        """`advance` gets an output's path and how many more bytes were read for it."""
        self._advance = advance
        self._threads = [ThreadPoolExecutor(1, f"zwatch-import-{what}") for what in ("write", "hash", "source")]
        self._pending: deque[list[Future[Any]]] = deque()
        self._rings: dict[str, deque[memoryview]] = {}
        self.hashes: dict[SourceFile, str] = {}

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
        hasher = blake3(max_threads=blake3.AUTO)
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
        self._hasher = blake3(max_threads=blake3.AUTO)
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
        self, data: memoryview, file: SourceFile | None = None, begin: int = 0, read: memoryview | None = None
    ) -> None:
        """Write bytes; beside it the bytes `read` from a source at `begin` are hashed."""
        whole = self._sources.get(file) if file is not None else None
        self._position += len(data)
        fed = None if whole is None or read is None else (whole.feed, begin, read)
        self._writer.submit((_write_all, self._sink, data), (self._hasher.update, data), fed)

    def _range(self, piece: Piece) -> None:
        for begin in range(piece.begin, piece.end, _CHUNK):
            end = min(begin + _CHUNK, piece.end)
            read = self._writer.read(
                self._output, piece.source, self._files[piece.source], begin, end, self._writer.buffer()
            )
            data = read
            if piece.cast is not None:
                tensor = _tensor(read, piece.cast[0])
                data = _converted(tensor, piece.cast[1], self._writer.buffer("converted"))
                if (place := _overflow(tensor, data, piece.cast[1])) is not None:
                    raise self._too_large(piece, place, float(tensor[place]))
            self._emit(data, piece.source, begin, read)

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
            inputs.append(_tensor(read, info.dtype, info))
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
        data = _converted(made, piece.cast[1])
        if (place := _overflow(made.reshape(-1), data, piece.cast[1])) is not None:
            raise self._too_large(piece, place, float(made.reshape(-1)[place]))
        if made.itemsize > 1 and not _is_finite(made) and all(map(_is_finite, inputs)):
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


def _tensor(data: memoryview, dtype: str, info: TensorInfo | None = None) -> "torch.Tensor":
    import torch

    if not len(data):
        return torch.empty(info.shape if info else 0, dtype=getattr(torch, _TORCH[dtype]))
    flat = torch.frombuffer(data, dtype=getattr(torch, _TORCH[dtype]))
    return flat if info is None else flat.view(info.shape)


def _converted(tensor: "torch.Tensor", dtype: str, into: memoryview | None = None) -> memoryview:
    """Return a tensor's bytes with this dtype, in the memory that is given if it has room."""
    import torch

    kind = getattr(torch, _TORCH[dtype])
    size = tensor.numel() * kind.itemsize
    out = into[:size] if into is not None and size <= len(into) else memoryview(bytearray(size))
    if size:
        torch.frombuffer(out, dtype=kind).copy_(tensor.reshape(-1))
    return out


def _overflow(tensor: "torch.Tensor", data: memoryview, dtype: str) -> int | None:
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


def _is_finite(tensor: "torch.Tensor") -> bool:
    """Say whether a tensor has neither infinite values nor such as are no numbers."""
    if not tensor.is_floating_point():
        return True
    return bool((tensor if tensor.itemsize > 1 else tensor.float()).isfinite().all())


def _write_all(fd: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(fd, data) :]
