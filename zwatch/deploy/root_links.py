"""The symlinks directly under the models root, followed or not: which of them lead to a directory, which changed.

A stray link says into which directory it was typed, not through which link. It can be followed only if a single link leads
there, and did when the stray was made.
"""

import errno
import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from zwatch.deploy.chains import MAX_HOPS, LinkStamp, Place, path_of, place_of
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
        names = self._leading(root_fd, directory, {name: name for name in self.links})
        return names + sorted(self._outside(root_fd, names))

    @staticmethod
    def nested(root_fd: int, directory: Place) -> list[str]:
        """Return the links one level below the models root that resolve to a directory, sorted. Links that have the form of
        a stray (`v3/v1 -> ../v1`) do not count, nor those in the directory itself.

        Raises:
            OSError: the models root or a directory in it cannot be listed, or where a link leads could not be found out.
        """
        found = []
        root = path_of(root_fd)
        for folder in sorted(os.listdir(root_fd)):
            try:
                status = os.stat(folder, dir_fd=root_fd, follow_symlinks=False)
                place = Place((status.st_dev, status.st_ino), os.path.join(root, folder))
                if stat.S_ISDIR(status.st_mode) and place != directory:
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

    def led_to(self, root_fd: int, directory: Place, before: "RootLinks") -> list[str]:
        """Return the links of an earlier reading that resolved to a directory then, though they may be changed since.

        Raises:
            OSError: where a link leads could not be found out.
        """
        # A link's text says where it led. If it led through another link that moved since, that one is found.
        return self._leading(root_fd, directory, {name: link.text for name, link in before.links.items()})

    def _leading(self, root_fd: int, directory: Place, paths: Mapping[str, str]) -> list[str]:
        """Return the names, sorted, of those paths that resolve to a directory."""
        # Links to links in the models root are followed by what was read, each once: thousands of them, or a loop, cost no
        # system call.
        ends: dict[str, str | None] = {}
        leads: dict[str | None, bool] = {None: False}  # None: a loop
        names = []
        for name, start in paths.items():
            end: str | None = _tidied(start)
            passed: list[str] = []
            while end is not None and (link := self.links.get(end)) is not None:
                if end in ends:
                    end = ends[end]
                    break
                passed.append(end)
                ends[end] = None  # until its end is known: who comes here again went in a loop
                end = _tidied(link.text)
            ends.update(dict.fromkeys(passed, end))
            if end is not None and end not in leads:
                leads[end] = _place(root_fd, end) == directory
            if leads[end]:
                names.append(name)
        return sorted(names)

    def moved_from(
        self, root_fd: int, directory: Place, before: "RootLinks", ours: Mapping[str, LinkStamp]
    ) -> list[str]:
        """Return the links that led to a directory `before` and were removed or changed since, except those that zwatch
        placed itself (`ours`, the stamps it gave them).

        Raises:
            OSError: where a link leads could not be found out.
        """
        return [
            name
            for name in self.led_to(root_fd, directory, before)
            if (now := self.links.get(name)) != before.links[name] and (now is None or ours.get(name) != now.link_stamp)
        ]

    def outside(self, root_fd: int) -> dict[str, int]:
        """Return the ctime (nanoseconds) of each link outside the models root, by path, on the chains of those in it. No
        earlier look knows where those led.

        Raises:
            OSError: a link could not be read.
        """
        return self._outside(root_fd, self.links)

    def _outside(self, root_fd: int, names: Iterable[str]) -> dict[str, int]:
        """Return what `outside` does, for the chains of these links."""
        root = Place.of(root_fd)
        chains: dict[str, int] = {}
        seen: set[str] = set()
        for name in names:
            path = name
            for _ in range(MAX_HOPS):
                if path in seen:
                    break
                seen.add(path)
                if (known := self.links.get(path)) is not None:
                    path = _tidied(known.text)
                    continue
                if (link := _read_link(root_fd, path)) is None:
                    break  # the end of the chain
                text, ctime_ns = link
                folder = os.path.dirname(path)
                if _place(root_fd, folder or ".") != root:
                    chains[path] = ctime_ns
                path = _tidied(os.path.join(folder, text))
        return chains


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


def _read_link(root_fd: int, path: str) -> tuple[str, int] | None:
    """Return a link's text and ctime (nanoseconds); None if there is no link.

    Raises:
        OSError: that could not be found out.
    """
    try:
        text = os.readlink(path, dir_fd=root_fd)
        return text, os.stat(path, dir_fd=root_fd, follow_symlinks=False).st_ctime_ns
    except ValueError:
        return None
    except OSError as error:
        if error.errno != errno.EINVAL and not leads_nowhere(error):
            raise
        return None


def _tidied(path: str) -> str:
    """Return a path without `.` and empty parts: `./stable/` and `stable/.` go through the link `stable`, too. `..` stays: what
    it means depends on the links before it."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return ("/" if path.startswith("/") else "") + "/".join(parts) or "."
