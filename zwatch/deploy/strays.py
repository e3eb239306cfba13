"""Stray links: `ln -sf v2 current` drops a link into the old version instead of repointing `current`.

`judge` decides, from facts alone, whether such a link is the wish of whoever typed it. `StrayKeeper` gathers the facts,
repoints the alias, and cleans up.
"""

import os
import stat
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from zwatch.deploy import seal
from zwatch.deploy.resolving import Directory, LinkNote, Stamp, Target, repoint
from zwatch.deploy.versions import is_version_directory
from zwatch.errors import Rejection, RepointError

_TRAIL_SECONDS = 2.0
"""How long the version that an alias just left is looked at for a wish that was on its way in."""


@dataclass(frozen=True, slots=True)
class StrayFacts:
    """A symlink found directly in a version directory. Times are nanoseconds."""

    directory: str
    name: str
    text: str
    owner: int
    ctime_ns: int
    sealed: bool
    is_version: bool
    leads_beside: bool
    """Whether an absolute text resolves to the very directory `name` beside this one."""


@dataclass(frozen=True, slots=True)
class Stray:
    """A stray link that was not taken for a wish, and why."""

    path: str
    text: str
    reason: str


def judge(
    facts: StrayFacts, alias_ctime_ns: int, trusted_owners: frozenset[int], aliases_here: Sequence[str]
) -> str | None:
    """Return why this link is no wish for the version of its name, or None if it is one."""
    if facts.sealed:
        return "the version's seal names it"
    if not facts.is_version:
        return "no version of that name"
    if facts.owner not in trusted_owners:
        return (
            f"its owner (uid {facts.owner}) is neither root, nor the owner of the models root, nor the service's user"
        )
    if facts.ctime_ns < alias_ctime_ns:
        return "it is older than the alias"
    if facts.text.startswith("/"):
        if not facts.leads_beside:
            return f"its text does not lead to the version {facts.name} beside it"
    elif facts.text.rstrip("/").rpartition("/")[2] != facts.name:
        return f"its text does not end in {facts.name}"
    if len(aliases_here) != 1:
        return f"{' and '.join(aliases_here)} both point to {facts.directory}; nobody can tell which was meant"
    return None


@dataclass(frozen=True, slots=True)
class _Found:
    facts: StrayFacts
    stamp: Stamp
    directory: Directory

    def stray(self, reason: str) -> Stray:
        return Stray(f"{self.facts.directory}/{self.facts.name}", self.facts.text, reason)


@dataclass(slots=True)
class _Trail:
    """The versions that an alias left a moment ago by our hand. A wish typed while we repointed the alias landed in one
    of them: it counts if the alias still is as we left it and the wish is newer than the last one we followed."""

    placed: Stamp
    last_wish_ns: int
    left: list[tuple[float, Directory]]


