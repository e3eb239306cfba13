"""Files with and without the page cache: cached shares, dropping it, plain parallel reads, a `b3sum` pass."""

import ctypes
import mmap
import os
import shutil
import subprocess
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version as installed
from pathlib import Path

from blake3 import blake3

THREADS = 16
CHUNK = 16 * 2**20


def cached_share(paths: Iterable[Path]) -> float:
    """Return how much of some files the page cache holds, 0 to 1, as mincore tells page by page."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    there = pages = 0
    for path in paths:
        size = path.stat().st_size
        count = -(-size // mmap.PAGESIZE)
        with open(path, "rb") as file:
            address = libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
        if address in (None, ctypes.c_void_p(-1).value):
            raise OSError(ctypes.get_errno(), "mmap failed", str(path))
        resident = (ctypes.c_ubyte * count)()
        if libc.mincore(address, size, resident):
            raise OSError(ctypes.get_errno(), "mincore failed", str(path))
        libc.munmap(address, size)
        there += bytes(resident).count(1)
        pages += count
    return there / max(pages, 1)


def drop(paths: Sequence[Path]) -> float:
    """Write files back and drop them from the page cache; return the share that stayed."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    return cached_share(paths)


def read_plainly(paths: Sequence[Path], *, direct: bool = False, threads: int = THREADS) -> float:
    """Return the seconds in which threads read files into private memory, 16 MiB a call; `direct` bypasses the
    page cache."""
    flags = os.O_RDONLY | (os.O_DIRECT if direct else 0)
    fds = [os.open(path, flags) for path in paths]
    pieces = deque((fd, begin) for fd in fds for begin in range(0, os.fstat(fd).st_size, CHUNK))
    buffers = [mmap.mmap(-1, CHUNK) for _ in range(threads)]
    for buffer in buffers:
        buffer.write(b"\1" * CHUNK)  # faulting its pages in is not the disk's time

    def work(buffer: mmap.mmap) -> None:
        while True:
            try:
                fd, begin = pieces.popleft()
            except IndexError:
                return
            os.preadv(fd, [buffer], begin)

    with ThreadPoolExecutor(threads) as pool:
        begun = time.perf_counter()
        for one in [pool.submit(work, buffer) for buffer in buffers]:
            one.result()
        seconds = time.perf_counter() - begun
    for fd in fds:
        os.close(fd)
    return seconds


class B3sum:
    """The verifying pass that other loaders need before a load."""

    def __init__(self) -> None:
        self._program = shutil.which("b3sum")
        if self._program:
            told = subprocess.run([self._program, "--version"], capture_output=True, text=True, check=True).stdout
            self.name = told.strip()
        else:
            self.name = f"blake3 package {installed('blake3')}, mmap, all threads (no b3sum here)"

    def __call__(self, paths: Sequence[Path]) -> float:
        """Hash some files; return the seconds."""
        begun = time.perf_counter()
        if self._program:
            subprocess.run([self._program, *map(str, paths)], stdout=subprocess.DEVNULL, check=True)
        else:
            for path in paths:
                blake3(max_threads=blake3.AUTO).update_mmap(path).hexdigest()
        return time.perf_counter() - begun
