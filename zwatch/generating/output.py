"""Where the pictures of a request are written. A file that is there is never replaced unless that was asked for."""

import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path

from zwatch.errors import UsageError, ZwatchError

FORMATS = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
"""The formats of pictures, by the suffix of a file's name."""
SUFFIXES = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}


def format_of(path: Path) -> str | None:
    """Return the format that a file's name asks for, None if it has no suffix.

    Raises:
        UsageError: no picture has such a suffix.
    """
    suffix = path.suffix.lower()
    if suffix and suffix not in FORMATS:
        raise UsageError(f"{path}: pictures are {', '.join(FORMATS)}, got {path.suffix!r}")
    return FORMATS.get(suffix)


class Output:
    """The files that `count` pictures are written to: `path`, several numbered from 1 before its suffix; in a directory, or
    without a path in the working directory, each by its name in the history."""

    def __init__(self, path: Path | None, count: int, *, replaces: bool = False) -> None:
        self._directory = Path() if path is None else path if path.is_dir() else None
        self._replaces = replaces
        self._paths: list[Path] = []
        if self._directory is None:
            assert path is not None
            self._paths = [path] if count == 1 else [_numbered(path, number) for number in range(1, count + 1)]

    def check(self) -> None:
        """Check, before anything is drawn, that the pictures can be written.

        Raises:
            UsageError: there is no such directory, or a file is there already.
        """
        for path in self._paths:
            if not path.parent.is_dir():
                raise UsageError(f"{path}: there is no directory {path.parent}")
            if path.is_dir():
                raise UsageError(f"{path} is a directory")
            if _is_taken(path) and not self._replaces:
                raise UsageError(f"{path} is there already: give another name, or --force to replace it")

    def write(self, number: int, file: bytes, name: str) -> Path:
        """Write picture `number`, counted from 0, whose name in the history is `name`; return where it is. A file that appeared
        since `check` stays too: the picture then gets the next free name.

        Raises:
            ZwatchError: it could not be written; nothing of it is left.
        """
        path = self._paths[number] if self._directory is None else self._directory / name
        try:
            if path.exists() and not path.is_file():  # /dev/null, a pipe
                path.write_bytes(file)
                return path
            if self._replaces:
                _replace(path, file)
                return path
            return _create(path, file)
        except OSError as error:
            raise ZwatchError(f"{path} cannot be written: {error.strerror}") from None


def name_for(name: str | None, seed: int, suffix: str) -> str:
    """Return the file name of a picture: the one in the history, or where none is kept, one as it would be there."""
    if name is not None and name not in (".", "..") and not set(name) & {"/", "\0"}:  # it comes from the network
        return name
    return f"{time.strftime('%Y%m%d_%H%M%S', time.gmtime())}_seed{seed}{suffix}"


def _numbered(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}_{number}{path.suffix}")


def _is_taken(path: Path) -> bool:
    """Say whether a file, or a link that leads nowhere, would be replaced. Devices and pipes are written to."""
    return path.is_file() or (path.is_symlink() and not path.exists())


def _free(path: Path) -> Iterator[Path]:
    """Return the path, then such as the history would take: `_2`, `_3` before the suffix."""
    yield path
    for number in range(2, 10_000):
        yield _numbered(path, number)


def _create(path: Path, file: bytes) -> Path:
    for free in _free(path):
        try:
            with free.open("xb") as out:
                try:
                    out.write(file)
                    out.flush()
                except BaseException:
                    free.unlink(missing_ok=True)
                    raise
        except FileExistsError:
            continue
        return free
    raise ZwatchError(f"{path} and 9,999 names like it are there already")


def _replace(path: Path, file: bytes) -> None:
    """Replace a file at once, so that whoever reads it gets the old or the new one; what a link leads to is replaced, not the link."""
    path = path.resolve()
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        beside.write_bytes(file)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
