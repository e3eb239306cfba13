"""Memory in slabs that are kept when they are given back, so that a swap allocates and frees nothing."""

import threading
from collections import deque
from collections.abc import Callable, Iterable

import torch

GRAIN = 2 * 2**20
"""A slab's size is a multiple of this, bytes: the page of CUDA's own allocator."""


class Pool:
    """Slabs of uint8 in one memory. Its free slabs count as free memory, and can be released.

    `new` allocates a slab of a number of bytes; `release` prepares slabs for being freed. `give_back` may be called
    at any time, also by a garbage collection in the middle of `take`.
    """

    def __init__(
        self, new: Callable[[int], torch.Tensor], release: Callable[[list[torch.Tensor]], None] = lambda slabs: None
    ) -> None:
        self._new_slab = new
        self._release = release
        self._lock = threading.Lock()
        self._free: list[torch.Tensor] = []
        self._returned: deque[torch.Tensor] = deque()

    @property
    def free(self) -> int:
        """Bytes of the slabs that are not in use."""
        with self._lock:
            self._collect()
            return sum(slab.numel() for slab in self._free)

    def take(self, size: int) -> torch.Tensor:
        """Return a slab of at least `size` bytes: the free one that fits best, or a new one.

        Raises:
            torch.OutOfMemoryError, MemoryError: there is not enough memory, even with all free slabs released.
        """
        with self._lock:
            self._collect()
            slab = self._fitting(size)
        if slab is not None:
            return slab
        try:
            return self._new(size)
        except (torch.OutOfMemoryError, MemoryError):
            if not self.trim():
                raise
            return self._new(size)

    def give_back(self, slab: torch.Tensor) -> None:
        """Keep a slab for the next `take`; its bytes must no longer be used."""
        self._returned.append(slab)

    def reserve(self, sizes: Iterable[int]) -> None:
        """Allocate until slabs for all these sizes are free at once.

        Raises:
            torch.OutOfMemoryError, MemoryError: there is not enough memory; what was allocated is kept.
        """
        taken: list[torch.Tensor] = []
        try:
            taken.extend(self.take(size) for size in sorted(sizes, reverse=True))
        finally:
            self._returned.extend(taken)

    def lacks(self, sizes: Iterable[int]) -> int:
        """Return how many bytes `reserve` would have to allocate."""
        missing = 0
        with self._lock:
            self._collect()
            kept = list(self._free)
            for size in sorted(sizes, reverse=True):
                if self._fitting(size) is None:
                    missing += _rounded(size)
            self._free = kept
        return missing

    def trim(self) -> int:
        """Release all free slabs, and return how many bytes they had."""
        with self._lock:
            self._collect()
            given_up, self._free = self._free, []
        self._release(given_up)
        return sum(slab.numel() for slab in given_up)

    def _collect(self) -> None:
        while self._returned:
            self._free.append(self._returned.popleft())

    def _fitting(self, size: int) -> torch.Tensor | None:
        """Take the smallest free slab that is not much too large: a small file must not occupy a large file's slab."""
        most = _rounded(size + size // 8)
        found = min(
            (number for number, slab in enumerate(self._free) if size <= slab.numel() <= most),
            key=lambda number: self._free[number].numel(),
            default=None,
        )
        return None if found is None else self._free.pop(found)

    def _new(self, size: int) -> torch.Tensor:
        return self._new_slab(_rounded(size))


def _rounded(size: int) -> int:
    return -(-size // GRAIN) * GRAIN
