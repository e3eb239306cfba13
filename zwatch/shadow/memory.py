"""What a device's memory holds, as the system tells."""

from typing import Protocol

from zwatch.shadow.system import system_memory


class MemorySource(Protocol):
    """Tells what a device's memory holds. All figures are bytes."""

    def unused(self) -> tuple[int, int]:
        """Return (free, total), whatever a budget says; what a pool keeps does not count as free."""

    def allocated(self) -> int:
        """Return what tensors of this process hold, as far as the device can tell."""

    def reset_peak(self) -> None:
        """Begin a new measurement for `peak`."""

    def peak(self) -> int:
        """Return the most that was allocated at once since `reset_peak`."""

    def release_cached(self) -> None:
        """Give what an allocator keeps unused back to the device."""


class CpuMemory:
    """The host's memory as a CPU device uses it; see `MemorySource`. What tensors hold there is not known."""

    def unused(self) -> tuple[int, int]:
        """Return (free, total) bytes."""
        return system_memory()

    def allocated(self) -> int:
        """Return 0: it is not known."""
        return 0

    def reset_peak(self) -> None:
        """Do nothing."""

    def peak(self) -> int:
        """Return 0: it is not known."""
        return 0

    def release_cached(self) -> None:
        """Do nothing: torch keeps no unused host memory."""
