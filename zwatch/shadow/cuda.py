"""What a CUDA device needs beyond torch: streams by priority, pinned memory, a pool, and the hash kernel."""

import logging
import os
import platform
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version as installed
from pathlib import Path

import torch
from blake3 import blake3

from zwatch.deploy.parallel import parallel_hasher
from zwatch.shadow import blake3_gpu
from zwatch.shadow.cuda_context import EarlyContext
from zwatch.shadow.faults import first_line, is_memory_short
from zwatch.shadow.graphs import CudaRecorder
from zwatch.shadow.hashing import SLICE, Between, Hashing, host_view
from zwatch.shadow.pool import Pool
from zwatch.shadow.reader import PinnedReader

_log = logging.getLogger(__name__)

SMALL_PIECE = 2**20
"""Bytes up to which torch's CUDA allocator serves from shared blocks, of 2 MiB."""
SMALL_PIECES = 32
"""Small pieces allocated once on each stream: torch keeps their blocks, so that a load need not ask CUDA for small ones."""


class Cuda:
    """Streams by priority, pinned memory, a pool, and the hash kernel of one CUDA device.

    Everything is allocated and compiled here, at the start, so that a swap need not. `cache` is the directory in which
    compiled kernels are kept.
    """

    def __init__(self, device: torch.device, cache: Path | None = None, early: EarlyContext | None = None) -> None:
        with torch.cuda.device(device):
            self.serving = torch.cuda.Stream(priority=-1)
            self.beside = torch.cuda.Stream(priority=0)
            copies = torch.cuda.Stream(priority=0)
            self.hasher = CudaHasher(device, copies, self.beside, cache)
            self.reader = PinnedReader(copies, memory=None if early is None else early.pinned())
            self.recorder = CudaRecorder(device)
            self.memory = CudaMemory(device, self.recorder)
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

    def identity(self) -> list[str]:
        """Return what makes this device, with its driver and torch, this one."""
        properties = torch.cuda.get_device_properties(self._device)
        return [
            properties.name,
            str(getattr(properties, "uuid", "")),
            _driver(),
            torch.__version__,
            str(torch.version.cuda),
        ]

    def lost(self) -> str | None:
        """Return why this process cannot use the device any more; see `Device.lost`."""
        try:
            torch.ones(1, device=self._device).item()
        except Exception as error:  # some of torch's errors are no RuntimeError
            if is_memory_short(error):
                return None
            return first_line(error)
        return None


class CudaMemory:
    """The memory of a CUDA device as the driver and torch's caching allocator report it; see `MemorySource`."""

    def __init__(self, device: torch.device, recorder: CudaRecorder) -> None:
        self._device, self._recorder = device, recorder

    def unused(self) -> tuple[int, int]:
        """Return (free, total) bytes; what the caching allocator keeps unused counts as free, but for what graphs need."""
        free, total = torch.cuda.mem_get_info(self._device)
        kept = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
        return free + max(0, kept - self._recorder.held), total

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
    """Hashes on the stream `beside` what is copied on the stream `copies`, by a kernel that is compiled meanwhile; until it is,
    the CPU hashes a copy of the bytes that arrived. `cache` is the directory in which compiled kernels are kept."""

    def __init__(
        self, device: torch.device, copies: torch.cuda.Stream, beside: torch.cuda.Stream, cache: Path | None = None
    ) -> None:
        self.copies = copies
        self.beside = beside
        self.lock = threading.Lock()
        """Held to launch a kernel: a load and a check of what serves may hash at the same time, with one scratch."""
        # Compiling takes half a minute the first time; nothing waits for it.
        compiler = ThreadPoolExecutor(1, thread_name_prefix="zwatch-kernels")
        self.compiling = compiler.submit(_make_hasher, device, beside, cache)
        compiler.shutdown(wait=False)

    def begin(self, data: torch.Tensor, between: Between = lambda: None) -> Hashing:
        """As `Hasher.begin`, in the order of the copies."""
        return _AfterCopies(self, data, between)

    @property
    def compiled(self) -> blake3_gpu.GpuHasher | None:
        """The kernel; None until it is compiled, or if it cannot be."""
        return self.compiling.result() if self.compiling.done() else None


