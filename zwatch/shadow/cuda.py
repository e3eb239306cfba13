"""What a CUDA device needs beyond torch: streams by priority, pinned memory, a pool, and the hash kernel."""

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, overload

import torch

from zwatch.shadow import blake3_gpu
from zwatch.shadow.hashing import Between, Hashing, HostHasher
from zwatch.shadow.pool import Pool
from zwatch.shadow.reader import PinnedReader

_log = logging.getLogger(__name__)

SMALL_PIECE = 2**20
"""Bytes up to which torch's CUDA allocator serves from shared blocks, of 2 MiB."""
SMALL_PIECES = 32
"""Small pieces allocated once on each stream: torch keeps their blocks, so that a load need not ask CUDA for small ones."""


class Cuda:
    """Streams by priority, pinned memory, a pool, and the hash kernel of one CUDA device.

    Everything is allocated and compiled here, at the start, so that a swap need not.
    """

    def __init__(self, device: torch.device) -> None:
        with torch.cuda.device(device):
            self.serving = torch.cuda.Stream(priority=-1)
            self.beside = torch.cuda.Stream(priority=0)
            copies = torch.cuda.Stream(priority=0)
            self.hasher = CudaHasher(device, copies, self.beside)
            self.reader = PinnedReader(copies)
            self.memory = CudaMemory(device)
            self.pool = Pool(lambda size: torch.empty(size, dtype=torch.uint8, device=device))
            for stream in (self.beside, self.serving):
                with torch.cuda.stream(stream):
                    small = [torch.empty(SMALL_PIECE, dtype=torch.uint8, device=device) for _ in range(SMALL_PIECES)]
            # Every transfer of a single number to the host briefly takes a small pinned piece; two threads do this.
            small += [
                torch.empty(2**power, dtype=torch.uint8, pin_memory=True) for power in range(13) for _ in range(4)
            ]
            del small
        self._device = device

    def lost(self) -> str | None:
        """Return why this process cannot use the device any more; see `Device.lost`."""
        try:
            torch.ones(1, device=self._device).item()
        except (torch.OutOfMemoryError, MemoryError):
            return None
        except RuntimeError as error:
            text = (str(error).splitlines() or [type(error).__name__])[0]
            return None if "out of memory" in text else text
        return None


class CudaMemory:
    """The memory of a CUDA device as the driver and torch's caching allocator report it; see `MemorySource`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def unused(self) -> tuple[int, int]:
        """Return (free, total) bytes; what the caching allocator keeps unused counts as free."""
        free, total = torch.cuda.mem_get_info(self._device)
        return free + torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device), total

    def allocated(self) -> int:
        """Return the bytes that tensors of this process hold."""
        return torch.cuda.memory_allocated(self._device)

    def reset_peak(self) -> None:
        """Begin a new measurement for `peak`."""
        torch.cuda.reset_peak_memory_stats(self._device)

    def peak(self) -> int:
        """Return the most bytes that were allocated at once since `reset_peak`."""
        return torch.cuda.max_memory_allocated(self._device)

    def release_cached(self) -> None:
        """Give what the caching allocator keeps unused back to the driver."""
        torch.cuda.empty_cache()


class CudaHasher:
    """Hashes on the stream `beside` what is copied on the stream `copies`, by a kernel that is compiled meanwhile."""

    def __init__(self, device: torch.device, copies: torch.cuda.Stream, beside: torch.cuda.Stream) -> None:
        self.copies = copies
        self.beside = beside
        self.lock = threading.Lock()
        """Held to launch a kernel: a load and a check of what serves may hash at the same time, with one scratch."""
        # Compiling takes seconds the first time; the first files are read meanwhile.
        compiler = ThreadPoolExecutor(1, thread_name_prefix="zwatch-kernels")
        self._compiling = compiler.submit(_make_hasher, device, beside)
        compiler.shutdown(wait=False)

    def begin(self, data: torch.Tensor, between: Between = lambda: None) -> Hashing:
        """As `Hasher.begin`, in the order of the copies."""
        return _AfterCopies(self, data, between)

    def compiled(self, *, wait: bool) -> "HostHasher | blake3_gpu.GpuHasher | None":
        """Return the hasher to be used; None if that is not decided yet and the caller does not wait."""
        return self._compiling.result() if wait or self._compiling.done() else None


class _AfterCopies:
    """The hash of one buffer: each slice is hashed as soon as it was copied and the kernel is compiled."""

    def __init__(self, hasher: CudaHasher, data: torch.Tensor, between: Between) -> None:
        self._hasher = hasher
        self._data = data
        self._between = between
        self._slices = 0
        self._hashing: Hashing | None = None

    def advance(self, landed: int) -> None:
        # One event per slice, not one per chunk.
        if (slices := landed // blake3_gpu.SLICE) > self._slices and self._begin(wait=False) is not None:
            self._slices = slices
            self._hasher.beside.wait_stream(self._hasher.copies)
            with self._hasher.lock:
                self._begin(wait=True).advance(landed)

    def finish(self) -> None:
        hashing = self._begin(wait=True)
        self._hasher.beside.wait_stream(self._hasher.copies)
        with self._hasher.lock:
            hashing.finish()

    def hexdigest(self) -> str:
        self.finish()
        return self._begin(wait=True).hexdigest()

    @overload
    def _begin(self, *, wait: Literal[True]) -> Hashing: ...
    @overload
    def _begin(self, *, wait: Literal[False]) -> Hashing | None: ...
    def _begin(self, *, wait: bool) -> Hashing | None:
        hasher = self._hasher.compiled(wait=wait)
        if self._hashing is None and hasher is not None:
            if isinstance(hasher, HostHasher):
                self._hashing = hasher.begin(self._data, self._between)
            else:
                with self._hasher.lock:
                    self._hashing = hasher.begin(self._data)
        return self._hashing


def _make_hasher(device: torch.device, stream: torch.cuda.Stream) -> "HostHasher | blake3_gpu.GpuHasher":
    if not blake3_gpu.is_available(device):
        _log.warning("triton is not installed: weights are verified on the CPU, which is many times slower")
        return HostHasher()
    try:
        with torch.cuda.device(device), torch.cuda.stream(stream):
            return blake3_gpu.GpuHasher(device)
    except Exception:  # no compiler, no space for its cache, another triton: the CPU verifies too, only more slowly
        _log.exception(
            "the hash kernel does not work on this device: weights are verified on the CPU, which is many times slower"
        )
        return HostHasher()
