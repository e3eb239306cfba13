"""A CUDA device beyond what torch gives: streams by rank, pinned memory, a pool, and the hash kernel."""

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, overload

import torch

from zwatch.shadow import blake3_gpu
from zwatch.shadow.hashing import Between, Hashing, HostHasher
from zwatch.shadow.pool import Pool
from zwatch.shadow.reader import Filling, Landed, PinnedReader

_log = logging.getLogger(__name__)

SMALL_PIECE = 2**20
"""Bytes up to which torch's CUDA allocator serves from shared blocks, of 2 MiB."""
SMALL_PIECES = 32
"""So many are allocated once on each stream: torch keeps their blocks, and a load finds room for its small things."""


class Cuda:
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
        """As `Device.fill`."""
        self._reader.fill(fillings, landed)

    def begin(self, data: torch.Tensor, between: Between = lambda: None) -> Hashing:
        """As `Hasher.begin`, in the order of the copies."""
        return _AfterCopies(self, data, between)

    def compiled(self, *, wait: bool) -> "HostHasher | blake3_gpu.GpuHasher | None":
        """Return what hashes; None if that is not decided yet and the caller does not wait."""
        return self._hasher.result() if wait or self._hasher.done() else None


class _AfterCopies:
    """Hashes each slice on one stream as soon as it was copied on another and the kernel is there.

    A load and a check of what serves may hash at the same time, with one scratch: hence the lock.
    """

    def __init__(self, cuda: Cuda, data: torch.Tensor, between: Between) -> None:
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
