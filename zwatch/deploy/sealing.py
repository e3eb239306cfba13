"""Sealing: look at a directory, hash what its pipeline needs, write the version into the transformer's headers, write the seal.

Everything that can fail or take long comes first; what is there changes at the end, in a moment that Ctrl-C does not interrupt.
A crash in that moment leaves the old seal beside new headers, which does not verify; sealing again completes it.
"""

import errno
import fcntl
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from zwatch.deploy import contents, header, lora_files, pipeline_files, provenance, seal, stamping
from zwatch.deploy.durable import remove_leftovers, sync_entries, write_beside
from zwatch.deploy.hashing import Advance, Source, fingerprint, hashed
from zwatch.deploy.oserrors import close_quietly, user_name
from zwatch.deploy.seal import NOTHING_KNOWN, SEAL_NAME, SIGNATURE_NAME, Known, Seal
from zwatch.deploy.signals import Ending
from zwatch.errors import Rejection

_NEEDED_FOLDERS = ("controlnet", "golden", "scheduler", "text_encoder", "tokenizer", "transformer", "vae")


@dataclass(frozen=True, slots=True)
class Plan:
    """What sealing a directory will do. `stamps` by path are the headers that get the version; `found` is what each file was like."""

    directory: Path
    version: str
    selection: pipeline_files.Selection
    stamps: Mapping[str, stamping.Stamp]
    found: Mapping[str, os.stat_result]

    @property
    def size(self) -> int:
        """Bytes to hash and to write anew."""
        return sum(
            self._new_size(path) * (2 if path in self.stamps and not self.stamps[path].in_place else 1)
            for path in self.found
        )

    def _new_size(self, path: str) -> int:
        stamp = self.stamps.get(path)
        return self.found[path].st_size + (0 if stamp is None else len(stamp.new) - len(stamp.old))


def write_seal(directory: Path, version: str, advance: Advance = lambda path, done: None) -> Seal:
    """Seal a directory as a version: `prepare` and `carry_out` in one.

    Raises:
        Rejection, OSError: as they do.
    """
    with locked(directory):
        ending = Ending()
        try:
            return carry_out(prepare(directory, version), ending, advance)
        finally:
            ending.close()


