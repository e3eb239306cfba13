"""From files to buffers, with many threads: straight into host memory, through pinned memory onto a GPU."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from zwatch.errors import Rejection
from zwatch.shadow.page_cache import Unbuffered, unbuffered
from zwatch.shadow.read_sizes import CHUNK, SLOTS
from zwatch.shadow.read_threads import Done, Filling, Order, Orders, ReadThreads, Slot, read_at

GATHER = 0.0003
"""Seconds for which pieces that were read are gathered before they are sent: waking up for each piece would take the
interpreter's lock thousands of times a second from the thread that makes images."""
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

    def renew(self) -> None:
        """Go on without a filling that does not return: others do not wait for it, and share no memory with it."""


class HostReader:
    """Threads that read files piece by piece straight into tensors in host memory."""

    def __init__(self, threads: int | None = None, chunk: int = CHUNK) -> None:
        self._chunk = chunk
        self._threads = ReadThreads(threads)

    def fill(self, fillings: Sequence[Filling], landed: Landed) -> None:
        """Read files into tensors; return when every byte is there. `landed` is called in this thread.

        Raises:
            Rejection: `size_mismatch`, a file is shorter or longer than its tensor.
            OSError: a read failed.
        """
        memories = [filling.destination.numpy().data for filling in fillings]
        places = _places(fillings, self._chunk)
        prefixes = _Prefixes()
        with self._threads.reading(len(places)) as (orders, done):
            for number, begin, length in places:
                memory = memories[number][begin : begin + length]
                orders.put(Order(fillings[number], number, begin, length, memory))
            for _ in places:
                prefixes.grow(_next(done), landed)
        for filling in fillings:
            _check_end(filling)

    def renew(self) -> None:
        """As `Reader.renew`: fillings have nothing in common here."""


class PinnedReader:
    """Threads that read files piece by piece into pinned memory, and one, the caller's, that sends the pieces to the
    device on `stream`.

    All pinned memory is allocated here, once, and again after `renew`; the first is `memory`, a buffer of `pinned_bytes()`
    bytes, if that is given.
    """

    def __init__(
        self,
        stream: torch.cuda.Stream,
        threads: int | None = None,
        chunk: int = CHUNK,
        slots: int | None = None,
        memory: Any = None,
    ) -> None:
        self.stream = stream
        self.chunk = chunk
        self._threads = ReadThreads(threads)
        self._slot_count = slots or SLOTS * self._threads.count
        self._slots = self._allocated() if memory is None else self._cut(torch.frombuffer(memory, dtype=torch.uint8))
        self._turn = threading.Lock()

    def _allocated(self) -> list[Slot]:
        # As one piece: a caching allocator would round each up to a power of two.
        return self._cut(torch.empty(self._slot_count * self.chunk, dtype=torch.uint8, pin_memory=True))

    def _cut(self, pinned: torch.Tensor) -> list[Slot]:
        pieces = [pinned[begin : begin + self.chunk] for begin in range(0, pinned.numel(), self.chunk)]
        return [Slot(piece, piece.numpy().data) for piece in pieces]

    def renew(self) -> None:
        """As `Reader.renew`: the filling that does not return keeps its turn and its pinned memory."""
        self._turn, self._slots = threading.Lock(), []

    def fill(self, fillings: Sequence[Filling], landed: Landed) -> None:
        """Read files into tensors on the device; return when every byte is there.

        `landed` is called in this thread. What it is told of has been put on `stream`, not waited for.

        Raises:
            Rejection: `size_mismatch`, a file is shorter or longer than its tensor.
            OSError: a read failed.
            RuntimeError: a copy failed.
        """
        with self._turn, unbuffered((filling.fd, filling.size) for filling in fillings) as direct:
            slots = self._slots = self._slots or self._allocated()
            try:
                places = _places(fillings, self.chunk)
                with self._threads.reading(len(places)) as (orders, done):
                    self._carry(fillings, places, slots, direct, orders, done, landed)
            finally:
                self.stream.synchronize()
        for filling in fillings:
            _check_end(filling)

    def _carry(
        self,
        fillings: Sequence[Filling],
        places: Sequence[tuple[int, int, int]],
        slots: Sequence[Slot],
        direct: Sequence[Unbuffered | None],
        orders: Orders,
        done: Done,
        landed: Landed,
    ) -> None:
        waiting = deque(places)
        prefixes = _Prefixes()
        free = deque(slots)
        flying: deque[tuple[torch.cuda.Event, list[Order]]] = deque()
        being_read = 0
        while True:
            while free and waiting:
                number, begin, length = waiting.popleft()
                slot, file = free.popleft(), direct[number]
                past_cache = None if file is None else file.at(begin)
                orders.put(Order(fillings[number], number, begin, length, slot.memory, past_cache, slot))
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

    def _send(self, orders: list[Order]) -> torch.cuda.Event:
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


def _next(done: Done) -> Order:
    """Wait for an order to be done, and raise what went wrong with it."""
    order = done.get()
    if isinstance(order, BaseException):
        try:
            raise order
        finally:
            del order  # else it holds the frame that holds it, and all buffers of this load
    return order


def _gathered(done: Done) -> list[Order]:
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

    def grow(self, order: Order, landed: Landed) -> None:
        """Record a piece, and report its file's gapless beginning if that has grown."""
        number = order.number
        self._ahead[number, order.begin] = order.length
        before = end = self._ends.get(number, 0)
        while (length := self._ahead.pop((number, end), None)) is not None:
            end += length
        if end > before:
            self._ends[number] = end
            landed(number, end)


def _check_end(filling: Filling) -> None:
    if read_at(filling, memoryview(bytearray(1)), filling.size):
        raise Rejection("size_mismatch", f"{filling.path}: the file grew beyond {filling.size} bytes while it was read")
