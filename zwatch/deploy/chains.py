"""Links and directories, told apart without trust in inode numbers; the links on the way from an alias to its version."""

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from zwatch.deploy.oserrors import close_quietly, leads_nowhere

MAX_HOPS = 40  # Linux follows no more links than this in one path


@dataclass(frozen=True, slots=True)
class LinkStamp:
    """Identity of a link at one moment: a link that was made again has another one.

    Only the time is compared. On some file systems (FUSE) a file has another inode number at every look, and network and
    overlay file systems have another device number after the machine was started again.
    """

    device: int = field(compare=False)
    inode: int = field(compare=False)
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> "LinkStamp":
        """Return the stamp in this lstat result."""
        return cls(status.st_dev, status.st_ino, status.st_ctime_ns)


@dataclass(frozen=True, slots=True)
class ChainLink:
    """A symlink on the way from an alias to its version: `current -> stable -> v1` has two. `path` is relative to the models
    root; `name` is its name if it lies directly there, else None."""

    path: str
    name: str | None
    text: str
    stamp: LinkStamp


def read_chain(root_fd: int, name: str, hops: int = MAX_HOPS) -> list[ChainLink]:
    """Read the links, at most `hops`, from `name`, directly under the models root, to what they lead to; none if it is no
    link.

    Raises:
        FileNotFoundError: there is nothing of that name.
        OSError: a link could not be read.
    """
    chain: list[ChainLink] = []
    path = name
    while len(chain) < hops and all(link.path != path for link in chain):
        try:
            status = os.stat(path, dir_fd=root_fd, follow_symlinks=False)
            if not stat.S_ISLNK(status.st_mode):
                break
            text = os.readlink(path, dir_fd=root_fd)
            folder, _, last = path.rpartition("/")
            in_root = not folder or place_of(root_fd, folder) == Place.of(root_fd)
        except OSError as error:
            if error.errno == errno.EINVAL:
                continue  # no link any more: see what it is now
            if not chain or not leads_nowhere(error):
                raise
            break
        chain.append(ChainLink(path, last if in_root else None, text, LinkStamp.of(status)))
        path = os.path.join(folder, _without_trailing_dots(text))
    return chain


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where a directory is. Two places are one if device and inode are the same, or else the path: inode numbers do not hold
    still everywhere, and through a bind mount one directory has two paths."""

    identity: tuple[int, int]
    path: str

    @classmethod
    def of(cls, fd: int) -> "Place":
        """Return the place of an open directory.

        Raises:
            OSError: it cannot be found out.
        """
        status = os.fstat(fd)
        return cls((status.st_dev, status.st_ino), path_of(fd))

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Place):
            same_path = self.path == other.path and not self.path.endswith(" (deleted)")
            return same_path or self.identity == other.identity
        return self.identity == other

    __hash__ = None  # type: ignore[assignment]  # equality is not transitive


def place_of(root_fd: int, path: str) -> Place:
    """Return the place that a path, relative to the models root, leads to.

    Raises:
        OSError: it leads nowhere, or it could not be followed.
    """
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC, dir_fd=root_fd)
    try:
        return Place.of(fd)
    finally:
        close_quietly(fd)


def path_of(fd: int) -> str:
    """Return the present path of an open directory; it ends in ` (deleted)` if it has none.

    Raises:
        OSError: the system does not tell.
    """
    return os.readlink(f"/proc/self/fd/{fd}")


def read_beside(root_fd: int, names: Sequence[str]) -> dict[str, tuple[tuple[LinkStamp, str], ...]]:
    """Return the stamp and the text of each of these links that is there, and of the links beside it to which it leads. It
    opens nothing that may not answer."""
    links = {}
    ends: set[str] = set()  # no links: hundreds of aliases may lead to one version
    for name in names:
        chain: list[tuple[LinkStamp, str]] = []
        following = name
        try:
            while "/" not in following and following not in ends and len(chain) < MAX_HOPS:
                # First the text: it asks nothing of a directory on which a file system that does not answer is mounted.
                text = os.readlink(following, dir_fd=root_fd)
                chain.append((LinkStamp.of(os.stat(following, dir_fd=root_fd, follow_symlinks=False)), text))
                following = text
        except OSError:
            ends.add(following)
        if chain:
            links[name] = tuple(chain)
    return links


def stamp_of(chain: list[ChainLink]) -> LinkStamp:
    """Return one stamp for all links of a chain: it changes when any of them is made again."""
    return replace(chain[0].stamp, ctime_ns=sum(link.stamp.ctime_ns for link in chain))


def _without_trailing_dots(text: str) -> str:
    """`stable/` and `stable/.` go through the link `stable`, too."""
    while text.endswith(("/", "/.")) and text.rstrip("/"):
        text = text.removesuffix(".").rstrip("/")
    return text
