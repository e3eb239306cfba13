"""Small files that are kept for the next start, each with the hash of what it holds.

A load does without them where their disk does not answer: they are asked for, and left after some seconds.
"""

import logging
import secrets
import threading
import time
from contextlib import suppress
from pathlib import Path

from blake3 import blake3

from zwatch.deploy.asking import Asker
from zwatch.deploy.durable import clear_place, make_directory, read_regular

_log = logging.getLogger(__name__)

_MOST_BYTES = 2**28
"""More than any kept file has: a tokenizer takes some ten megabytes."""
_HASH = 64
"""Hexadecimal digits of a hash, with which a kept file begins."""
_PART = ".part"
_STALE_SECONDS = 3600.0
"""The age from which on a file that is not complete belongs to nobody: writing one takes milliseconds."""


class KeptFiles:
    """The files of one kind in a directory: those with `suffix`, `most` of them. Without a directory nothing is kept."""

    def __init__(self, directory: Path | None, suffix: str, most: int) -> None:
        self._directory = directory
        self._suffix = suffix
        self._most = most
        self._asker = Asker()
        self._turn = threading.Lock()
        """Threads share this object, and `Asker` is for one caller at a time."""

    @property
    def is_empty(self) -> bool:
        """Whether nothing is kept, or that cannot be seen."""
        if self._directory is None:
            return True
        with suppress(OSError), self._turn:
            return self._asker.ask("names", _has_none, self._directory, self._suffix)
        return True

    def read(self, name: str) -> bytes | None:
        """Return what is kept under a name; a file that is not whole, or does not come, is as good as none."""
        if self._directory is None:
            return None
        with suppress(OSError, ValueError):
            with self._turn:
                found = self._asker.ask(name, read_regular, self._directory / f"{name}{self._suffix}", _MOST_BYTES)
            if blake3(found[_HASH:]).hexdigest().encode() == found[:_HASH]:
                return found[_HASH:]
        return None

    def write(self, name: str, data: bytes) -> None:
        """Keep bytes under a name, and remove the oldest files beyond the limit. A failure is logged."""
        if self._directory is None:
            return
        try:
            with self._turn:
                self._asker.ask(name, self._write, self._directory, name, data)
        except OSError as error:
            _log.warning(
                "%s cannot be kept for the next start, which will take longer: %s",
                self._directory,
                error.strerror or error,
            )

    def _write(self, directory: Path, name: str, data: bytes) -> None:
        part = directory / f".{secrets.token_hex(8)}{_PART}"
        try:
            make_directory(directory)
            clear_place(directory / f"{name}{self._suffix}")
            part.write_bytes(blake3(data).hexdigest().encode() + data)
            part.replace(directory / f"{name}{self._suffix}")
            self._tidy(directory)
        except OSError:
            with suppress(OSError):
                part.unlink()
            raise

    def _tidy(self, directory: Path) -> None:
        """Remove the oldest files beyond the limit, and those that a process did not complete before it was killed."""
        kept = sorted((at, path) for path in directory.glob(f"*{self._suffix}") if (at := _changed(path)) is not None)
        stale = time.time() - _STALE_SECONDS
        left = [path for path in directory.glob(f".*{_PART}") if (_changed(path) or stale) < stale]
        for path in [*left, *(path for _, path in kept[: -self._most])]:
            with suppress(OSError):  # another thread tidies too; or it is a directory, say, and not ours
                path.unlink()

    def remove(self, name: str) -> None:
        """Remove what is kept under a name."""
        if self._directory is not None:
            with suppress(OSError), self._turn:
                self._asker.ask(name, (self._directory / f"{name}{self._suffix}").unlink)


def _has_none(directory: Path, suffix: str) -> bool:
    return not any(directory.glob(f"*{suffix}"))


def _changed(path: Path) -> float | None:
    """Return when a file was changed, seconds since 1970; None if it is not there any more."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return None
