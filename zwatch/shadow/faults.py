"""What errors of torch and CUDA mean: that memory is short, or that the device may be lost to this process."""

import re

_MEMORY = re.compile(
    r"out of memory|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|ALLOCATION_FAILED"
    r"|DefaultCPUAllocator: (can't allocate|not enough) memory|std::bad_alloc",
    re.IGNORECASE,
)
"""What CUDA, its libraries and torch's allocator of the CPU say where memory is short. Only some of it is an `OutOfMemoryError`."""
_DEVICE = re.compile(r"cuda|cudnn|cublas|cufft|nvrtc|nvml|nccl|triton error|device-side|\bGPU\b", re.IGNORECASE)
_MOST_CAUSES = 10


def is_memory_short(error: BaseException | None) -> bool:
    """Return whether an error says that memory of the device or the host is short, which leaves the device whole."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        type(error).__name__ == "OutOfMemoryError" or _MEMORY.search(str(error)) is not None
    )


def first_line(error: BaseException) -> str:
    """Return what an error says, without the advice for programmers that torch adds in further lines."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def named(error: BaseException) -> str:
    """Return the kind of an error and what it says, in one line."""
    return f"{type(error).__name__}: {first_line(error)}"


def described(error: Exception) -> str:
    """Return what an unexpected error says, for a reason."""
    return "memory ran out" if is_memory_short(error) else named(error)


def may_be_the_device(error: BaseException | None) -> bool:
    """Return whether an error, or what it was raised because of, names the device: then whether that still works is to be checked.

    CUDA reports an error at any later call, in a library's own words, so no text says for sure what happened.
    """
    for _ in range(_MOST_CAUSES):
        if error is None:
            return False
        if type(error).__name__ == "AcceleratorError" or (
            isinstance(error, Exception) and not isinstance(error, OSError) and _DEVICE.search(str(error))
        ):
            return not is_memory_short(error)
        error = error.__cause__ or error.__context__
    return False
