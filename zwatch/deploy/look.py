"""One look at the models root: what every followed alias asks for, stray links, and changes of awaited files."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zwatch.deploy.links import LinkNote, finish_interrupted, repoint
from zwatch.deploy.refused import RefusedStray
from zwatch.deploy.reread import Reread, stamp_of
from zwatch.deploy.resolving import Directory, Fault, FileStamp, LinkStamp, Target, resolve
from zwatch.deploy.seal import parse_seal, read_seal_bytes
from zwatch.deploy.strays import Stray, misplaced, shortened
from zwatch.deploy.versions import VersionSummary, is_version_directory, opened, summarise, version_names
from zwatch.deploy.wishes import WishFollower
from zwatch.errors import Rejection, RepointError

MISSING_GRACE = 1.0
"""Seconds that an alias may be missing, as it is between an unlink and a symlink, before that is a fault."""
SETTLED = 0.25
"""Seconds that awaited files must stay as they are before they count as complete."""
_MAX_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Awaited:
    """Files of a rejected version, as they were when it was tried; the version is tried again when they change."""

    directory: Directory
    stamps: Mapping[str, FileStamp | None]

    @property
    def folders(self) -> list[str]:
        """The directories below the version that hold them, as paths below the models root."""
        folders = {path.rpartition("/")[0] for path in self.stamps} - {""}
        return [f"{self.directory.version}/{folder}" for folder in sorted(folders)]


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen. Each alias is in `targets` or in `faults`, or in neither while it is briefly missing."""

    targets: Mapping[str, Target] = field(default_factory=dict)
    faults: Mapping[str, Fault] = field(default_factory=dict)
    strays: Sequence[Stray] = ()
    notes: Sequence[str] = ()
    changed: frozenset[int] = frozenset()
    """Which of the awaited are worth another try, by position."""
    refused: tuple[RefusedStray, ...] = ()
    """All strays refused so far that still exist, for the next run's `Looker`."""
    folders: tuple[str, ...] = ()
    """The directories beside the models root in which a change may matter, the most important first: paths below it, or
    absolute ones."""


