"""The output directory: image files under names that sort by time, and an index of them in memory."""

import bisect
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

LOOK_SECONDS = 10.0
"""How long what other programs add to the directory, or remove from it, may go unseen."""
_STALE_SECONDS = 3600.0  # a half-written file of this age has lost its writer
NAME = r"([0-9]{8}_[0-9]{6})_seed([0-9]{1,19})(?:_([1-9][0-9]{0,8}))?\.(png|jpg|webp)"
"""What the whole of a file's name is like."""
_STAMP = "%Y%m%d_%H%M%S"
_PART = ".part"

_Order = tuple[str, int, int, str]


def order(name: str) -> _Order | None:
    """Return what names are sorted by: the second, the seed, the copy; None if it is no name of ours."""
    found = re.fullmatch(NAME, name)
    if found is None:
        return None
    stamp, seed, copy, suffix = found.groups()
    return stamp, int(seed), int(copy or 1), suffix


def created(name: str) -> datetime | None:
    """Return the second, in UTC, that a name of ours stands for; None if there is no such second."""
    try:
        return datetime.strptime(name[:15], _STAMP).replace(tzinfo=UTC)
    except ValueError:
        return None


class Gallery:
    """All images of one directory. Everything here blocks, and only one thread may call it.

    A file appears under its name whole or not at all. Beyond `max_images` and `max_bytes` the oldest are deleted.
    """

    def __init__(self, directory: Path, max_images: int | None, max_bytes: int | None) -> None:
        self.directory = directory
        self.bytes = 0
        """Bytes of all images together."""
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._sizes: dict[str, int] = {}
        self._names: list[tuple[_Order, str]] = []
        self._seen: int | None = None
        self._looked = 0.0

    def __len__(self) -> int:
        return len(self._names)

    def open(self) -> None:
        """Make the directory, remove what a crash left half-written, and learn what there is. `keep_limits` comes next.

        Raises:
            OSError: it cannot be made or read.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        self._look()

    def save(self, file: bytes, seed: int, suffix: str, moment: datetime) -> str:
        """Write an image under a name of its own; return the name.

        Raises:
            OSError: it cannot be written; nothing is left of it.
        """
        part = self.directory / f".{secrets.token_hex(8)}{_PART}"
        try:
            self._write(part, file)
            stem, copy = f"{moment.astimezone(UTC).strftime(_STAMP)}_seed{seed}", 1
            name = f"{stem}.{suffix}"
            while not _give_name(part, self.directory / name):
                copy += 1
                name = f"{stem}_{copy}.{suffix}"
        finally:
            part.unlink(missing_ok=True)
        self._add([(name, len(file))])
        return name

    def read(self, name: str) -> bytes | None:
        """Return an image file; None if there is none of that name. May be called by any thread."""
        if order(name) is None:
            return None
        try:
            with opened(self.directory / name) as file:
                return file.read()
        except OSError:
            return None

    def page(self, limit: int, before: str | None) -> list[str]:
        """Return up to `limit` names, newest first, all of them older than `before`."""
        self._look_again()
        place = order(before) if before is not None else None
        end = len(self._names) if place is None else bisect.bisect_left(self._names, (place, before or ""))
        return [name for _, name in self._names[max(0, end - limit) : end][::-1]]

    def delete(self, name: str) -> bool:
        """Delete an image; say whether it was there.

        Raises:
            OSError: it cannot be deleted.
        """
        if order(name) is None:
            return False
        was_there = _remove(self.directory / name)
        self.forget([name])
        return was_there

    def delete_some(self, limit: int) -> int:
        """Delete up to `limit` images, the oldest first; return how many there were.

        Raises:
            OSError: one cannot be deleted.
        """
        names = [name for _, name in self._names[:limit]]
        gone: list[str] = []
        try:
            for name in names:
                _remove(self.directory / name)
                gone.append(name)
        finally:
            self.forget(gone)
        return len(gone)

    @property
    def has_limits(self) -> bool:
        """Whether old images are deleted at some point."""
        return self._max_images is not None or self._max_bytes is not None

    def keep_limits(self) -> None:
        """Delete the oldest beyond the limits; the newest stays, however large it is.

        Raises:
            OSError: one cannot be deleted.
        """
        excess = 0 if self._max_images is None else len(self) - self._max_images
        if excess > 0:
            self.delete_some(excess)
        while self._max_bytes is not None and self.bytes > self._max_bytes and len(self) > 1:
            self.delete_some(1)

    def look(self) -> None:
        """Learn what other programs added or removed, if there is a sign of it.

        Raises:
            OSError: the directory cannot be read.
        """
        if self.directory.stat().st_mtime_ns != self._seen:
            self._look()

    def forget(self, names: Iterable[str]) -> None:
        """Take names out of the index whose files are gone."""
        gone = {name for name in names if name in self._sizes}
        for name in gone:
            self.bytes -= self._sizes.pop(name)
        if len(gone) > 100:
            self._names = [entry for entry in self._names if entry[1] not in gone]
        else:
            for name in gone:
                key = order(name)
                assert key is not None  # no other names are in the index
                del self._names[bisect.bisect_left(self._names, (key, name))]

    def _write(self, part: Path, file: bytes) -> None:
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileNotFoundError:  # somebody removed the whole directory
            self.directory.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with open(descriptor, "wb") as written:
            written.write(file)

    def _look_again(self) -> None:
        if time.monotonic() - self._looked > LOOK_SECONDS:
            try:
                self.look()
            except OSError:
                pass  # what is known is shown; a save says what is wrong

    def _look(self) -> None:
        self._looked = time.monotonic()
        self._seen = self.directory.stat().st_mtime_ns  # before the listing: what comes during it is seen next time
        found = set(os.listdir(self.directory))
        self.forget([name for name in self._sizes if name not in found])
        new = []
        for name in found - self._sizes.keys():
            if order(name) is not None:
                size = _size(f"{self.directory}/{name}")  # a Path takes longer than the call
                if size is not None:
                    new.append((name, size))
            elif name.startswith(".") and name.endswith(_PART):
                _remove_stale(self.directory / name)
        self._add(new)

    def _add(self, entries: list[tuple[str, int]]) -> None:
        for name, size in entries:
            self.bytes += size - self._sizes.get(name, 0)
            self._sizes[name] = size
        new = [(key, name) for name, _ in entries if (key := order(name)) is not None]
        if len(new) > 100:
            self._names = sorted([*self._names, *new])
        else:
            for entry in new:
                bisect.insort(self._names, entry)


def opened(path: Path) -> BinaryIO:
    """Open a regular file, and nothing else: the directory may be writable for others, who leave links and pipes.

    Raises:
        OSError: it is not there, is something else, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return open(descriptor, "rb")


def _give_name(part: Path, name: Path) -> bool:
    """Give a whole file its name, unless the name is taken."""
    try:
        os.link(part, name)
    except FileExistsError:
        return False
    except OSError:
        if not part.exists():
            raise
        # A file system without hard links. Two programs that write here in one moment could take one name.
        if name.exists():
            return False
        os.rename(part, name)
    return True


def _size(path: str) -> int | None:
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _remove(path: Path) -> bool:
    """Remove an image; say whether there was one. What else has its name (a directory) is none of ours."""
    if _size(str(path)) is None:
        return False
    path.unlink(missing_ok=True)
    return True


def _remove_stale(path: Path) -> None:
    try:
        if time.time() - os.lstat(path).st_mtime > _STALE_SECONDS:
            path.unlink()
    except OSError:
        pass
