"""Resolving an alias, the symlink that says which version should serve, to an opened version directory."""

import errno
import os
import stat
from dataclasses import dataclass, field, replace
from pathlib import Path

from blake3 import blake3

from zwatch.deploy import seal
from zwatch.deploy.versions import is_version_name
from zwatch.errors import Rejection

_RESOLVE_TRIES = 8


@dataclass(frozen=True, slots=True)
class LinkStamp:
    """Identity of a link at one moment: a link that was made again has another one."""

    device: int
    inode: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "LinkStamp":
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
    """An opened version directory. Its owner closes it."""

    def __init__(self, fd: int, version: str) -> None:
        self.fd = fd
        self.version = version

    def duplicate(self) -> "Directory":
        """Return a separate handle on the same directory."""
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
    link_stamp: LinkStamp
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
    link_stamp: LinkStamp | None = None
    directory: Directory | None = field(default=None, compare=False)
    """The directory that it leads to, if that is one but no version: named by its path, below the models root or absolute.
    Closed after the look."""


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
            return Fault(alias, "not_a_link", f"{alias}: expected a symlink, found something else with that name")
        try:
            found = _resolve_once(root_fd, alias, LinkStamp.of(status), known)
            again = os.stat(alias, dir_fd=root_fd, follow_symlinks=False)
        except FileNotFoundError:
            continue  # it moved during the look
        if LinkStamp.of(again) == LinkStamp.of(status):
            return replace(found, link_stamp=LinkStamp.of(status)) if isinstance(found, Fault) else found
    return Fault(alias, "unsettled", f"{alias}: the link changes faster than it can be read")


def _resolve_once(root_fd: int, alias: str, stamp: LinkStamp, known: Target | None) -> Target | Fault:
    try:
        link = os.readlink(alias, dir_fd=root_fd)
    except OSError as error:
        if error.errno == errno.EINVAL:  # no link any more
            raise FileNotFoundError(error.errno, error.strerror, alias) from None
        raise
    if known is not None and known.link_stamp == stamp and _unchanged(root_fd, alias, known):
        return known
    try:
        fd = os.open(alias, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
    except OSError as error:
        if error.errno == errno.ENOENT and os.path.exists(f"/proc/self/fd/{root_fd}/{alias}"):
            # The link was missing for a moment. One made within the same clock tick may have the same stamp.
            raise FileNotFoundError(error.errno, error.strerror, alias) from None
        return _open_fault(alias, link, error)
    directory = Directory(fd, "")
    status = os.fstat(fd)
    name = _name_under_root(root_fd, fd, status)
    if name is None:
        where = os.readlink(f"/proc/self/fd/{fd}")
        root = os.readlink(f"/proc/self/fd/{root_fd}")
        directory.version = os.path.relpath(where, root) if where.startswith(f"{root}/") else where
        message = f"{alias} -> {link}: {where} is not a version directly under the models root"
        return Fault(alias, "outside", message, link, directory=directory)
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
        return Fault(alias, "dangling", f"{alias} -> {link}: nothing with that name exists", link)
    if error.errno == errno.ELOOP:
        return Fault(alias, "loop", f"{alias} -> {link}: the links form a loop", link)
    if error.errno == errno.ENOTDIR:
        return Fault(alias, "not_a_directory", f"{alias} -> {link}: expected a version directory, found a file", link)
    return Fault(alias, "unreadable", f"{alias} -> {link}: {error.strerror}", link)


def _name_under_root(root_fd: int, fd: int, status: os.stat_result) -> str | None:
    """Return the name of the opened directory directly under the root, if it is there."""
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
