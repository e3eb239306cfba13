"""From files to buffers, with many threads: straight into host memory, through pinned memory onto a GPU."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Protocol, TypeVar

import torch

from zwatch.errors import Rejection
from zwatch.shadow.page_cache import unbuffered

T = TypeVar("T")

CHUNK = 8 * 2**20
"""Bytes read at a time: small enough to abandon a load quickly and for the pinned pieces to stay in the CPU's cache, large
enough that a call's cost does not show. 4 MiB is as fast, 2 and 16 MiB are slower."""
THREADS = 14
"""Most threads that read at once. On 16 cores 14 were faster than 12 and 16 (0.54 s for 20.3 GB, 0.60, 0.61): the driver and
the thread that makes images need cores too."""
SLOTS = 3
"""Pieces of pinned memory per thread: one is read into, one waits to be sent, one is being sent. Two were slower (0.60 s)."""
GATHER = 0.0003
"""Seconds for which pieces that were read are gathered before they are sent: waking up for each piece would take the
interpreter's lock thousands of times a second from the thread that makes images."""
BLOCK = 4096
"""What offsets, lengths and addresses of unbuffered reads must be multiples of, bytes: the largest usual logical block."""


@dataclass(frozen=True, slots=True)
class Filling:
    """An open file, and the uint8 tensor of exactly its length, shape (size,), to read it into."""

    fd: int
    path: str
    destination: torch.Tensor

    @property
    def size(self) -> int:
        """Bytes to read."""
        return self.destination.numel()


Landed = Callable[[int, int], None]
"""Gets the number of a filling and how many of its bytes, from the first on, have been sent to its tensor. May raise to
stop."""


class Reader(Protocol):
    """Reads files into tensors of one memory."""

    def fill(self, fillings: Sequence[Filling], landed: Landed) -> None:
        """Read open files, from their first byte on, into tensors of exactly their length.

        Raises:
            Rejection: `size_mismatch`, a file is shorter or longer than its tensor.
            OSError: a read failed.
            RuntimeError: a copy to the device failed.
        """


@dataclass(frozen=True, slots=True)
class _Slot:
    """A piece of pinned memory, as the threads see it and as CUDA does."""

    pinned: torch.Tensor
    memory: memoryview


