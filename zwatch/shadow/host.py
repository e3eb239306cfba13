"""The memories that a version can be loaded into: the device that serves, or host memory on the way there."""

import mmap
import time
import weakref
from collections.abc import Callable, Iterable, Sized
from contextlib import AbstractContextManager, nullcontext, suppress
from functools import partial
from typing import Protocol

import torch

from zwatch.shadow.faults import is_memory_short
from zwatch.shadow.hashing import Hasher, HostHasher
from zwatch.shadow.pool import Pool
from zwatch.shadow.reader import Reader
from zwatch.shadow.system import system_memory

PINNED_PIECE = 64 * 2**20
"""Bytes of host memory pinned by one call, which takes 35 ms."""
COPY_PIECE = 64 * 2**20
"""Bytes of one copy between host and device. It divides PINNED_PIECE: a copy must not span two pinned pieces."""
HOST_SPARE = 4 * 2**30
"""Bytes of host memory left free for everything else, above all the page cache."""


class Shadow(Protocol):
    """Memory that weight files are loaded into."""

    is_host: bool

    @property
    def reader(self) -> Reader:
        """Reads files into tensors of this memory."""

    @property
    def hasher(self) -> Hasher:
        """Hashes tensors of this memory."""

    def allocate(self, owner: object, size: int) -> torch.Tensor:
        """Return an uninitialised uint8 tensor of shape (size,) that is held until `owner` is garbage-collected."""

    def beside(self) -> AbstractContextManager[None]:
        """Work on these bytes inside with lower priority than image generation; leaving waits until the work is done."""


class HostShadow:
    """Host memory for a version that does not fit on the device beside the one that serves.

    `pool` allocates it (see `host_pool`); `system_memory` returns (free, total) bytes of the host. What was freed is kept for
    the next version, unless it is memory for a moment. What `lender` keeps of the same memory is released where it is needed here.
    """

    is_host = True

    def __init__(
        self, reader: Reader, pool: Pool, system_memory: Callable[[], tuple[int, int]] = system_memory, *,
        for_a_moment: bool = False, lender: Pool | None = None,
    ) -> None:  # fmt: skip
        self.reader = reader
        self.hasher = HostHasher()
        self._pool = pool
        self._system_memory = system_memory
        self._for_a_moment = for_a_moment
        self._lender = lender

    def memory(self) -> tuple[int, int]:
        """Return (free, total) bytes of the host's memory; what is kept here for the next version counts as free."""
        free, total = self._system_memory()
        return max(0, free - HOST_SPARE) + self._pool.free, total

    def allocate(self, owner: object, size: int) -> torch.Tensor:
        """As `Shadow.allocate`.

        Raises:
            MemoryError: the host has not enough memory left.
        """
        if not self._make_room([size]):
            raise MemoryError(f"the host has no {size} bytes left")
        if self._for_a_moment:
            return plain(size)
        slab = self._pool.take(size)
        weakref.finalize(owner, self._pool.give_back, slab)
        return slab[:size]

    def reserve(self, sizes: Iterable[int]) -> bool:
        """Allocate memory for buffers of these sizes ahead of time; return whether there is enough.

        Pinning takes about half a second per GiB; nothing else waits for it.
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
        """Return whether there is memory for these sizes, after releasing kept slabs of other sizes if necessary.

        Linux itself would hand out more than there is, and later kill a process.
        """
        if self._pool.lacks(sizes) <= self.memory()[0] - self._pool.free:
            return True
        if self._lender is not None and sum(sizes) > self.memory()[0]:
            self._lender.trim()
        if sum(sizes) > self.memory()[0]:
            return False
        self._pool.trim()
        return True

    def beside(self) -> AbstractContextManager[None]:
        """As `Shadow.beside`; on the host nothing has to wait."""
        return nullcontext()


def host_pool(*, pin: bool, images: Sized = ()) -> Pool:
    """Return a pool of host memory; `pin` it where a GPU copies from and to it, giving way to those who make `images`."""
    return Pool(partial(_pinned, images), _unpin) if pin else Pool(plain)


def copy_bytes(to: torch.Tensor, source: torch.Tensor) -> None:
    """Copy a uint8 tensor of shape (n,) between host and device, in the order of the current stream.

    Both start at the start of their slabs, so that no copy spans two pinned pieces.
    """
    for begin in range(0, source.numel(), COPY_PIECE):
        to[begin : begin + COPY_PIECE].copy_(source[begin : begin + COPY_PIECE], non_blocking=True)


def copy_from_slab(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a copy, on a device, of a contiguous tensor that is a view into a slab of host memory, in the order of the current
    stream."""
    made = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    source, to = tensor.reshape(-1).view(torch.uint8), made.view(-1).view(torch.uint8)
    begin, end = 0, source.numel()
    while begin < end:
        to_border = PINNED_PIECE - (int(source.storage_offset()) + begin) % PINNED_PIECE
        length = min(to_border, end - begin)
        to[begin : begin + length].copy_(source[begin : begin + length], non_blocking=True)
        begin += length
    return made


