"""Resolving an alias, the symlink that says which version should serve, to an opened version directory."""

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from blake3 import blake3

from zwatch.deploy import seal
from zwatch.deploy.chains import ChainLink, path_of, read_chain, stamp_of
from zwatch.deploy.chains import LinkStamp as LinkStamp  # noqa: PLC0414  others import it from here
from zwatch.deploy.oserrors import close_quietly, is_missing, leads_nowhere
from zwatch.deploy.versions import is_version_name
from zwatch.errors import Rejection

_RESOLVE_TRIES = 8


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

    def is_unchanged(self, now: "FileStamp") -> bool:
        """Say whether the file at this path is as it was. The inode number does not count: see `LinkStamp`."""
        return replace(self, inode=0) == replace(now, inode=0)


FileStamps = Mapping[str, FileStamp | None]
"""The stamps of files by their paths; None for a file that is not there."""


def are_unchanged(before: FileStamps, now: FileStamps) -> bool:
    """Say whether all files are as they were."""
    if before.keys() != now.keys():
        return False
    return all(_is_unchanged(stamp, now[path]) for path, stamp in before.items())


def _is_unchanged(before: FileStamp | None, now: FileStamp | None) -> bool:
    return before is now if before is None or now is None else before.is_unchanged(now)


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
            close_quietly(self.fd)
            self.fd = -1

    def __del__(self) -> None:
        self.close()

    def file_stamps(self, paths: list[str], check: Callable[[], None] = lambda: None) -> dict[str, FileStamp | None]:
        """Return the stamp of each path below the directory, None for one that is not there. `check` is called before each,
        and may raise to stop.

        Raises:
            OSError: whether one is there could not be found out.
        """
        stamps = {}
        for path in paths:
            check()
            stamps[path] = _stamp(self.fd, path)
        return stamps


