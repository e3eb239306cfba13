"""Files written so that after a crash they have either the old bytes or the new ones, never a part."""

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path

_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
"""What file systems answer that cannot sync a directory: there is nothing to wait for."""


def sync_directory(fd: int) -> None:
    """Wait until the entries of an open directory survive a power failure, if its file system can do that.

    Raises:
        OSError: it failed. The entries are changed, but may not survive.
    """
    try:
        os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def write_durably(directory: Path, name: str, data: bytes, *, mode: int = 0o600) -> None:
    """Replace the file `name` in a directory: written under a temporary name, fsynced, renamed, and the directory fsynced.

    Raises:
        OSError: the directory could not be written; the file is as it was, or is whole.
    """
    fd, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=directory)
    try:
        with open(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, directory / name)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_directory(directory_fd)
    finally:
        os.close(directory_fd)


def remove_leftovers(directory: Path, name: str) -> None:
    """Remove what a crash in the middle of `write_durably` left. Call it only where no other process writes this file."""
    try:
        left = [entry.path for entry in os.scandir(directory) if entry.name.startswith(f".{name}.")]
    except OSError:
        return  # the write that follows tells what is wrong
    for path in left:
        with suppress(OSError):  # a directory, or it may not be removed
            os.unlink(path)


def put_aside(path: Path, suffix: str = "bad") -> str | None:
    """Rename a file or a directory that cannot be used to NAME.bad, or to NAME.bad-1 … if something has that name which it
    cannot replace. Return its new name, None if it cannot be renamed."""
    for ending in (suffix, *(f"{suffix}-{number}" for number in range(1, 10))):
        aside = path.with_name(f"{path.name}.{ending}")
        try:
            path.replace(aside)
        except OSError:
            continue
        return aside.name
    return None
