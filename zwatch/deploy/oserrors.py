"""What an OSError says about a path: that nothing is there, or only that it could not be found out."""

import errno
import os
from contextlib import suppress

_MISSING = (errno.ENOENT, errno.ENOTDIR)
_NOWHERE = (*_MISSING, errno.ELOOP, errno.EACCES, errno.ENAMETOOLONG)


def is_missing(error: OSError) -> bool:
    """Say whether nothing is there. Every other error (EIO, EMFILE, ENOMEM, EACCES, ESTALE…) says nothing about that: look
    again."""
    return error.errno in _MISSING


def leads_nowhere(error: OSError) -> bool:
    """Say whether a link that was followed leads to nothing that can be opened, now and at the next look."""
    return error.errno in _NOWHERE


def close_quietly(fd: int) -> None:
    """Close a descriptor that was only read from. An error (NFS has some) says nothing about the bytes that came, and Linux
    has closed it all the same: closed again, it might be another thread's."""
    try:
        os.close(fd)
    except OSError:
        pass


def user_name(uid: int | None = None) -> str:
    """Return what a user is called, by default that of this process."""
    import pwd

    uid = os.geteuid() if uid is None else uid
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return f"the user {uid}"
