"""Repointing a link safely: atomically, and never over a move that the operator made meanwhile."""

import ctypes
import errno
import logging
import os
import re
import secrets
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from zwatch.deploy.chains import LinkStamp
from zwatch.deploy.durable import sync_directory
from zwatch.deploy.oserrors import is_missing
from zwatch.deploy.shares import parse_share
from zwatch.errors import RepointError

T = TypeVar("T")

_log = logging.getLogger(__name__)

TEMPORARY_PREFIX = ".zwatch-"
"""Temporary links begin so; a version's name cannot."""

_TEMPORARY = re.compile(re.escape(TEMPORARY_PREFIX) + r"(.+)-[0-9a-f]{12}(-kept)?")
_RENAME_EXCHANGE = 2  # linux/fs.h
_TRIES, _PAUSE = 5, 0.02
"""How often a call that must not stay undone is tried, and the seconds between two tries."""


@dataclass(frozen=True, slots=True)
class LinkNote:
    """What tells one link from the next at the same name: its modification time (a symlink keeps its first one when
    renamed) and its text. The inode number does not count: one that was freed is soon used again, and some file systems
    (FUSE) give another one at every look."""

    inode: int = field(compare=False)
    mtime_ns: int
    text: str

    @classmethod
    def take(cls, root_fd: int, name: str) -> "LinkNote":
        """Note the link `name`.

        Raises:
            OSError: there is no such link, or it could not be read.
        """
        status = os.stat(name, dir_fd=root_fd, follow_symlinks=False)
        return cls(status.st_ino, status.st_mtime_ns, os.readlink(name, dir_fd=root_fd))


def repoint(root_fd: int, alias: str, version: str, noted: LinkNote | None) -> LinkStamp:
    """Point `alias` at `version`, atomically, unless the link was moved since it was `noted`.

    Without a note the link must not exist yet. The new link takes the place of the old by an exchange, so what was
    displaced can be looked at, and put back if it was not what was noted. Returns the new link's stamp. What fails after
    the link is in its place is logged: the version will serve.

    Raises:
        RepointError: the operator moved it meanwhile (that change stays), or the link could not be changed.
    """
    ours = _make(root_fd, alias, version) if noted is None else _replace(root_fd, alias, version, noted)
    try:
        sync_directory(root_fd)
    except OSError as error:
        _log.warning(
            "%s points to %s, but after a power failure it may not: syncing the models root failed: %s",
            alias, version, error.strerror,
        )  # fmt: skip
    try:
        status = persistently(lambda: os.stat(alias, dir_fd=root_fd, follow_symlinks=False))
        now = persistently(lambda: LinkNote.take(root_fd, alias))
    except OSError as error:
        if is_missing(error):
            raise RepointError(f"{alias} was removed by another process; that change stays") from None
        raise RepointError(
            f"{alias} was pointed to {version}, but could not be read after that: {error.strerror}"
        ) from None
    if now != ours:
        raise RepointError(f"{alias} was repointed by another process; that change stays")
    return LinkStamp.of(status)


def finish_interrupted(root_fd: int, alias: str) -> None:
    """Tidy up after a repointing of an alias or of its share that a crash cut short: a temporary link newer than the alias was
    either the new link on its way in or an operator's link on its way back, so it takes the alias's place; an older one was
    displaced and is removed. One of a share that is not there was being removed, or has another name by now.

    Raises:
        OSError: the models root could not be listed.
    """
    for name in sorted(os.listdir(root_fd)):
        link = _alias_of(name)
        share = None if link is None else parse_share(link)
        if link is None or alias not in (link, share and share.alias):
            continue
        try:
            left = os.stat(name, dir_fd=root_fd, follow_symlinks=False)
            if not stat.S_ISLNK(left.st_mode):
                continue  # not zwatch's: it would take the alias's place
            try:
                placed = os.stat(link, dir_fd=root_fd, follow_symlinks=False)
            except FileNotFoundError:
                placed = None
            # By both times: `rsync -a` gives a new link an old mtime, and a rename gives an old link a new ctime.
            if (placed is None and share is None) or (
                placed is not None and left.st_mtime_ns > placed.st_mtime_ns and left.st_ctime_ns >= placed.st_ctime_ns
            ):
                os.rename(name, link, src_dir_fd=root_fd, dst_dir_fd=root_fd)
            else:
                os.unlink(name, dir_fd=root_fd)
        except OSError:
            continue  # no permission to write; the leftover has no effect


def interrupted_links(root_fd: int) -> set[str]:
    """Return the links for which temporary ones are there, see `finish_interrupted`.

    Raises:
        OSError: the models root could not be listed.
    """
    return {alias for name in os.listdir(root_fd) if (alias := _alias_of(name)) is not None}


