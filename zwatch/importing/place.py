"""Where a version is made: a hidden directory beside the versions, in which an interrupted import finds what it had done.

    models/.v2.importing/.lock       held while an import runs
    models/.v2.importing/.done.json  which files are complete, how they were made, and their hashes
    models/.v2.importing/v2/         becomes models/v2 in one rename

A name that begins with a dot is no version's, so nothing that looks like a version is there before the rename.
"""

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from zwatch.deploy.durable import sync_directory, write_durably
from zwatch.deploy.links import renameat2
from zwatch.deploy.oserrors import close_quietly, user_name
from zwatch.deploy.versions import opened
from zwatch.errors import Refused

_RENAME_NOREPLACE = 1  # linux/fs.h
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems answer that have no locks: there is nothing to hold."""
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP)
_DONE = ".done.json"
_MOST_DONE = 2**24


@dataclass(frozen=True, slots=True)
class Done:
    """A file that is complete and on the disk: what it was made from (`Output.key`), its blake3, those of its sources by path,
    and its status, which tells whether anything wrote to it since."""

    key: str
    blake3: str
    sources: Mapping[str, str]
    status: tuple[int, int, int, int]


def status_of(fd: int) -> tuple[int, int, int, int]:
    """Return what changes when an open file is written to: inode, size, mtime and ctime in nanoseconds."""
    found = os.fstat(fd)
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


class Place:
    """The hidden directory of one version's import, held by one process at a time."""

    def __init__(self, root: Path, name: str, kind: str = "version") -> None:
        """`kind` is what is made: a `version`, or a `LoRA`, whose root is made with the first one."""
        self._root, self._name, self._kind = root, name, kind
        self._hidden = root / f".{name}.importing"
        self._lock = -1
        self.version = self._hidden / name
        """The directory that becomes the version."""
        self.done: dict[str, Done] = {}
        """The files that are complete, by path."""

    @property
    def kind(self) -> str:
        """What is made."""
        return self._kind

    @property
    def remark(self) -> str:
        """What to do after an import that did not end."""
        return f"run the same command again to go on from there, or remove what is left: rm -r {self._hidden}"

    @property
    def _option(self) -> str:
        return "--loras" if self._kind == "LoRA" else "--models"

    @property
    def is_left(self) -> bool:
        """Whether the hidden directory is there."""
        return os.path.lexists(self._hidden)

    def __enter__(self) -> Self:
        """Take the place.

        Raises:
            Refused: the version exists, another import makes it, or this user may not write there.
            OSError: it failed otherwise.
        """
        self.refuse_existing()
        with self._explained():
            while self._lock < 0:
                self._hidden.mkdir(exist_ok=True, parents=self._kind == "LoRA")
                self._try_lock()
        try:
            self.refuse_existing()  # the import that held the lock may have ended with it
            self.done = self._read_done()
            with self._explained():
                self.version.mkdir(exist_ok=True)
        except BaseException:
            close_quietly(self._lock)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the place; it goes away where nothing in it is worth to be kept."""
        if not self.done:
            shutil.rmtree(self._hidden, ignore_errors=True)
        close_quietly(self._lock)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Say what to do where an error's own words do not."""
        try:
            yield
        except OSError as error:
            why = error.strerror
            if error.errno == errno.EROFS:
                raise Refused(f"{self._root}: {why}: no {self._kind} can be made there; mount it for writing, or see {self._option}") from None  # fmt: skip
            if error.errno in _IN_THE_WAY:
                raise Refused(f"{error.filename}: {why}: an import of {self._name} works in {self._hidden}, and something else is there; remove it: rm -r {self._hidden}") from None  # fmt: skip
            if error.errno not in (errno.EACCES, errno.EPERM):
                raise
            who = user_name()
            if not self.is_left:
                raise Refused(f"{self._root}: {why}: {who} may not write there; import as {self._owner(self._root)}, or see {self._option}") from None  # fmt: skip
            raise Refused(f"{self._hidden}: {why}: this was left by an import of {self._owner(self._hidden)}, and {who} may not write there; go on as that user, or remove it: rm -r {self._hidden}") from None  # fmt: skip

    @staticmethod
    def _owner(path: Path) -> str:
        while not os.path.lexists(path):  # a root that is to be made
            path = path.parent
        return user_name(path.lstat().st_uid)

    def refuse_existing(self) -> None:
        """Check that nothing has the version's name.

        Raises:
            Refused: something has.
        """
        if os.path.lexists(self._root / self._name):
            if self._hidden.exists() and not self.version.exists():  # of an import that ended right after its rename
                shutil.rmtree(self._hidden, ignore_errors=True)
            raise Refused(f"{self._root / self._name}: exists already; choose another name, or remove it first")

    def _try_lock(self) -> None:
        path = self._hidden / ".lock"
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except FileNotFoundError:  # the import that held it has just ended
            return
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            close_quietly(fd)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise Refused(f"another import makes {self._name} at this moment ({path} is locked)") from None
            if error.errno not in _NO_LOCKS:
                raise
            self._lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            return
        with suppress(OSError):
            if os.path.samestat(os.fstat(fd), path.stat()):
                self._lock = fd
                return
        close_quietly(fd)

    def _read_done(self) -> dict[str, Done]:
        try:
            with open(self._hidden / _DONE, "rb") as file:
                found = json.loads(file.read(_MOST_DONE))
            done = {}
            for path, one in found.items():
                inode, size, modified, changed = map(int, one["status"])
                done[path] = Done(str(one["key"]), str(one["blake3"]), one["sources"], (inode, size, modified, changed))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):  # all is written anew
            return {}
        return done

    def keep(self, keys: Mapping[str, str]) -> None:
        """Keep those files of an earlier run that are made in the same way (`keys` by path) and untouched since; remove
        everything else.

        Raises:
            Refused: another user's import left it.
            OSError: something could not be removed.
        """
        self.done = {path: one for path, one in self.done.items() if one.key == keys.get(path) and self._is_as(path, one)}  # fmt: skip
        with self._explained():
            self._remove_others()

    def _remove_others(self) -> None:
        for folder, folders, names in os.walk(self.version, topdown=False):
            here = Path(folder)
            for name in names:
                if (here / name).relative_to(self.version).as_posix() not in self.done:
                    (here / name).unlink()
            for name in folders:
                path = here / name
                if path.is_symlink():
                    path.unlink()
                elif not any(path.iterdir()):
                    path.rmdir()

    def _is_as(self, path: str, done: Done) -> bool:
        try:
            fd = os.open(self.version / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return status_of(fd) == done.status
        finally:
            close_quietly(fd)

    def record(self, path: str, done: Done) -> None:
        """Remember a file that was written and fsynced.

        Raises:
            OSError: it could not be written down.
        """
        self.done[path] = done
        text = json.dumps({path: asdict(one) for path, one in self.done.items()})
        write_durably(self._hidden, _DONE, text.encode(errors="surrogatepass"))

    def publish(self, folders: Iterable[str]) -> None:
        """Rename the finished directory to the version's name; `folders` are those in it.

        Raises:
            Refused: something has that name by now.
            OSError: it could not be renamed.
        """
        for folder in [*folders, "."]:
            with opened(self.version / folder) as fd:
                sync_directory(fd)
        with opened(self._root) as root:
            inside = f"{self._hidden.name}/{self._name}"
            try:
                if not renameat2(root, inside, self._name, _RENAME_NOREPLACE):
                    self.refuse_existing()
                    os.rename(inside, self._name, src_dir_fd=root, dst_dir_fd=root)
            except FileExistsError:
                self.refuse_existing()
                raise
            self.done = {}
            sync_directory(root)
