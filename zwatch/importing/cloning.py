"""Files that share their blocks, where the file system can."""

import errno
import fcntl
import struct

_FICLONE, _FICLONERANGE = 0x40049409, 0x4020940D  # linux/fs.h
_NO_CLONE = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EPERM, errno.ENOSYS, errno.ETXTBSY, errno.EBADF)  # fmt: skip


def clone(source: int, sink: int) -> bool:
    """Let an empty open file share the blocks of another, where the file system can; return whether it did.

    Raises:
        OSError: it failed otherwise.
    """
    return _cloned(sink, _FICLONE, source)


def clone_range(source: int, begin: int, end: int, sink: int, at: int) -> bool:
    """Let an open file share blocks of another from `at` on; return whether it does. All are multiples of a block but `end`,
    which may be the source's.

    Raises:
        OSError: it failed otherwise.
    """
    return _cloned(sink, _FICLONERANGE, struct.pack("=qQQQ", source, begin, end - begin, at))


def _cloned(sink: int, request: int, argument: int | bytes) -> bool:
    try:
        fcntl.ioctl(sink, request, argument)
    except OSError as error:
        if error.errno not in _NO_CLONE:
            raise
        return False
    return True
