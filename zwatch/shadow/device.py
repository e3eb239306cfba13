"""The device that weights are loaded on: its memory, its streams, and how bytes get there and are hashed there."""

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

import torch

from zwatch.deploy import seal
from zwatch.shadow.cuda import Cuda
from zwatch.shadow.hashing import Between, Hasher, Hashing, HostHasher
from zwatch.shadow.host import HostShadow, system_memory
from zwatch.shadow.pace import GivingWay
from zwatch.shadow.reader import Filling, HostReader, Landed

SPARE = 2 * 2**30
"""Bytes that stay free beside a reserved shadow until the peak of a request is known, and beyond it."""


class Device:
    """A torch device as the shadow uses it. CPU and CUDA differ here and nowhere else.

    `budget` caps the bytes that weights may take, for a card that is shared with other programs.
    """

    is_host = False

    def __init__(self, name: str, *, budget: int | None = None) -> None:
        self.torch_device = _chosen(name)
        self._budget = budget
        self._held = 0
        self._lock = threading.Lock()
        self._begun = 0  # of what is done beside requests
        self._going_on = 0
        self._serving: set[int] = set()  # threads that make images
        self._launching = 0  # by one of them at a time
        self.request_peak = 0
        """Most bytes that making images has taken so far beyond the weights, on a device that can tell."""
        self._cuda = Cuda(self.torch_device) if self.torch_device.type == "cuda" else None
        self._hasher: Hasher = self._cuda or HostHasher()
        self._host_reader = HostReader()
        self.host = HostShadow(self._host_reader.fill, pin=self._cuda is not None)
        """Host memory, for a version that does not fit beside the one that serves."""

    @property
    def name(self) -> str:
        """The device's name as its maker gives it."""
        if self._cuda is not None:
            return str(torch.cuda.get_device_name(self.torch_device))
        return "CPU"

    # --- memory

    def memory(self) -> tuple[int, int]:
        """Return (free, total) bytes that weights may take now."""
        free, total = self._unused()
        if self._budget is None:
            return free, total
        return max(0, min(free, self._budget - self._held)), min(total, self._budget)

    def _unused(self) -> tuple[int, int]:
        """Return (free, total) bytes of the device, whatever the budget."""
        if self._cuda is None:
            return system_memory()
        free, total = torch.cuda.mem_get_info(self.torch_device)
        # What the caching allocator and the pool keep unused is free to us.
        free += torch.cuda.memory_reserved(self.torch_device) - torch.cuda.memory_allocated(self.torch_device)
        return free + self._cuda.pool.free, total

    @property
    def room(self) -> int:
        """Bytes that weights may take now beside what is needed for making images; negative if that is short already.

        The budget is for weights alone.
        """
        beside_images = self._unused()[0] - self.request_peak
        return beside_images if self._budget is None else min(beside_images, self._budget - self._held)

    def allocate(self, owner: object, size: int) -> torch.Tensor:
        """Return an uninitialised uint8 tensor of shape (size,), counted against the budget until `owner` is gone.

        Raises:
            torch.OutOfMemoryError: the device has no such piece left.
        """
        slab = torch.empty(size, dtype=torch.uint8) if self._cuda is None else self._cuda.pool.take(size)
        with self._lock:
            self._held += size
        weakref.finalize(owner, self._release, size, slab if self._cuda is not None else None)
        self._keep_to_budget(0)
        return slab[:size]

    def _keep_to_budget(self, missing: int) -> None:
        """Give up what the pool keeps in sizes that nobody asks for, where the budget, which other programs rely on,
        would not hold it and `missing` bytes more."""
        if self._cuda is None or self._budget is None:
            return
        if self._held + self._cuda.pool.free + missing > self._budget:
            self.give_room()

    def _release(self, size: int, slab: torch.Tensor | None) -> None:
        with self._lock:
            self._held -= size
        if self._cuda is not None and slab is not None:
            self._cuda.pool.give_back(slab)

    def reserve(self, sizes: Iterable[int]) -> bool:
        """Have memory for buffers of these sizes ready before it is needed, if requests keep enough; say whether it is.

        A device without a pool needs no such thing.
        """
        if self._cuda is None:
            return True
        sizes = list(sizes)
        if not self.has_room(sizes):
            return False
        missing = self._cuda.pool.lacks(sizes)
        if missing > self._unused()[0] - self._cuda.pool.free - self.request_peak - SPARE:
            return False
        self._keep_to_budget(missing)
        with self._counted():
            try:
                self._cuda.pool.reserve(sizes)
            except torch.OutOfMemoryError:
                return False
        return True

    def has_room(self, sizes: Iterable[int]) -> bool:
        """Say whether buffers of these sizes fit, now, beside what is needed for making images; nothing always does."""
        wanted = sum(sizes)
        return not wanted or wanted <= self.room

    def give_room(self) -> int:
        """Give up what is kept for the next load, because an image needs it now; return the bytes."""
        if self._cuda is None:
            return 0
        given_up = self._cuda.pool.trim()
        torch.cuda.empty_cache()
        return given_up

    # --- bytes

    def fill(self, fillings: Sequence[Filling], landed: Landed) -> None:
        """Read open files from their start into tensors of exactly their length.

        `landed` gets the number of a filling and how many of its bytes, from the first on, are there (on a GPU: in the
        order of the stream that `beside` has); it may raise to stop.

        Raises:
            Rejection: `size_mismatch` if a file is shorter or longer than its tensor.
            OSError: a read failed.
        """
        (self._cuda or self._host_reader).fill(fillings, landed)

    def begin_hash(self, data: torch.Tensor, between: Between = lambda: None) -> Hashing:
        """Return the hash to be of a uint8 tensor of shape (n,) on this device; see `Hashing`.

        To be used inside `beside`. `between` is called between two slices that the CPU hashes and may raise to stop.
        """
        return self._hasher.begin(data, between)

    def hash_file(self, fd: int, path: str, size: int, advance: Callable[[int], None]) -> str:
        """Return the blake3 of an open file's bytes as hex, by way of reserved memory if there is some free, else on the
        CPU. `advance` gets the bytes done since its last call, and may raise to stop.

        Raises:
            Rejection: as `fill`.
            OSError: a read failed.
        """
        if self._cuda is None or self._cuda.pool.lacks([size]):
            return seal.hash_file(fd, advance)
        scratch, done = _Scratch(), 0
        with self.beside():
            data = self.allocate(scratch, size)
            hashing = self.begin_hash(data)

            def landed(number: int, prefix: int) -> None:
                nonlocal done
                advance(prefix - done)
                done = prefix
                hashing.advance(prefix)

            self.fill([Filling(fd, path, data)], landed)
            return hashing.hexdigest()

    # --- streams

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Make images: on a stream that goes before everything else the device does."""
        if self._cuda is None:
            yield
            return
        me = threading.get_ident()
        self._serving.add(me)
        try:
            with torch.cuda.stream(self._cuda.serving):
                yield
        finally:
            self._serving.discard(me)

    @contextmanager
    def launching(self) -> Iterator[None]:
        """Do work that the device has done before Python has asked for it all. In `serving`, what gives way stands still
        meanwhile."""
        if threading.get_ident() not in self._serving:
            yield
            return
        self._launching += 1
        try:
            yield
        finally:
            self._launching -= 1

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Do device work that gives way to images being made, and leave only when it is done."""
        if self._cuda is None:
            yield
            return
        with self._counted():
            try:
                with torch.cuda.stream(self._cuda.beside):
                    yield
            finally:
                self._cuda.beside.synchronize()

    def giving_way(self, check: Callable[[], None]) -> AbstractContextManager[object]:
        """Call torch from Python inside without taking the interpreter from images being made on a GPU; see `GivingWay`.

        `check` is called again and again and may raise to stop.
        """
        return GivingWay(lambda: bool(self._serving), lambda: self._launching > 0, check)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._lock:
            self._begun += 1
            self._going_on += 1
        try:
            yield
        finally:
            with self._lock:
                self._going_on -= 1

    @contextmanager
    def measured_request(self) -> Iterator[None]:
        """Learn from an image being made inside how much memory that takes, unless anything took memory beside it."""
        if self._cuda is None or self._going_on:
            yield
            return
        begun, held = self._begun, torch.cuda.memory_allocated(self.torch_device)
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        yield
        if begun == self._begun:
            peak = torch.cuda.max_memory_allocated(self.torch_device) - held
            self.request_peak = max(self.request_peak, peak)


class _Scratch:
    """Holds memory for a moment."""


def _chosen(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and ":" not in name:  # tensors say which one, and are compared with this
        return torch.device("cuda", torch.cuda.current_device())
    return device
