"""What an OSError says about a path: that nothing is there, or only that it could not be found out."""

import errno

_MISSING = (errno.ENOENT, errno.ENOTDIR)
_NOWHERE = (*_MISSING, errno.ELOOP, errno.EACCES, errno.ENAMETOOLONG)


def is_missing(error: OSError) -> bool:
    """Say whether nothing is there. Every other error (EIO, EMFILE, ENOMEM, EACCES, ESTALE…) says nothing about that: look
    again."""
    return error.errno in _MISSING


def leads_nowhere(error: OSError) -> bool:
    """Say whether a link that was followed leads to nothing that can be opened, now and at the next look."""
    return error.errno in _NOWHERE