@contextmanager
def naming(directory: Path) -> Iterator[None]:
    """Put the directory before the reason of a rejection that does not begin with it.

    Raises:
        Rejection: that one.
    """
    try:
        yield
    except Rejection as rejection:
        if rejection.reason.startswith(f"{directory}"):
            raise
        raise Rejection(rejection.code, f"{directory}: {rejection.reason}") from None


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Keep other processes from sealing the same directory.

    Raises:
        Rejection: one is at it.
        OSError: the directory could not be opened.
    """
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError as error:
        raise _denied(directory, error) from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Rejection(
                "io_error", f"{directory}: another process is sealing it; wait until it has ended"
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        close_quietly(fd)


def prepare(directory: Path, version: str) -> Plan:
    """Look at a directory and decide what its seal will cover. Nothing is changed but what a crash has left.

    Raises:
        Rejection: it cannot be sealed; the reason names the file and what to do.
        OSError: something could not be read.
    """
    try:
        return _prepared(directory, version)
    except PermissionError as error:
        raise _denied(directory, error) from None


def _prepared(directory: Path, version: str) -> Plan:
    check_writable(directory)
    is_lora = lora_files.is_lora_directory(directory)
    stamped = directory if is_lora else directory / "transformer"
    if stamped.is_dir() and not stamped.is_symlink():
        stamping.recover(stamped)
    there = scan(directory)  # before anything is read: what changes from now on is found at the end
    kinds = {path: status.st_mode for path, status in there.items()}
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not is_lora:
            _check_folders(directory, kinds)
        selection = lora_files.select(kinds) if is_lora else pipeline_files.select(kinds, partial(_read_small, directory, fd, kinds))  # fmt: skip
        for path in selection.needed:
            _check_sealable(directory, path, kinds[path])
        headers = lora_files.check_files(fd) if is_lora else contents.check(fd, selection.needed)
        if provenance.NAME in selection.needed:
            with seal.opened_file(fd, provenance.NAME) as file:
                provenance.read(file)
        if not is_lora:
            contents.check_left_out(fd, selection.left_out)
    finally:
        close_quietly(fd)
    stamps = {
        path: stamp
        for path in selection.needed
        if header.carries_version(path)
        and (stamp := stamping.prepare(directory, path, headers[path], version)) is not None
    }
    return Plan(directory, version, selection, stamps, {path: there[path] for path in selection.needed})


def carry_out(
    plan: Plan, ending: Ending, advance: Advance = lambda path, done: None, known: Known = NOTHING_KNOWN
) -> Seal:
    """Hash the files, write the version into the transformer's headers, and write the seal last. `advance` gets the bytes that are
    hashed, and those that are written anew; `ending` lets signals wait while what belongs together is put in place.

    Raises:
        Rejection: a file changed meanwhile, or is not as it is `known`; nothing is changed.
        OSError: a file could not be read or written. Nothing is changed, unless it is one of the last writes.
    """
    beside = [stamp for stamp in plan.stamps.values() if not stamp.in_place]
    together = _one_at_a_time(advance)
    try:
        with stamping.writing(beside, together) as wait_for_copies:
            hashes = _hash(plan, together, known)
            wait_for_copies()
        data = seal.format_seal(hashes)
        remove_leftovers(plan.directory, SEAL_NAME)
        new_seal = write_beside(plan.directory, SEAL_NAME, data, mode=0o644)
        with ending.uninterrupted():
            _check_unchanged(plan)
            stamping.commit(list(plan.stamps.values()))
            os.replace(new_seal, plan.directory / SEAL_NAME)
            sync_entries(plan.directory)
        return seal.parse_seal(data)
    except OSError as error:
        _tidy(plan)
        if isinstance(error, FileNotFoundError):
            _check_unchanged(plan)
        raise _explained(plan, error) from error
    finally:
        _tidy(plan)


def _tidy(plan: Plan) -> None:
    """Remove what was written beside the files, if it is still there."""
    remove_leftovers(plan.directory, SEAL_NAME)
    for stamp in plan.stamps.values():
        with suppress(OSError):
            stamping.discard(stamp)


def scan(directory: Path) -> dict[str, os.stat_result]:
    """Return what every file below a directory is that is not itself a directory, by relative path. A seal, its signature and what
    a crash has left of a seal are no files of a pipeline.

    Raises:
        OSError: a folder that a pipeline needs could not be read.
    """

    def failed(error: OSError) -> None:
        inside = Path(error.filename).relative_to(directory).parts
        if not inside or inside[0] in _NEEDED_FOLDERS:
            raise error

    found = {}
    for folder, folders, names in os.walk(directory, onerror=failed):
        here = Path(folder)
        for name in [*folders, *names]:
            path = (here / name).relative_to(directory).as_posix()
            if path in (SEAL_NAME, SIGNATURE_NAME) or path.startswith(f".{SEAL_NAME}."):
                continue
            with suppress(FileNotFoundError):  # what comes and goes, such as a lock of git's
                status = (here / name).lstat()
                if not stat.S_ISDIR(status.st_mode):
                    found[path] = status
    return found


def check_writable(directory: Path) -> None:
    """Check that this user may write a seal there.

    Raises:
        Rejection: it is not possible.
    """
    if not os.access(directory, os.W_OK | os.X_OK):
        read_only = os.statvfs(directory).f_flag & os.ST_RDONLY
        why = "its file system is read-only" if read_only else "you have no permission to write in it"
        raise Rejection("io_error", f"{directory}: {SEAL_NAME} cannot be written there, {why}")


def _check_folders(directory: Path, kinds: Mapping[str, int]) -> None:
    """Check that no folder of the pipeline is a symlink, and give a hint where versions lie one level deeper."""
    for folder in _NEEDED_FOLDERS:
        if folder in kinds:
            _check_sealable(directory, folder, kinds[folder])
    if pipeline_files.INDEX not in kinds:
        versions = sorted(path.partition("/")[0] for path in kinds if path.count("/") == 1 and path.endswith(f"/{pipeline_files.INDEX}"))  # fmt: skip
        if versions:
            raise Rejection(
                "file_missing",
                f"{directory}: this is no version, it holds some: {', '.join(versions[:5])}; name one of them",
            )


def _check_sealable(directory: Path, path: str, mode: int) -> None:
    """Check that a path that is needed is a regular file whose name a seal can have."""
    if stat.S_ISLNK(mode):
        raise Rejection(
            "file_not_regular",
            f"{path} -> {os.readlink(directory / path)}: a symlink cannot be sealed, because what it leads to can change; "
            f"`zwatch import {directory} NAME` makes a version with the files themselves",
        )
    if not stat.S_ISREG(mode):
        raise Rejection("file_not_regular", f"{path}: expected a regular file, found {seal.kind(mode)}")
    if (problem := seal.path_problem(path)) is not None:
        raise Rejection("seal_invalid", f"{path!r} {problem}; rename it")


def _read_small(directory: Path, directory_fd: int, kinds: Mapping[str, int], path: str) -> bytes:
    _check_sealable(directory, path, kinds[path])
    with seal.opened_file(directory_fd, path) as fd:
        if os.fstat(fd).st_size > seal.MAX_SEAL:
            raise Rejection("config_invalid", f"{path}: longer than {seal.MAX_SEAL} bytes, expected a short JSON file")
        contents.check_no_pointer(fd, path)
        return seal.read_whole(fd)


def _hash(plan: Plan, advance: Advance, known: Known) -> dict[str, str]:
    """Return the hashes of the files as they will be, by path."""
    fd = os.open(plan.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        hashes = {path: known.hashes[path] for path in known.read if path in plan.found and path not in plan.stamps}
        sources = [_source(fd, path, plan.stamps.get(path)) for path in plan.selection.needed if path not in hashes]
        for result in hashed(sources, advance):
            if isinstance(result.error, OSError):
                raise result.error
            expected = known.hashes.get(result.source.path, result.digest)
            if (
                result.error is not None or result.has_changed or result.digest != expected
            ):  # or no regular file any more
                raise _changed(result.source.path)
            hashes[result.source.path] = result.digest
        return hashes
    finally:
        close_quietly(fd)


def _source(directory_fd: int, path: str, stamp: stamping.Stamp | None) -> Source:
    opened = partial(seal.opened_file, directory_fd, path)
    return Source(path, opened) if stamp is None else Source(path, opened, stamp.new, len(stamp.old))


def _check_unchanged(plan: Plan) -> None:
    """Check that every file is still the one that was looked at first."""
    for path, before in plan.found.items():
        try:
            now = (plan.directory / path).lstat()
        except FileNotFoundError:
            raise _changed(path) from None
        # A file that was replaced has another ctime, whatever its copier has set.
        if (*fingerprint(now), now.st_ctime_ns) != (*fingerprint(before), before.st_ctime_ns):
            raise _changed(path)


def _changed(path: str) -> Rejection:
    return Rejection(
        "hash_mismatch",
        f"{path}: it changed while it was sealed; nothing is sealed. Seal again when the copy is complete",
    )


def _denied(directory: Path, error: PermissionError) -> Rejection:
    """Return why something may not be read or written, with what to do."""
    path, owner = directory / str(error.filename or ""), "its owner"
    with suppress(OSError):
        owner = user_name(path.lstat().st_uid)
    return Rejection(
        "io_error",
        f"{path}: {error.strerror}: {user_name()} may not access it; give this user access, or seal as {owner}; nothing was sealed",
    )


def _explained(plan: Plan, error: OSError) -> OSError | Rejection:
    """Return an error with what it means for a sealing, where its own words do not say it."""
    if isinstance(error, PermissionError):
        return _denied(plan.directory, error)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return error
    new = sum(plan.found[path].st_size for path, stamp in plan.stamps.items() if not stamp.in_place)
    space = os.statvfs(plan.directory)
    why = (
        f"{error.strerror}: to make room for the version in their headers the transformer's files are written anew once, {new} "
        f"bytes, and {space.f_bavail * space.f_frsize} are free; nothing was sealed"
        if new
        else f"{error.strerror}; nothing was sealed"
    )
    return OSError(error.errno, why, str(plan.directory))


def _one_at_a_time(advance: Advance) -> Advance:
    lock = threading.Lock()

    def locked_advance(path: str, done: int) -> None:
        with lock:
            advance(path, done)

    return locked_advance
