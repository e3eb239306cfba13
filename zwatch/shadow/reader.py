"""From files to buffers: in place into host memory, through pinned memory and many threads onto a GPU."""

import os
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue

import torch

from zwatch.errors import Rejection

CHUNK = 8 * 2**20
"""Bytes read at a time: small enough to abandon a load quickly and for the pinned pieces to stay in the CPU's cache, large
enough that a call's cost does not show. Of 8, 16 and 32 MiB the fastest with 12 threads on 16 cores (0.52 s, 0.64, 0.63
for 20.5 GB)."""
THREADS = 12
"""Most threads that read at once. Of 8, 12 and 16 the fastest on 16 cores (0.62 s, 0.52, 0.63): the driver and the thread
that makes images want cores too."""
BLOCK = 4096
"""What offsets, lengths and addresses of unbuffered reads must be multiples of, bytes: the largest usual logical block."""
SAMPLES = 64
"""Places of a file at which the page cache is asked for it."""


@dataclass(frozen=True, slots=True)
class Filling:
    """An open file, and the uint8 tensor of exactly its length, shape (size,), that it shall be read into."""

    fd: int
    path: str
    destination: torch.Tensor

    @property
    def size(self) -> int:
        """Bytes to read."""
        return self.destination.numel()


Landed = Callable[[int, int], None]
"""Gets the number of a filling and how many of its bytes, from the first on, have been sent to where they belong. May
raise to stop."""


def read_in_place(fillings: Sequence[Filling], landed: Landed) -> None:
    """Read files one after the other into tensors in host memory.

    Raises:
        Rejection: `size_mismatch`, a file is shorter or longer than its tensor.
        OSError: a read failed.
    """
    for number, filling in enumerate(fillings):
        memory = filling.destination.numpy().data
        for begin in range(0, filling.size, CHUNK):
            piece = memory[begin : begin + CHUNK]
            _read_exactly(filling, piece, begin, filling.fd)
            landed(number, begin + len(piece))
        _check_end(filling)


@dataclass(slots=True)
class _Slot:
    """A piece of pinned memory, and the moment its last copy to the device was done."""

    pinned: torch.Tensor
    memory: memoryview
    copied: torch.cuda.Event


@dataclass(frozen=True, slots=True)
class _Piece:
    """Part of a file for one thread to carry."""

    number: int
    begin: int
    length: int