class _AfterCopies:
    """The hash of one buffer: each slice is hashed as soon as it was copied, if the kernel is compiled by then."""

    def __init__(self, hasher: CudaHasher, data: torch.Tensor, between: Between) -> None:
        self._hasher = hasher
        self._data = data
        self._between = between
        self._slices = 0
        self._hashing: blake3_gpu.Hashing | None = None

    def advance(self, landed: int) -> None:
        # One event per slice, not one per chunk.
        if (slices := landed // blake3_gpu.SLICE) > self._slices and (hashing := self._begin()) is not None:
            self._slices = slices
            self._hasher.beside.wait_stream(self._hasher.copies)
            with self._hasher.lock:
                hashing.advance(landed)

    def finish(self) -> None:
        if (hashing := self._begin()) is not None:
            self._hasher.beside.wait_stream(self._hasher.copies)
            with self._hasher.lock:
                hashing.finish()

    def hexdigest(self) -> str:
        self.finish()
        if self._hashing is not None:
            return self._hashing.hexdigest()
        self._hasher.beside.wait_stream(self._hasher.copies)
        return _hashed_on_host(self._data, self._between)

    def _begin(self) -> blake3_gpu.Hashing | None:
        kernel = self._hasher.compiled
        if self._hashing is None and kernel is not None:
            with self._hasher.lock:
                self._hashing = kernel.begin(self._data)
        return self._hashing


def _hashed_on_host(data: torch.Tensor, between: Between) -> str:
    """Return the hash of a uint8 tensor on the device, computed on the CPU from a copy; on torch's current stream.

    One piece of the copy is hashed while the next arrives.
    """
    pinned = [torch.empty(min(SLICE, data.numel()), dtype=torch.uint8, pin_memory=True) for _ in range(2)]
    arrived = [torch.cuda.Event() for _ in pinned]
    begins = range(0, data.numel(), SLICE)

    def copy(number: int) -> torch.Tensor:
        piece = data[begins[number] : begins[number] + SLICE]
        there = pinned[number % 2][: piece.numel()]
        there.copy_(piece, non_blocking=True)
        arrived[number % 2].record()
        return there

    hasher = parallel_hasher()
    coming = copy(0) if begins else None
    for number in range(len(begins)):
        between()
        arrived[number % 2].synchronize()
        here, coming = coming, copy(number + 1) if number + 1 < len(begins) else None
        hasher.update(host_view(here))  # type: ignore[arg-type]  # there is one for each number
    return hasher.hexdigest()


def _make_hasher(device: torch.device, stream: torch.cuda.Stream, cache: Path | None) -> blake3_gpu.GpuHasher | None:
    if not blake3_gpu.is_available(device):
        _log.warning("triton is not installed: weights are verified on the CPU, which takes longer")
        return None
    kept = None if cache is None or "TRITON_CACHE_DIR" in os.environ else cache / _fingerprint(device)
    if kept is not None:
        os.environ["TRITON_CACHE_DIR"] = str(kept)
    try:
        with torch.cuda.device(device), torch.cuda.stream(stream):
            try:
                made = blake3_gpu.GpuHasher(device)
            except Exception:
                if kept is None or not kept.exists():
                    raise
                _log.warning("the compiled kernels in %s cannot be used; compiling them again", kept)
                shutil.rmtree(kept, ignore_errors=True)
                blake3_gpu.forget_kernels()
                made = blake3_gpu.GpuHasher(device)
        _log.info("the hash kernel is ready")
        return made
    except Exception:  # no compiler, no space for its cache, another triton: the CPU verifies too, only more slowly
        _log.exception(
            "the hash kernel does not work on this device: weights are verified on the CPU, which takes longer"
        )
        return None


def _fingerprint(device: torch.device) -> str:
    """Return a name for all that compiled kernels depend on, besides their source, which Triton looks at itself."""
    found = [
        torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device), torch.__version__, torch.version.cuda,
        installed("triton"), platform.python_version(), _driver(),
    ]  # fmt: skip
    return "kernels-" + blake3(repr(found).encode()).hexdigest(16)


def _driver() -> str:
    """Return the version of the driver, as far as the system tells."""
    try:
        return Path("/proc/driver/nvidia/version").read_text()
    except OSError:
        return ""
