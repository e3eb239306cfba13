"""The device that weights are loaded on: its memory, and how bytes get there and back."""

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from zwatch.errors import Rejection

CHUNK = 16 * 2**20
"""Bytes read at a time: small enough to abandon a load quickly, large enough that a call's cost does not show."""


class Device:
    """A torch device as the shadow uses it. CPU and CUDA differ here and nowhere else.

    `budget` caps the bytes that weights may take, for a card that is shared with other programs.
    """

    def __init__(self, name: str, *, budget: int | None = None) -> None:
        self.torch_device = torch.device(_chosen(name))
        self._budget = budget
        self._held = 0
        self._loads = 0
        self.request_peak = 0
        """Most bytes that making images has taken so far beyond the weights, on a device that can tell."""
        self._staging = _Staging() if self.torch_device.type == "cuda" else None

    @property
    def name(self) -> str:
        """The device's name as its maker gives it."""
        if self.torch_device.type == "cuda":
            return str(torch.cuda.get_device_name(self.torch_device))
        return "CPU"

    def memory(self) -> tuple[int, int]:
        """Return (free, total) bytes that weights may take now."""
        if self.torch_device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self.torch_device)
            # What the caching allocator keeps unused is free to us.
            free += torch.cuda.memory_reserved(self.torch_device) - torch.cuda.memory_allocated(self.torch_device)
        else:
            free, total = _system_memory()
        if self._budget is None:
            return free, total
        return max(0, min(free, self._budget - self._held)), min(total, self._budget)

    def allocate(self, owner: object, size: int) -> torch.Tensor:
        """Return an uninitialised uint8 tensor of shape (size,), counted against the budget until `owner` is gone.

        Raises:
            torch.OutOfMemoryError: the device has no such piece left.
        """
        data = torch.empty(size, dtype=torch.uint8, device=self.torch_device)
        self._held += size
        weakref.finalize(owner, self._release, size)
        return data

    def _release(self, size: int) -> None:
        self._held -= size

    def fill(self, destination: torch.Tensor, fd: int, path: str, landed: Callable[[torch.Tensor], None]) -> None:
        """Read an open file from its start into a uint8 tensor of shape (size,), which must be its whole length.

        `landed` gets each piece of the destination after it has been written, in order; it may raise to stop.

        Raises:
            Rejection: `size_mismatch` if the file is shorter or longer than the tensor.
            OSError: a read failed.
        """
        size = destination.numel()
        for begin in range(0, size, CHUNK):
            piece = destination[begin : begin + CHUNK]
            if self._staging is None:
                _read_exactly(fd, piece.numpy().data, begin, size, path)
            else:
                self._staging.carry(fd, piece, begin, size, path)
            landed(piece)
        if os.pread(fd, 1, size):
            raise Rejection("size_mismatch", f"{path}: the file grew beyond {size} bytes while it was read")

    def host_view(self, data: torch.Tensor) -> memoryview:
        """Return a uint8 tensor's bytes for reading: in place on a CPU, a copy of the device's bytes on a GPU."""
        if self._staging is None:
            return data.numpy().data
        return data.cpu().numpy().data

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Run device work beside the serving stream, and leave only when it is done."""
        if self._staging is None:
            yield
            return
        self._loads += 1
        with torch.cuda.stream(self._staging.stream):
            yield
        self._staging.stream.synchronize()

    @contextmanager
    def measured_request(self) -> Iterator[None]:
        """Learn from an image being made inside how much memory that takes, unless a load ran beside it."""
        if self._staging is None:
            yield
            return
        loads, held = self._loads, torch.cuda.memory_allocated(self.torch_device)
        torch.cuda.reset_peak_memory_stats(self.torch_device)
        yield
        if loads == self._loads:
            peak = torch.cuda.max_memory_allocated(self.torch_device) - held
            self.request_peak = max(self.request_peak, peak)


class _Staging:
    """Pinned memory and a stream of its own, so that copying never waits for, or holds up, the serving stream."""

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream(priority=0)  # type: ignore[no-untyped-call]
        self._pinned = [torch.empty(CHUNK, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._copied = [torch.cuda.Event() for _ in range(2)]  # type: ignore[no-untyped-call]
        self._turn = 0
        self._lock = threading.Lock()

    def carry(self, fd: int, piece: torch.Tensor, begin: int, size: int, path: str) -> None:
        with self._lock:
            turn = self._turn = 1 - self._turn
            self._copied[turn].synchronize()  # the copy before last has left this half
            host = self._pinned[turn][: piece.numel()]
            _read_exactly(fd, host.numpy().data, begin, size, path)
            with torch.cuda.stream(self.stream):
                piece.copy_(host, non_blocking=True)
                self._copied[turn].record(self.stream)


def _chosen(name: str) -> str:
    if name != "auto":
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"


def _system_memory() -> tuple[int, int]:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return tuple(int(fields[key].split()[0]) * 1024 for key in ("MemAvailable", "MemTotal"))  # type: ignore[return-value]


def _read_exactly(fd: int, into: memoryview, begin: int, size: int, path: str) -> None:
    done = 0
    while done < len(into):
        count = os.preadv(fd, [into[done:]], begin + done)
        if count == 0:
            raise Rejection("size_mismatch", f"{path}: ended after {begin + done} bytes, expected {size}")
        done += count
