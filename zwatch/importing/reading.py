"""The files of a source: opened as regular files alone, never pickles or pointers, and unchanged while they are read."""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zwatch.deploy import header
from zwatch.deploy.oserrors import close_quietly, user_name
from zwatch.errors import Refused, Rejection

PICKLES = (".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth")
_POINTER = b"version https://git-lfs.github.com/spec/"
_MOST_POINTER = 1024  # bytes: "must be less than 1024 bytes", https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
_MOST_SMALL = 64 * 2**20
"""Largest file that is read whole, bytes: Qwen3's tokenizer.json has 11 MB."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells whether a file is still the same, without reading it. `ctime_ns` tells of a change whose time was put back; it is
    None of a file whose hash is known, since another version may get a hard link to it meanwhile."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int | None

    @classmethod
    def of(cls, status: os.stat_result, *, is_sealed: bool) -> "Identity":
        """Return the identity of a file with this status."""
        changed = None if is_sealed else status.st_ctime_ns
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, changed)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file that is read: its path, what it is called in errors and in the provenance, what it was like when it was first
    seen, and, if it comes from a sealed version, the blake3 that its seal says."""

    path: Path
    name: str
    identity: Identity
    sealed: str | None = None


def find(path: Path, name: str, sealed: str | None = None) -> SourceFile:
    """Look at a file of a source.

    Raises:
        Refused: it is not a regular file, or a Git LFS pointer.
        OSError: it cannot be read.
    """
    with _opened(path, name) as fd:
        found = SourceFile(path, name, Identity.of(os.fstat(fd), is_sealed=sealed is not None), sealed)
        if found.identity.size < _MOST_POINTER and os.pread(fd, len(_POINTER), 0) == _POINTER:
            raise Refused(
                f"{path}: this is a Git LFS pointer, not the file itself; run `git lfs pull` in the clone (after "
                "`git lfs install`), then import again"
            )
        return found


@contextmanager
def opened(file: SourceFile) -> Iterator[int]:
    """Open a file and check, before and after, that it is the one that was found.

    Raises:
        Refused: it changed.
        OSError: it cannot be read.
    """
    check_unchanged(file)  # says it of a file that is gone, too
    with _opened(file.path, file.name) as fd:
        _check(file, os.fstat(fd))
        yield fd
        _check(file, os.fstat(fd))
    check_unchanged(file)


def check_unchanged(file: SourceFile) -> None:
    """Check that a path still leads to the file that was found there.

    Raises:
        Refused: it does not.
    """
    try:
        status = os.stat(file.path)
    except FileNotFoundError:
        raise _changed(file, "it is gone") from None
    _check(file, status)


def read_whole(file: SourceFile) -> bytes:
    """Return the bytes of a small file.

    Raises:
        Refused: it changed, or is too large.
        OSError: it cannot be read.
    """
    if file.identity.size > _MOST_SMALL:
        raise Refused(f"{file.path}: {file.identity.size} bytes, expected at most {_MOST_SMALL} of such a file")
    with opened(file) as fd, open(fd, "rb", closefd=False) as stream:
        return stream.read(_MOST_SMALL)


def read_header(file: SourceFile) -> header.Header:
    """Read and check the header of a weights file.

    Raises:
        Refused: it is not well formed, or the file changed.
        OSError: it cannot be read.
    """
    with opened(file) as fd:
        try:
            return header.read_header(fd, str(file.path))
        except Rejection as rejection:
            end = " Fetch" if rejection.reason.endswith("?") else "; fetch"
            raise Refused(f"{rejection.reason}{end} the file again") from None


def refuse_pickle(path: Path | str) -> None:
    """Refuse a file whose name says that it is a pickle.

    Raises:
        Refused: with what to do.
    """
    if str(path).lower().endswith(PICKLES):
        raise Refused(
            f"{path}: this is a pickle, which can run any code when it is opened, so zwatch never opens one; take the model's "
            ".safetensors files, or save it as such where you trust it (`pipeline.save_pretrained(DIR)` in diffusers)"
        )


@contextmanager
def _opened(path: Path, name: str) -> Iterator[int]:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would wait for a writer
    except PermissionError as error:
        raise Refused(f"{path}: {error.strerror}: {user_name()} may not read it; let this user read it, or import as another") from None  # fmt: skip
    except FileNotFoundError:
        if path.is_symlink():
            raise Refused(
                f"{path}: the link leads to {os.readlink(path)}, which is not there; is the download complete, and was the "
                "cache copied with its blobs?"
            ) from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise Refused(f"{path}: expected a regular file or a link to one")
        yield fd
    except OSError as error:
        if not isinstance(error.filename, str):
            error.filename = str(path)
        raise
    finally:
        close_quietly(fd)


def _check(file: SourceFile, status: os.stat_result) -> None:
    found = Identity.of(status, is_sealed=file.sealed is not None)
    if found != file.identity:
        if found.size != file.identity.size:
            what = f"it had {file.identity.size} bytes, now {found.size}"
        elif (found.device, found.inode) != (file.identity.device, file.identity.inode):
            what = "it is another file now"
        else:
            what = "it was written to"
        raise _changed(file, what)


def _changed(file: SourceFile, what: str) -> Refused:
    return Refused(
        f"{file.path}: changed while it was imported: {what}; wait until whatever writes it is done, then import again"
    )


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        Refused: it is no file that can be imported, or holds no JSON object.
        OSError: it cannot be read.
    """
    try:
        found = json.loads(read_whole(find(path, path.name)))
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path}: not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Refused(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found
