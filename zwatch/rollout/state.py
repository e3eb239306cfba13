"""The file in which the state is saved, whatever else lies in its directory, and the keeping of it."""

import asyncio
import errno
import fcntl
import logging
import math
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from zwatch.bridge import Bridge
from zwatch.deploy.durable import put_aside, read_regular, remove_leftovers, write_durably
from zwatch.deploy.oserrors import close_quietly
from zwatch.errors import UsageError
from zwatch.rollout.saved import Failure, SavedState, schema, serialise

_log = logging.getLogger(__name__)

_FILE, LOCK = "state.json", "lock"
_MOST_BYTES = 2**20
"""More than any state file needs: a version, its digest and a link stamp take 300 bytes."""
_FAULTS_OF_THE_DISK = frozenset(
    getattr(errno, name)
    for name in ("EROFS", "ENOSPC", "EDQUOT", "EIO", "ESTALE", "ETIMEDOUT", "EMFILE", "ENFILE", "ENOMEM")
)
"""Errors that may heal without another configuration: the service starts, and tries again."""
_READ_TRIES, _READ_PAUSE = 5, 0.2
_CHECK_SECONDS, _LONGEST_CHECK_SECONDS = 1.0, 10.0
_FILES = (_FILE, "trials.json", "ended-sessions.json")  # all that are replaced there
SAVE_SECONDS = 5.0
"""Longest time that a save is waited for: a file system that does not answer must not hold up deploys."""


class StateFile:
    """The file in the state directory, which this process owns while it holds the lock there."""

    def __init__(self, directory: Path, lock: int | None = None, *, is_alone: bool = True) -> None:
        """Open the state directory, making it if it is not there. If its disk is full, read-only or broken, that is logged, and the next
        write tries again. `lock` is the descriptor of the lock that another process handed over, which still runs unless `is_alone`.

        Raises:
            UsageError: it cannot be used, or another process uses it.
        """
        self.directory = directory
        self.is_lent = False
        """Whether another process owns the directory now, or is about to: nothing is written."""
        self._lock = lock
        self._written: tuple[int, int] | None = None
        self._is_tidy = True  # else a write that failed may have left its temporary file
        if lock is not None:
            with suppress(OSError):
                remove_leftovers(directory, *(_FILES if is_alone else (_FILE,)))
            return
        try:
            self._open()
        except BlockingIOError:
            raise UsageError(
                f"another zwatch uses the state directory {directory}; --takeover takes it over without a gap, see also "
                "--state-dir"
            ) from None
        except OSError as error:
            if error.errno not in _FAULTS_OF_THE_DISK:
                raise UsageError(
                    f"the state directory {directory} cannot be used: {error.strerror}; see --state-dir"
                ) from None
            _log.warning("the state directory %s cannot be used: %s; retrying", directory, error.strerror)

    def _open(self) -> None:
        """Make the directory, take the lock, and remove what a crash in the middle of a write left.

        Raises:
            BlockingIOError: another process has the lock.
            OSError: the directory cannot be used.
        """
        self.close()
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = _open_lock(self.directory / LOCK)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            close_quietly(lock)
            raise
        except OSError as error:  # such a file system
            _log.warning("%s cannot be locked: %s", self.directory / LOCK, error.strerror)
        self._lock = lock
        remove_leftovers(self.directory, *_FILES)

    def read(self) -> SavedState:
        """Return what was written last. A file that cannot be used is renamed, and the state starts empty."""
        path = self.directory / _FILE
        try:
            return schema().validate_json(_read_patiently(path), strict=True)
        except (OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError) and not os.path.lexists(path):
                return SavedState()  # else it is a symlink to nothing
            what, aside = _described(error), put_aside(path)
            how = "could not be renamed" if aside is None else f"is renamed to {aside}"
            _log.warning("%s cannot be used (%s); it %s, and the service starts without saved state", path, what, how)
            return SavedState()

    def write(self, data: bytes) -> None:
        """Replace the file, durably: after a crash it has the new bytes or the old ones, never a part. A directory that was
        removed is made again.

        Raises:
            OSError: the directory could not be written, or another process uses it.
        """
        if self.is_lent:
            return
        if not self._is_locked():
            self._open()
        try:
            self._replace(data)
        except IsADirectoryError:
            if not put_aside(self.directory / _FILE):
                raise
            self._replace(data)
        self._written = _identity(self.directory / _FILE)

    def _replace(self, data: bytes) -> None:
        was_tidy, self._is_tidy = self._is_tidy, False
        write_durably(self.directory, _FILE, data)
        self._is_tidy = was_tidy or remove_leftovers(self.directory, _FILE)

    def is_sound(self) -> bool:
        """Say whether the file is the one that was written last, and nothing is seen that would prevent the next write."""
        try:
            if self._written is None or self._written != _identity(self.directory / _FILE) or not self._is_locked():
                return False
            system = os.statvfs(self.directory)
            return (
                not system.f_flag & os.ST_RDONLY
                and not (system.f_blocks and (system.f_bfree if os.geteuid() == 0 else system.f_bavail) == 0)
                and os.access(self.directory, os.W_OK | os.X_OK)
            )
        except OSError:
            return False

    def _is_locked(self) -> bool:
        """Say whether this process holds the lock of the directory that has the name now."""
        if self._lock is None:
            return False
        held = os.fstat(self._lock)
        return (held.st_dev, held.st_ino) == _identity(self.directory / LOCK)

    @property
    def lock(self) -> int | None:
        """The descriptor of the lock, to hand it over; None if it is not held."""
        return self._lock

    def close(self) -> None:
        """Release the lock, unless it was handed over: another process can use the directory."""
        if self._lock is not None:
            close_quietly(self._lock)
            self._lock = None


