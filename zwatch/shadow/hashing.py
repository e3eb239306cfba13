"""BLAKE3 of bytes in device memory: computed there where a kernel exists, else by the `blake3` package on the CPU."""

from collections.abc import Callable
from typing import Protocol

import torch

from zwatch.deploy.parallel import parallel_hasher

SLICE = 64 * 2**20
"""Bytes that the CPU hashes at a time: enough to keep all its threads busy."""

Between = Callable[[], None]
"""Called between two slices; may raise to stop."""


class Hashing(Protocol):
    """The hash of one buffer, in progress. `advance` and `finish` are optional."""

    def advance(self, landed: int) -> None:
        """Take note that the first `landed` bytes are there; hashing of them may begin."""

    def finish(self) -> None:
        """Take note that all bytes are there, and begin what need not be waited for."""

    def hexdigest(self) -> str:
        """Wait for the hash, and return it as hex."""


class Hasher(Protocol):
    """Hashes buffers of one memory."""

    def begin(self, data: torch.Tensor, between: Between = ...) -> Hashing:
        """Begin to hash a uint8 tensor of shape (n,) whose bytes may still be arriving.

        On a device, call it and what it returns inside `Shadow.beside`. `between` is called between two slices that the
        CPU hashes, and may raise to stop.
        """


class HostHasher:
    """Hashes host memory in place, `slice_size` bytes at a time."""

    def __init__(self, slice_size: int = SLICE) -> None:
        self._slice_size = slice_size

    def begin(self, data: torch.Tensor, between: Between = lambda: None) -> "HostHashing":
        """As `Hasher.begin`."""
        return HostHashing(data, between, self._slice_size)


class HostHashing:
    """The hash of one buffer, computed by `hexdigest`."""

    def __init__(self, data: torch.Tensor, between: Between, slice_size: int) -> None:
        self._data = data
        self._between = between
        self._slice_size = slice_size

    def advance(self, landed: int) -> None:
        """Do nothing: hashing later takes no longer, all threads work on one slice."""

    def finish(self) -> None:
        """Do nothing: the CPU cannot hash without making the caller wait."""

    def hexdigest(self) -> str:
        """Hash all bytes, and return the hash as hex."""
        hasher = parallel_hasher()
        for begin in range(0, self._data.numel(), self._slice_size):
            self._between()
            hasher.update(host_view(self._data[begin : begin + self._slice_size]))
        return hasher.hexdigest()


def host_view(data: torch.Tensor) -> memoryview:
    """Return a uint8 tensor's bytes for reading: in place in host memory, a copy of a GPU's."""
    return data.cpu().numpy().data
