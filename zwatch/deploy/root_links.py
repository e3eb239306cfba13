"""The symlinks directly under the models root, followed or not: which of them lead to a directory, which changed.

A stray link says into which directory it was typed, not through which link. It can be followed only if a single link leads
there, and did when the stray was made.
"""

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from zwatch.deploy.links import TEMPORARY_PREFIX
from zwatch.deploy.resolving import LinkStamp
from zwatch.deploy.versions import is_version_directory

_MAX_HOPS = 40  # Linux follows no more links than this in one path


@dataclass(frozen=True, slots=True)
class RootLink:
    """A symlink directly under the models root, not followed: its identity and its text."""

    link_stamp: LinkStamp
    text: str


@dataclass(frozen=True, slots=True)
class RootLinks:
    """All symlinks directly under the models root at one moment, by name.

    Reading them follows none of them: a link into a file system that does not answer must not stop every look. They
    are followed only while there is a stray to decide about.
    """

    links: Mapping[str, RootLink] = field(default_factory=dict)

    @classmethod
    def read(cls, root_fd: int) -> "RootLinks":
        """Read every symlink directly under the models root, except the temporary ones that zwatch makes itself.

        Raises:
            OSError: the models root cannot be listed.
        """
        with os.scandir(root_fd) as entries:
            names = [
                entry.name for entry in entries if entry.is_symlink() and not entry.name.startswith(TEMPORARY_PREFIX)
            ]
        links = {}
        for name in names:
            try:
                stamp = LinkStamp.of(os.stat(name, dir_fd=root_fd, follow_symlinks=False))
                links[name] = RootLink(stamp, os.readlink(name, dir_fd=root_fd))
            except OSError:
                continue  # removed since it was listed, or not a link any more
        return cls(links)

    def leading_to(self, root_fd: int, directory: tuple[int, int]) -> list[str]:
        """Return the links that resolve to a directory (device, inode), sorted; then those on their chains that lie
        outside the models root."""
        names = sorted(name for name in self.links if _identity(root_fd, name) == directory)
        outside = {path for name in names for path in _chain_outside(root_fd, name)}
        return names + sorted(outside)

    @staticmethod
    def nested(root_fd: int, directory: tuple[int, int]) -> list[str]:
        """Return the links one level below the models root that resolve to a directory, sorted. Links that have the form of
        a stray (`v3/v1 -> ../v1`) do not count, nor those in the directory itself.

        Raises:
            OSError: the models root cannot be listed.
        """
        found = []
        for folder in sorted(os.listdir(root_fd)):
            try:
                status = os.stat(folder, dir_fd=root_fd, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode) and (status.st_dev, status.st_ino) != directory:
                    found += [f"{folder}/{name}" for name in _links_in(root_fd, folder)]
            except OSError:
                continue  # removed since it was listed, or not readable
        return [
            path
            for path in found
            if _identity(root_fd, path) == directory and not is_version_directory(root_fd, os.path.basename(path))
        ]

    def led_to(self, root_fd: int, directory: tuple[int, int]) -> list[str]:
        """Return the links that resolved to a directory when they were read, though they may be changed by now."""
        # A link's text says where it led. If it led through another link that moved since, that one is found.
        return sorted(name for name, link in self.links.items() if _identity(root_fd, link.text) == directory)

    def moved_from(
        self, root_fd: int, directory: tuple[int, int], before: "RootLinks", ours: Mapping[str, LinkStamp]
    ) -> list[str]:
        """Return the links that led to a directory `before` and were removed or changed since, except those that zwatch
        placed itself (`ours`, the stamps it gave them)."""
        return [
            name
            for name in before.led_to(root_fd, directory)
            if (now := self.links.get(name)) != before.links[name] and (now is None or ours.get(name) != now.link_stamp)
        ]

    def outside(self, root_fd: int) -> dict[str, int]:
        """Return the ctime (nanoseconds) of each link outside the models root, by path, on the chains of those in it. No
        earlier look knows where those led."""
        return {path: at for name in self.links for path, at in _chain_outside(root_fd, name).items()}


def _links_in(root_fd: int, folder: str) -> list[str]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd)
    try:
        with os.scandir(fd) as entries:
            return sorted(entry.name for entry in entries if entry.is_symlink())
    finally:
        os.close(fd)


def _identity(root_fd: int, path: str) -> tuple[int, int] | None:
    """Return the device and inode that a path resolves to, relative to the models root."""
    try:
        status = os.stat(path, dir_fd=root_fd)
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _chain_outside(root_fd: int, name: str) -> dict[str, int]:
    """Return the path and ctime (nanoseconds) of each link behind the link `name` that is not in the models root."""
    root = os.fstat(root_fd)
    chain: dict[str, int] = {}
    path = name
    for _ in range(_MAX_HOPS):
        try:
            path = os.path.join(os.path.dirname(path), _without_trailing_dots(os.readlink(path, dir_fd=root_fd)))
            status = os.stat(path, dir_fd=root_fd, follow_symlinks=False)
            folder = os.stat(os.path.dirname(path) or ".", dir_fd=root_fd)
        except OSError:
            break  # the end of the chain: not a link, or nothing there
        if stat.S_ISLNK(status.st_mode) and not os.path.samestat(folder, root):
            chain[path] = status.st_ctime_ns
    return chain


def _without_trailing_dots(text: str) -> str:
    """`stable/` and `stable/.` go through the link `stable`, too."""
    while text.endswith(("/", "/.")) and text.rstrip("/"):
        text = text.removesuffix(".").rstrip("/")
    return text
