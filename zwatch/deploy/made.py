"""When a link was made, whatever was done to it since.

`chown -R`, `touch -h`, a rename and a hard link give a link another ctime, as if it were a new one.
"""

import ctypes
import errno
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

_STATX_BTIME = 0x800  # linux/stat.h, as the offsets in struct statx
_AT_SYMLINK_NOFOLLOW = 0x100  # linux/fcntl.h
_SIZE, _BORN_SECONDS, _BORN_NANOSECONDS = 256, 80, 88


@dataclass(frozen=True, slots=True)
class Made:
    """When a link was made, in nanoseconds: its birth time, None where the file system keeps none, and its mtime. `touch -h`
    changes the mtime alone, a copy (`cp -a`, rsync) has another birth time alone."""

    born_ns: int | None = None
    mtime_ns: int | None = None

    @classmethod
    def of(cls, directory_fd: int, path: str, status: os.stat_result) -> "Made":
        """Return when the link at a path was made; `status` is its lstat result.

        Raises:
            OSError: it is gone, or could not be read.
        """
        return cls(_born_ns(directory_fd, path), status.st_mtime_ns or None)

    def since(self, ctime_ns: int) -> int:
        """Return since when a link with this ctime has existed (nanoseconds)."""
        return ctime_ns if self.born_ns is None else min(self.born_ns, ctime_ns)

    def marks(self) -> Iterator[tuple[str, int]]:
        """Yield what tells a link from one that is made later with the same name."""
        if self.born_ns is not None:
            yield "born", self.born_ns
        if self.mtime_ns is not None:
            yield "mtime", self.mtime_ns


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _born_ns(directory_fd: int, path: str) -> int | None:
    statx = getattr(_libc(), "statx", None)
    if statx is None:
        return None
    result = ctypes.create_string_buffer(_SIZE)
    if statx(directory_fd, os.fsencode(path), _AT_SYMLINK_NOFOLLOW, _STATX_BTIME, result) != 0:
        code = ctypes.get_errno()
        if code in (errno.ENOSYS, errno.EINVAL, errno.EPERM):  # an old kernel, or a sandbox that forbids it
            return None
        raise OSError(code, os.strerror(code), path)
    raw = result.raw
    if not int.from_bytes(raw[:4], sys.byteorder) & _STATX_BTIME:
        return None
    seconds = int.from_bytes(raw[_BORN_SECONDS : _BORN_SECONDS + 8], sys.byteorder, signed=True)
    # Some file systems say that they know it, and answer 0.
    return seconds * 10**9 + int.from_bytes(raw[_BORN_NANOSECONDS : _BORN_NANOSECONDS + 4], sys.byteorder) or None
