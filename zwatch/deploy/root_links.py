"""The symlinks directly under the models root, followed or not: which of them lead to a directory, which changed.

A stray link says into which directory it was typed, not through which link. It can be followed only if a single link leads
there, and did when the stray was made.
"""

import errno
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from zwatch.deploy.chains import MAX_HOPS, LinkStamp, Place, place_of
from zwatch.deploy.links import TEMPORARY_PREFIX
from zwatch.deploy.oserrors import close_quietly, is_missing, leads_nowhere
from zwatch.deploy.seal import SEAL_NAME
from zwatch.deploy.versions import is_version_directory

_MOST_FOLDERS = 20_000
"""How many directories are searched at most for links that lead to a stray's directory: half a second of a core."""


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
        """Return the links deeper below the models root that resolve to a directory, sorted. Links that have the form of a
        stray do not count: in a version, one with a version's name (`v3/v1 -> ../v1`).

        Raises:
            OSError: a directory cannot be listed, or where a link leads could not be found out.
        """
        return sorted(
            path
            for path in _links_below(root_fd)
            if _place(root_fd, path) == directory
            and not (is_version_directory(root_fd, os.path.basename(path)) and _is_in_version(root_fd, path))
        )

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

    def come_and_gone(self, before: "RootLinks", ours: Mapping[str, LinkStamp], changed_ns: int) -> dict[str, int]:
        """Return the links that were made or removed since `before`, except those that zwatch made itself (`ours`, the stamps
        it gave them), with their ctime (nanoseconds). That of a removed one is not known: it is `changed_ns`, when the models
        root changed."""
        gone = dict.fromkeys(before.links.keys() - self.links.keys(), changed_ns)
        new = {name: self.links[name].link_stamp for name in self.links.keys() - before.links.keys()}
        return gone | {name: stamp.ctime_ns for name, stamp in new.items() if ours.get(name) != stamp}

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


def _links_below(root_fd: int) -> Iterator[str]:
    """Yield the links deeper below the models root, the less deep ones first, through no link. Of a very large tree, those in
    the first directories."""
    folders = deque([""])
    for _ in range(_MOST_FOLDERS):
        if not folders:
            return
        folder = folders.popleft()
        try:
            fd = os.open(folder or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd)
        except OSError as error:
            if not leads_nowhere(error):
                raise
            continue  # removed since it was listed, or not readable
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(f"{folder}{entry.name}/")
                    elif folder and entry.is_symlink():
                        yield f"{folder}{entry.name}"
        finally:
            close_quietly(fd)


def _is_in_version(root_fd: int, path: str) -> bool:
    """Say whether a path below the models root lies in a version, complete or not."""
    top = path.partition("/")[0]
    return any(_lies_there(root_fd, f"{top}/{name}") for name in (SEAL_NAME, "model_index.json"))


def _lies_there(root_fd: int, path: str) -> bool:
    try:
        os.stat(path, dir_fd=root_fd, follow_symlinks=False)
    except OSError as error:
        if not is_missing(error):
            raise
        return False
    return True


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
