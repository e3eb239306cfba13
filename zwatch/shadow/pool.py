"""Memory in slabs that are kept when they are given back, so that a swap allocates and frees nothing."""

import threading
from collections import deque
from collections.abc import Callable, Iterable

import torch

GRAIN = 2 * 2**20
"""A slab's size is a multiple of this, bytes: the page of CUDA's own allocator."""


class Pool:
    """Slabs of uint8 in one memory. What is free in it counts as free memory, and can be given up.

    `new` allocates a slab of a number of bytes; `release` makes slabs ready to be dropped. `give_back` may be called
    from anywhere, a garbage collection in the middle of `take` included.
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
        """Bytes of the slabs that nobody holds."""
        with self._lock:
            self._collect()
            return sum(slab.numel() for slab in self._free)

    def take(self, size: int) -> torch.Tensor:
        """Return a slab of at least `size` bytes: the free one that fits best, or a new one.

        Raises:
            torch.OutOfMemoryError, MemoryError: there is no such piece left, also with all free slabs given up.
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
        """Keep a slab for the next `take`; nothing may use its bytes any more."""
        self._returned.append(slab)

    def reserve(self, sizes: Iterable[int]) -> None:
        """See that slabs for all these sizes are free at once.

        Raises:
            torch.OutOfMemoryError, MemoryError: there is not that much left; what was allocated stays.
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
        """Give all free slabs up, and return how many bytes they had."""
        with self._lock:
            self._collect()
            given_up, self._free = self._free, []
        self._release(given_up)
        return sum(slab.numel() for slab in given_up)

    def _collect(self) -> None:
        while self._returned:
            self._free.append(self._returned.popleft())

    def _fitting(self, size: int) -> torch.Tensor | None:
        """Take the smallest free slab that is not much too large: a small file must not sit in a large file's slab."""
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
