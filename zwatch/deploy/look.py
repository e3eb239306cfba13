"""One look at the models root: what every followed alias asks for, stray links, and changes of awaited files."""

import errno
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from zwatch.deploy.asking import Asker, Direct
from zwatch.deploy.chains import LinkStamp, read_chain, stamp_of
from zwatch.deploy.followed import FollowedLinks, Known
from zwatch.deploy.following import Rule, ShareSeen
from zwatch.deploy.links import Leftovers, LinkNote, finish_interrupted, interrupted_links, repoint
from zwatch.deploy.oserrors import is_missing
from zwatch.deploy.refused import RefusedStray
from zwatch.deploy.reread import Reread
from zwatch.deploy.reread import stamp_of as dir_stamp_of
from zwatch.deploy.resolving import Directory, Fault, FileStamps, Target, are_unchanged, opened_version
from zwatch.deploy.seal import SEAL_NAME, parse_seal, read_seal_bytes
from zwatch.deploy.searching import StraySearch
from zwatch.deploy.strays import Stray
from zwatch.deploy.versions import is_version_directory, opened
from zwatch.errors import Rejection, RepointError

_log = logging.getLogger(__name__)

SETTLED = 0.25
"""Seconds that awaited files must stay as they are before they count as complete."""
SWEEP_AFTER = 1.0
"""Seconds after which a temporary link belongs to no repointing that is still going on: one takes milliseconds."""
_MAX_ROUNDS = 8


@dataclass(frozen=True, slots=True)
class Awaited:
    """Files of a rejected version, as they were when it was tried; the version is tried again when they change."""

    directory: Directory
    stamps: FileStamps

    @property
    def folders(self) -> list[str]:
        """The directories below the version that hold them, as paths below the models root, and absolute ones elsewhere."""
        folders = {path.rpartition("/")[0] for path in self.stamps} - {""}
        return [os.path.join(self.directory.version, folder) for folder in sorted(folders)]


