"""Files written so that after a crash they have either the old bytes or the new ones, never a part."""

import errno
import logging
import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from zwatch.deploy.oserrors import close_quietly

_log = logging.getLogger(__name__)

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
    temporary = write_beside(directory, name, data, mode=mode)
    try:
        os.replace(temporary, directory / name)
    except BaseException:
        with suppress(OSError):  # `remove_leftovers` is for it then
            temporary.unlink(missing_ok=True)
        raise
    sync_entries(directory)


def write_beside(directory: Path, name: str, data: bytes, *, mode: int = 0o600) -> Path:
    """Write what shall replace the file `name` under a temporary name, fsynced, and return its path.

    Raises:
        OSError: the directory could not be written; nothing is left of it.
    """
    fd, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=directory)
    try:
        with open(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):  # `remove_leftovers` is for it then
            Path(temporary).unlink(missing_ok=True)
        raise
    return Path(temporary)


def sync_entries(directory: Path) -> None:
    """Do for a directory's path what `sync_directory` does for an open one.

    Raises:
        OSError: it could not be opened, or it failed.
    """
    directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync_directory(directory_fd)
    finally:
        close_quietly(directory_fd)


def remove_leftovers(directory: Path, *names: str) -> bool:
    """Remove what a crash or an error in the middle of `write_durably` left of these files; return whether nothing is left. Call it
    only where no other process writes them."""
    beginnings = tuple(f".{name}." for name in names)
    try:
        with os.scandir(directory) as entries:
            left = [entry.path for entry in entries if entry.name.startswith(beginnings)]
    except OSError:
        return False  # the write that follows tells what is wrong
    is_removed = True
    for path in left:
        try:
            os.unlink(path)
        except OSError:  # a directory, or it may not be removed
            is_removed = False
    return is_removed


def read_regular(path: Path, most: int) -> bytes:
    """Return the bytes of a file that has at most `most` of them. It never blocks, whatever is there under this name.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a regular file, or it is too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would wait for a writer
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if status.st_size > most:
            raise ValueError(f"it has {status.st_size} bytes, at most {most} are expected")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(most)
    finally:
        close_quietly(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory and those above it. Anything else that has its name is put aside, but not a link as `ensure_directory`
    refuses it.

    Raises:
        OSError: it cannot be made.
    """
    try:
        ensure_directory(path)
    except FileExistsError:
        if (aside := put_aside(path)) is None:
            raise
        _log.warning("%s is not a directory; it is renamed to %s", path, aside)
        path.mkdir(parents=True, exist_ok=True)


def ensure_directory(path: Path) -> None:
    """Make a directory and those above it, if it is not there.

    Raises:
        OSError: it cannot be made, or is a symbolic link to where nothing is: what belongs there may be mounted later.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        if (reason := unmounted(path)) is not None:
            raise FileNotFoundError(errno.ENOENT, reason, str(path)) from None
        raise


def unmounted(path: Path) -> str | None:
    """Return the reason why a path cannot be used if it is a symbolic link to where nothing is, such as a disk that is not mounted;
    else None."""
    try:
        target = os.readlink(path)
    except OSError:
        return None
    try:
        os.stat(path)
    except FileNotFoundError:
        return f"it is a symbolic link to {target}, where nothing is"
    except OSError:
        pass
    return None


def clear_place(path: Path, suffix: str = "bad") -> None:
    """Put aside what has a file's name and is not a regular file that this process may read and write, if anything has."""
    try:
        is_file = stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return
    if not (is_file and os.access(path, os.R_OK | os.W_OK)) and (aside := put_aside(path, suffix)) is not None:
        why = "may not be read and written" if is_file else "is not a regular file"
        _log.warning("%s %s; it is renamed to %s", path, why, aside)


_MOST_ASIDE = 10
"""How many files of one name are kept after they were put aside."""


def put_aside(path: Path, suffix: str = "bad") -> str | None:
    """Rename a file or a directory that cannot be used to NAME.bad, or to NAME.bad-1 … if something has that name: what was put
    aside earlier stays, it may be a newer release's. Once there are ten, the last is replaced. Return its new name, None if it
    cannot be renamed."""
    names = [
        f"{path.name}.{ending}" for ending in (suffix, *(f"{suffix}-{number}" for number in range(1, _MOST_ASIDE)))
    ]
    free = [name for name in names if not os.path.lexists(path.with_name(name))]
    for name in free or reversed(names):
        try:
            path.replace(path.with_name(name))
        except OSError:
            continue
        return name
    return None
