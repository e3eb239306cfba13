"""BLAKE3 of bytes that lie on a device: there, if it has a kernel for it, else by the `blake3` package on the CPU."""

from collections.abc import Callable
from typing import Protocol

import torch
from blake3 import blake3

SLICE = 64 * 2**20
"""Bytes that the CPU hashes at a time: enough for all its threads."""

Between = Callable[[], None]
"""Called between two slices; may raise to stop."""


class Hashing(Protocol):
    """The hash of one buffer on its way. Both first calls may be left out."""

    def advance(self, landed: int) -> None:
        """Say that the first `landed` bytes are there; what can be hashed already may be."""

    def finish(self) -> None:
        """Say that all bytes are there, and do whatever does not need to be waited for."""

    def hexdigest(self) -> str:
        """Return the hash as hex, when it is known."""


class Hasher(Protocol):
    """Something that hashes buffers of one device."""

    def begin(self, data: torch.Tensor, between: Between = ...) -> Hashing:
        """Return the hash to be of a uint8 tensor of shape (n,)."""


class HostHasher:
    """Hashes on the CPU: in place what lies in host memory, from a GPU a copy of each slice."""

    def begin(self, data: torch.Tensor, between: Between = lambda: None) -> "HostHashing":
        """As `Hasher.begin`."""
        return HostHashing(data, between)


class HostHashing:
    """The hash of one buffer, made when it is asked for."""

    def __init__(self, data: torch.Tensor, between: Between) -> None:
        self._data = data
        self._between = between

    def advance(self, landed: int) -> None:
        """Hashing later takes no longer: all threads work on one slice."""

    def finish(self) -> None:
        """Nothing can be begun without waiting."""

    def hexdigest(self) -> str:
        """Hash, and return the hash as hex."""
        hasher = blake3(max_threads=blake3.AUTO)
        for begin in range(0, self._data.numel(), SLICE):
            self._between()
            hasher.update(host_view(self._data[begin : begin + SLICE]))
        return hasher.hexdigest()


def host_view(data: torch.Tensor) -> memoryview:
    """Return a uint8 tensor's bytes for reading: in place in host memory, a copy of a GPU's."""
    return data.cpu().numpy().data