@dataclass(frozen=True, slots=True)
class _Order:
    """Part of a file for a thread to read, into `memory`. `direct` is the file opened for unbuffered reading, if it is
    to be read so; `slot` what `memory` is of, if it is pinned."""

    filling: Filling
    number: int
    begin: int
    length: int
    memory: memoryview
    direct: int | None = None
    slot: _Slot | None = None

    def read(self) -> None:
        """Read it. Of unbuffered reads, which take whole blocks, what a short one leaves goes the usual way, and so does
        all if the file system opens files for them but cannot do them."""
        count = 0
        if self.direct is not None:
            try:
                count = os.preadv(self.direct, [self.memory[: -(-self.length // BLOCK) * BLOCK]], self.begin)
            except OSError:
                pass
        if count < self.length:
            _read_exactly(self.filling, self.memory[count : self.length], self.begin + count)

    def send(self) -> None:
        """Copy what was read from its slot to where it belongs, in the order of the current stream."""
        assert self.slot is not None  # only what is in one is sent
        destination = self.filling.destination[self.begin : self.begin + self.length]
        destination.copy_(self.slot.pinned[: self.length], non_blocking=True)


Orders = SimpleQueue[_Order | None]
Done = SimpleQueue[_Order | BaseException]


class _Threads:
    """Threads that read. They never call CUDA: image generation would have to wait for CUDA's lock."""

    def __init__(self, count: int | None) -> None:
        self.count = count or max(2, min(THREADS, len(os.sched_getaffinity(0)) * 7 // 8))
        self._pool = ThreadPoolExecutor(self.count, thread_name_prefix="zwatch-read")

    @contextmanager
    def reading(self) -> Iterator[tuple[Orders, Done]]:
        """Let them take orders from a queue, and put each into another when it is done. At the end nothing is read any
        more, also if orders are left."""
        orders: Orders = SimpleQueue()
        done: Done = SimpleQueue()
        workers: list[Future[None]] = []
        try:
            workers.extend(self._pool.submit(_work, orders, done) for _ in range(self.count))
            yield orders, done
        finally:
            _empty(orders)
            for _ in range(self.count):  # one that could not be started may come to it later
                orders.put(None)
            wait(workers)
            _empty(done)  # an error left in it holds the frames that hold this queue, and all buffers of the load


def _empty(queue: "SimpleQueue[T]") -> None:
    try:
        while True:
            queue.get_nowait()
    except Empty:
        pass


def _work(orders: Orders, done: Done) -> None:
    while (order := orders.get()) is not None:
        try:
            order.read()
        except BaseException as error:
            done.put(error)
        else:
            done.put(order)


class HostReader:
    """Threads that read files piece by piece straight into tensors in host memory."""

    def __init__(self, threads: int | None = None, chunk: int = CHUNK) -> None:
        self._chunk = chunk
        self._threads = _Threads(threads)

    def fill(self, fillings: Sequence[Filling], landed: Landed) -> None:
        """Read files into tensors; return when every byte is there. `landed` is called in this thread.

        Raises:
            Rejection: `size_mismatch`, a file is shorter or longer than its tensor.
            OSError: a read failed.
        """
        memories = [filling.destination.numpy().data for filling in fillings]
        places = _places(fillings, self._chunk)
        prefixes = _Prefixes()
        with self._threads.reading() as (orders, done):
            for number, begin, length in places:
                memory = memories[number][begin : begin + length]
                orders.put(_Order(fillings[number], number, begin, length, memory))
            for _ in places:
                prefixes.grow(_next(done), landed)
        for filling in fillings:
            _check_end(filling)


class PinnedReader:
    """Threads that read files piece by piece into pinned memory, and one, the caller's, that sends the pieces to the
    device on `stream`.

    All pinned memory is allocated here, once.
    """

    def __init__(
        self, stream: torch.cuda.Stream, threads: int | None = None, chunk: int = CHUNK, slots: int | None = None
    ) -> None:
        self.stream = stream
        self.chunk = chunk
        self._threads = _Threads(threads)
        slots = slots or SLOTS * self._threads.count
        # As one piece: a caching allocator would round each up to a power of two.
        pinned = torch.empty(slots * chunk, dtype=torch.uint8, pin_memory=True)
        pieces = [pinned[begin : begin + chunk] for begin in range(0, pinned.numel(), chunk)]
        self._slots = [_Slot(piece, piece.numpy().data) for piece in pieces]
        self._turn = threading.Lock()

    def fill(self, fillings: Sequence[Filling], landed: Landed) -> None:
        """Read files into tensors on the device; return when every byte is there.

        `landed` is called in this thread. What it is told of has been put on `stream`, not waited for.

        Raises:
            Rejection: `size_mismatch`, a file is shorter or longer than its tensor.
            OSError: a read failed.
            RuntimeError: a copy failed.
        """
        with self._turn, unbuffered((filling.fd, filling.size) for filling in fillings) as direct:
            try:
                with self._threads.reading() as (orders, done):
                    self._carry(fillings, direct, orders, done, landed)
            finally:
                self.stream.synchronize()
        for filling in fillings:
            _check_end(filling)

    def _carry(
        self, fillings: Sequence[Filling], direct: Sequence[int | None], orders: Orders, done: Done, landed: Landed
    ) -> None:
        waiting = deque(_places(fillings, self.chunk))
        prefixes = _Prefixes()
        free = deque(self._slots)
        flying: deque[tuple[torch.cuda.Event, list[_Order]]] = deque()
        being_read = 0
        while True:
            while free and waiting:
                number, begin, length = waiting.popleft()
                slot = free.popleft()
                orders.put(_Order(fillings[number], number, begin, length, slot.memory, direct[number], slot))
                being_read += 1
            if not being_read:
                return
            arrived = _gathered(done)
            being_read -= len(arrived)
            flying.append((self._send(arrived), arrived))
            if not being_read:
                flying[0][0].synchronize()  # else nothing could be read, and nothing would arrive
            while flying and flying[0][0].query():
                free.extend(order.slot for order in flying.popleft()[1] if order.slot is not None)
            for order in arrived:
                prefixes.grow(order, landed)

    def _send(self, orders: list[_Order]) -> torch.cuda.Event:
        sent = torch.cuda.Event(blocking=True)
        with torch.cuda.stream(self.stream):
            for order in orders:
                order.send()
            sent.record()
        return sent


def _places(fillings: Sequence[Filling], chunk: int) -> list[tuple[int, int, int]]:
    """Return (number of the filling, first byte, bytes) of each piece to be read."""
    return [
        (number, begin, min(chunk, filling.size - begin))
        for number, filling in enumerate(fillings)
        for begin in range(0, filling.size, chunk)
    ]


def _next(done: Done) -> _Order:
    """Wait for an order to be done, and raise what went wrong with it."""
    order = done.get()
    if isinstance(order, BaseException):
        try:
            raise order
        finally:
            del order  # else it holds the frame that holds it, and all buffers of this load
    return order


def _gathered(done: Done) -> list[_Order]:
    """Wait until an order is done, and a moment for more."""
    arrived = [_next(done)]
    time.sleep(GATHER)
    while not done.empty():
        arrived.append(_next(done))
    return arrived


class _Prefixes:
    """How much of each file is there without a gap, while its pieces arrive in any order."""

    def __init__(self) -> None:
        self._ends: dict[int, int] = {}
        self._ahead: dict[tuple[int, int], int] = {}

    def grow(self, order: _Order, landed: Landed) -> None:
        """Record a piece, and report its file's gapless beginning if that has grown."""
        number = order.number
        self._ahead[number, order.begin] = order.length
        before = end = self._ends.get(number, 0)
        while (length := self._ahead.pop((number, end), None)) is not None:
            end += length
        if end > before:
            self._ends[number] = end
            landed(number, end)


def _read_exactly(filling: Filling, into: memoryview, begin: int) -> None:
    done = 0
    while done < len(into):
        count = _read(filling, into[done:], begin + done)
        if count == 0:  # perhaps not of the first piece that is missing
            there = os.fstat(filling.fd).st_size
            raise Rejection("size_mismatch", f"{filling.path}: ended after {there} bytes, expected {filling.size}")
        done += count


def _read(filling: Filling, into: memoryview, begin: int) -> int:
    try:
        return os.preadv(filling.fd, [into], begin)
    except OSError as error:
        error.filename = filling.path
        raise


def _check_end(filling: Filling) -> None:
    if _read(filling, memoryview(bytearray(1)), filling.size):
        raise Rejection("size_mismatch", f"{filling.path}: the file grew beyond {filling.size} bytes while it was read")