class Leftovers:
    """Temporary links that could not be removed, by this process or another, and their removal.

    One that is still there at a look `seconds` after the first that saw it belongs to no repointing that is going on.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._first_seen: dict[str, float] = {}

    def sweep(self, root_fd: int, now: float) -> bool:
        """Remove those that were first seen long enough before `now`, a time of the monotonic clock in seconds; return
        whether any is left. One left for an alias that is missing stays, see `finish_interrupted`.

        Raises:
            OSError: the models root could not be listed.
        """
        with os.scandir(root_fd) as entries:
            links = [
                (entry.name, alias)
                for entry in entries
                if (alias := _alias_of(entry.name)) is not None and entry.is_symlink()
            ]
        seen = {}
        for name, alias in links:
            since = self._first_seen.get(name, now)
            if now - since < self._seconds or not _removed(root_fd, name, alias):
                seen[name] = since
        self._first_seen = seen
        return bool(seen)


def _removed(root_fd: int, temporary: str, alias: str) -> bool:
    try:
        if parse_share(alias) is None:
            os.stat(alias, dir_fd=root_fd, follow_symlinks=False)
        os.unlink(temporary, dir_fd=root_fd)
    except OSError:
        return False
    return True


def _alias_of(temporary: str) -> str | None:
    """Return the link that a temporary link was made for; None if the name is not that of a temporary link."""
    match = _TEMPORARY.fullmatch(temporary)
    return None if match is None else match[1]


def _make(root_fd: int, alias: str, version: str) -> LinkNote:
    try:
        os.symlink(version, alias, dir_fd=root_fd)  # atomic, and never over what is there
    except FileExistsError:
        raise RepointError(f"{alias} was made by another process; that change stays") from None
    except OSError as error:
        raise _not_writable(alias, version, error) from None
    try:
        return persistently(lambda: LinkNote.take(root_fd, alias))
    except OSError as error:
        raise RepointError(f"{alias} was made, but could not be read after that: {error.strerror}") from None


def _replace(root_fd: int, alias: str, version: str, noted: LinkNote) -> LinkNote:
    """Put a new link in the place of the noted one and return a note of it."""
    temporary = f"{TEMPORARY_PREFIX}{alias}-{secrets.token_hex(6)}"
    try:
        os.symlink(version, temporary, dir_fd=root_fd)
    except OSError as error:
        raise _not_writable(alias, version, error) from None
    try:
        ours = LinkNote.take(root_fd, temporary)
        _exchange_noted(root_fd, temporary, alias, noted, ours)
        return ours
    except OSError as error:
        raise RepointError(f"{alias} could not be repointed to {version}: {error.strerror}") from None
    finally:
        _unlink_quietly(root_fd, temporary)


def _not_writable(alias: str, version: str, error: OSError) -> RepointError:
    return RepointError(f"the models root may not be written ({error.strerror}); type `ln -sfn {version} {alias}`")


def _exchange_noted(root_fd: int, temporary: str, alias: str, noted: LinkNote, ours: LinkNote) -> None:
    moved, removed = "repointed by another process; that change stays", "removed by another process; that change stays"
    try:
        # Before, too: where neither an exchange nor a second name is possible, nothing is left to look at afterwards.
        if LinkNote.take(root_fd, alias) != noted:
            raise RepointError(f"{alias} was {moved}")
        exchange(root_fd, temporary, alias)
    except FileNotFoundError:
        raise RepointError(f"{alias} was {removed}") from None
    try:
        displaced = persistently(lambda: LinkNote.take(root_fd, temporary))
    except FileNotFoundError:
        return  # it was renamed over
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
    raise RepointError(f"{alias} was {moved}")


def exchange(root_fd: int, first: str, second: str) -> None:
    """Exchange two links, atomically for readers of the second. Where the file system has neither an exchange nor hard links
    to symlinks, the first is renamed over the second, and nothing is left at its name.

    Raises:
        OSError: one is missing, or the directory may not be written.
    """
    if renameat2(root_fd, first, second, _RENAME_EXCHANGE):
        return
    # Keep the displaced link by a second name, then rename over it.
    keep = f"{first}-kept"
    try:
        os.link(second, keep, src_dir_fd=root_fd, dst_dir_fd=root_fd, follow_symlinks=False)
    except FileNotFoundError:
        raise
    except (OSError, NotImplementedError):  # no hard links here, or not to another user's link
        os.rename(first, second, src_dir_fd=root_fd, dst_dir_fd=root_fd)
        return
    try:
        os.rename(first, second, src_dir_fd=root_fd, dst_dir_fd=root_fd)
    except OSError:
        _unlink_quietly(root_fd, keep)
        raise
    try:
        os.rename(keep, first, src_dir_fd=root_fd, dst_dir_fd=root_fd)
    except OSError:  # the first is in its place all the same
        _unlink_quietly(root_fd, keep)


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
    """Remove a temporary link; one that cannot be removed is swept later, see `Leftovers`."""
    try:
        persistently(lambda: os.unlink(name, dir_fd=root_fd))
    except OSError:
        pass


def persistently(call: Callable[[], T]) -> T:
    """Call again after an error that may pass.

    Raises:
        OSError: the last try's, or that nothing is there.
    """
    for _ in range(_TRIES - 1):
        try:
            return call()
        except OSError as error:
            if is_missing(error):
                raise
            time.sleep(_PAUSE)
    return call()