@dataclass(frozen=True, slots=True)
class Look:
    """What was seen. Each alias is in `targets` or in `faults`; in both while an I/O error hides where it leads, or what lies
    there, and in `targets` while it is briefly missing: the target is then that of the look before. A share is in them by its
    key, such as `current@`."""

    targets: Mapping[str, Target] = field(default_factory=dict)
    faults: Mapping[str, Fault] = field(default_factory=dict)
    strays: Sequence[Stray] = ()
    notes: Sequence[str] = ()
    changed: frozenset[int] = frozenset()
    """Which of the awaited are worth another try, by position."""
    refused: tuple[RefusedStray, ...] = ()
    """All strays refused so far that still exist, for the next run's `Looker`."""
    aliases: tuple[str, ...] = ()
    """All aliases that are followed, those that were named first."""
    shares: Mapping[str, ShareSeen] = field(default_factory=dict)
    """By alias, what was seen of its shares, if anything was."""
    has_root: bool = True
    """Whether the models root could be read; if not, nothing is known to be gone."""
    folders: tuple[str, ...] = ()
    """The directories beside the models root in which a change may matter, the most important first: paths below it, or
    absolute ones."""

    @property
    def shown(self) -> tuple[object, ...]:
        """What of it others may wait for."""
        return self.targets, self.faults, self.strays, self.folders, self.aliases, self.shares


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
        asker: Asker | Direct | None = None,
        known: Known | None = None,
    ) -> None:
        """`aliases` are names and shell patterns; `refused` are the strays that an earlier run refused, see `Look.refused`; `clock` returns seconds; through `asker`
        goes what may not answer; `known` is what another looker saw last."""
        self._clock = clock
        self._root = root
        self._asker = asker or Asker()
        self._rule = Rule.of(aliases)
        self._links = FollowedLinks(self._rule, self._asker, clock, known)
        self._search = StraySearch(root, self._asker, strict_links=strict_links, refused=refused, clock=clock)
        self._unsettled: dict[int, tuple[FileStamps, float]] = {}
        self._untidy: set[str] | None = None  # known at the first look
        self._leftovers = Leftovers(SWEEP_AFTER)
        self._swept_ns: int | None = None
        self._resweep, self._restat = Reread(clock), Reread(clock)

    @property
    def known(self) -> Known:
        """What was seen of the followed links last."""
        return self._links.known

    @property
    def refused(self) -> tuple[RefusedStray, ...]:
        """See `Look.refused`."""
        return self._search.refused

    def look(self, awaited: Sequence[Awaited] = ()) -> Look:
        """Look once; follow stray wishes until there are none. What does not answer holds up nothing else."""
        try:
            root = self._asker.ask("root", _opened_root, self._root)
            return self._look(root.fd, awaited)
        except OSError as error:
            return self._without_root(error)

    def _without_root(self, error: OSError) -> Look:
        self._search.forget_links()
        code, message = "no_root", f"{self._root}: {error.strerror}; expected the models root, see --models"
        if is_missing(error):
            self._links.known.targets.clear()
        else:  # no descriptors, say: what was known is as good as before
            code, message = "unreadable", f"{self._root}: {error.strerror}; it is looked at again"
        faults = {key: Fault(name, code, message) for key, name in self._links.names}
        return replace(self._seen(faults), has_root=False)

    def _seen(self, faults: Mapping[str, Fault]) -> Look:
        """Return what is known of the followed links, with these faults."""
        known = self._links.known
        return Look(
            dict(known.targets),
            faults,
            refused=self._search.refused,
            aliases=self._links.aliases,
            shares=dict(known.shares),
        )

    def _look(self, root_fd: int, awaited: Sequence[Awaited]) -> Look:
        changed_ns = self._asker.ask_in("root", root_fd, self._tidy)
        strays: Sequence[Stray] = ()
        for _ in range(_MAX_ROUNDS):
            faults = self._links.resolve(root_fd)
            try:
                strays, moved = self._search.search(root_fd, self._links.known.targets, faults, changed_ns)
            except OSError as error:
                where = f"{error.filename}: " if isinstance(error.filename, str) else ""
                message = f"stray links could not be searched for: {where}{error.strerror}; they are searched for again"
                faults = {alias: Fault(alias, "unreadable", message) for alias in self._links.known.targets} | faults
                break
            if not moved:
                break
        changed, folders = self._changed(awaited), self._folders(faults, awaited)
        # Not closed, but let go: a thread that does not return may still use a directory.
        faults = {alias: replace(fault, directory=None) for alias, fault in faults.items()}
        seen = self._seen(faults)
        return replace(seen, strays=strays, notes=self._search.take_notes(), changed=changed, folders=folders)

    def _folders(self, faults: Mapping[str, Fault], awaited: Sequence[Awaited]) -> tuple[str, ...]:
        folders = [target.version for target in self._links.known.targets.values()]
        folders += [fault.directory.version for fault in faults.values() if fault.directory is not None]
        for wait in awaited:
            folders += [wait.directory.version, *wait.folders]
        return tuple(dict.fromkeys(folders))

    def _tidy(self, root_fd: int) -> int:
        """Remove temporary links: at the first look what a crash left, later what could not be removed before; then read which links
        there are. Return the models root's mtime from before, in nanoseconds."""
        changed_ns = os.fstat(root_fd).st_mtime_ns
        try:
            if self._untidy is None:
                self._untidy = {name for name in interrupted_links(root_fd) if self._rule.may_follow(name)}
            for alias in sorted(self._untidy):
                finish_interrupted(root_fd, alias)
                self._untidy.discard(alias)
            if changed_ns != self._swept_ns and self._resweep.due(changed_ns):
                self._resweep.begin()
                self._swept_ns = None if self._leftovers.sweep(root_fd, self._clock()) else changed_ns
                self._resweep.done()
        except OSError:
            pass  # the models root cannot be listed now; the search for strays says so
        try:
            self._links.read_names(root_fd, dir_stamp_of(root_fd))
        except OSError:
            pass  # likewise; the links that were known are looked at all the same
        return changed_ns

    def _changed(self, awaited: Sequence[Awaited]) -> frozenset[int]:
        now = self._clock()
        if not self._restat.due(None):  # the version may have 100,000 files
            return frozenset()
        unsettled: dict[int, tuple[FileStamps, float]] = {}
        changed = set()
        for position, wait in enumerate(awaited):
            try:
                stamps, cost = self._asker.ask(id(wait), _timed_stamps, wait)
            except OSError:
                continue  # whether they changed is not known
            self._restat.spend(cost)
            if are_unchanged(wait.stamps, stamps):
                continue
            seen, since = self._unsettled.get(id(wait), ({}, now))
            since = since if are_unchanged(seen, stamps) else now
            unsettled[id(wait)] = (stamps, since)
            if now - since >= SETTLED:
                changed.add(position)
        self._unsettled = unsettled
        return frozenset(changed)