class StrayKeeper:
    """Finds strays in the versions that the followed aliases resolve to, and acts on those that are wishes."""

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._trails: dict[str, _Trail] = {}
        self._done: set[Stamp] = set()  # wishes acted on whose link could not be removed
        self._last: dict[str, Target] = {}
        self.notes: list[str] = []
        """What was done since the caller last emptied it, a sentence each, for the log."""

    def take_wishes(self, root_fd: int, targets: Sequence[Target]) -> tuple[list[Stray], bool]:
        """Act on every wish; return the strays that are none, and whether any alias was repointed."""
        trusted = frozenset({0, os.fstat(root_fd).st_uid, os.geteuid()})
        strays: list[Stray] = []
        moved = False
        self._sweep_overtaken(root_fd, targets, trusted)
        for here in _by_directory(targets):
            names = [target.alias for target in here]
            since = max(target.stamp.ctime_ns for target in here)
            wishes = []
            for found in self._find(root_fd, here[0].directory):
                reason = judge(found.facts, since, trusted, names)
                if reason is None and found.stamp in self._done:
                    reason = "it was followed already, but could not be removed"
                if reason is None:
                    wishes.append(found)
                else:
                    strays.append(found.stray(reason))
            for target in here:
                others = {other.identity for other in targets if other.alias != target.alias}
                late = self._late_wishes(root_fd, target, trusted, others)
                if wishes or late:  # wishes only where `target` is alone
                    moved |= self._follow(root_fd, target, wishes + late, strays)
        return strays, moved

    def _follow(self, root_fd: int, target: Target, wishes: list[_Found], strays: list[Stray]) -> bool:
        """Repoint an alias to the newest of its wishes and remove the strays that said so."""
        newest = max(wishes, key=lambda found: found.facts.ctime_ns)
        version = newest.facts.name
        advice = f"`ln -sfn {version} {target.alias}` is the form that needs no help"
        try:
            if self._strict:
                raise RepointError("--strict-links forbids to follow it")
            note = LinkNote.take(root_fd, target.alias)
            if Stamp.of(os.stat(target.alias, dir_fd=root_fd, follow_symlinks=False)) != target.stamp:
                return True  # the operator moved it since the look; look again
            placed = repoint(root_fd, target.alias, version, note)
        except (RepointError, OSError) as error:
            strays.extend(found.stray(f"a wish for {found.facts.name}, but {error}; {advice}") for found in wishes)
            return False
        self._leave(target, placed, newest.facts.ctime_ns)
        for found in wishes:
            self._remove(found)
        self.notes.append(
            f"{newest.facts.directory}/{version} -> {newest.facts.text} was made by `ln -sf`: "
            f"{target.alias} now points to {version}; {advice}"
        )
        return True

    def _sweep_overtaken(self, root_fd: int, targets: Sequence[Target], trusted: frozenset[int]) -> None:
        """Remove wishes that the operator's own move of the alias overtook before they were seen: they mean nothing any
        more, and would lie in the version that the alias left."""
        known = self._last
        self._last = {target.alias: target for target in targets}
        for target in targets:
            last, trail = known.get(target.alias), self._trails.get(target.alias)
            if last is None or last.stamp == target.stamp or self._strict:
                continue
            if trail is not None and trail.placed == target.stamp:
                continue  # our own move: what lies there now came later, see _late_wishes
            if any(other.identity == last.identity for name, other in known.items() if name != target.alias):
                continue
            for found in self._find(root_fd, last.directory):
                overtaken = found.facts.ctime_ns <= target.stamp.ctime_ns
                if overtaken and judge(found.facts, last.stamp.ctime_ns, trusted, [target.alias]) is None:
                    self._remove(found)

    def _leave(self, target: Target, placed: Stamp, wish_ns: int) -> None:
        trail = self._trails.get(target.alias)
        left = trail.left if trail is not None else []
        left.append((time.monotonic() + _TRAIL_SECONDS, target.directory.duplicate()))
        self._trails[target.alias] = _Trail(placed, wish_ns, left)

    def _late_wishes(
        self, root_fd: int, target: Target, trusted: frozenset[int], others: set[tuple[int, int]]
    ) -> list[_Found]:
        """Return wishes that landed in a version which the alias had just left. One in a version that one of the
        `others`, the aliases beside it, resolves to is that alias's, or nobody can tell."""
        trail = self._trails.get(target.alias)
        if trail is None:
            return []
        now = time.monotonic()
        trail.left = [(until, directory) for until, directory in trail.left if until > now]
        if not trail.left or trail.placed != target.stamp:
            del self._trails[target.alias]
            return []
        return [
            found
            for _, directory in trail.left
            if _identity(directory) not in others
            for found in self._find(root_fd, directory)
            if found.stamp not in self._done and judge(found.facts, trail.last_wish_ns, trusted, [target.alias]) is None
        ]

    def _remove(self, found: _Found) -> None:
        self._done.add(found.stamp)
        try:
            # The name may hold a newer link by now; that one is another wish and stays.
            if Stamp.of(os.stat(found.facts.name, dir_fd=found.directory.fd, follow_symlinks=False)) == found.stamp:
                os.unlink(found.facts.name, dir_fd=found.directory.fd)
                self._done.discard(found.stamp)
        except FileNotFoundError:
            self._done.discard(found.stamp)
        except OSError as error:
            self.notes.append(f"{found.facts.directory}/{found.facts.name} could not be removed: {error.strerror}")

    def _find(self, root_fd: int, directory: Directory) -> list[_Found]:
        """Gather the facts about every symlink directly in a version directory."""
        with os.scandir(directory.fd) as entries:
            names = [entry.name for entry in entries if entry.is_symlink()]
        if not names:
            return []
        sealed = _sealed_names(directory.fd)
        found = []
        for name in names:
            try:
                status = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
                text = os.readlink(name, dir_fd=directory.fd)
            except OSError:
                continue  # gone, or no link any more
            facts = StrayFacts(
                directory.version, name, text, status.st_uid, status.st_ctime_ns,
                name in sealed, is_version_directory(root_fd, name), _leads_beside(root_fd, text, name),
            )  # fmt: skip
            found.append(_Found(facts, Stamp.of(status), directory))
        return found


def _by_directory(targets: Iterable[Target]) -> list[list[Target]]:
    """Group the targets that are the same directory."""
    groups: dict[tuple[int, int], list[Target]] = {}
    for target in targets:
        groups.setdefault(target.identity, []).append(target)
    return list(groups.values())


def _identity(directory: Directory) -> tuple[int, int]:
    status = os.fstat(directory.fd)
    return status.st_dev, status.st_ino


def _sealed_names(directory_fd: int) -> set[str]:
    try:
        return {path.partition("/")[0] for path in seal.read_seal(directory_fd).files}
    except (Rejection, OSError):
        return set()


def _leads_beside(root_fd: int, text: str, name: str) -> bool:
    try:
        there, beside = os.stat(text), os.stat(name, dir_fd=root_fd, follow_symlinks=False)
    except (OSError, ValueError):
        return False
    return stat.S_ISDIR(there.st_mode) and (there.st_dev, there.st_ino) == (beside.st_dev, beside.st_ino)