def plain(size: int) -> torch.Tensor:
    """Return an uninitialised uint8 tensor of shape (size,) in host memory.

    Raises:
        MemoryError: the host has not enough memory left.
    """
    try:
        return torch.empty(size, dtype=torch.uint8)
    except RuntimeError as error:
        if not is_memory_short(error):
            raise
        raise MemoryError(f"the host has no {size} bytes left") from None


def _pinned(images: Sized, size: int) -> torch.Tensor:
    # Not torch's own pinned memory: that rounds up to a power of two, 16 GiB for a file of 10 GB.
    try:
        region = _Region(-1, size)
        slab = torch.frombuffer(region, dtype=torch.uint8)
    except OSError as error:
        raise MemoryError(f"the host has no {size} bytes left: {error.strerror}") from None
    try:
        for begin in range(0, size, PINNED_PIECE):
            length, begun = min(PINNED_PIECE, size - begin), time.monotonic()
            region.pin(slab.data_ptr() + begin, length)
            if images:
                # The driver's lock is held for each piece, and a thread that makes images does not get it between two.
                time.sleep(time.monotonic() - begun)
    except RuntimeError as error:
        region.unpin()
        _forget_error()
        raise MemoryError(f"{size} bytes of host memory could not be pinned: {error}") from None
    _REGIONS[slab.data_ptr()] = region
    return slab


class _Region(mmap.mmap):
    """Memory whose pinned pieces are unpinned before it goes: what is mapped at the same place later could not be pinned."""

    def __init__(self, fileno: int, length: int) -> None:
        """Map new memory, as `mmap.mmap` does."""
        self._pieces: list[int] = []

    def pin(self, address: int, length: int) -> None:
        """Pin a piece.

        Raises:
            RuntimeError: it cannot be.
        """
        _checked(torch.cuda.cudart().cudaHostRegister(address, length, 0))
        self._pieces.append(address)

    def unpin(self) -> None:
        """Unpin all pieces."""
        pieces, self._pieces = self._pieces, []
        for address in pieces:
            torch.cuda.cudart().cudaHostUnregister(address)

    def __del__(self) -> None:
        with suppress(Exception):  # the interpreter ends
            self.unpin()


_REGIONS: weakref.WeakValueDictionary[int, _Region] = weakref.WeakValueDictionary()
"""Those in use, by the address of their slab, which keeps them."""


def _unpin(slabs: list[torch.Tensor]) -> None:
    for slab in slabs:
        _REGIONS[slab.data_ptr()].unpin()


def _forget_error() -> None:
    """Let the driver forget that something failed, which the next launch of this thread would report as its own."""
    with suppress(RuntimeError):
        torch.ones(1, device="cuda")


def _checked(result: object) -> None:
    torch.cuda.check_error(int(result))  # type: ignore[call-overload]
