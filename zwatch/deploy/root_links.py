"""The symlinks directly under the models root, followed or not: which of them lead to a directory, which changed.

A stray link says into which directory it was typed, not through which link. It can be followed only if a single link leads
there, and did when the stray was made.
"""

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from zwatch.deploy.chains import ChainLink, LinkStamp, Place, place_of, read_chain
from zwatch.deploy.links import TEMPORARY_PREFIX
from zwatch.deploy.oserrors import is_missing, leads_nowhere
from zwatch.deploy.versions import is_version_directory


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
            except OSError as error:
                if not is_missing(error) and error.errno != errno.EINVAL:
                    raise
                continue  # removed since it was listed, or not a link any more
        return cls(links)

    def stamp(self, name: str) -> LinkStamp | None:
        """Return the stamp of the link with this name; None if there is none."""
        link = self.links.get(name)
        return None if link is None else link.link_stamp

    def leading_to(self, root_fd: int, directory: Place) -> list[str]:
        """Return the links that resolve to a directory, sorted; then those on their chains that lie outside the models
        root.

        Raises:
            OSError: where a link leads could not be found out.
        """
        names = sorted(name for name in self.links if _place(root_fd, name) == directory)
        outside = {path for name in names for path in _chain_outside(root_fd, name)}
        return names + sorted(outside)

    @staticmethod
    def nested(root_fd: int, directory: Place) -> list[str]:
        """Return the links one level below the models root that resolve to a directory, sorted. Links that have the form of
        a stray (`v3/v1 -> ../v1`) do not count, nor those in the directory itself.

        Raises:
            OSError: the models root or a directory in it cannot be listed, or where a link leads could not be found out.
        """
        found = []
        for folder in sorted(os.listdir(root_fd)):
            try:
                status = os.stat(folder, dir_fd=root_fd, follow_symlinks=False)
                if stat.S_ISDIR(status.st_mode) and _place(root_fd, folder) != directory:
                    found += [f"{folder}/{name}" for name in _links_in(root_fd, folder)]
            except OSError as error:
                if not leads_nowhere(error):
                    raise
                continue  # removed since it was listed, or not readable
        return [
            path
            for path in found
            if _place(root_fd, path) == directory and not is_version_directory(root_fd, os.path.basename(path))
        ]

    def led_to(self, root_fd: int, directory: Place) -> list[str]:
        """Return the links that resolved to a directory when they were read, though they may be changed by now."""
        # A link's text says where it led. If it led through another link that moved since, that one is found.
        return sorted(name for name, link in self.links.items() if _place(root_fd, link.text) == directory)

    def moved_from(
        self, root_fd: int, directory: Place, before: "RootLinks", ours: Mapping[str, LinkStamp]
    ) -> list[str]:
        """Return the links that led to a directory `before` and were removed or changed since, except those that zwatch
        placed itself (`ours`, the stamps it gave them)."""
        return [
            name
            for name in before.led_to(root_fd, directory)
            if (now := self.links.get(name)) != before.links[name] and (now is None or ours.get(name) != now.link_stamp)
        ]

    def newer_than(self, ctime_ns: int) -> list[str]:
        """Return the links that were made or moved at this time or later."""
        return sorted(name for name, link in self.links.items() if link.link_stamp.ctime_ns >= ctime_ns)

    def newer_outside(self, root_fd: int, ctime_ns: int) -> list[str]:
        """Return the links outside the models root, on the chains of those in it, that were changed at this time or later.
        No earlier look knows where those led."""
        chains = {path: at for name in self.links for path, at in _chain_outside(root_fd, name).items()}
        return sorted(path for path, at in chains.items() if at >= ctime_ns)


def _links_in(root_fd: int, folder: str) -> list[str]:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd)
    try:
        with os.scandir(fd) as entries:
            return sorted(entry.name for entry in entries if entry.is_symlink())
    finally:
        os.close(fd)


def _place(root_fd: int, path: str) -> Place | None:
    """Return the place that a path resolves to, relative to the models root; None if it leads nowhere.

    Raises:
        OSError: where it leads could not be found out.
    """
    try:
        return place_of(root_fd, path)
    except ValueError:
        return None
    except OSError as error:
        if not leads_nowhere(error):
            raise
        return None


def _chain(root_fd: int, name: str) -> list[ChainLink]:
    try:
        return read_chain(root_fd, name)
    except FileNotFoundError:
        return []


def _chain_outside(root_fd: int, name: str) -> dict[str, int]:
    """Return the path and ctime (nanoseconds) of each link behind the link `name` that is not in the models root."""
    return {link.path: link.stamp.ctime_ns for link in _chain(root_fd, name) if link.name is None}
