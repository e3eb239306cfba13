"""The output directory and an index of it in memory."""

import errno
import os
import secrets
import stat
import time
from collections.abc import Callable, Collection, Container, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from zwatch.deploy.durable import ensure_directory
from zwatch.generation.image_order import ImageOrder, order

LOOK_SECONDS = 10.0
"""Longest time until a change that another program makes in the directory is noticed, seconds."""
_STALE_SECONDS = 3600.0  # a partly written file of this age was left by a process that ended
_PART = ".part"
_ORDER = ".zwatch-order"
"""The file with `ImageOrder.text`, which is written when the clock was set back."""
_MAX_ORDER = 64 * 2**20


class ImageIndex:
    """All images of one directory. Every method blocks; only one thread at a time may call them.

    A file appears under its name complete or not at all. Beyond `max_images` and `max_bytes`, `keep_limits` deletes the
    images that were added first. After `look_seconds`, a page looks for changes that other programs made.

    `on_change` gets the images that were added, with their bytes, and the names of those that were removed; in the thread
    that called.
    """

    def __init__(
        self,
        directory: Path,
        max_images: int | None = None,
        max_bytes: int | None = None,
        *,
        look_seconds: float = LOOK_SECONDS,
        on_change: Callable[[Mapping[str, int], Iterable[str]], None] = lambda added, removed: None,
    ) -> None:
        self.directory = directory
        self.bytes = 0
        """Bytes of all images."""
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._look_seconds = look_seconds
        self._on_change = on_change
        self._sizes: dict[str, int] = {}
        self._order = ImageOrder()
        self._has_order = False
        """Whether `_ORDER` was read."""
        self._seen: int | None = None
        self._looked = 0.0

    def __len__(self) -> int:
        return len(self._order)

    @property
    def newest(self) -> str | None:
        """The name of the newest image. Any thread may ask."""
        return next(iter(self._order.page(1, None)), None)

    def open(self) -> None:
        """Create the directory, remove files that a crash left incomplete, read the list of images, and try to write.

        Call `keep_limits` afterwards.

        Raises:
            OSError: the directory cannot be created, read or written.
        """
        ensure_directory(self.directory)
        self._look()
        trial = self.directory / f".{secrets.token_hex(8)}{_PART}"
        try:
            self._write(trial, b"0")  # a full disk takes an empty file
        finally:
            trial.unlink(missing_ok=True)

    def save(self, file: bytes, seed: int, suffix: str, moment: datetime) -> str:
        """Write an image under a new name; return the name.

        Raises:
            OSError: it cannot be written; no partial file remains.
        """
        era = self._order.era
        stamp = self._order.stamp(moment)
        stem, copy = f"{stamp}_seed{seed}", 1
        if self._order.era != era:
            self._write_order()
        made = self._order.moment(stamp, moment)
        name = f"{stem}.{suffix}"
        part = self.directory / f".{secrets.token_hex(8)}{_PART}"
        try:
            self._write(part, file)
            os.utime(part, ns=(made, made))
            while not _give_name(part, self.directory / name):
                copy += 1
                name = f"{stem}_{copy}.{suffix}"
        finally:
            part.unlink(missing_ok=True)
        # A file that was removed since the last look may have had this name.
        self.forget([name])
        self._order.add_saved(name, made)
        self._sizes[name] = len(file)
        self.bytes += len(file)
        self._on_change({name: len(file)}, ())
        return name

    def read(self, name: str) -> bytes | None:
        """Return an image file; None if there is no image of that name. Any thread may call this."""
        if order(name) is None:
            return None
        try:
            with opened(self.directory / name) as file:
                return file.read()
        except OSError:
            return None

    def page(self, limit: int, before: str | None, among: Container[str] | None = None, offset: int = 0) -> list[str]:
        """Return up to `limit` names that are older than `before`, newest first, without the first `offset` of them; with `among`,
        only those that are in it."""
        self.look_again()
        return self._order.page(limit, before, among, offset)

    def place(self, name: str | None, among: Collection[str] | None = None) -> tuple[int, int]:
        """Return how many images, of those `among`, are newer than a name (None: all), and how many there are."""
        total = self._order.count(among)
        if name is None:
            return total, total
        is_counted = self.has(name) and (among is None or name in among)
        return total - self._order.count(among, name) - is_counted, total

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each image by its name. Any thread may call this."""
        return self._sizes.copy()

    def delete(self, name: str) -> bool:
        """Delete an image; return whether it existed.

        Raises:
            OSError: it cannot be deleted.
        """
        if order(name) is None:
            return False
        was_there = _remove(self.directory / name)
        self.forget([name])
        return was_there

    def delete_some(self, limit: int) -> int:
        """Delete up to `limit` images, those that were added first; return how many were deleted.

        Raises:
            OSError: an image cannot be deleted.
        """
        names = self._order.oldest(limit)
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
        """Whether there is a limit beyond which old images are deleted."""
        return self._max_images is not None or self._max_bytes is not None

    def keep_limits(self) -> None:
        """Delete the images beyond the limits that were added first; the last one is always kept, whatever its size.

        Raises:
            OSError: an image cannot be deleted.
        """
        excess = 0 if self._max_images is None else len(self) - self._max_images
        if excess > 0:
            self.delete_some(excess)
        while self._max_bytes is not None and self.bytes > self._max_bytes and len(self) > 1:
            self.delete_some(1)

    def look_again(self) -> None:
        """Look for changes that other programs made, unless the last look was less than `look_seconds` ago."""
        if time.monotonic() - self._looked > self._look_seconds:
            try:
                self.look()
            except OSError:
                pass  # the known images are listed; the next save reports the error

    def look(self) -> None:
        """Read the directory again if its modification time shows that another program changed it.

        Raises:
            OSError: the directory cannot be read.
        """
        if self.directory.stat().st_mtime_ns != self._seen:
            self._look()

    def forget(self, names: Iterable[str]) -> None:
        """Remove names from the index whose files no longer exist."""
        gone = {name for name in names if name in self._sizes}
        for name in gone:
            self.bytes -= self._sizes.pop(name)
        self._order.remove(gone)
        if gone:
            self._on_change({}, gone)

    def has(self, name: str) -> bool:
        """Return whether an image is known."""
        return name in self._sizes

    def _write_order(self) -> None:
        """Keep which images are of earlier eras; without it, a later run goes by their names."""
        part = self.directory / f".{secrets.token_hex(8)}{_PART}"
        try:
            self._write(part, self._order.text().encode())
            os.replace(part, self.directory / _ORDER)
        except OSError:
            part.unlink(missing_ok=True)

    def _write(self, part: Path, file: bytes) -> None:
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except FileNotFoundError:  # another program removed the directory
            ensure_directory(self.directory)
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        with open(descriptor, "wb") as written:
            written.write(file)

    def _look(self) -> None:
        self._looked = time.monotonic()
        if not self._has_order:  # a page may be asked for before `open`
            moments = self._order.moments()
            self._order = ImageOrder(_text(self.directory / _ORDER))
            self._order.add_found(moments)
            self._has_order = True
        # Before the listing, so that a change during it is noticed by the next look.
        seen = self.directory.stat().st_mtime_ns
        found = set(os.listdir(self.directory))
        self._seen = seen
        self.forget([name for name in self._sizes if name not in found])
        new, moments = {}, {}
        for name in found - self._sizes.keys():
            if order(name) is not None:
                state = _state(f"{self.directory}/{name}")  # a str: making a Path takes longer than lstat
                if state is not None:
                    new[name], moments[name] = state.st_size, state.st_mtime_ns
            elif name.startswith(".") and name.endswith(_PART):
                _remove_stale(self.directory / name)
        self._sizes |= new
        self.bytes += sum(new.values())
        self._order.add_found(moments)
        if new:
            self._on_change(new, ())


def opened(path: Path) -> BinaryIO:
    """Open a regular file. Links and pipes are refused: other users may have write access to the directory.

    Raises:
        OSError: it does not exist, is not a regular file, or cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return open(descriptor, "rb")


def _give_name(part: Path, name: Path) -> bool:
    """Give a complete file its final name; return False if the name is in use."""
    try:
        os.link(part, name)
    except FileExistsError:
        return False
    except OSError:
        if not part.exists():
            raise
        # A file system without hard links. Two programs that write at the same moment could choose the same name.
        if name.exists():
            return False
        os.rename(part, name)
    return True


def _state(path: str) -> os.stat_result | None:
    """Return the state of a regular file; None if there is none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found if stat.S_ISREG(found.st_mode) else None


def _remove(path: Path) -> bool:
    """Remove an image; return whether there was one. Anything but a regular file (a directory) stays."""
    if _state(str(path)) is None:
        return False
    path.unlink(missing_ok=True)
    return True


def _remove_stale(path: Path) -> None:
    try:
        # In either direction: it may have been written while the clock was ahead.
        if abs(time.time() - os.lstat(path).st_mtime) > _STALE_SECONDS:
            path.unlink()
    except OSError:
        pass


def _text(path: Path) -> str:
    """Return the beginning of a text file; empty if it cannot be read."""
    try:
        with opened(path) as file:
            return file.read(_MAX_ORDER).decode("ascii", "replace")
    except OSError:
        return ""