class Looker:
    """Looks repeatedly and remembers what it saw, so that a look at an unchanged root costs a few stats.

    It blocks; run it in a thread, one look at a time.
    """

    def __init__(
        self,
        root: Path,
        aliases: Sequence[str],
        *,
        strict_links: bool,
        refused: Iterable[RefusedStray] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`refused` are the strays that an earlier run refused, see `Look.refused`; `clock` returns seconds."""
        self._clock = clock
        self._root = root
        self._aliases = aliases
        self._wishes = WishFollower(strict=strict_links, refused=refused, clock=clock)
        self._known: dict[str, Target] = {}
        self._missing_since: dict[str, float] = {}
        self._unsettled: dict[int, tuple[Mapping[str, FileStamp | None], float]] = {}
        self._tidied = False
        self._reread, self._restat = Reread(clock), Reread(clock)
        self._strays: list[Stray] = []

    def look(self, awaited: Sequence[Awaited] = ()) -> Look:
        """Look once; follow stray wishes until there are none."""
        try:
            with opened(self._root) as root_fd:
                return self._look(root_fd, awaited)
        except OSError as error:
            message = f"{self._root}: {error.strerror}; expected the models root, see --models"
            self._known.clear()
            self._wishes.forget_links()
            self._reread = Reread(self._clock)
            faults = {alias: Fault(alias, "no_root", message) for alias in self._aliases}
            return Look(faults=faults, refused=self._wishes.refused)

    def _look(self, root_fd: int, awaited: Sequence[Awaited]) -> Look:
        changed_ns = os.fstat(root_fd).st_mtime_ns  # before the tidying, which changes it
        if not self._tidied:
            for alias in self._aliases:
                finish_interrupted(root_fd, alias)
            self._tidied = True
        for _ in range(_MAX_ROUNDS):
            faults = self._resolve_all(root_fd)
            if not self._reread.due(self._stamps(root_fd, faults)) and not self._wishes.is_following:
                break
            self._reread.begin()
            strays, moved = self._wishes.take_wishes(root_fd, list(self._known.values()), changed_ns)
            self._strays = shortened([*strays, *misplaced(root_fd, faults.values())])
            self._reread.done()
            if not moved:
                break
        notes, self._wishes.notes = self._wishes.notes, []
        changed, folders = self._changed(awaited), self._folders(faults, awaited)
        for fault in faults.values():
            if fault.directory is not None:
                fault.directory.close()  # one kept open would keep its file system from being unmounted
        return Look(dict(self._known), faults, self._strays, notes, changed, self._wishes.refused, folders)

    def _stamps(self, root_fd: int, faults: Mapping[str, Fault]) -> object:
        """Return what changes if a link in the models root does, or a stray is made."""
        directories = [fault.directory for fault in faults.values() if fault.directory is not None]
        directories += [target.directory for target in self._known.values()]
        links = [(target.alias, target.link_stamp) for target in self._known.values()]
        return links, stamp_of(root_fd), [stamp_of(directory.fd) for directory in directories]

    def _folders(self, faults: Mapping[str, Fault], awaited: Sequence[Awaited]) -> tuple[str, ...]:
        folders = [target.version for target in self._known.values()]
        folders += [fault.directory.version for fault in faults.values() if fault.directory is not None]
        for wait in awaited:
            folders += [wait.directory.version, *wait.folders]
        return tuple(dict.fromkeys(folders))

    def _resolve_all(self, root_fd: int) -> dict[str, Fault]:
        faults = {}
        for alias in self._aliases:
            found = resolve(root_fd, alias, self._known.get(alias))
            if isinstance(found, Target):
                self._known[alias] = found
                self._missing_since.pop(alias, None)
                continue
            if found.code == "missing":
                since = self._missing_since.setdefault(alias, self._clock())
                if alias in self._known and self._clock() - since < MISSING_GRACE:
                    continue
            faults[alias] = found
            self._known.pop(alias, None)
        return faults

    def _changed(self, awaited: Sequence[Awaited]) -> frozenset[int]:
        now = self._clock()
        if not self._restat.due(now):  # the version may have 100,000 files
            return frozenset()
        self._restat.begin()
        unsettled: dict[int, tuple[Mapping[str, FileStamp | None], float]] = {}
        changed = set()
        for position, wait in enumerate(awaited):
            stamps = wait.directory.file_stamps(list(wait.stamps))
            if stamps == wait.stamps:
                continue
            seen, since = self._unsettled.get(id(wait), (None, now))
            since = since if seen == stamps else now
            unsettled[id(wait)] = (stamps, since)
            if now - since >= SETTLED:
                changed.add(position)
        self._unsettled = unsettled
        self._restat.done()
        return frozenset(changed)


def await_files(directory: Directory) -> Awaited:
    """Note the present state of a version's sealed files; of none if its seal cannot be read (a new seal is a new version)."""
    try:
        paths = list(parse_seal(read_seal_bytes(directory.fd)).files)
    except (Rejection, OSError):
        paths = []
    return Awaited(directory.duplicate(), directory.file_stamps(paths))


def open_version(root: Path, name: str) -> Directory:
    """Open a version by its name.

    Raises:
        OSError: there is none, or it may not be read.
    """
    with opened(root) as root_fd:
        return Directory(
            os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=root_fd), name
        )


def has_version(root: Path, name: str) -> bool:
    """Say whether a version of that name is in the models root."""
    try:
        with opened(root) as root_fd:
            return is_version_directory(root_fd, name)
    except OSError:
        return False


def summaries(root: Path) -> list[VersionSummary]:
    """Describe every version under the models root.

    Raises:
        OSError: the models root cannot be read.
    """
    with opened(root) as root_fd:
        return [summarise(root_fd, name) for name in version_names(root_fd)]


def point(root: Path, alias: str, version: str) -> LinkStamp:
    """Repoint an alias as an operator requests, or make it; return the new link's stamp.

    Raises:
        RepointError: the version does not exist, or the link could not be changed.
    """
    try:
        with opened(root) as root_fd:
            if not is_version_directory(root_fd, version):
                raise RepointError(f"there is no version {version!r} under the models root")
            try:
                note = LinkNote.take(root_fd, alias)
            except FileNotFoundError:
                note = None
            return repoint(root_fd, alias, version, note)
    except OSError as error:
        raise RepointError(f"{alias} could not be repointed to {version}: {error.strerror}") from None
