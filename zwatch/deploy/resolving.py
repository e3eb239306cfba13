"""Aliases: the symlinks that say which version should serve. Resolving one, and repointing one safely."""

import ctypes
import errno
import os
import re
import secrets
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path

from blake3 import blake3

from zwatch.deploy import seal
from zwatch.deploy.versions import is_version_name
from zwatch.errors import Rejection, RepointError

TEMPORARY_PREFIX = ".zwatch-"
"""Temporary links begin so; a version's name cannot."""

_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2  # linux/fs.h
_RESOLVE_TRIES = 8


@dataclass(frozen=True, slots=True)
class Stamp:
    """Identity of a link at one moment: a link that was made anew has another one."""

    device: int
    inode: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Stamp":
        """Return the stamp in this lstat result."""
        return cls(status.st_dev, status.st_ino, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What changes when a file's content does: inode, size in bytes, times in nanoseconds."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "FileStamp":
        """Return the stamp in this stat result."""
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class Directory:
    """An opened version directory. Whoever holds it closes it."""

    def __init__(self, fd: int, version: str) -> None:
        self.fd = fd
        self.version = version

    def duplicate(self) -> "Directory":
        """Return an own handle on the same directory."""
        return Directory(os.dup(self.fd), self.version)

    def close(self) -> None:
        """Close the descriptor; harmless when called again."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()

    def file_stamps(self, paths: list[str]) -> dict[str, FileStamp | None]:
        """Return the stamp of each path below the directory, None for one that is not there."""
        stamps: dict[str, FileStamp | None] = {}
        for path in paths:
            try:
                stamps[path] = FileStamp.of(os.stat(path, dir_fd=self.fd, follow_symlinks=False))
            except OSError:
                stamps[path] = None
        return stamps


@dataclass(frozen=True, slots=True)
class Target:
    """An alias resolved once. Everything later uses `directory` and never the link again.

    `digest` is None while the version has no seal that can be read; loading it will say why.
    """

    alias: str
    link: str
    stamp: Stamp
    directory: Directory = field(compare=False)
    identity: tuple[int, int]
    seal_stamp: FileStamp | None
    digest: str | None

    @property
    def version(self) -> str:
        """The version's name."""
        return self.directory.version


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an alias resolves to no version: a code, a sentence that says what was found, and the link's stamp."""

    alias: str
    code: str
    message: str
    link: str | None = None
    stamp: Stamp | None = None


def resolve(root_fd: int, alias: str, known: Target | None = None) -> Target | Fault:
    """Resolve an alias to the opened version directory that it points to.

    `known` is returned unchanged, unopened, if nothing about it has changed.
    """
    for _ in range(_RESOLVE_TRIES):
        try:
            status = os.stat(alias, dir_fd=root_fd, follow_symlinks=False)
        except FileNotFoundError:
            return Fault(alias, "missing", f"{alias}: there is no such link; make it with `ln -sfn VERSION {alias}`")
        except OSError as error:
            return Fault(alias, "unreadable", f"{alias}: {error.strerror}")
        if not stat.S_ISLNK(status.st_mode):
            return Fault(alias, "not_a_link", f"{alias}: expected a symlink, found something else of that name")
        try:
            found = _resolve_once(root_fd, alias, Stamp.of(status), known)
            again = os.stat(alias, dir_fd=root_fd, follow_symlinks=False)
        except FileNotFoundError:
            continue  # it moved under the look
        if Stamp.of(again) == Stamp.of(status):
            return replace(found, stamp=Stamp.of(status)) if isinstance(found, Fault) else found
    return Fault(alias, "unsettled", f"{alias}: the link changes faster than it can be read")


def repoint(root_fd: int, alias: str, version: str, noted: "LinkNote | None") -> Stamp:
    """Point `alias` at `version`, atomically, unless somebody moved the link since it was `noted`.

    Without a note the link must not exist yet. The new link takes the place of the old by an exchange, so what was
    displaced can be looked at, and put back if it was not what was noted. Returns the new link's stamp.

    Raises:
        RepointError: somebody moved it meanwhile (his move wins), or the models root may not be written.
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
            raise RepointError(f"{alias} was repointed by somebody else meanwhile; that move stands")
        return Stamp.of(status)
    except OSError as error:
        raise RepointError(f"{alias} could not be repointed to {version}: {error.strerror}") from None
    finally:
        _unlink_quietly(root_fd, temporary)


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


def finish_interrupted(root_fd: int, alias: str) -> None:
    """Tidy up after a repointing that a crash cut short: a temporary link newer than the alias was either our wish on
    its way in or an operator's move on its way back, so it takes its place; an older one was displaced and goes."""
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
            continue  # not ours to write; it means nothing anyway


def _resolve_once(root_fd: int, alias: str, stamp: Stamp, known: Target | None) -> Target | Fault:
    try:
        link = os.readlink(alias, dir_fd=root_fd)
    except OSError as error:
        if error.errno == errno.EINVAL:  # no link any more
            raise FileNotFoundError(error.errno, error.strerror, alias) from None
        raise
    if known is not None and known.stamp == stamp and _unchanged(root_fd, alias, known):
        return known
    try:
        fd = os.open(alias, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
    except OSError as error:
        return _open_fault(alias, link, error)
    directory = Directory(fd, "")
    status = os.fstat(fd)
    name = _name_under_root(root_fd, fd, status)
    if name is None:
        where = os.readlink(f"/proc/self/fd/{fd}")
        return Fault(
            alias, "outside", f"{alias} -> {link}: {where} is not a version directly under the models root", link
        )
    directory.version = name
    seal_stamp, digest = _read_digest(fd)
    return Target(alias, link, stamp, directory, (status.st_dev, status.st_ino), seal_stamp, digest)


def _unchanged(root_fd: int, alias: str, known: Target) -> bool:
    try:
        status = os.stat(alias, dir_fd=root_fd)
        name = os.stat(known.version, dir_fd=root_fd, follow_symlinks=False)
    except OSError:
        return False
    here = (status.st_dev, status.st_ino)
    return here == known.identity == (name.st_dev, name.st_ino) and _seal_stamp(known.directory.fd) == known.seal_stamp


def _open_fault(alias: str, link: str, error: OSError) -> Fault:
    if error.errno == errno.ENOENT:
        return Fault(alias, "dangling", f"{alias} -> {link}: there is nothing of that name", link)
    if error.errno == errno.ELOOP:
        return Fault(alias, "loop", f"{alias} -> {link}: the links lead in a circle", link)
    if error.errno == errno.ENOTDIR:
        return Fault(alias, "not_a_directory", f"{alias} -> {link}: expected a version directory, found a file", link)
    return Fault(alias, "unreadable", f"{alias} -> {link}: {error.strerror}", link)


def _name_under_root(root_fd: int, fd: int, status: os.stat_result) -> str | None:
    """Return the name by which the opened directory lies directly under the root, if it does."""
    name = Path(os.readlink(f"/proc/self/fd/{fd}")).name
    if not is_version_name(name):
        return None
    try:
        beside = os.stat(name, dir_fd=root_fd, follow_symlinks=False)
    except OSError:
        return None
    return name if (beside.st_dev, beside.st_ino) == (status.st_dev, status.st_ino) else None


def _seal_stamp(directory_fd: int) -> FileStamp | None:
    try:
        return FileStamp.of(os.stat(seal.SEAL_NAME, dir_fd=directory_fd, follow_symlinks=False))
    except OSError:
        return None


def _read_digest(directory_fd: int) -> tuple[FileStamp | None, str | None]:
    stamp = _seal_stamp(directory_fd)
    try:
        return stamp, blake3(seal.read_seal_bytes(directory_fd)).hexdigest()
    except (Rejection, OSError):
        return stamp, None


def _rename_new(root_fd: int, temporary: str, alias: str) -> None:
    try:
        if not _renameat2(root_fd, temporary, alias, _RENAME_NOREPLACE):
            os.link(temporary, alias, src_dir_fd=root_fd, dst_dir_fd=root_fd, follow_symlinks=False)
            os.unlink(temporary, dir_fd=root_fd)  # now, not later: it changes the ctime of the link that stays
    except FileExistsError:
        raise RepointError(f"{alias} was made by somebody else meanwhile; it stays as it is") from None


def _exchange_noted(root_fd: int, temporary: str, alias: str, noted: LinkNote, ours: LinkNote) -> None:
    try:
        _exchange(root_fd, temporary, alias)
    except FileNotFoundError:
        raise RepointError(f"{alias} was removed meanwhile; it stays so") from None
    displaced = LinkNote.take(root_fd, temporary)
    if displaced == noted:
        return
    # Put his link back. What comes out must be what we put in last; if it isn't, he moved again, and that goes back.
    expected = ours
    while True:
        _exchange(root_fd, temporary, alias)
        out = LinkNote.take(root_fd, temporary)
        if out == expected:
            break
        expected, displaced = displaced, out
    raise RepointError(f"{alias} was repointed by somebody else meanwhile; that move stands")


def _exchange(root_fd: int, first: str, second: str) -> None:
    if _renameat2(root_fd, first, second, _RENAME_EXCHANGE):
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


def _renameat2(root_fd: int, source: str, destination: str, flags: int) -> bool:
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
