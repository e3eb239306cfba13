"""How much of a file the page cache holds, and unbuffered reading of files that it does not hold."""

import ctypes
import mmap
import os
import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

from zwatch.deploy.oserrors import close_quietly

PARTS = 64
"""Parts of a file of which the page cache is asked."""
_CACHESTAT = 451
"""The number of cachestat(2), since Linux 6.5, on all processors but Alpha."""
_OVERLAYFS = 0x794C7630
"""`OVERLAYFS_SUPER_MAGIC` of linux/magic.h."""
_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.argtypes = [ctypes.c_long, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint]
_syscall.restype = ctypes.c_long
ENOUGH = 0.95
"""Share of a file in the page cache from which on it is read from there alone."""


@dataclass(frozen=True, slots=True)
class Unbuffered:
    """A file that is also open for unbuffered reading, as `fd`; `cached` says of equal parts whether the page cache has them."""

    fd: int
    size: int
    cached: Sequence[bool]

    def at(self, place: int) -> int | None:
        """Return the descriptor to read a piece with that begins at a byte; None if the page cache has it."""
        return None if self.cached[place * len(self.cached) // self.size] else self.fd


@contextmanager
def unbuffered(files: Iterable[tuple[int, int]]) -> Iterator[list[Unbuffered | None]]:
    """Open those files, given as (descriptor, size), for unbuffered reading too that the page cache does not hold; None for
    the others."""
    opened: list[Unbuffered | None] = []
    try:
        for fd, size in files:
            cached = _cached_parts(fd, size)
            direct = None if sum(cached) >= ENOUGH * len(cached) else _open_direct(fd)
            opened.append(None if direct is None else Unbuffered(direct, size, cached))
        yield opened
    finally:
        for file in opened:
            if file is not None:
                close_quietly(file.fd)


def _open_direct(fd: int) -> int | None:
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
    except OSError:  # not every file system supports it
        return None


def cached_share(fd: int, size: int) -> float:
    """Return the share of a file that the page cache holds, 0 to 1; 1 where the system cannot tell."""
    cached = _cached_parts(fd, size)
    return sum(cached) / len(cached)


def _cached_parts(fd: int, size: int) -> list[bool]:
    """Say of each of `PARTS` equal parts of a file whether the page cache holds it; of all, where that cannot be told."""
    if not size:
        return [True]
    places = [number * size // PARTS for number in range(PARTS + 1)]
    try:
        if not _is_overlay(fd):  # there cachestat looks at another file, of which nothing is ever cached
            return [_counted(fd, begin, end) for begin, end in pairwise(places)]
    except OSError:  # an older kernel, or the file of another user
        pass
    return _sampled(fd, places)


def _is_overlay(fd: int) -> bool:
    """Say whether a file is on overlayfs, as in a container's image."""
    found = (ctypes.c_long * 32)()  # larger than any struct statfs, which begins with the type
    return _libc.fstatfs(fd, found) == 0 and found[0] == _OVERLAYFS


def _counted(fd: int, begin: int, end: int) -> bool:
    """Say whether the page cache holds at least half of the pages from one place of a file to another.

    Raises:
        OSError: the kernel does not have cachestat(2), or does not tell this user.
    """
    asked, found = (ctypes.c_uint64 * 2)(begin, end - begin), (ctypes.c_uint64 * 5)()
    if _syscall(_CACHESTAT, fd, asked, found, 0):
        raise OSError(ctypes.get_errno(), "cachestat")
    return 2 * found[0] * mmap.PAGESIZE >= end - begin


def _sampled(fd: int, places: list[int]) -> list[bool]:
    """As `_counted`, by a read that must not wait at a random place of each part."""
    byte = bytearray(1)
    found = []
    # Asking for a page makes the kernel read it: only that one, without readahead, and the next call asks for others.
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    try:
        for begin, end in pairwise(places):
            place = random.randrange(begin, max(end, begin + 1))  # noqa: S311 (no secret)
            try:
                found.append(os.preadv(fd, [byte], place, os.RWF_NOWAIT) == 1)
            except BlockingIOError:
                found.append(False)
    except OSError:  # not every file system supports it; if reading itself fails, the read will report that
        return [True]
    finally:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_NORMAL)
    return found
