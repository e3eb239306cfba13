"""What the page cache has of a file, and reading around it."""

import os
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

SAMPLES = 64
"""Places of a file at which the page cache is asked for it."""


@contextmanager
def unbuffered(files: Iterable[tuple[int, int]]) -> Iterator[list[int | None]]:
    """Open those files, given as (descriptor, size), again for unbuffered reading that the page cache has not got; None
    for the others."""
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
    except OSError:  # not every file system can
        return None


def cached_share(fd: int, size: int) -> float:
    """Return which share of a file the page cache has, 0 to 1, going by samples; 1 where that cannot be asked."""
    if not size:
        return 1.0
    byte = bytearray(1)
    found = 0
    # To be asked for a page makes the kernel fetch it: no more than that one, and the next time others are asked for.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    try:
        for number in range(SAMPLES):
            place = int((number + random.random()) * size / SAMPLES)  # noqa: S311 (no secret)
            try:
                found += os.preadv(fd, [byte], place, os.RWF_NOWAIT)
            except BlockingIOError:
                continue
    except OSError:  # not every file system can say; where reading itself fails, the read will say so
        return 1.0
    finally:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_NORMAL)
    return found / SAMPLES
