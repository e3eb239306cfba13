"""Strays that were refused. A refusal outlives what caused it: otherwise a change of one link, made later for its own
reasons, would turn an old stray into a wish for another."""

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from zwatch.deploy.chains import LinkStamp
from zwatch.deploy.made import Made

_SECOND = 10**9
_Key = tuple[str | tuple[int, int], str, int]

MAX_REFUSED = 256
"""How many refusals are kept, the newest strays first. While there are so many, every older stray counts as refused."""


@dataclass(frozen=True, slots=True)
class RefusedStray:
    """A refused stray link: its identity, where it lies (`v1/v2`, below the models root), the first reason, and when it was
    made (an earlier release saved none)."""

    path: str
    link_stamp: LinkStamp
    reason: str
    made: Made = field(default_factory=Made)

    @property
    def keys(self) -> Iterator[_Key]:
        """What tells that a stray is this one: its place or its inode, and one of its times."""
        yield from _keys(self.path, self.link_stamp, self.made)
        if self.made.mtime_ns is not None:
            yield self.path, "second", self.made.mtime_ns // _SECOND

    @property
    def since_ns(self) -> int:
        """Since when it has existed, nanoseconds."""
        return self.made.since(self.link_stamp.ctime_ns)


class RefusedStrays:
    """The refused strays that still exist, by path and time. Where inode numbers hold still, they too tell which link it is:
    a directory may be renamed between two looks. Each time tells it: one that has another owner (`chown -R`), another mtime
    (`touch -h`) or was restored from a copy is not one that was made again by `ln -sf`."""

    def __init__(self, refused: Iterable[RefusedStray] = ()) -> None:
        self._keep(refused)

    def _keep(self, strays: Iterable[RefusedStray]) -> None:
        self._strays = list(strays)
        self._by_key = {key: stray for stray in self._strays for key in stray.keys}
        is_full = len(self._strays) >= MAX_REFUSED  # others may have been dropped
        self._full_since = min(stray.since_ns for stray in self._strays) if is_full else None

    def reason(self, path: str, stamp: LinkStamp, made: Made) -> str | None:
        """Return why this link was refused, or None if it was not."""
        if (stray := self._find(path, stamp, made)) is not None:
            return stray.reason
        # Its refusal may be one of those that were dropped.
        if self._full_since is not None and made.since(stamp.ctime_ns) <= self._full_since:
            return f"{MAX_REFUSED} newer strays were refused, and no more refusals are kept"
        return None

    def _find(self, path: str, stamp: LinkStamp, made: Made) -> RefusedStray | None:
        return next((self._by_key[key] for key in _keys(path, stamp, made) if key in self._by_key), None)

    def add(self, path: str, stamp: LinkStamp, reason: str, made: Made) -> None:
        """Note a refusal; a stray that was refused before keeps its first reason, also under another name."""
        known = self._find(path, stamp, made)
        if known is None and self.reason(path, stamp, made) is not None:
            return  # it would be dropped at once
        if known is not None and (known.path, known.link_stamp, known.made) == (path, stamp, made):
            return
        # Names in a reason need not be UTF-8; the state file is.
        reason = reason.encode(errors="backslashreplace").decode() if known is None else known.reason
        stray = RefusedStray(path, stamp, reason, made)
        if known is not None and known.path == path:
            self._strays.remove(known)
        self._strays.append(stray)
        self._by_key |= dict.fromkeys(stray.keys, stray)

    def prune(self, root_fd: int, *, forget: bool = True) -> None:
        """Follow directories that were renamed, and forget links that are gone, unless they may be found again under another
        name."""
        strays: list[RefusedStray] = []
        directories: list[str] | None = None
        for stray in sorted(self._strays, key=lambda stray: (-stray.since_ns, stray.path)):
            if len(strays) == MAX_REFUSED:
                break
            found: RefusedStray | None = stray
            # If it lies there no more: its directory may be renamed. An I/O error that hides it does not lose it.
            if _lies_at(root_fd, stray.path, stray) is False:
                directories = _directories(root_fd) if directories is None else directories
                found = _found_in(root_fd, directories, stray) or (None if forget else stray)
            if found is not None:
                strays.append(found)
        self._keep(strays)

    def all(self) -> tuple[RefusedStray, ...]:
        """Return all of them, sorted by path."""
        return tuple(sorted(self._strays, key=lambda stray: (stray.path, stray.since_ns)))


def _keys(path: str, stamp: LinkStamp, made: Made) -> Iterator[_Key]:
    for time in (("ctime", stamp.ctime_ns), *made.marks()):
        yield path, *time
        yield (stamp.device, stamp.inode), *time
    if made.mtime_ns is not None and made.mtime_ns % _SECOND == 0:  # restored by tar, which keeps whole seconds
        yield path, "second", made.mtime_ns // _SECOND


def _found_in(root_fd: int, directories: list[str], stray: RefusedStray) -> RefusedStray | None:
    """Return a stray that lies no more where it was as it lies now; None if it was removed."""
    directory, _, name = stray.path.rpartition("/")
    places = (f"{other}/{name}" for other in directories)
    place = next((place for place in places if _lies_at(root_fd, place, stray)), None)
    if place is not None:
        return replace(stray, path=place)
    return stray if directory not in directories else None  # the whole directory was moved away; it may come back


def _lies_at(root_fd: int, path: str, stray: RefusedStray) -> bool | None:
    """Say whether what lies at a path is that very link; None if it cannot be read."""
    try:
        status = os.stat(path, dir_fd=root_fd, follow_symlinks=False)
        now = _keys(stray.path, LinkStamp.of(status), Made.of(root_fd, path, status))
        return not set(stray.keys).isdisjoint(now)
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
