"""Threads that read pieces of files, each filling of buffers with its own."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import TypeVar

import torch

from zwatch.errors import Rejection
from zwatch.lanes import start_thread
from zwatch.shadow.read_sizes import thread_count

T = TypeVar("T")

BLOCK = 4096
"""What offsets, lengths and addresses of unbuffered reads must be multiples of, bytes: the largest usual logical block."""


@dataclass(frozen=True, slots=True)
class Filling:
    """An open file, and the uint8 tensor of exactly its length, shape (size,), to read it into.

    `owner` is what holds the tensor's memory. A thread that reads holds it too: a read that does not return must not write
    into memory that was given to another load meanwhile.
    """

    fd: int
    path: str
    destination: torch.Tensor
    owner: object = None

    @property
    def size(self) -> int:
        """Bytes to read."""
        return self.destination.numel()


@dataclass(frozen=True, slots=True)
class Slot:
    """A piece of pinned memory, as the threads see it and as CUDA does."""

    pinned: torch.Tensor
    memory: memoryview


@dataclass(frozen=True, slots=True)
class Order:
    """Part of a file for a thread to read, into `memory`. `direct` is the file opened for unbuffered reading, if it is
    to be read so; `slot` what `memory` is of, if it is pinned."""

    filling: Filling
    number: int
    begin: int
    length: int
    memory: memoryview
    direct: int | None = None
    slot: Slot | None = None

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


Orders = SimpleQueue[Order | None]
Done = SimpleQueue[Order | BaseException]


class ReadThreads:
    """Threads that read. They never call CUDA: image generation would have to wait for CUDA's lock.

    Every filling has its own, so that it does not wait for those of one that does not return; nor does the process's end.
    """

    def __init__(self, count: int | None) -> None:
        self.count = count or thread_count()

    @contextmanager
    def reading(self, most: int) -> Iterator[tuple[Orders, Done]]:
        """Let them take at most `most` orders from a queue, and put each into another when it is done. At the end nothing is
        read any more, also if orders are left.

        Raises:
            OSError: no thread can be started.
        """
        orders: Orders = SimpleQueue()
        done: Done = SimpleQueue()
        workers: list[threading.Thread] = []
        try:
            for _ in range(min(self.count, most)):
                worker = threading.Thread(target=_work, args=(orders, done), name="zwatch-read", daemon=True)
                try:
                    start_thread(worker)
                except OSError:
                    if not workers:
                        raise
                    break  # fewer do it too
                workers.append(worker)
            yield orders, done
        finally:
            _empty(orders)
            for _ in workers:
                orders.put(None)
            for worker in workers:
                worker.join()
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


def _read_exactly(filling: Filling, into: memoryview, begin: int) -> None:
    done = 0
    while done < len(into):
        count = read_at(filling, into[done:], begin + done)
        if count == 0:  # perhaps not of the first piece that is missing
            there = os.fstat(filling.fd).st_size
            raise Rejection("size_mismatch", f"{filling.path}: ended after {there} bytes, expected {filling.size}")
        done += count


def read_at(filling: Filling, into: memoryview, begin: int) -> int:
    """Read a piece of a file from the byte `begin` on; return how many bytes came.

    Raises:
        OSError: with the file's path in its version.
    """
    try:
        return os.preadv(filling.fd, [into], begin)
    except OSError as error:
        error.filename = filling.path
        raise
