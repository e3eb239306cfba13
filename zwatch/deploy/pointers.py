"""Which symlinks in a models root lead to which versions, whoever follows them: aliases, shares, strays, chains."""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_MOST_LINKS = 40
"""Links that one path may lead through, as in Linux."""

_Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Pointers:
    """`by_version`: the links that lead to or through a directory of the models root, by its name, each as `v1/v2 -> ../v3`.
    `unread`: the directories that could not be searched for links, and why."""

    by_version: dict[str, list[str]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)


def find_pointers(root: Path, skipped: frozenset[str] = frozenset()) -> Pointers:
    """Search a models root for symlinks, also deep in its directories; `skipped` are names in it that are not entered. No link
    is followed out of the models root to search there.

    A link inside a version says nothing about that version. One that lies directly in a version may be what `ln -sf v2 current`
    left there, so its text counts from the models root, too. A directory that a link leads to need not exist.

    Raises:
        OSError: the models root cannot be read.
    """
    found = Pointers()
    identity = _identity(os.fspath(root))
    for folder, name in _links(os.fspath(root), "", skipped, found.unread):
        shown = f"{folder}{name}"
        try:
            text = os.readlink(os.path.join(root, shown))
        except OSError:  # removed since
            continue
        starts = [os.path.join(root, folder)]
        if folder.count("/") == 1:
            starts.append(os.fspath(root))
        reached = {one for start in starts for one in _names_on_the_way(identity, os.path.abspath(start), text)}
        for version in reached - {shown.partition("/")[0]}:
            found.by_version.setdefault(version, []).append(f"{shown} -> {text}")
    return found


def _identity(path: str) -> _Identity:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _links(root: str, folder: str, skipped: frozenset[str], unread: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (folder with a slash at its end, name) of every symlink below the models root."""
    folders = [folder]
    while folders:
        here = folders.pop()
        try:
            with os.scandir(os.path.join(root, here)) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        yield here, entry.name
                    elif entry.is_dir(follow_symlinks=False) and (here or entry.name not in skipped):
                        folders.append(f"{here}{entry.name}/")
        except FileNotFoundError:
            continue
        except OSError as error:
            if not here:
                raise
            unread[here.rstrip("/")] = error.strerror or str(error)


def _names_on_the_way(root: _Identity, start: str, text: str) -> Iterator[str]:
    """Yield the names in the models root through which a link's text leads, from the directory `start`. The models root is
    known by its identity: a path may reach it through another mount."""
    here, links = os.path.realpath(start), 0
    pending = _parts(text)
    if text.startswith("/"):
        here = "/"
    while pending:
        part = pending.pop()
        if part == "..":
            here = os.path.dirname(here)
            continue
        if _is(here, root):
            yield part
        here = os.path.join(here, part)
        try:
            if not stat.S_ISLNK(os.lstat(here).st_mode):
                continue
            text = os.readlink(here)
        except (OSError, ValueError):
            continue  # what comes after it is taken as it stands
        links += 1
        if links > _MOST_LINKS:
            return
        here = "/" if text.startswith("/") else os.path.dirname(here)
        pending += _parts(text)


def _parts(text: str) -> list[str]:
    return [part for part in reversed(text.split("/")) if part not in ("", ".")]


def _is(path: str, root: _Identity) -> bool:
    try:
        return _identity(path) == root
    except (OSError, ValueError):
        return False
