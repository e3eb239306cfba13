"""The device that weights are loaded on: its memory, its streams, and how bytes get there and are hashed there."""

import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Literal, overload

import torch

from zwatch.deploy import seal
from zwatch.shadow import blake3_gpu
from zwatch.shadow.hashing import Between, Hasher, Hashing, HostHasher
from zwatch.shadow.memory import HostShadow, system_memory
from zwatch.shadow.pace import GivingWay
from zwatch.shadow.pool import Pool
from zwatch.shadow.reader import Filling, HostReader, Landed, PinnedReader

_log = logging.getLogger(__name__)

SPARE = 2 * 2**30
"""Bytes that stay free beside a reserved shadow until the peak of a request is known, and beyond it."""
SMALL_PIECE = 2**20
"""Bytes up to which torch's CUDA allocator serves from shared blocks, of 2 MiB."""
SMALL_PIECES = 32
"""So many are allocated once on each stream: torch keeps their blocks, and a load finds room for its small things."""


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
        self._cuda = _Cuda(self.torch_device) if self.torch_device.type == "cuda" else None
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


class _Cuda:
    """What a CUDA device needs beyond torch: streams by rank, pinned memory, a pool, and the hash kernel.

    Everything is allocated and compiled here, at the start, so that a swap need not.
    """

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            self.serving = torch.cuda.Stream(priority=-1)
            self.beside = torch.cuda.Stream(priority=0)
            self.copies = torch.cuda.Stream(priority=0)
            self.hashing = threading.Lock()
            # Compiling takes seconds the first time; the first files are read meanwhile.
            compiler = ThreadPoolExecutor(1, thread_name_prefix="zwatch-kernels")
            self._hasher = compiler.submit(_make_hasher, device, self.beside)
            compiler.shutdown(wait=False)
            self._reader = PinnedReader(self.copies)
            self.pool = Pool(lambda size: torch.empty(size, dtype=torch.uint8, device=device))
            for stream in (self.beside, self.serving):
                with torch.cuda.stream(stream):
                    small = [torch.empty(SMALL_PIECE, dtype=torch.uint8, device=device) for _ in range(SMALL_PIECES)]
            # Whatever brings a number or a count to the host takes a pinned piece for a moment; two threads do.
            small += [
                torch.empty(2**power, dtype=torch.uint8, pin_memory=True) for power in range(13) for _ in range(4)
            ]
            del small

    def fill(self, fillings: Sequence[Filling], landed: Landed) -> None:
        self._reader.fill(fillings, landed)

    def begin(self, data: torch.Tensor, between: Between = lambda: None) -> Hashing:
        return _AfterCopies(self, data, between)

    def compiled(self, *, wait: bool) -> "HostHasher | blake3_gpu.GpuHasher | None":
        """Return what hashes; None if that is not decided yet and the caller does not wait."""
        return self._hasher.result() if wait or self._hasher.done() else None


class _AfterCopies:
    """Hashes each slice on one stream as soon as it was copied on another and the kernel is there.

    A load and a check of what serves may hash at the same time, with one scratch: hence the lock.
    """

    def __init__(self, cuda: _Cuda, data: torch.Tensor, between: Between) -> None:
        self._cuda = cuda
        self._data = data
        self._between = between
        self._slices = 0
        self._hashing: Hashing | None = None

    def advance(self, landed: int) -> None:
        # An event a slice, not one a chunk.
        if (slices := landed // blake3_gpu.SLICE) > self._slices and self._begin(wait=False) is not None:
            self._slices = slices
            self._cuda.beside.wait_stream(self._cuda.copies)
            with self._cuda.hashing:
                self._begin(wait=True).advance(landed)

    def finish(self) -> None:
        hashing = self._begin(wait=True)
        self._cuda.beside.wait_stream(self._cuda.copies)
        with self._cuda.hashing:
            hashing.finish()

    def hexdigest(self) -> str:
        self.finish()
        return self._begin(wait=True).hexdigest()

    @overload
    def _begin(self, *, wait: Literal[True]) -> Hashing: ...
    @overload
    def _begin(self, *, wait: Literal[False]) -> Hashing | None: ...
    def _begin(self, *, wait: bool) -> Hashing | None:
        hasher = self._cuda.compiled(wait=wait)
        if self._hashing is None and hasher is not None:
            if isinstance(hasher, HostHasher):
                self._hashing = hasher.begin(self._data, self._between)
            else:
                with self._cuda.hashing:
                    self._hashing = hasher.begin(self._data)
        return self._hashing


def _make_hasher(device: torch.device, stream: torch.cuda.Stream) -> "HostHasher | blake3_gpu.GpuHasher":
    if not blake3_gpu.is_available(device):
        _log.warning("triton is not installed: weights are verified on the CPU, which takes many times as long")
        return HostHasher()
    try:
        with torch.cuda.device(device), torch.cuda.stream(stream):
            return blake3_gpu.GpuHasher(device)
    except Exception:  # no compiler, no room for its cache, another triton: the CPU verifies as well, only later
        _log.exception(
            "the hash kernel does not work here: weights are verified on the CPU, which takes many times as long"
        )
        return HostHasher()


def _chosen(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and ":" not in name:  # tensors say which one, and are compared with this
        return torch.device("cuda", torch.cuda.current_device())
    return device
