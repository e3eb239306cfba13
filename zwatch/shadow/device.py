"""The device that weights are loaded on: its memory, its streams, and how bytes get there and are hashed there."""

import platform
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch

from zwatch.deploy.hashing import hash_file
from zwatch.shadow.cuda import Cuda
from zwatch.shadow.cuda_context import EarlyContext
from zwatch.shadow.hashing import Hasher, HostHasher
from zwatch.shadow.host import HostShadow, host_pool, plain
from zwatch.shadow.memory import CpuMemory, MemorySource
from zwatch.shadow.pace import GivingWay
from zwatch.shadow.pool import Pool
from zwatch.shadow.read_threads import Filling
from zwatch.shadow.reader import HostReader, Reader
from zwatch.shadow.system import processor, system_memory

SPARE = 2 * 2**30
"""Bytes that a reserved shadow leaves free, beyond the peak of a request: that may still grow."""
WORKING_ROOM = 2 * 2**30
"""Bytes that making an image is taken to need before one was made, to decide what has a place on the device."""


class Device:
    """A torch device as the shadow uses it. CPU and CUDA differ here and nowhere else.

    `budget` caps the bytes that weights may take, for a card that is shared with other programs. `memory` tells what
    the device's memory holds and `pool` keeps freed slabs for the next load (without one, memory is freed at once);
    `host_memory` returns (free, total) bytes of the host. Each defaults to what the device has. `cache` is the directory in
    which compiled kernels are kept; `early` is what was made of a CUDA device before.
    """

    is_host = False

    def __init__(
        self,
        name: str,
        *,
        budget: int | None = None,
        memory: MemorySource | None = None,
        pool: Pool | None = None,
        host_memory: Callable[[], tuple[int, int]] = system_memory,
        cache: Path | None = None,
        early: EarlyContext | None = None,
    ) -> None:
        self.torch_device = _torch_device(name)
        self.budget = budget
        self.is_host_memory = self.torch_device.type == "cpu"
        """Whether its memory is the host's, so that moving weights there would save nothing."""
        self.weights_bytes = 0
        """Bytes that weights hold."""
        self.preparing: list[threading.Thread] = []
        """Threads that prepare it, see `is_preparing`."""
        self.peak_elsewhere = 0
        """Bytes that another process may need to make images while it still does; 0 only if there is no such process."""
        self.request_peak = 0
        """Most bytes that making images has taken so far beyond the weights, on a device that can tell."""
        self._lock = threading.Lock()
        self._begun = 0  # pieces of work other than requests, so far
        self._in_progress = 0  # of these
        self._serving: set[int] = set()  # identifiers of the threads that make images
        self._launching = 0  # of these threads
        host_reader = HostReader()
        self._cuda = Cuda(self.torch_device, cache, early) if self.torch_device.type == "cuda" else None
        self.reader: Reader = host_reader
        """Reads files into tensors on this device; on a GPU in the order of the stream that `beside` has."""
        self.hasher: Hasher = HostHasher()
        """Hashes tensors on this device; to be used inside `beside`."""
        self._memory: MemorySource = memory or CpuMemory()
        self._pool = pool
        if self._cuda is not None:
            self.reader, self.hasher = self._cuda.reader, self._cuda.hasher
            self._memory, self._pool = memory or self._cuda.memory, pool or self._cuda.pool
        self.recorder = None if self._cuda is None else self._cuda.recorder
        """Records graphs; None where the device has none."""
        kept = host_pool(pin=self._cuda is not None, images=self._serving)
        self.host = HostShadow(host_reader, kept, host_memory)
        """Host memory, for a version that does not fit beside the one that serves, and for a text encoder that does not fit at all."""
        self.stopover = HostShadow(host_reader, host_pool(pin=False), host_memory, for_a_moment=True, lender=kept)
        """Host memory for files that are converted from there, for want of room on the device."""

    @property
    def name(self) -> str:
        """The name that the device's manufacturer gave it."""
        if self._cuda is not None:
            return str(torch.cuda.get_device_name(self.torch_device))
        return "CPU"

    @property
    def is_preparing(self) -> bool:
        """Whether threads still prepare the device: the process must not wait for them, nor end as if they were not there."""
        compiles = self._cuda is not None and not self._cuda.hasher.compiling.done()
        return compiles or any(thread.is_alive() for thread in self.preparing)

    def identity(self) -> list[str]:
        """Return what makes this device, with its driver and torch, this one: on another, results differ."""
        if self._cuda is not None:
            return self._cuda.identity()
        return [torch.__version__, platform.machine(), processor()]

    def lost(self) -> str | None:
        """Return why this process cannot use the device any more (CUDA refuses every call after some errors); None if it can,
        or if only memory is short. It blocks."""
        return None if self._cuda is None else self._cuda.lost()

    # --- memory

    @property
    def kept(self) -> int:
        """Bytes that are allocated for the next load and hold nothing."""
        return 0 if self._pool is None else self._pool.free

    def memory(self) -> tuple[int, int]:
        """Return (free, total) bytes that weights may take now."""
        free, total = self._unused()
        if self.budget is None:
            return free, total
        return max(0, min(free, self.budget - self.weights_bytes)), min(total, self.budget)

    def _unused(self) -> tuple[int, int]:
        """Return (free, total) bytes of the device, whatever the budget; what is kept for the next load is free."""
        free, total = self._memory.unused()
        return free + self.kept, total

    @property
    def unused(self) -> int:
        """Bytes that nothing needs now, whatever the budget: images may take them."""
        return self._unused()[0]

    @property
    def room(self) -> int:
        """Bytes that weights may take now in addition to what is needed for making images; negative if that is short already.

        The budget is for weights alone.
        """
        beside_images = self._beside_images
        return beside_images if self.budget is None else min(beside_images, self.budget - self.weights_bytes)

    @property
    def _beside_images(self) -> int:
        return self._unused()[0] - self.request_peak - self.peak_elsewhere

    def allocate(self, owner: object, size: int) -> torch.Tensor:
        """Return an uninitialised uint8 tensor of shape (size,), counted against the budget until `owner` is
        garbage-collected.

        Raises:
            torch.OutOfMemoryError, MemoryError: the device has not enough memory left.
        """
        slab = plain(size) if self._pool is None else self._pool.take(size)
        self.hold(owner, size, None if self._pool is None else slab)
        return slab[:size]

    def hold(self, owner: object, size: int, slab: torch.Tensor | None = None) -> None:
        """Count bytes against the budget until `owner` is garbage-collected; then a slab goes back to the pool."""
        with self._lock:
            self.weights_bytes += size
        weakref.finalize(owner, self._release, size, slab)
        self._keep_to_budget(0)

    def _keep_to_budget(self, missing: int) -> None:
        """Release kept slabs of unused sizes where the budget, which other programs rely on, would not hold them and
        `missing` bytes more."""
        if self.budget is not None and self.weights_bytes + self.kept + missing > self.budget:
            self.give_room()

    def _release(self, size: int, slab: torch.Tensor | None) -> None:
        with self._lock:
            self.weights_bytes -= size
        if self._pool is not None and slab is not None:
            self._pool.give_back(slab)

    def reserve(self, sizes: Iterable[int]) -> bool:
        """Allocate memory for buffers of these sizes ahead of time, if requests keep enough; return whether it is there.

        A device without a pool needs no reserve.
        """
        if self._pool is None:
            return True
        sizes = list(sizes)
        if not self.has_room(sizes):
            return False
        missing = self._pool.lacks(sizes)
        if missing > self._memory.unused()[0] - self.request_peak - SPARE:
            return False
        self._keep_to_budget(missing)
        with self.counted():
            try:
                self._pool.reserve(sizes)
            except (torch.OutOfMemoryError, MemoryError):
                return False
        return True

    def has_room(self, sizes: Iterable[int], *, beside: int = 0) -> bool:
        """Return whether buffers of these sizes fit now in addition to what is needed for making images, and to `beside` bytes that
        are no weights; nothing always fits."""
        wanted = sum(sizes)
        return not wanted or (wanted <= self.room and wanted + beside <= self._beside_images)

    @property
    def capacity(self) -> int:
        """Bytes that all weights together may take, in addition to what is needed for making images; what this process holds now
        counts as free."""
        held = max(self._memory.allocated(), self.weights_bytes + self.kept)
        whole = self._memory.unused()[0] + held - max(self.request_peak, WORKING_ROOM) - self.peak_elsewhere
        return whole if self.budget is None else min(whole, self.budget)

    @property
    def capacity_alone(self) -> int:
        """As `capacity`, if nothing else had memory of the device."""
        whole = self._memory.unused()[1] - max(self.request_peak, WORKING_ROOM)
        return whole if self.budget is None else min(whole, self.budget)

    def give_room(self) -> int:
        """Release what is kept for the next load, because an image needs it now; return the bytes."""
        if self._pool is None:
            return 0
        released = self._pool.trim()
        self._memory.release_cached()
        return released

    @contextmanager
    def measured_request(self) -> Iterator[None]:
        """Measure how much memory an image made inside takes, unless other work took memory at the same time."""
        if self._in_progress:
            yield
            return
        begun, allocated = self._begun, self._memory.allocated()
        self._memory.reset_peak()
        yield
        if begun == self._begun:
            self.request_peak = max(self.request_peak, self._memory.peak() - allocated)

    def forget_peak(self) -> None:
        """Let what was allocated so far not count as what making the present image takes: it was tried, and did not fit."""
        self._memory.reset_peak()

    # --- bytes

    def hash_file(self, fd: int, path: str, size: int, advance: Callable[[int], None]) -> str:
        """Return the blake3 of an open file's bytes as hex, by way of kept memory if there is enough, else on the CPU.

        `advance` gets the bytes done since its last call, and may raise to stop.

        Raises:
            Rejection: as `Reader.fill`.
            OSError: a read failed.
        """
        if self._pool is None or self._pool.lacks([size]):
            return hash_file(fd, advance)
        scratch, done = _Scratch(), 0
        with self.beside():
            data = self.allocate(scratch, size)
            hashing = self.hasher.begin(data)

            def landed(number: int, prefix: int) -> None:
                nonlocal done
                advance(prefix - done)
                done = prefix
                hashing.advance(prefix)

            self.reader.fill([Filling(fd, path, data, scratch)], landed)
            return hashing.hexdigest()

    # --- streams

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Make images inside: on a stream that has priority over everything else on the device."""
        if self._cuda is None:
            yield
            return
        thread = threading.get_ident()
        self._serving.add(thread)
        try:
            with torch.cuda.stream(self._cuda.serving):
                yield
        finally:
            self._serving.discard(thread)

    def on_serving_stream(self) -> AbstractContextManager[object]:
        """Do work inside that prepares the device for requests, without their priority over loads."""
        return nullcontext() if self._cuda is None else torch.cuda.stream(self._cuda.serving)

    @contextmanager
    def launching(self) -> Iterator[None]:
        """Do work inside that the device finishes faster than Python can launch it. Inside `serving`, work that gives
        way stops meanwhile."""
        if threading.get_ident() not in self._serving:
            yield
            return
        self._launching += 1  # only one of the threads makes an image at a time
        try:
            yield
        finally:
            self._launching -= 1

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Work on the device inside with lower priority than image generation; leaving waits until the work is done."""
        if self._cuda is None:
            with self.counted():
                yield
            return
        with self.counted():
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
    def counted(self) -> Iterator[None]:
        """Count work other than requests, for `measured_request`."""
        with self._lock:
            self._begun += 1
            self._in_progress += 1
        try:
            yield
        finally:
            with self._lock:
                self._in_progress -= 1


class _Scratch:
    """Holds memory for a moment."""


def _torch_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and ":" not in name:  # tensors name their card by its number, and are compared with this
        return torch.device("cuda", torch.cuda.current_device())
    return device