class StateKeeper:
    """The saved state that this run works on, and the writing of it. After a failed write, `keep` tries again. `changed` is
    called when `problem` has changed."""

    def __init__(self, bridge: Bridge, file: StateFile, changed: Callable[[], None] = lambda: None) -> None:
        self.saved = SavedState()
        self.problem: str | None = None
        """Why the state is not saved; None if the last write succeeded."""
        self._bridge = bridge
        self._file = file
        self._changed = changed
        self._links: object = None
        """Where the links led when the state was written last."""
        self._writing: asyncio.Task[None] | None = None
        self._again = False
        self._checking: asyncio.Task[None] | None = None
        self._noting: asyncio.Task[None] | None = None
        self._pause = _CHECK_SECONDS
        self._check_at = 0.0

    @property
    def is_written(self) -> bool:
        """Whether the last write succeeded."""
        return self.problem is None

    async def read(self) -> SavedState:
        """Read what the previous run saved."""
        self.saved = await self._bridge.run("state", self._file.read)
        return self.saved

    async def save(self) -> None:
        """Write the state as it is now; return after `SAVE_SECONDS` at the latest. A failure is logged once, until a write
        succeeds again."""
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write(), name="save state")
        else:
            self._again = True  # what is being written may be older
            if self.problem is not None:
                return  # it was waited for already
        await self._answered(self._writing)

    def note_failure(self, failure: Failure) -> None:
        """Note why this run ends, and save it at once, in a separate task: the process may not get to its orderly end."""
        self.saved.failure = failure
        self._noting = asyncio.create_task(self.save(), name="save why")

    async def save_links(self) -> None:
        """Save if a link was made anew since the last save, even to what serves: a crash is counted for the links of its time."""
        if self.problem is None and self.saved.links() != self._links:
            await self.save()

    def keep(self) -> None:
        """Check now and then, in a separate task, that what was saved is still there and can be saved again; save it again
        if not."""
        if time.monotonic() >= self._check_at and (self._checking is None or self._checking.done()):
            self._checking = asyncio.create_task(self._check(), name="check state")

    def stop_keeping(self) -> None:
        """Check no more."""
        self._check_at = math.inf
        if self._checking is not None:
            self._checking.cancel()

    def resume(self) -> None:
        """Check again after `stop_keeping`, and note that this run goes on."""
        self.saved.running, self._check_at = True, 0.0

    async def _check(self) -> None:
        sound = asyncio.create_task(self._is_sound(), name="is the state sound")
        await self._answered(sound)
        if self.problem is None and sound.done() and sound.result():
            self._pause = _CHECK_SECONDS
        else:
            await self.save()
            # A file system may be writable although it looks full.
            self._pause = min(_LONGEST_CHECK_SECONDS, 2 * self._pause) if self.problem is None else _CHECK_SECONDS
        self._check_at = max(self._check_at, time.monotonic() + self._pause)

    async def _is_sound(self) -> bool:
        with suppress(OSError):
            return await self._bridge.run("state", self._file.is_sound)
        return False

    async def _answered(self, task: asyncio.Task[Any]) -> None:
        await asyncio.wait([task], timeout=SAVE_SECONDS)
        if not task.done():
            self._note(f"it has not answered for {SAVE_SECONDS:g} s")

    async def _write(self) -> None:
        while True:
            self._again, self._links = False, self.saved.links()
            try:
                await self._bridge.run("state", self._file.write, serialise(self.saved))
            except BlockingIOError:
                self._note("another zwatch uses it")
            except OSError as error:
                self._note(error.strerror or str(error))
            except Exception as error:
                _log.exception("the state could not be written")
                self._note(f"{type(error).__name__}: {error}")
            else:
                self._note(None)
            if not self._again:
                return

    def _note(self, why: str | None) -> None:
        before, self.problem = self.problem, None
        if why is not None:
            self.problem = (
                f"the state directory {self._file.directory} cannot be written: {why}; a restart would not know what "
                "happened since"
            )
        if self.problem == before:
            return
        if before is None:
            _log.warning("the state directory could not be written; retrying: %s", why)
        elif why is None:
            _log.info("the state directory can be written again")
        self._changed()

    def end_at_once(self) -> None:
        """Write, without threads, that an operator ends this run and it does not crash; the process exits next."""
        self.saved.end_run()
        try:
            self._file.write(serialise(self.saved))
        except OSError as error:
            _log.warning("the state directory could not be written: %s", error.strerror)


