"""Repointing a link safely: atomically, and never over a move that the operator made meanwhile."""

import ctypes
import errno
import os
import re
import secrets
from dataclasses import dataclass

from zwatch.deploy.resolving import LinkStamp
from zwatch.errors import RepointError

TEMPORARY_PREFIX = ".zwatch-"
"""Temporary links begin so; a version's name cannot."""

_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2  # linux/fs.h


@dataclass(frozen=True, slots=True)
class LinkNote:
    """What tells one link from the next at the same name. A freed inode number is soon used again, so the
    modification time (a symlink keeps its first one when renamed) and the text are noted too."""

    inode: int
    mtime_ns: int
    text: str

    @classmethod
    def take(cls, root_fd: int, name: str) -> "LinkNote":
        """Note the link `name`.

        Raises:
            OSError: there is no such link.
        """
        status = os.stat(name, dir_fd=root_fd, follow_symlinks=False)
        return cls(status.st_ino, status.st_mtime_ns, os.readlink(name, dir_fd=root_fd))


def repoint(root_fd: int, alias: str, version: str, noted: LinkNote | None) -> LinkStamp:
    """Point `alias` at `version`, atomically, unless the link was moved since it was `noted`.

    Without a note the link must not exist yet. The new link takes the place of the old by an exchange, so what was
    displaced can be looked at, and put back if it was not what was noted. Returns the new link's stamp.

    Raises:
        RepointError: the operator moved it meanwhile (that change stays), or the models root may not be written.
    """
    temporary = f"{TEMPORARY_PREFIX}{alias}-{secrets.token_hex(6)}"
    try:
        os.symlink(version, temporary, dir_fd=root_fd)
    except OSError as error:
        raise RepointError(
            f"the models root may not be written ({error.strerror}); type `ln -sfn {version} {alias}`"
        ) from None
    try:
        ours = LinkNote.take(root_fd, temporary)
        if noted is None:
            _rename_new(root_fd, temporary, alias)
        else:
            _exchange_noted(root_fd, temporary, alias, noted, ours)
        os.fsync(root_fd)
        status = os.stat(alias, dir_fd=root_fd, follow_symlinks=False)
        if LinkNote.take(root_fd, alias) != ours:
            raise RepointError(f"{alias} was repointed by another process; that change stays")
        return LinkStamp.of(status)
    except OSError as error:
        raise RepointError(f"{alias} could not be repointed to {version}: {error.strerror}") from None
    finally:
        _unlink_quietly(root_fd, temporary)


def finish_interrupted(root_fd: int, alias: str) -> None:
    """Tidy up after a repointing that a crash cut short: a temporary link newer than the alias was either the new link on
    its way in or an operator's link on its way back, so it takes the alias's place; an older one was displaced and is
    removed."""
    ours = re.compile(re.escape(f"{TEMPORARY_PREFIX}{alias}-") + r"[0-9a-f]{12}(-kept)?")
    for name in sorted(filter(ours.fullmatch, os.listdir(root_fd))):
        try:
            left = os.stat(name, dir_fd=root_fd, follow_symlinks=False)
            try:
                placed = os.stat(alias, dir_fd=root_fd, follow_symlinks=False)
            except FileNotFoundError:
                placed = None
            # By both times: `rsync -a` gives a new link an old mtime, and a rename gives an old link a new ctime.
            if placed is None or (left.st_mtime_ns > placed.st_mtime_ns and left.st_ctime_ns >= placed.st_ctime_ns):
                os.rename(name, alias, src_dir_fd=root_fd, dst_dir_fd=root_fd)
            else:
                os.unlink(name, dir_fd=root_fd)
        except OSError:
            continue  # no permission to write; the leftover has no effect


def _rename_new(root_fd: int, temporary: str, alias: str) -> None:
    try:
        if not renameat2(root_fd, temporary, alias, _RENAME_NOREPLACE):
            os.link(temporary, alias, src_dir_fd=root_fd, dst_dir_fd=root_fd, follow_symlinks=False)
            os.unlink(temporary, dir_fd=root_fd)  # now, not later: it changes the ctime of the link that stays
    except FileExistsError:
        raise RepointError(f"{alias} was made by another process; that change stays") from None


def _exchange_noted(root_fd: int, temporary: str, alias: str, noted: LinkNote, ours: LinkNote) -> None:
    try:
        exchange(root_fd, temporary, alias)
    except FileNotFoundError:
        raise RepointError(f"{alias} was removed by another process; that change stays") from None
    displaced = LinkNote.take(root_fd, temporary)
    if displaced == noted:
        return
    # Put the operator's link back. What comes out must be what was put in last; if it is not, the operator moved the link
    # again, and that one goes back.
    expected = ours
    while True:
        exchange(root_fd, temporary, alias)
        out = LinkNote.take(root_fd, temporary)
        if out == expected:
            break
        expected, displaced = displaced, out
    raise RepointError(f"{alias} was repointed by another process; that change stays")


def exchange(root_fd: int, first: str, second: str) -> None:
    """Exchange two links, atomically for readers of the second.

    Raises:
        OSError: one is missing, or the directory may not be written.
    """
    if renameat2(root_fd, first, second, _RENAME_EXCHANGE):
        return
    # Keep the displaced link by a second name, then rename over it.
    keep = f"{first}-kept"
    os.link(second, keep, src_dir_fd=root_fd, dst_dir_fd=root_fd, follow_symlinks=False)
    try:
        os.rename(first, second, src_dir_fd=root_fd, dst_dir_fd=root_fd)
        os.rename(keep, first, src_dir_fd=root_fd, dst_dir_fd=root_fd)
    except OSError:
        _unlink_quietly(root_fd, keep)
        raise


def renameat2(root_fd: int, source: str, destination: str, flags: int) -> bool:
    """Rename with flags; return False where the C library, the kernel or the file system has no such call.

    Raises:
        OSError: it failed otherwise.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if libc.renameat2(root_fd, os.fsencode(source), root_fd, os.fsencode(destination), flags) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), destination)


def _unlink_quietly(root_fd: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=root_fd)
    except OSError:
        pass
