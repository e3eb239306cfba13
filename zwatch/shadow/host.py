"""Where the bytes of a version can lie: on the device that serves, or in host memory on the way there."""

import mmap
import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import torch

from zwatch.shadow.hashing import Between, Hashing, HostHasher
from zwatch.shadow.pool import Pool
from zwatch.shadow.reader import Filling, Landed

PINNED_PIECE = 2**30
"""Host memory is pinned so many bytes at a time: pinning one piece takes half a second."""
COPY_PIECE = 64 * 2**20
"""Bytes of one copy between host and device. It divides PINNED_PIECE: a copy must not span two pinned pieces."""
HOST_SPARE = 4 * 2**30
"""Bytes of host memory that stay free for everything else, the page cache first of all."""


class Shadow(Protocol):
    """Memory that weight files are loaded into."""

    is_host: bool

    def allocate(self, owner: object, size: int) -> torch.Tensor:
        """Return an uninitialised uint8 tensor of shape (size,) that is held until `owner` is gone."""

    def fill(self, fillings: Sequence[Filling], landed: Landed) -> None:
        """Read open files from their start into tensors of exactly their length."""

    def begin_hash(self, data: torch.Tensor, between: Between = ...) -> Hashing:
        """Return the hash to be of a uint8 tensor of shape (n,) in this memory."""

    def beside(self) -> AbstractContextManager[None]:
        """Work on these bytes inside, giving way to images being made, and leave when it is done."""


class HostShadow:
    """Host memory for a version that the device has no room for beside the one that serves.

    `read` fills tensors in host memory; `pin` says that a GPU copies from and to it, which needs pinned memory.
    """

    is_host = True

    def __init__(self, read: Callable[[Sequence[Filling], Landed], None], *, pin: bool) -> None:
        self._read = read
        self._pool = Pool(_pinned, _unpin) if pin else Pool(_plain)

    def memory(self) -> tuple[int, int]:
        """Return (free, total) bytes of the host's memory; what is kept here for the next version counts as free."""
        free, total = system_memory()
        return max(0, free - HOST_SPARE) + self._pool.free, total

    def allocate(self, owner: object, size: int) -> torch.Tensor:
        """As `Shadow.allocate`.

        Raises:
            MemoryError: the host has no such piece left.
        """
        if not self._make_room([size]):
            raise MemoryError(f"the host has no {size} bytes left")
        slab = self._pool.take(size)
        weakref.finalize(owner, self._pool.give_back, slab)
        return slab[:size]

    def reserve(self, sizes: Iterable[int]) -> bool:
        """Have memory for buffers of these sizes ready, pinned; say whether there is enough.

        This takes about half a second a GiB, during which nothing else has to wait.
        """
        sizes = list(sizes)
        if not self._make_room(sizes):
            return False
        try:
            self._pool.reserve(sizes)
        except MemoryError:
            return False
        return True

    def _make_room(self, sizes: list[int]) -> bool:
        """See that there is memory for these sizes, if need be by giving up what is kept in others; say whether there is.

        Linux would hand out more than it has, and then end a process.
        """
        if self._pool.lacks(sizes) <= self.memory()[0] - self._pool.free:
            return True
        if sum(sizes) > self.memory()[0]:
            return False
        self._pool.trim()
        return True

    def fill(self, fillings: Sequence[Filling], landed: Landed) -> None:
        """As `Shadow.fill`."""
        self._read(fillings, landed)

    def begin_hash(self, data: torch.Tensor, between: Between = lambda: None) -> Hashing:
        """As `Shadow.begin_hash`."""
        return HostHasher().begin(data, between)

    def beside(self) -> AbstractContextManager[None]:
        """As `Shadow.beside`."""
        return nullcontext()


def copy_bytes(to: torch.Tensor, source: torch.Tensor) -> None:
    """Copy a uint8 tensor of shape (n,) between host and device, in the order of the current stream.

    Both begin where their memory begins, so that no piece spans two pinned ones.
    """
    for begin in range(0, source.numel(), COPY_PIECE):
        to[begin : begin + COPY_PIECE].copy_(source[begin : begin + COPY_PIECE], non_blocking=True)


def system_memory() -> tuple[int, int]:
    """Return (available, total) bytes of the host's memory, as Linux counts them."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return tuple(int(fields[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))  # type: ignore[return-value]


def _plain(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8)


def _pinned(size: int) -> torch.Tensor:
    # Not torch's own pinned memory: that rounds up to a power of two, 16 GiB for a file of 10 GB.
    try:
        slab = torch.frombuffer(mmap.mmap(-1, size), dtype=torch.uint8)
    except OSError as error:
        raise MemoryError(f"the host has no {size} bytes left: {error.strerror}") from None
    pinned = 0
    try:
        for begin in range(0, size, PINNED_PIECE):
            length = min(PINNED_PIECE, size - begin)
            _checked(torch.cuda.cudart().cudaHostRegister(slab.data_ptr() + begin, length, 0))
            pinned = begin + length
    except RuntimeError as error:
        _unpin_bytes(slab, pinned)
        raise MemoryError(f"{size} bytes of host memory could not be pinned: {error}") from None
    return slab


def _unpin(slabs: list[torch.Tensor]) -> None:
    for slab in slabs:
        _unpin_bytes(slab, slab.numel())


def _unpin_bytes(slab: torch.Tensor, size: int) -> None:
    for begin in range(0, size, PINNED_PIECE):
        torch.cuda.cudart().cudaHostUnregister(slab.data_ptr() + begin)


def _checked(result: object) -> None:
    torch.cuda.check_error(int(result))  # type: ignore[call-overload]
