"""Summaries of all versions below a models root, kept for as long as no file of a version changes."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zwatch.deploy import seal
from zwatch.deploy.versions import VersionSummary, opened, other_directories, summarise, version_names
from zwatch.errors import Rejection

_MOST_FILES = 2000
"""Of a version with more, nothing is kept: their stamps would take much memory."""
_Stamp = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RootSummary:
    """All versions, and the directories whose names cannot be a version's, each with the reason."""

    versions: Sequence[VersionSummary]
    unusable: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class _Known:
    """A summary, the paths that it depends on (the seal, the files that it names, their folders), and their stamps."""

    summary: VersionSummary
    paths: Sequence[str]
    stamps: Sequence[_Stamp]


class Summaries:
    """Summarises the versions of one models root. An unchanged version costs a stat a file; its files are not opened again.

    It blocks; run it in a thread. Two threads may use it: at worst both read what one would have.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, _Known] = {}

    def read(self) -> RootSummary:
        """Describe every directory under the models root.

        Raises:
            OSError: the models root cannot be read.
        """
        before, now = self._known, {}
        found = []
        with opened(self._root) as root_fd:
            for name in version_names(root_fd):
                known = before.get(name)
                if known is None or _stamps(root_fd, name, known.paths) != known.stamps:
                    known = _look(root_fd, name)
                # A problem may pass without a trace in the stamps; without stamps it may have been sealed meanwhile.
                if known.stamps and known.summary.problem is None:
                    now[name] = known
                found.append(known.summary)
            unusable = other_directories(root_fd)
        self._known = now
        return RootSummary(found, unusable)


def _look(root_fd: int, name: str) -> _Known:
    # Stamped before it is read: what changes meanwhile is read again at the next look.
    paths = _paths(root_fd, name)
    stamps = _stamps(root_fd, name, paths)
    return _Known(summarise(root_fd, name), paths, stamps)


def _paths(root_fd: int, name: str) -> list[str]:
    """Return what a summary depends on, as paths below the version; nothing if there is no valid seal, or of too many files: such
    a version is read anew."""
    if not _has_seal(root_fd, name):  # as most of thousands of directories may have none
        return []
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd)
    except OSError:
        return []
    try:
        files = seal.read_seal(fd).files
    except (Rejection, OSError):
        return []
    finally:
        os.close(fd)
    return [] if len(files) > _MOST_FILES else [".", seal.SEAL_NAME, *_folders(files), *files]


def _has_seal(root_fd: int, name: str) -> bool:
    return len(_stamp(root_fd, f"{name}/{seal.SEAL_NAME}")) > 1


def _folders(paths: Iterable[str]) -> list[str]:
    """Return all folders above these paths, the outer ones first."""
    folders: dict[str, None] = {}
    for path in paths:
        parts = path.split("/")[:-1]
        folders |= dict.fromkeys("/".join(parts[: depth + 1]) for depth in range(len(parts)))
    return list(folders)


def _stamps(root_fd: int, name: str, paths: Iterable[str]) -> list[_Stamp]:
    return [_stamp(root_fd, f"{name}/{path}") for path in paths]


def _stamp(root_fd: int, path: str) -> _Stamp:
    """Return what changes with a file's content, owner or place: all of it, or the error's number."""
    try:
        found = os.stat(path, dir_fd=root_fd, follow_symlinks=False)
    except OSError as error:
        return (error.errno or 0,)
    return found.st_dev, found.st_ino, found.st_mode, found.st_size, found.st_mtime_ns, found.st_ctime_ns
