"""The two versions of a comparison: which files each has, by its seal or else as they lie there."""

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zwatch.deploy import hashing, seal
from zwatch.deploy.oserrors import close_quietly
from zwatch.deploy.versions import opened
from zwatch.errors import Rejection

_NOT_CONTENT = frozenset({seal.SEAL_NAME, seal.SIGNATURE_NAME, "model.sig"})
_MOST_JSON = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Side:
    """One version. `files` has each file's hash by its path; None where no seal tells it. `problem` says why there is no seal."""

    name: str
    directory: Path
    digest: str | None
    problem: str | None
    files: Mapping[str, str | None]
    fd: int

    @contextmanager
    def opened(self, path: str) -> Iterator[int]:
        """Open one of the files. Of a version without a seal, which may be a snapshot of a hub, symlinks to files are followed.

        Raises:
            Rejection: it is not there, or no regular file.
            OSError: it could not be opened.
        """
        if self.digest is not None:
            with seal.opened_file(self.fd, path) as fd:
                yield fd
            return
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.fd)
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise Rejection("file_not_regular", f"{path}: expected a regular file")
            yield fd
        finally:
            close_quietly(fd)

    def read(self, path: str) -> bytes | None:
        """Return a file's bytes; None if it is larger than a config is.

        Raises:
            Rejection, OSError: as `opened`.
        """
        with self.opened(path) as fd:
            return None if os.fstat(fd).st_size > _MOST_JSON else seal.read_whole(fd)

    def hash(self, path: str) -> str:
        """Return a file's blake3, from the seal or else from its bytes.

        Raises:
            Rejection, OSError: as `opened`.
        """
        if (known := self.files[path]) is not None:
            return known
        with self.opened(path) as fd:
            return hashing.hash_file(fd)

    def size(self, path: str) -> int:
        """Return a file's size in bytes.

        Raises:
            Rejection, OSError: as `opened`.
        """
        with self.opened(path) as fd:
            return os.fstat(fd).st_size


@contextmanager
def opened_side(name: str, directory: Path) -> Iterator[Side]:
    """Open a version for a comparison.

    Raises:
        OSError: it could not be read.
    """
    with opened(directory) as fd:
        try:
            sealed = seal.read_seal(fd)
        except Rejection as rejection:
            files = dict.fromkeys(_files(directory))
            yield Side(name, directory, None, rejection.reason, files, fd)
        else:
            yield Side(name, directory, sealed.digest, None, sealed.files, fd)


def _files(directory: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = os.path.relpath(folder, directory)
        for name in sorted(names):
            path = name if here == "." else f"{here}/{name}"
            if not name.startswith(".") and path not in _NOT_CONTENT and os.path.isfile(os.path.join(folder, name)):
                yield path


def are_equal(first: Side, second: Side, path: str) -> bool | None:
    """Say whether a file that both have is the same, from the seals alone, or because it is one file with two names; None if
    they do not tell."""
    one, other = first.files[path], second.files[path]
    if one is not None and other is not None:
        return one == other
    try:
        with first.opened(path) as fd, second.opened(path) as other_fd:
            return True if os.path.samestat(os.fstat(fd), os.fstat(other_fd)) else None
    except (Rejection, OSError):
        return None


Keys = list[tuple[str, Any, Any]]
"""(key, value before, value after), both as JSON text, None where the key is missing."""


def changed_keys(before: bytes, after: bytes) -> Keys | None:
    """Return the keys of two JSON objects whose values differ, with dots between levels; None if one of them is no JSON
    object. A list is one value."""
    try:
        first, second = (dict(_flat(_object(data))) for data in (before, after))
    except (ValueError, RecursionError):
        return None
    names = dict.fromkeys([*first, *second])
    return [(name, first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)]


def _object(data: bytes) -> dict[str, Any]:
    found = json.loads(data, parse_constant=str)
    if isinstance(found, dict):
        return found
    raise ValueError("no object")


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, one in value.items():
        name = f"{prefix}{json.dumps(key) if '.' in key else key}"  # else it could be a key of an object in an object
        if isinstance(one, dict) and one:
            yield from _flat(one, f"{name}.")
        else:
            yield name, json.dumps(one)
