"""How much of a file the page cache holds, and unbuffered reading of files that it does not hold."""

import os
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

SAMPLES = 64
"""Offsets of a file at which the page cache is asked."""


@contextmanager
def unbuffered(files: Iterable[tuple[int, int]]) -> Iterator[list[int | None]]:
    """Open those files, given as (descriptor, size), for unbuffered reading too that the page cache does not hold; None for
    the others."""
    opened: list[int | None] = []
    try:
        opened.extend(None if cached_share(fd, size) >= 0.5 else _open_direct(fd) for fd, size in files)
        yield opened
    finally:
        for fd in opened:
            if fd is not None:
                os.close(fd)


def _open_direct(fd: int) -> int | None:
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:  # not every file system supports it
        return None


def cached_share(fd: int, size: int) -> float:
    """Return the share of a file that the page cache holds, 0 to 1, by samples; 1 where the file system cannot tell."""
    if not size:
        return 1.0
    byte = bytearray(1)
    found = 0
    # Asking for a page makes the kernel read it: only that one, without readahead, and the next call asks for others.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    try:
        for number in range(SAMPLES):
            place = int((number + random.random()) * size / SAMPLES)  # noqa: S311 (no secret)
            try:
                found += os.preadv(fd, [byte], place, os.RWF_NOWAIT)
            except BlockingIOError:
                continue
    except OSError:  # not every file system supports it; if reading itself fails, the read will report that
        return 1.0
    finally:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_NORMAL)
    return found / SAMPLES
