"""The models root and the version directories in it."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from zwatch.deploy import header, provenance, seal
from zwatch.deploy.oserrors import close_quietly, is_missing
from zwatch.deploy.provenance import Provenance
from zwatch.errors import Rejection

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")

PRUNED = re.compile(r"\.([A-Za-z0-9_][A-Za-z0-9._-]{0,63})\.(pruned|removing)-[0-9a-f]{12}")
"""What `zwatch prune` renames a version to: whole, or while it is removed."""
IMPORTING = re.compile(r"\.([A-Za-z0-9_][A-Za-z0-9._-]{0,63})\.importing")
"""In what `zwatch import` makes a version."""


def is_version_name(name: str) -> bool:
    """Say whether `name` may name a version: 1-64 of `A-Za-z0-9._-`, not starting with `.` or `-`."""
    return _NAME.fullmatch(name) is not None


def name_problem(name: str, whose: str = "a version's") -> str | None:
    """Return why a directory of this name cannot be a version, or what `whose` says; None if it can."""
    if is_version_name(name):
        return None
    if PRUNED.fullmatch(name):
        return "a `zwatch prune` that was interrupted left it; the next one finishes it"
    if IMPORTING.fullmatch(name):
        return "a `zwatch import` works in it, or was interrupted: the same command goes on, or remove it"
    if name.startswith((".", "-")):
        what = f"begins with {name[0]!r}"
    elif len(name) > 64:
        what = f"has {len(name)} characters"
    else:
        wrong = next((one for one in name if not _NAME.fullmatch(f"_{one}")), name)
        what = f"has the character {wrong!a}"
    return f"{whose} name has 1-64 of A-Za-z0-9._- and begins with neither . nor -; this one {what}"


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """Open the directory `path` and yield its descriptor.

    Raises:
        OSError: it is missing, not a directory, or may not be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        close_quietly(fd)


def is_version_directory(root_fd: int, name: str) -> bool:
    """Say whether `name` is a real directory directly under the models root, and may name a version.

    Raises:
        OSError: that could not be found out.
    """
    if not is_version_name(name):
        return False
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=root_fd, follow_symlinks=False).st_mode)
    except OSError as error:
        if not is_missing(error):
            raise
        return False


def version_names(root_fd: int) -> list[str]:
    """Return the names of all version directories under the models root, sorted; one that cannot be looked at is among
    them, and its summary says why.

    Raises:
        OSError: the models root cannot be listed.
    """
    return sorted(name for name in os.listdir(root_fd) if _may_be_version(root_fd, name))


def other_directories(root_fd: int) -> list[tuple[str, str]]:
    """Return the directories in the models root whose names cannot be a version's, and why, sorted. A name that is not UTF-8
    has its bytes escaped.

    Raises:
        OSError: the models root cannot be listed.
    """
    with os.scandir(root_fd) as entries:
        found = [entry.name for entry in entries if not is_version_name(entry.name) and _is_directory(entry)]
    shown = sorted(name.encode(errors="surrogateescape").decode(errors="backslashreplace") for name in found)
    return [(name, name_problem(name) or "") for name in shown]


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:  # what it is cannot be found out
        return False


def _may_be_version(root_fd: int, name: str) -> bool:
    try:
        return is_version_directory(root_fd, name)
    except OSError:
        return True


def _has_seal(root_fd: int, name: str) -> bool:
    try:
        os.stat(f"{name}/{seal.SEAL_NAME}", dir_fd=root_fd, follow_symlinks=False)
    except FileNotFoundError:
        # The directory itself may be gone by now.
        return not is_version_directory(root_fd, name)
    return True


@dataclass(frozen=True, slots=True)
class VersionSummary:
    """What a look at a version's seal and headers tells, without reading its weights. `bytes` counts sealed files."""

    name: str
    sealed: bool
    digest: str | None
    header_version: str | None
    bytes: int
    files: int
    sealed_at: datetime | None
    problem: str | None
    provenance: Provenance | None = None
    seal_changed_ns: int | None = None
    """The seal's ctime, nanoseconds: that of a copy of the version is another one."""


def summarise(root_fd: int, name: str) -> VersionSummary:
    """Look at one version. A bad one is described by its `problem`; nothing is raised."""
    digest = header_version = sealed_at = changed_ns = problem = made = None
    size = count = 0
    try:
        if not _has_seal(root_fd, name):  # at once: most of thousands of directories may be no versions at all
            return VersionSummary(name, False, None, None, 0, 0, None, seal.seal_missing().reason)
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd)
    except OSError as error:
        return VersionSummary(name, False, None, None, 0, 0, None, f"{name}: {error.strerror}")
    try:
        found = seal.read_seal(fd)
        digest = found.digest
        status = os.stat(seal.SEAL_NAME, dir_fd=fd)
        changed_ns, sealed_at = status.st_ctime_ns, datetime.fromtimestamp(status.st_mtime, UTC)
        count = len(found.files)
        if header.LORA in found.files:
            raise Rejection(
                "weights_mismatch", f"{name}: this is a LoRA, no version; move it into the LoRA root, see --loras"
            )
        for path in found.files:
            with seal.opened_file(fd, path) as file:
                size += os.fstat(file).st_size
                if header.carries_version(path) and header_version is None:
                    header_version = header.read_header(file, path).version
                if path == provenance.NAME:
                    made = provenance.read(file)
    except Rejection as rejection:
        problem = rejection.reason
    except OSError as error:
        problem = f"{name}: {error.strerror}"
    except (OverflowError, ValueError):  # the seal's time is no date
        pass
    finally:
        close_quietly(fd)
    is_sealed = digest is not None
    return VersionSummary(name, is_sealed, digest, header_version, size, count, sealed_at, problem, made, changed_ns)
