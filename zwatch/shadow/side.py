"""Memory of the device that is filled beside everything else: for small files that a request needs while a version may be loading.

It has a stream, pinned memory, a scratch for hashing and threads of its own, so that it neither waits for a load or a warm-up nor holds
one up, and it takes nothing from the slabs that are kept for the next load.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from zwatch.shadow.blake3_gpu import GpuHasher
from zwatch.shadow.cuda import CudaHasher
from zwatch.shadow.device import Device
from zwatch.shadow.faults import is_memory_short
from zwatch.shadow.hashing import SLICE, Between, Hasher, Hashing, HostHasher, HostHashing
from zwatch.shadow.host import plain
from zwatch.shadow.reader import HostReader, PinnedReader, Reader

THREADS = 4
"""That read; a load has its own."""
_SLOTS = 8
"""Pieces of pinned memory."""


class SideShadow:
    """A `Shadow` on the device. One thread at a time is inside `beside`; its methods block."""

    is_host = False

    def __init__(self, device: Device) -> None:
        self.device = device
        self.hasher: Hasher = HostHasher()
        self._lock = threading.Lock()
        self._reader: Reader | None = None
        self._stream: torch.cuda.Stream | None = None
        if device.torch_device.type == "cuda":
            with torch.cuda.device(device.torch_device):
                self._stream = torch.cuda.Stream(priority=0)
            self.hasher = _SideHasher(device)
        else:
            self._reader = HostReader(THREADS)

    @property
    def reader(self) -> Reader:
        """As `Shadow.reader`. On a GPU its pinned memory is allocated when it is first used."""
        if self._reader is None:
            assert self._stream is not None  # else it is there from the beginning
            self._reader = PinnedReader(self._stream, THREADS, slots=_SLOTS)
        return self._reader

    def prepare(self) -> None:
        """Allocate the pinned memory, and make the hash kernel's scratch; to be called inside `beside`."""
        _ = self.reader
        self.hasher.begin(torch.zeros(1, dtype=torch.uint8, device=self.device.torch_device)).hexdigest()

    def allocate(self, owner: object, size: int) -> torch.Tensor:
        """As `Shadow.allocate`; what is kept for the next load is given up only if there is nothing else left.

        Raises:
            torch.OutOfMemoryError, MemoryError: the device has not enough memory left.
        """
        try:
            made = self._new(size)
        except (RuntimeError, MemoryError) as error:
            if not is_memory_short(error) or not self.device.give_room():
                raise
            made = self._new(size)
        self.device.hold(owner, size)
        return made

    def _new(self, size: int) -> torch.Tensor:
        if self._stream is None:
            return plain(size)
        return torch.empty(size, dtype=torch.uint8, device=self.device.torch_device)

    @contextmanager
    def beside(self) -> Iterator[None]:
        """As `Shadow.beside`, on a stream that nothing else uses."""
        with self._lock, self.device.counted():
            if self._stream is None:
                yield
                return
            try:
                with torch.cuda.stream(self._stream):
                    yield
            finally:
                self._stream.synchronize()


class _SideHasher:
    """Hashes on torch's current stream: by the device's kernel once that is compiled, with a scratch of its own, until then on the CPU
    a copy of what is on the device."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._kernel: GpuHasher | None = None

    def begin(self, data: torch.Tensor, between: Between = lambda: None) -> Hashing:
        """As `Hasher.begin`."""
        main = self._device.hasher
        if self._kernel is None and isinstance(main, CudaHasher) and main.compiled is not None:
            self._kernel = GpuHasher(self._device.torch_device, slice_size=SLICE)
        return _OfCopy(data, between) if self._kernel is None else self._kernel.begin(data)


class _OfCopy:
    """The hash of one buffer, computed on the CPU from a copy of what is on the device."""

    def __init__(self, data: torch.Tensor, between: Callable[[], None]) -> None:
        self._data, self._between = data, between

    def advance(self, landed: int) -> None:
        """Do nothing."""

    def finish(self) -> None:
        """Do nothing."""

    def hexdigest(self) -> str:
        """Copy and hash all bytes, and return the hash as hex."""
        return HostHashing(self._data.cpu(), self._between, SLICE).hexdigest()
