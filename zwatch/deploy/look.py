"""One look at the models root: what every followed alias asks for, stray links, and changes of awaited files."""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from zwatch.deploy.asking import ANSWER_SECONDS, Asker, Unanswered
from zwatch.deploy.links import LinkNote, finish_interrupted, repoint
from zwatch.deploy.refused import RefusedStray
from zwatch.deploy.resolving import Directory, Fault, FileStamp, LinkStamp, Target, resolve
from zwatch.deploy.seal import parse_seal, read_seal_bytes
from zwatch.deploy.strays import Stray
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
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """`refused` are the strays that an earlier run refused, see `Look.refused`; `clock` returns seconds; after
        `answer_seconds` a look goes on without what does not answer."""
        self._clock = clock
        self._root = root
        self._aliases = aliases
        self._make_wishes = partial(WishFollower, strict=strict_links, clock=clock)
        self._wishes = self._make_wishes(refused=refused)
        self._wishes_lost = 0  # followers that did not return from a look
        self._asker = Asker(answer_seconds)
        self._known: dict[str, Target] = {}
        self._missing_since: dict[str, float] = {}
        self._unsettled: dict[int, tuple[Mapping[str, FileStamp | None], float]] = {}
        self._tidied = False

    def look(self, awaited: Sequence[Awaited] = ()) -> Look:
        """Look once; follow stray wishes until there are none. What does not answer holds up nothing else."""
        try:
            root = self._asker.ask("root", _opened_root, self._root)
            return self._look(root.fd, awaited)
        except OSError as error:
            message = f"{self._root}: {error.strerror}; expected the models root, see --models"
            self._known.clear()
            self._wishes.forget_links()
            faults = {alias: Fault(alias, "no_root", message) for alias in self._aliases}
            return Look(faults=faults, refused=self._wishes.refused)

    def _look(self, root_fd: int, awaited: Sequence[Awaited]) -> Look:
        changed_ns = self._asker.ask_in("root", root_fd, self._tidy)
        strays: list[Stray] = []
        for _ in range(_MAX_ROUNDS):
            faults = self._resolve_all(root_fd)
            strays, moved = self._take_wishes(root_fd, changed_ns)
            if not moved:
                break
        notes, self._wishes.notes = self._wishes.notes, []
        return Look(dict(self._known), faults, strays, notes, self._changed(awaited), self._wishes.refused)

    def _tidy(self, root_fd: int) -> int:
        """Tidy up once; return the models root's mtime from before, in nanoseconds."""
        changed_ns = os.fstat(root_fd).st_mtime_ns
        if not self._tidied:
            for alias in self._aliases:
                finish_interrupted(root_fd, alias)
            self._tidied = True
        return changed_ns

    def _resolve_all(self, root_fd: int) -> dict[str, Fault]:
        faults = {}
        links = self._asker.ask_in("root", root_fd, _links, self._aliases)
        for alias in self._aliases:
            found = self._resolve(root_fd, alias, links.get(alias))
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

    def _resolve(self, root_fd: int, alias: str, link: tuple[LinkStamp, str] | None) -> Target | Fault:
        """Resolve an alias. One that does not answer is asked again when it has, or when its link was made again."""
        try:
            return self._asker.ask_in((alias, link), root_fd, resolve, alias, self._known.get(alias))
        except Unanswered as error:
            stamp, text = link or (None, "?")
            return Fault(alias, "unreadable", f"{alias} -> {text}: {error.strerror}", text, stamp)

    def _take_wishes(self, root_fd: int, changed_ns: int) -> tuple[list[Stray], bool]:
        subject = ("wishes", self._wishes_lost % 2)
        is_new = not self._asker.is_waiting(subject)
        try:
            return self._asker.ask_in(
                subject, root_fd, self._wishes.take_wishes, list(self._known.values()), changed_ns
            )
        except Unanswered as error:
            if is_new:
                # The thread that does not return still works on it. A new one may get on: it knows no directory that an
                # alias has left. If it does not either, that is all until one of them returns.
                self._wishes_lost += 1
                self._wishes = self._make_wishes(refused=self._wishes.refused)
                self._wishes.notes.append(f"links inside versions of {self._root} are not followed: {error.strerror}")
            return [], False

    def _changed(self, awaited: Sequence[Awaited]) -> frozenset[int]:
        now = self._clock()
        unsettled: dict[int, tuple[Mapping[str, FileStamp | None], float]] = {}
        changed = set()
        for position, wait in enumerate(awaited):
            try:
                stamps = self._asker.ask(id(wait), wait.directory.file_stamps, list(wait.stamps))
            except Unanswered:
                continue
            if stamps == wait.stamps:
                continue
            seen, since = self._unsettled.get(id(wait), (None, now))
            since = since if seen == stamps else now
            unsettled[id(wait)] = (stamps, since)
            if now - since >= SETTLED:
                changed.add(position)
        self._unsettled = unsettled
        return frozenset(changed)


def _opened_root(root: Path) -> Directory:
    return Directory(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), "")


def _links(root_fd: int, names: Sequence[str]) -> dict[str, tuple[LinkStamp, str]]:
    """Return the stamp and the text of each of these links that is there. It follows none."""
    links = {}
    for name in names:
        try:
            stamp = LinkStamp.of(os.stat(name, dir_fd=root_fd, follow_symlinks=False))
            links[name] = stamp, os.readlink(name, dir_fd=root_fd)
        except OSError:
            continue
    return links


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