def _timed_stamps(wait: Awaited) -> tuple[FileStamps, float]:
    """Return the present stamps of awaited files, and how long a core worked for that, in seconds."""
    begun = time.thread_time()
    stamps = wait.directory.file_stamps(list(wait.stamps))
    return stamps, time.thread_time() - begun


def _opened_root(root: Path) -> Directory:
    return Directory(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), "")


def await_files(directory: Directory, *, also_seal: bool = False, also: Sequence[str] = ()) -> Awaited:
    """Note the present state of a version's sealed files; of none if it has no valid seal (a new seal is a new version, unless
    what is awaited is `also_seal`). `also` are other files: paths below the version, or absolute ones.

    Raises:
        OSError: the seal or a file could not be looked at.
    """
    try:
        paths = list(parse_seal(read_seal_bytes(directory.fd)).files)
    except Rejection:
        paths = []
    paths += [SEAL_NAME] if also_seal else []
    return Awaited(directory.duplicate(), directory.file_stamps([*also, *paths]))


def open_version(root: Path, name: str) -> Directory:
    """Open a version by its name.

    Raises:
        OSError: there is none, or it may not be read.
    """
    with opened(root) as root_fd:
        return opened_version(root_fd, name)


def has_version(root: Path, name: str) -> bool:
    """Say whether a version of that name is in the models root.

    Raises:
        OSError: that could not be found out; while the models root is away, too.
    """
    with opened(root) as root_fd:
        return is_version_directory(root_fd, name)


def without_root(root: Path, error: OSError) -> str | None:
    """Return the sentence for an error that says that the models root itself is not there; None for every other error."""
    if not (is_missing(error) or error.errno == errno.ELOOP) or error.filename not in (root, str(root)):
        return None
    return f"{error.strerror}: the models root {root} is away; nothing was changed, try again when it is back"


def read_stamps(root: Path, aliases: Sequence[str]) -> list[LinkStamp | None]:
    """Return the stamp that each alias has now; None for one that cannot be read."""
    try:
        with opened(root) as root_fd:
            return [_read_stamp(root_fd, alias) for alias in aliases]
    except OSError:
        return [None for _ in aliases]


def _read_stamp(root_fd: int, alias: str) -> LinkStamp | None:
    try:
        chain = read_chain(root_fd, alias)
    except OSError:
        return None
    return stamp_of(chain) if chain else None


def point(root: Path, alias: str, version: str) -> LinkStamp:
    """Repoint an alias as an operator requests, or make it; return its new stamp.

    The alias itself is moved and no other link: of `current -> stable -> v1`, a deploy to `current` leaves `stable` alone.

    Raises:
        RepointError: the version does not exist, or the link could not be changed.
    """
    try:
        with opened(root) as root_fd:
            if not is_version_directory(root_fd, version):
                raise RepointError(f"there is no version {version!r} under the models root")
            try:
                chain = read_chain(root_fd, alias)
                if not chain:
                    raise RepointError(
                        f"{alias}: expected a symlink, found something else with that name; move it away"
                    )
                note = LinkNote.take(root_fd, alias)
            except FileNotFoundError:
                return repoint(root_fd, alias, version, None)
            placed = repoint(root_fd, alias, version, note)
            if len(chain) > 1:
                _log.warning(
                    "%s led through %s and now points to %s itself, because %s was named; `ln -sfn %s %s` restores the chain",
                    alias, chain[0].text, version, alias, chain[0].text, alias,
                )  # fmt: skip
            return placed
    except OSError as error:
        why = without_root(root, error) or error.strerror
        raise RepointError(f"{alias} could not be repointed to {version}: {why}") from None