@dataclass(frozen=True, slots=True)
class Target:
    """An alias resolved once. Everything later uses `directory` and never the link again.

    `link_stamp` changes when any link of the alias's chain is made again. `digest` is None while the version has no valid
    seal; loading it will say why. `chain` has the links from the alias to the directory.
    """

    alias: str
    link: str
    link_stamp: LinkStamp
    directory: Directory = field(compare=False)
    identity: tuple[int, int]
    seal_stamp: FileStamp | None
    digest: str | None
    chain: tuple[ChainLink, ...] = ()

    @property
    def version(self) -> str:
        """The version's name."""
        return self.directory.version

    @property
    def holder(self) -> str:
        """The link that is moved to repoint the alias: the last of its chain that lies directly under the models root."""
        return [self.alias, *(link.name for link in self.chain if link.name is not None)][-1]

    @property
    def linked_ns(self) -> int:
        """When a link of the chain was last made or moved: ctime in nanoseconds."""
        return max((link.stamp.ctime_ns for link in self.chain), default=self.link_stamp.ctime_ns)

    def has_links(self, beside: Sequence[tuple[LinkStamp, str]]) -> bool:
        """Say whether its links are these, all of them directly under the models root."""
        return 0 < len(beside) == len(self.chain) and all(
            link.name == link.path and (link.stamp, link.text) == found
            for link, found in zip(self.chain, beside, strict=True)
        )

    def is_reached_by(self, links: Sequence[str]) -> bool:
        """Say whether these links are those of the alias's chain and no others, all of them directly under the models
        root."""
        names = [link.name for link in self.chain]
        return len(names) == len(links) and set(names) == set(links)


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
    Only during the look: one kept open would keep its file system from being unmounted."""

    @property
    def may_pass(self) -> bool:
        """Whether it only says that the link could not be read at this look, and nothing about where it leads."""
        return self.code in ("unreadable", "unsettled")


def opened_version(root_fd: int, name: str) -> Directory:
    """Open a version by its name, directly under the models root.

    Raises:
        OSError: there is none, or it may not be read.
    """
    return Directory(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd), name)


def resolve(
    root_fd: int, alias: str, known: Target | None = None, beside: Sequence[tuple[LinkStamp, str]] = ()
) -> Target | Fault:
    """Resolve an alias to the opened version directory that it points to.

    `known` is returned unchanged, unopened, if nothing about it has changed; `beside` are its links as `read_beside` has just
    read them.
    """
    if known is not None and known.has_links(beside):
        try:
            if _unchanged(root_fd, alias, known):
                return known
        except OSError:
            pass  # below it is said which one
    for _ in range(_RESOLVE_TRIES):
        try:
            chain = read_chain(root_fd, alias)
        except FileNotFoundError:
            return Fault(alias, "missing", f"{alias}: there is no such link; make it with `ln -sfn VERSION {alias}`")
        except OSError as error:
            return _unreadable(alias, _link_text(root_fd, alias), None, error)
        if not chain:
            return Fault(alias, "not_a_link", f"{alias}: expected a symlink, found something else with that name")
        try:
            found = _resolve_once(root_fd, alias, chain, known)
            again = read_chain(root_fd, alias)
        except FileNotFoundError:
            continue  # it moved during the look
        except OSError as error:
            return _unreadable(alias, chain[0].text, stamp_of(chain), error)
        if again == chain:
            return found
    return Fault(alias, "unsettled", f"{alias}: the link changes faster than it can be read")


def _resolve_once(root_fd: int, alias: str, chain: list[ChainLink], known: Target | None) -> Target | Fault:
    link, stamp = chain[0].text, stamp_of(chain)
    is_known = known is not None and (known.link, known.link_stamp) == (link, stamp)
    if known is not None and is_known and _unchanged(root_fd, alias, known):
        return known
    try:
        fd = os.open(alias, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
    except OSError as error:
        if error.errno == errno.ENOENT and os.path.exists(f"/proc/self/fd/{root_fd}/{alias}"):
            # The link was missing for a moment. One made within the same clock tick may have the same stamp.
            raise FileNotFoundError(error.errno, error.strerror, alias) from None
        return _open_fault(alias, chain, error)
    directory = Directory(fd, "")
    status = os.fstat(fd)
    name = _name_under_root(root_fd, fd, status)
    if name is None:
        where, root = path_of(fd), path_of(root_fd)
        directory.version = os.path.relpath(where, root) if where.startswith(f"{root}/") else where
        message = f"{alias} -> {link}: {where} is not a version directly under the models root"
        return Fault(alias, "outside", message, link, stamp, directory)
    directory.version = name
    seal_stamp, digest = _read_digest(fd)
    found = Target(alias, link, stamp, directory, (status.st_dev, status.st_ino), seal_stamp, digest, tuple(chain))
    return known if known is not None and is_known and _is_in_place(root_fd, known, found) else found


def _unchanged(root_fd: int, alias: str, known: Target) -> bool:
    try:
        status = os.stat(alias, dir_fd=root_fd)
        name = os.stat(known.version, dir_fd=root_fd, follow_symlinks=False)
    except OSError as error:
        if not leads_nowhere(error):
            raise
        return False
    here = (status.st_dev, status.st_ino)
    if not here == known.identity == (name.st_dev, name.st_ino):
        return False
    return _stamp(known.directory.fd, seal.SEAL_NAME) == known.seal_stamp


def _is_in_place(root_fd: int, known: Target, found: Target) -> bool:
    """Say whether the directory that was opened again is the known one, though its inode number says otherwise."""
    if (known.version, known.digest) != (found.version, found.digest):
        return False
    if not _is_unchanged(known.seal_stamp, found.seal_stamp):
        return False
    return known.identity != found.identity and path_of(known.directory.fd) == path_of(found.directory.fd)


def _open_fault(alias: str, chain: list[ChainLink], error: OSError) -> Fault:
    link, stamp = chain[0].text, stamp_of(chain)
    if error.errno == errno.ENOENT:
        return Fault(alias, "dangling", f"{alias} -> {link}: nothing with that name exists", link, stamp)
    if error.errno == errno.ELOOP:
        return Fault(alias, "loop", f"{alias} -> {link}: the links form a loop", link, stamp)
    if error.errno == errno.ENOTDIR:
        message = f"{alias} -> {link}: expected a version directory, found a file"
        return Fault(alias, "not_a_directory", message, link, stamp)
    return _unreadable(alias, link, stamp, error)


def _unreadable(alias: str, link: str | None, stamp: LinkStamp | None, error: OSError) -> Fault:
    """Return the fault for an I/O error: what the link asks for is not known until a look succeeds."""
    where = alias if link is None else f"{alias} -> {link}"
    what = f"{error.filename}: " if isinstance(error.filename, str) and error.filename != alias else ""
    return Fault(alias, "unreadable", f"{where}: {what}{error.strerror or error}; it is looked at again", link, stamp)


def _link_text(root_fd: int, alias: str) -> str | None:
    try:
        return os.readlink(alias, dir_fd=root_fd)
    except OSError:
        return None


def _name_under_root(root_fd: int, fd: int, status: os.stat_result) -> str | None:
    """Return the name of the opened directory directly under the root, if it is there."""
    folder, _, name = path_of(fd).rpartition("/")
    if not is_version_name(name):
        return None
    try:
        beside = os.stat(name, dir_fd=root_fd, follow_symlinks=False)
    except OSError as error:
        if not is_missing(error):
            raise
        return None
    if (beside.st_dev, beside.st_ino) == (status.st_dev, status.st_ino):
        return name
    return name if folder == path_of(root_fd).rstrip("/") else None  # where inode numbers do not hold still


def _stamp(directory_fd: int, path: str) -> FileStamp | None:
    """Return a file's stamp, None if it is not there.

    Raises:
        OSError: that could not be found out.
    """
    try:
        return FileStamp.of(os.stat(path, dir_fd=directory_fd, follow_symlinks=False))
    except OSError as error:
        if not is_missing(error):
            raise
        return None


def _read_digest(directory_fd: int) -> tuple[FileStamp | None, str | None]:
    """Return the seal's stamp and digest; no digest if there is no valid seal.

    Raises:
        OSError: it could not be read.
    """
    stamp = _stamp(directory_fd, seal.SEAL_NAME)
    try:
        return stamp, blake3(seal.read_seal_bytes(directory_fd)).hexdigest()
    except Rejection:
        return stamp, None