class PinnedReader:
    """Threads that read files piece by piece into pinned memory and send each piece to the device on `stream`.

    All pinned memory is allocated here, once: two pieces a thread, so that one is read while the other is copied.
    """

    def __init__(
        self, stream: torch.cuda.Stream, threads: int | None = None, chunk: int = CHUNK, slots: int | None = None
    ) -> None:
        self.stream = stream
        self.chunk = chunk
        self.threads = threads or max(2, min(THREADS, len(os.sched_getaffinity(0)) * 3 // 4))
        slots = slots or 2 * self.threads
        self._slots: SimpleQueue[_Slot] = SimpleQueue()
        # As one piece: a caching allocator would round each up to a power of two.
        pinned = torch.empty(slots * chunk, dtype=torch.uint8, pin_memory=True)
        for begin in range(0, pinned.numel(), chunk):
            piece = pinned[begin : begin + chunk]
            # Blocking: sixteen threads that spin for a copy would take the cores from the reads.
            self._slots.put(_Slot(piece, piece.numpy().data, torch.cuda.Event(blocking=True)))
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="zwatch-read")
        self._turn = threading.Lock()

    def fill(self, fillings: Sequence[Filling], landed: Landed) -> None:
        """Read files into tensors on the device; return when every byte is there.

        `landed` is called in this thread. What it is told of has been put on `stream`, not waited for.

        Raises:
            Rejection: `size_mismatch`, a file is shorter or longer than its tensor.
            OSError: a read failed.
            RuntimeError: a copy failed.
        """
        pieces = deque(
            _Piece(number, begin, min(self.chunk, filling.size - begin))
            for number, filling in enumerate(fillings)
            for begin in range(0, filling.size, self.chunk)
        )
        count = len(pieces)
        done: SimpleQueue[_Piece | BaseException] = SimpleQueue()
        with self._turn, _unbuffered(fillings) as direct:
            workers: list[Future[None]] = []
            try:
                workers.extend(
                    self._pool.submit(self._work, fillings, direct, pieces, done)
                    for _ in range(min(self.threads, count))
                )
                for number, prefix in _prefixes(done, count):
                    landed(number, prefix)
            finally:
                pieces.clear()
                wait(workers)
                self.stream.synchronize()
        for filling in fillings:
            _check_end(filling)

    def _work(
        self,
        fillings: Sequence[Filling],
        direct: Sequence[int | None],
        pieces: deque[_Piece],
        done: "SimpleQueue[_Piece | BaseException]",
    ) -> None:
        try:
            with torch.cuda.stream(self.stream):
                while True:
                    try:
                        piece = pieces.popleft()
                    except IndexError:
                        return
                    self._carry(fillings[piece.number], direct[piece.number], piece)
                    done.put(piece)
        except BaseException as error:
            pieces.clear()
            done.put(error)

    def _carry(self, filling: Filling, direct: int | None, piece: _Piece) -> None:
        if not filling.destination.is_cuda:  # staged in host memory: the page cache's copy is the only one
            memory = filling.destination.numpy().data[piece.begin : piece.begin + piece.length]
            _read_exactly(filling, memory, piece.begin, filling.fd)
            return
        slot = self._slots.get()
        try:
            slot.copied.synchronize()  # what this slot carried last has left it
            if direct is None:
                _read_exactly(filling, slot.memory[: piece.length], piece.begin, filling.fd)
            else:
                self._read_unbuffered(filling, direct, slot, piece)
            destination = filling.destination[piece.begin : piece.begin + piece.length]
            destination.copy_(slot.pinned[: piece.length], non_blocking=True)
            slot.copied.record(self.stream)
        finally:
            self._slots.put(slot)

    def _read_unbuffered(self, filling: Filling, direct: int, slot: _Slot, piece: _Piece) -> None:
        """Read whole blocks; the file's last one may be short. What is left after a short read goes the usual way, and so
        does all if the file system opens files for this but cannot do it."""
        whole = -(-piece.length // BLOCK) * BLOCK
        try:
            count = os.preadv(direct, [slot.memory[:whole]], piece.begin)
        except OSError:
            count = 0
        if count < piece.length:
            _read_exactly(filling, slot.memory[count : piece.length], piece.begin + count, filling.fd)


def _prefixes(done: "SimpleQueue[_Piece | BaseException]", count: int) -> Iterator[tuple[int, int]]:
    """Yield (number, bytes from the first on) each time that a file's gapless beginning has grown."""
    prefix: dict[int, int] = {}
    ahead: dict[tuple[int, int], int] = {}
    for _ in range(count):
        piece = done.get()
        if isinstance(piece, BaseException):
            try:
                raise piece
            finally:
                del piece  # else it holds the frame that holds it, and all buffers of this load
        ahead[piece.number, piece.begin] = piece.length
        before = end = prefix.get(piece.number, 0)
        while (length := ahead.pop((piece.number, end), None)) is not None:
            end += length
        if end > before:
            prefix[piece.number] = end
            yield piece.number, end


@contextmanager
def _unbuffered(fillings: Sequence[Filling]) -> Iterator[list[int | None]]:
    """Open those files again for unbuffered reading that the page cache has not got; None for the others."""
    opened: list[int | None] = []
    try:
        opened.extend(
            None if cached_share(filling.fd, filling.size) >= 0.5 else _open_direct(filling.fd) for filling in fillings
        )
        yield opened
    finally:
        for fd in opened:
            if fd is not None:
                os.close(fd)


def _open_direct(fd: int) -> int | None:
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:  # not every file system can
        return None


def cached_share(fd: int, size: int) -> float:
    """Return which share of a file the page cache has, 0 to 1, going by samples; 1 where that cannot be asked."""
    if not size:
        return 1.0
    byte = bytearray(1)
    found = 0
    # To be asked for a page makes the kernel fetch it: no more than that one, and the next time others are asked for.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    try:
        for number in range(SAMPLES):
            place = int((number + random.random()) * size / SAMPLES)  # noqa: S311 (no secret)
            try:
                found += os.preadv(fd, [byte], place, os.RWF_NOWAIT)
            except BlockingIOError:
                continue
    except OSError:  # not every file system can say; where reading itself fails, the read will say so
        return 1.0
    finally:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_NORMAL)
    return found / SAMPLES


def _read_exactly(filling: Filling, into: memoryview, begin: int, fd: int) -> None:
    done = 0
    while done < len(into):
        count = _read(filling, into[done:], begin + done, fd)
        if count == 0:
            raise Rejection(
                "size_mismatch", f"{filling.path}: ended after {begin + done} bytes, expected {filling.size}"
            )
        done += count


def _read(filling: Filling, into: memoryview, begin: int, fd: int) -> int:
    try:
        return os.preadv(fd, [into], begin)
    except OSError as error:
        error.filename = filling.path
        raise


def _check_end(filling: Filling) -> None:
    if _read(filling, memoryview(bytearray(1)), filling.size, filling.fd):
        raise Rejection("size_mismatch", f"{filling.path}: the file grew beyond {filling.size} bytes while it was read")
