"""The CUDA context of a device and the first pinned memory, made without torch, while that is still being imported."""

import ctypes
import os
import threading
from typing import Any

_PORTABLE = 1
"""`CU_MEMHOSTALLOC_PORTABLE`: pinned for all contexts."""


class EarlyContext:
    """Makes the context of `auto`, `cuda` or `cuda:N`, which torch finds there later, and pinned memory; nothing for another
    device. It takes the driver half a second, in a thread.

    An error is left to torch, which repeats the calls and says what is wrong.
    """

    def __init__(self, device: str, pinned_bytes: int) -> None:
        kind, _, number = device.partition(":")
        self._pinned: Any = None
        self._thread: threading.Thread | None = None
        # Here, because it holds the interpreter's lock, also while another thread loads libraries.
        driver = _driver() if kind in ("auto", "cuda") else None
        if driver is not None:
            arguments = (driver, int(number or 0), pinned_bytes)
            self._thread = threading.Thread(target=self._make, args=arguments, name="zwatch-context", daemon=True)
            self._thread.start()

    def pinned(self) -> Any:
        """Wait for the thread; return the pinned memory, a ctypes array of bytes that lasts as long as the process, or None if
        there is none."""
        if self._thread is not None:
            self._thread.join()
        return self._pinned

    def _make(self, driver: ctypes.CDLL, number: int, pinned_bytes: int) -> None:
        os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")  # as torch does before its first call
        # As in cuda.h. A call through ctypes holds no interpreter lock.
        found, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
        wrong = (
            driver.cuInit(0)
            or driver.cuDeviceGet(ctypes.byref(found), number)
            or driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), found)
            or driver.cuCtxSetCurrent(context)
            or driver.cuMemHostAlloc(ctypes.byref(memory), ctypes.c_size_t(pinned_bytes), _PORTABLE)
        )
        if not wrong and memory.value is not None:
            self._pinned = (ctypes.c_ubyte * pinned_bytes).from_address(memory.value)


def _driver() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