def _open_lock(path: Path) -> int:
    """Open the lock file, making it if it is not there. Anything else of that name is put aside.

    Raises:
        OSError: it cannot be opened.
    """
    for again in (True, False):
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno == errno.EROFS and path.is_file():
                return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            reason = error
        else:
            if stat.S_ISREG(os.fstat(lock).st_mode):
                return lock
            close_quietly(lock)
            reason = OSError(errno.EEXIST, "the lock is not a regular file")
        if not again or reason.errno in _FAULTS_OF_THE_DISK or not os.path.lexists(path):
            raise reason
        if (aside := put_aside(path)) is None:
            raise reason
        _log.warning("%s cannot be used (%s); it is renamed to %s", path, reason.strerror, aside)
    raise AssertionError  # the loop returns or raises


def _identity(path: Path) -> tuple[int, int] | None:
    """Return (device, inode) of a file; None if it is not there."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def _read_patiently(path: Path) -> bytes:
    """Return a file's bytes, after some tries if its disk fails for a moment.

    Raises:
        OSError, ValueError: as `read_regular`.
    """
    for _ in range(_READ_TRIES - 1):
        try:
            return read_regular(path, _MOST_BYTES)
        except OSError as error:
            if error.errno not in _FAULTS_OF_THE_DISK:
                raise
            time.sleep(_READ_PAUSE)
    return read_regular(path, _MOST_BYTES)


def _described(error: OSError | ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        return f"{place}: {first['msg']}" if place else first["msg"]
    return str(error)
