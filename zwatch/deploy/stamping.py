"""Writing the version into the headers of weight files, so that a crash leaves each file's tensors and a whole header.

Where the header has room it is written in place, else the file is written anew beside the old one: `prepare` reads and decides,
`write_beside` makes the new file and may take long, `commit` is short. Nothing that is there changes before `commit`.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from zwatch.deploy import header
from zwatch.deploy.durable import sync_entries, write_durably
from zwatch.deploy.oserrors import close_quietly, user_name
from zwatch.errors import Rejection
from zwatch.lanes import start_thread

WRITING_SUFFIX = ".stamping"
"""Ends the name of a file that is written beside the old one. A crash leaves it; the next sealing removes it."""
JOURNAL_SUFFIX = ".journal"
"""Ends the name of the file that has the old and the new header while one is written in place."""
_LEAVE_SECONDS = 5.0
"""A thread that waits for a disk is left after Ctrl-C; what it has written is removed."""
_COPY = 64 * 2**20
_BUFFER = 2**20  # of copies in memory; larger ones are slower
_CANNOT_SHARE = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EXDEV, errno.EPERM)


@dataclass(frozen=True, slots=True)
class Stamp:
    """A header that has to be written into the file at `path`, below a version: `old` and `new`, each with its length field."""

    file: Path
    path: str
    old: bytes
    new: bytes
    in_place: bool

    @property
    def temporary(self) -> Path:
        """Where the new file is written, if not in place."""
        return self.file.with_name(f".{self.file.name}{WRITING_SUFFIX}")

    @property
    def journal(self) -> Path:
        """Where both headers are kept while one is written in place."""
        return self.file.with_name(f".{self.file.name}{JOURNAL_SUFFIX}")


def prepare(directory: Path, path: str, found: header.Header, version: str) -> Stamp | None:
    """Return what has to be written so that the file has `version` in its header; None if it has.

    Raises:
        Rejection: the header has no room within the format's limit, or the file may not be written.
        OSError: the file could not be looked at.
    """
    if found.version == version:
        return None
    new = header.with_version(found, version, path)
    file = directory / path
    status = file.lstat()
    # Another hard link is another version's file.
    in_place = len(new) == len(found.raw) and status.st_nlink == 1 and os.access(file, os.W_OK)
    if not in_place or not os.access(file.parent, os.W_OK):
        _check_replaceable(file, path, status)
    return Stamp(file, path, found.raw, new, in_place)


def _check_replaceable(file: Path, path: str, status: os.stat_result) -> None:
    """Check that this user may put another file in the place of one, and that those who could read it can read that."""
    who = user_name(os.geteuid())
    if not os.access(file.parent, os.W_OK | os.X_OK):
        why = "the file system is read-only" if os.statvfs(file.parent).f_flag & os.ST_RDONLY else "no permission"
        raise Rejection(
            "io_error",
            f"{path}: the version has to be written into it, and {who} may not write in {file.parent} ({why}); nothing was "
            "changed",
        )
    if os.geteuid() == 0 or status.st_mode & stat.S_IROTH:
        return
    is_own, has_group = os.geteuid() == status.st_uid, status.st_gid in {os.getegid(), *os.getgroups()}
    by_group = bool(status.st_mode & stat.S_IRGRP)
    if (is_own and (has_group or not by_group)) or (has_group and by_group):
        return
    loses = f"the group {status.st_gid}" if is_own else user_name(status.st_uid)
    raise Rejection(
        "io_error",
        f"{path}: it belongs to {user_name(status.st_uid)} and the group {status.st_gid}, and the version has to be written into it; a "
        f"file that {who} writes anew could not be read by {loses}. Run `zwatch seal` as {'root' if is_own else f'{loses} or as root'}; "
        "nothing was changed",
    )


def write_beside(stamp: Stamp, advance: Callable[[int], None], ended: threading.Event) -> None:
    """Write the file with its new header under the temporary name, durably. `advance` gets the bytes done since its last call;
    it gives up once `ended` is set.

    Raises:
        OSError: it could not be written; the temporary file is left to `discard`.
    """
    discard(stamp)
    if ended.is_set():
        return
    with ExitStack() as open_files:
        source = os.open(stamp.file, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        open_files.callback(close_quietly, source)
        sink = os.open(stamp.temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        open_files.callback(close_quietly, sink)
        shift = len(stamp.new) - len(stamp.old)
        # Whole blocks can be shared, so what stands before the first one is written with the header.
        begin = -(-len(stamp.old) // header.BLOCK) * header.BLOCK
        head = stamp.new + os.pread(source, begin - len(stamp.old), len(stamp.old))
        _write_at(sink, head, 0)
        advance(len(head))
        size = os.fstat(source).st_size
        while begin < size and not ended.is_set():
            count = _copy(source, sink, begin, begin + shift)
            if count == 0:
                break  # it became shorter, which is found before anything is put in its place
            begin += count
            advance(count)
        if ended.is_set():
            return
        _keep_owner(sink, os.fstat(source))
        os.fsync(sink)


@contextmanager
def writing(stamps: list[Stamp], advance: Callable[[str, int], None]) -> Iterator[Callable[[], None]]:
    """Write files beside the old ones while the block runs, each in a thread; yield what waits for them and raises their error."""
    ended = threading.Event()
    errors: list[BaseException] = []

    def write(stamp: Stamp) -> None:
        try:
            write_beside(stamp, partial(advance, stamp.path), ended)
        except BaseException as error:
            errors.append(error)

    threads = {
        stamp: threading.Thread(target=write, args=(stamp,), name="zwatch-stamp", daemon=True) for stamp in stamps
    }

    def wait() -> None:
        for thread in threads.values():
            if thread.ident is not None:
                thread.join()
        if errors:
            raise errors[0]

    try:
        for stamp, thread in threads.items():
            try:
                start_thread(thread)
            except OSError:  # no more may be started
                write(stamp)
        yield wait
    finally:
        ended.set()
        for thread in threads.values():
            if thread.is_alive():
                thread.join(_LEAVE_SECONDS)


def _copy(source: int, sink: int, begin: int, to: int) -> int:
    """Copy some bytes, and return how many; without copying where the file system can share them."""
    try:
        if count := os.copy_file_range(source, sink, _COPY, begin, to):
            return count
    except OSError as error:
        if error.errno not in _CANNOT_SHARE:
            raise
    data = os.pread(source, _BUFFER, begin)
    _write_at(sink, data, to)
    return len(data)


def _write_at(fd: int, data: bytes, begin: int) -> None:
    view = memoryview(data)
    while view:
        count = os.pwrite(fd, view, begin)
        view, begin = view[count:], begin + count


def _keep_owner(fd: int, status: os.stat_result) -> None:
    """Give a new file the owner, the group and the mode of the old one, as far as this user may."""
    if (status.st_uid, status.st_gid) != (os.geteuid(), os.fstat(fd).st_gid):
        try:
            os.fchown(fd, status.st_uid, status.st_gid)
        except PermissionError:  # another's file in this user's directory: it is this user's from now on
            with suppress(PermissionError):
                os.fchown(fd, -1, status.st_gid)
    os.fchmod(fd, status.st_mode & 0o7777)


def commit(stamps: list[Stamp]) -> None:
    """Put the new headers, or the new files, in their places, durably.

    Raises:
        OSError: one could not be written. Headers that were written in place are as before; a file that was replaced has the new
            one and the same tensors.
    """
    written: list[Stamp] = []
    try:
        for stamp in stamps:
            if stamp.in_place:
                written.append(stamp)
                _write_in_place(stamp)
            else:
                os.replace(stamp.temporary, stamp.file)
    except BaseException:
        for stamp in written:
            with suppress(OSError):
                _write_header(stamp.file, stamp.old)
                stamp.journal.unlink(missing_ok=True)
        raise
    for folder in {stamp.file.parent for stamp in stamps}:
        sync_entries(folder)


def _write_in_place(stamp: Stamp) -> None:
    """Write a header in place. Both are kept beside it meanwhile: a crash may leave parts of each."""
    write_durably(stamp.file.parent, stamp.journal.name, stamp.old + stamp.new)
    _write_header(stamp.file, stamp.new)
    stamp.journal.unlink()


def _write_header(file: Path, raw: bytes) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        _write_at(fd, raw, 0)
        os.fsync(fd)
    finally:
        close_quietly(fd)


def discard(stamp: Stamp) -> None:
    """Remove what was written beside a file, if anything was."""
    stamp.temporary.unlink(missing_ok=True)


def recover(folder: Path) -> None:
    """Put right what a crash left in a folder: half-written headers are written again as they were, temporary files removed.

    Raises:
        OSError: it could not be done.
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_file(follow_symlinks=False) and entry.name[0] == "."]
    for name in names:
        if name.endswith(f"{header.WEIGHTS_SUFFIX}{WRITING_SUFFIX}"):
            (folder / name).unlink(missing_ok=True)
        elif name.endswith(f"{header.WEIGHTS_SUFFIX}{JOURNAL_SUFFIX}"):
            _recover_header(folder / name, folder / name[1:].removesuffix(JOURNAL_SUFFIX))
            (folder / name).unlink(missing_ok=True)
        elif f"{header.WEIGHTS_SUFFIX}{JOURNAL_SUFFIX}." in name:  # of a journal that was not complete
            (folder / name).unlink(missing_ok=True)


def _recover_header(journal: Path, file: Path) -> None:
    """Write the old header again if the present one is made of the old and the new one. A file that was replaced since has
    another."""
    both = journal.read_bytes()
    old, new = both[: len(both) // 2], both[len(both) // 2 :]
    try:
        with open(file, "rb") as opened:
            found = opened.read(len(old))
    except FileNotFoundError:
        return
    if found in (old, new) or len(found) != len(old):
        return
    if all(here in pair for here, *pair in zip(found, old, new, strict=True)):
        _write_header(file, old)
