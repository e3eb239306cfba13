"""Deleting old versions safely: which ones, and how so that a crash or a link made meanwhile loses nothing.

A version is renamed to `.NAME.pruned-…`, which cannot be a version's name, in one step; then it is asked again whether it is
needed. If so, it is renamed back, and else to `.NAME.removing-…`, and removed. What a crash leaves in between is finished by
the next prune; what is not whole any more is never renamed back.
"""

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from zwatch.deploy import seal
from zwatch.deploy.durable import sync_directory
from zwatch.deploy.header import LORA
from zwatch.deploy.oserrors import close_quietly
from zwatch.deploy.versions import PRUNED, version_names
from zwatch.errors import Rejection, ZwatchError

Needs = Mapping[str, Sequence[str]]
"""Why a version is needed, in a few words each, by its name."""


class PruneBusyError(ZwatchError):
    """Another prune works on the same models root."""


@dataclass(frozen=True, slots=True)
class Found:
    """A version directory. `digest`, `sealed_ns` (mtime) and `changed_ns` (ctime) are of its seal, None without a valid one;
    `problem` says why there is none. `identity` is (device, inode) of the directory."""

    name: str
    identity: tuple[int, int]
    digest: str | None
    sealed_ns: int | None
    problem: str | None
    changed_ns: int | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a prune does: `kept` and `left` have the reasons by version (what is left is no sealed version), `deleted` are the
    old versions. `leftovers` are what an earlier prune left, the names that the versions had by their present ones; those of
    them that are needed are `returned`, the reasons by the present name."""

    kept: Mapping[str, Sequence[str]]
    left: Mapping[str, str]
    deleted: Sequence[Found]
    leftovers: Mapping[str, str]
    returned: Mapping[str, Sequence[str]]

    @property
    def finished(self) -> dict[str, str]:
        """Those leftovers that are removed."""
        return {new: name for new, name in self.leftovers.items() if new not in self.returned}


@dataclass(slots=True)
class Outcome:
    """What a prune did. `errors` are sentences; `returned` are versions that were needed after all, and why."""

    removed: list[str] = field(default_factory=list)
    returned: dict[str, Sequence[str]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


@contextmanager
def locked(root: Path) -> Iterator[int]:
    """Open a models root for one prune at a time, and yield its descriptor.

    Raises:
        PruneBusyError: another prune has it.
        OSError: it cannot be opened.
    """
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PruneBusyError(f"another zwatch prune works on {root}; try again when it has ended") from None
        except OSError:
            pass  # a file system without locks
        yield fd
    finally:
        close_quietly(fd)


def find_versions(root_fd: int) -> list[Found]:
    """Return all version directories.

    Raises:
        OSError: the models root cannot be listed.
    """
    return [found for name in version_names(root_fd) if (found := _find(root_fd, name)) is not None]


def _find(root_fd: int, name: str) -> Found | None:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd)
    except FileNotFoundError:
        return None
    except OSError as error:
        return Found(name, (0, 0), None, None, f"it cannot be opened: {error.strerror}")
    try:
        status = os.fstat(fd)
        identity = status.st_dev, status.st_ino
        sealed = seal.read_seal(fd)
        if LORA in sealed.files:
            return Found(
                name, identity, None, None, "it is a LoRA, no version; `rm -r` removes one that no request needs"
            )
        of_seal = os.stat(seal.SEAL_NAME, dir_fd=fd, follow_symlinks=False)
        return Found(name, identity, sealed.digest, of_seal.st_mtime_ns, None, of_seal.st_ctime_ns)
    except Rejection as rejection:
        why = "it is not sealed; perhaps it is being copied" if rejection.code == "seal_missing" else rejection.reason
        return Found(name, identity, None, None, why)
    except OSError as error:
        return Found(name, identity, None, None, f"its seal cannot be read: {error.strerror}")
    finally:
        close_quietly(fd)


def leftovers(root_fd: int) -> dict[str, str]:
    """Return what an earlier prune left: the names that the versions had, by their present names.

    Raises:
        OSError: the models root cannot be listed.
    """
    with os.scandir(root_fd) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    return {name: match[1] for name in sorted(names) if (match := PRUNED.fullmatch(name)) is not None}


def make_plan(versions: Iterable[Found], keep: int, needs: Needs, left_over: Mapping[str, str]) -> Plan:
    """Decide what to do: keep the `keep` versions that were sealed last, and all that are needed."""
    versions = list(versions)
    sealed = sorted(
        (one for one in versions if one.sealed_ns is not None), key=lambda one: (one.sealed_ns, one.name), reverse=True
    )
    kept: dict[str, list[str]] = {}
    deleted = []
    for position, one in enumerate(sealed):
        reasons = ([f"among the newest {keep}"] if position < keep else []) + list(needs.get(one.name, ()))
        if reasons:
            kept[one.name] = reasons
        else:
            deleted.append(one)
    left = {one.name: one.problem or "" for one in versions if one.sealed_ns is None}
    return Plan(kept, left, deleted, left_over, to_return(left_over, needs, {one.name for one in versions}))


def to_return(hidden: Mapping[str, str], needs: Needs, there: Container[str]) -> dict[str, Sequence[str]]:
    """Return which hidden versions are needed and whole, and why, by their present names; `there` are the names that are taken."""
    return {new: needs[name] for new, name in hidden.items() if name in needs and _is_whole(new) and name not in there}


def hide(root_fd: int, versions: Iterable[Found], outcome: Outcome, hidden: dict[str, str]) -> None:
    """Rename versions so that they are none any more, and note the names that they had in `hidden`, by their new names."""
    for one in versions:
        new = _new_name(one.name, "pruned")
        hidden[new] = one.name  # before: an interruption may come at any moment
        try:
            os.rename(one.name, new, src_dir_fd=root_fd, dst_dir_fd=root_fd)
        except OSError as error:
            del hidden[new]
            if not isinstance(error, FileNotFoundError):  # else others removed it
                outcome.errors.append(f"{one.name}: it could not be renamed: {error.strerror}; it is as it was")
            continue
        now = _find(root_fd, new)
        if now is None or (now.identity, now.digest) != (one.identity, one.digest):  # replaced since the plan was made
            give_back(root_fd, {new: one.name}, {one.name: ["it was replaced meanwhile"]}, outcome)
            del hidden[new]
    _sync(root_fd)


def give_back(root_fd: int, hidden: Mapping[str, str], needs: Needs, outcome: Outcome) -> dict[str, str]:
    """Rename those back that are needed after all; return the others. If the name was taken meanwhile, what has it is what
    is needed."""
    others = {}
    for new, name in hidden.items():
        if name not in needs or not _is_whole(new) or _is_there(root_fd, name):
            others[new] = name
            continue
        try:
            os.rename(new, name, src_dir_fd=root_fd, dst_dir_fd=root_fd)
        except OSError as error:
            outcome.errors.append(f"{name}: it is needed, and could not be renamed back from {new}: {error.strerror}")
        else:
            outcome.returned[name] = needs[name]
    _sync(root_fd)
    return others


def remove(root_fd: int, hidden: dict[str, str], outcome: Outcome) -> None:
    """Remove hidden versions, the oldest first, and take each from `hidden` before. Symlinks are removed, not followed."""
    while hidden:
        pruned, name = hidden.popitem()
        new = pruned
        try:
            if _is_whole(pruned):
                new = _new_name(name, "removing")
                os.rename(pruned, new, src_dir_fd=root_fd, dst_dir_fd=root_fd)
            shutil.rmtree(new, dir_fd=root_fd)
        except OSError as error:
            where = f" {error.filename}" if isinstance(error.filename, str) else ""
            outcome.errors.append(
                f"{name}: it is partly removed, the rest is in {new}:{where}: {error.strerror}; the next prune finishes it"
            )
        else:
            outcome.removed.append(name)
    _sync(root_fd)


def _new_name(name: str, what: str) -> str:
    return f".{name}.{what}-{secrets.token_hex(6)}"


def _is_whole(hidden: str) -> bool:
    """Say whether nothing of a hidden version is removed yet."""
    return (match := PRUNED.fullmatch(hidden)) is not None and match[2] == "pruned"


def _is_there(root_fd: int, name: str) -> bool:
    with suppress(FileNotFoundError):
        os.stat(name, dir_fd=root_fd, follow_symlinks=False)
        return True
    return False


def _sync(root_fd: int) -> None:
    with suppress(OSError):  # what is lost by a power failure is done again
        sync_directory(root_fd)


@dataclass(frozen=True, slots=True)
class Sizes:
    """The bytes of the files of each directory, and those that removing all of them gives back: a file that has other names
    elsewhere, as after `zwatch import --base`, only loses a name. `problems` say why a directory cannot be removed."""

    by_name: Mapping[str, int]
    freed: int
    problems: Mapping[str, str]


def measure(root: Path, names: Iterable[str]) -> Sizes:
    """Walk directories of a models root, following no symlink."""
    sizes, problems = {}, {}
    names_of: dict[tuple[int, int], list[int]] = {}
    mounts = _mount_points()
    for name in names:
        top = os.path.join(root, name)
        sizes[name] = 0
        try:
            _check_mounts(top, mounts)
            for folder, _, files, fd in os.fwalk(top, follow_symlinks=False, onerror=_raise):
                if not os.access(folder, os.W_OK | os.X_OK, effective_ids=True):
                    raise PermissionError(errno.EACCES, "it may not be written", folder)
                for file in files:
                    status = os.stat(file, dir_fd=fd, follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode):
                        sizes[name] += status.st_size
                        seen = names_of.setdefault((status.st_dev, status.st_ino), [status.st_nlink, status.st_size, 0])
                        seen[2] += 1
        except FileNotFoundError:
            continue  # changed meanwhile
        except OSError as error:
            where = os.path.relpath(os.fsdecode(error.filename), root) if error.filename is not None else name
            problems[name] = f"{where}: {error.strerror}"
    freed = sum(size for links, size, found in names_of.values() if found >= links)
    return Sizes(sizes, freed, problems)


def _mount_points() -> list[str]:
    try:
        lines = Path("/proc/self/mountinfo").read_bytes().splitlines()
    except OSError:
        return []
    return [
        os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), line.split()[4]))
        for line in lines
    ]


def _check_mounts(top: str, mounts: Iterable[str]) -> None:
    real = os.path.realpath(top)
    for mount in mounts:
        if mount == real or mount.startswith(f"{real}/"):
            raise OSError(
                errno.EBUSY, "something is mounted here; unmount it first", os.path.join(top, mount[len(real) + 1 :])
            )


def _raise(error: OSError) -> None:
    raise error
