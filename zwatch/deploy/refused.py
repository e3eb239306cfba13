"""Strays that were refused. A refusal outlives what caused it: otherwise a change of one link, made later for its own
reasons, would turn an old stray into a wish for another."""

import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, replace

from zwatch.deploy.chains import LinkStamp

MAX_REFUSED = 256
"""How many refusals are kept, the newest strays first. While there are so many, every older stray counts as refused."""


@dataclass(frozen=True, slots=True)
class RefusedStray:
    """A refused stray link: its identity, where it lies (`v1/v2`, below the models root), and the first reason."""

    path: str
    link_stamp: LinkStamp
    reason: str


class RefusedStrays:
    """The refused strays that still exist, by path and time. Where inode numbers hold still, they too tell which link it is:
    a directory may be renamed between two looks."""

    def __init__(self, refused: Iterable[RefusedStray] = ()) -> None:
        self._keep(refused)

    def _keep(self, strays: Iterable[RefusedStray]) -> None:
        self._strays = {(stray.path, stray.link_stamp): stray for stray in strays}
        self._by_inode = {_inode(stray.link_stamp): stray for stray in self._strays.values()}
        times = [stamp.ctime_ns for _, stamp in self._strays]
        self._full_since = min(times) if len(times) >= MAX_REFUSED else None  # others may have been dropped

    def reason(self, stamp: LinkStamp, path: str | None = None) -> str | None:
        """Return why this link was refused, or None if it was not."""
        stray = None if path is None else self._strays.get((path, stamp))
        if (stray := stray or self._by_inode.get(_inode(stamp))) is not None:
            return stray.reason
        # Its refusal may be one of those that were dropped.
        if self._full_since is not None and stamp.ctime_ns <= self._full_since:
            return f"{MAX_REFUSED} newer strays were refused, and no more refusals are kept"
        return None

    def add(self, path: str, stamp: LinkStamp, reason: str) -> None:
        """Note a refusal; a stray that was refused before keeps its first reason."""
        if (path, stamp) in self._strays or _inode(stamp) in self._by_inode:
            return
        if self._full_since is not None and stamp.ctime_ns <= self._full_since:
            return  # it would be dropped at once, see `reason`
        # Names in a reason need not be UTF-8; the state file is.
        stray = RefusedStray(path, stamp, reason.encode(errors="backslashreplace").decode())
        self._strays[path, stamp] = self._by_inode[_inode(stamp)] = stray

    def prune(self, root_fd: int) -> None:
        """Forget links that are gone, and follow directories that were renamed."""
        strays: list[RefusedStray] = []
        directories: list[str] | None = None
        for stray in sorted(self._strays.values(), key=lambda stray: (-stray.link_stamp.ctime_ns, stray.path)):
            if len(strays) == MAX_REFUSED:
                break
            found: RefusedStray | None = stray
            # If it lies there no more: its directory may be renamed. An I/O error that hides it does not lose it.
            if _lies_at(root_fd, stray.path, stray.link_stamp) is False:
                directories = _directories(root_fd) if directories is None else directories
                found = _found_in(root_fd, directories, stray)
            if found is not None:
                strays.append(found)
        self._keep(strays)

    def all(self) -> tuple[RefusedStray, ...]:
        """Return all of them, sorted by path."""
        return tuple(sorted(self._strays.values(), key=lambda stray: (stray.path, stray.link_stamp.ctime_ns)))


def _inode(stamp: LinkStamp) -> tuple[int, int, int]:
    return stamp.device, stamp.inode, stamp.ctime_ns


def _found_in(root_fd: int, directories: list[str], stray: RefusedStray) -> RefusedStray | None:
    """Return a stray that lies no more where it was as it lies now; None if it was removed."""
    directory, _, name = stray.path.rpartition("/")
    places = (f"{other}/{name}" for other in directories)
    place = next((place for place in places if _lies_at(root_fd, place, stray.link_stamp)), None)
    if place is not None:
        return replace(stray, path=place)
    return stray if directory not in directories else None  # the whole directory was moved away; it may come back


def _lies_at(root_fd: int, path: str, stamp: LinkStamp) -> bool | None:
    """Say whether a path is that very link; None if it cannot be read."""
    try:
        return LinkStamp.of(os.stat(path, dir_fd=root_fd, follow_symlinks=False)) == stamp
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return False
    except OSError:
        return None


def _directories(root_fd: int) -> list[str]:
    names = []
    for name in os.listdir(root_fd):
        try:
            if stat.S_ISDIR(os.stat(name, dir_fd=root_fd, follow_symlinks=False).st_mode):
                names.append(name)
        except OSError:
            continue
    return names
