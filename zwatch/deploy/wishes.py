"""Following the wishes of `ln -sf v2 current`: judges the strays in the versions that the followed aliases resolve to,
repoints the alias for which one was made, and cleans up.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from zwatch.deploy.links import LinkNote, repoint
from zwatch.deploy.refused import RefusedStray, RefusedStrays
from zwatch.deploy.resolving import Directory, LinkStamp, Target
from zwatch.deploy.root_links import RootLinks
from zwatch.deploy.strays import FoundStray, Stray, find_strays, judge
from zwatch.deploy.versions import is_version_name
from zwatch.errors import RepointError

_TRAIL_SECONDS = 2.0
"""How long the version that an alias just left is searched for a wish that was being made meanwhile."""


@dataclass(slots=True)
class _Trail:
    """The versions that an alias left a moment ago because zwatch repointed it. A wish typed while that happened landed
    in one of them: it counts if the alias is still as zwatch left it and the wish is newer than the last one followed."""

    placed: LinkStamp
    last_wish_ns: int
    left: list[tuple[float, Directory]]

    def holds(self, identity: tuple[int, int]) -> bool:
        return any(_identity(directory) == identity for _, directory in self.left)


@dataclass(frozen=True, slots=True)
class _Scene:
    """What one round knows: the models root, when its entries last changed (mtime, nanoseconds), who may make wishes, its
    links now and in the round before."""

    root_fd: int
    changed_ns: int
    trusted: frozenset[int]
    links: RootLinks
    before: RootLinks | None


@dataclass(frozen=True, slots=True)
class _Led:
    """The links that lead to a directory (`here`), those that `left` it since the look before, those that may have left it
    when they changed (ctime by path), and when one may have been removed; times are nanoseconds."""

    here: list[str]
    left: list[str]
    changed: Mapping[str, int]
    removed_ns: int | None

    def moved(self, ctime_ns: int) -> list[str]:
        """Return links that do not lead there now, but may have when a stray was made."""
        changed = sorted(name for name, at in self.changed.items() if at >= ctime_ns)
        moved = [name for name in [*self.left, *changed] if name not in self.here]
        if not moved and self.removed_ns is not None and self.removed_ns >= ctime_ns:
            return ["a link that was removed"]
        return moved


class WishFollower:
    """Finds strays in the versions that the followed aliases resolve to, and acts on those that are wishes."""

    def __init__(
        self, *, strict: bool, refused: Iterable[RefusedStray] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self._strict = strict
        self._refused = RefusedStrays(refused)
        self._trails: dict[str, _Trail] = {}
        self._placed: dict[str, LinkStamp] = {}  # by alias, the link that zwatch made last
        self._last: dict[str, Target] = {}
        self._links: RootLinks | None = None
        self.notes: list[str] = []
        """What was done since the caller last emptied it, a sentence each, for the log."""

    @property
    def refused(self) -> tuple[RefusedStray, ...]:
        """The strays that were refused and still exist, to be kept across restarts."""
        return self._refused.all()

    @property
    def is_following(self) -> bool:
        """Whether a wish was followed a moment ago: late ones may come where no stamp tells."""
        return bool(self._trails)

    def forget_links(self) -> None:
        """Forget where links led, because the models root could not be read for a while: they may have moved unseen."""
        self._links = None

    def take_wishes(
        self, root_fd: int, targets: Sequence[Target], changed_ns: int | None = None
    ) -> tuple[list[Stray], bool]:
        """Act on every wish; return the strays that are none, and whether to look again at once: an alias was repointed,
        or moved during this look. `changed_ns` is the models root's mtime before zwatch changed anything there."""
        links = RootLinks.read(root_fd)
        if any(
            target.alias in links.links and links.links[target.alias].link_stamp != target.link_stamp
            for target in targets
        ):
            return [], True
        root = os.fstat(root_fd)
        trusted = frozenset({0, root.st_uid, os.geteuid()})
        scene = _Scene(root_fd, root.st_mtime_ns if changed_ns is None else changed_ns, trusted, links, self._links)
        self._links = links
        strays: list[Stray] = []
        self._sweep_overtaken(scene, targets)
        self._drop_old_trails(targets)
        present = [target for target in targets if target.alias in links.links]  # others are missing for a moment
        followed = {target.identity for target in present}
        wishes: list[tuple[Target, list[FoundStray]]] = []
        for here in _by_directory(present):
            wishes += self._wishes_in(scene, here, followed, strays)
        if wishes and RootLinks.read(root_fd) != links:
            return strays, True  # a link moved while strays were searched for: the two do not belong together
        # Not before all are judged: a repointed alias would count as one that leads to the next directory.
        moved = [self._follow(root_fd, target, found, strays) for target, found in wishes]
        self._refused.prune(root_fd)
        return strays, any(moved)

    def _wishes_in(
        self, scene: _Scene, here: list[Target], followed: set[tuple[int, int]], strays: list[Stray]
    ) -> list[tuple[Target, list[FoundStray]]]:
        """Judge the strays in one directory, to which the targets `here` lead, and late ones in those that they left."""
        target, names = here[0], [target.alias for target in here]
        since = max(target.link_stamp.ctime_ns for target in here)
        trail = self._trails.get(target.alias)
        if len(here) == 1 and trail is not None and trail.holds(target.identity):
            since = trail.last_wish_ns  # it left this version, and came back: a late wish may lie in it
        wishes = []
        for found, reason in self._judged(scene, target.directory, names, since):
            if reason is None:  # only where `target` is alone
                wishes.append(found)
            else:
                strays.append(found.stray(reason))
        late = [(target, self._late_wishes(scene, target, followed, strays)) for target in here]
        return [(target, wishes + more) for target, more in late if wishes or more]

    def _judged(
        self, scene: _Scene, directory: Directory, aliases: Sequence[str], since: int
    ) -> list[tuple[FoundStray, str | None]]:
        """Judge every stray in a directory and remember the refused ones. `aliases` lead there or have just left it."""
        found = find_strays(scene.root_fd, directory)
        if not found:
            return []
        identity = _identity(directory)
        led: _Led | None = None
        judged = []
        for stray in found:
            reason = judge(stray.facts, since, scene.trusted, aliases[:1])
            if reason is None:  # the models root may have thousands of links: they are asked only now, and once
                led = led or self._led(scene, identity, aliases)
                moved = led.moved(stray.facts.ctime_ns)
                # strict: _follow gives the reason
                before = None if self._strict else self._refused.reason(stray.link_stamp)
                reason = judge(stray.facts, since, scene.trusted, led.here, moved, before)
                if reason is None:  # looked for last, and seldom: the models root may have thousands of directories
                    nested = scene.links.nested(scene.root_fd, identity)
                    reason = judge(stray.facts, since, scene.trusted, [*led.here, *nested], moved, before)
            if reason is not None:
                self._refuse(stray, reason)
            judged.append((stray, reason))
        return judged

    def _led(self, scene: _Scene, identity: tuple[int, int], aliases: Sequence[str]) -> _Led:
        """Return which links lead to a directory, and which may have. While zwatch runs, it knows from the look before where
        every link led. At its start it knows nothing of the kind: any link that is newer than a stray may have been repointed
        by hand after the stray had failed to do so, and if the models root changed since the stray was made, a link may have
        been removed from it."""
        others = [name for name in scene.links.leading_to(scene.root_fd, identity) if name not in aliases]
        outside = scene.links.outside(scene.root_fd)
        if scene.before is not None:
            left = scene.links.moved_from(scene.root_fd, identity, scene.before, self._placed)
            return _Led([*aliases, *others], left, outside, None)
        changed = {name: link.link_stamp.ctime_ns for name, link in scene.links.links.items()}
        return _Led([*aliases, *others], [], {**changed, **outside}, scene.changed_ns)

    def _refuse(self, found: FoundStray, reason: str) -> None:
        if is_version_name(found.facts.name):  # others can never become a wish
            self._refused.add(found.path, found.link_stamp, reason)

    def _follow(self, root_fd: int, target: Target, wishes: list[FoundStray], strays: list[Stray]) -> bool:
        """Repoint an alias to the newest of its wishes and remove the strays that said so."""
        newest = max(wishes, key=lambda found: found.facts.ctime_ns)
        version = newest.facts.name
        advice = f"`ln -sfn {version} {target.alias}` is the form that needs no help"
        if self._strict:
            for found in wishes:
                reason = f"a wish for {found.facts.name}, but --strict-links forbids to follow it; {advice}"
                self._refuse(found, reason)
                strays.append(found.stray(reason))
            return False
        try:
            note = LinkNote.take(root_fd, target.alias)
            if LinkStamp.of(os.stat(target.alias, dir_fd=root_fd, follow_symlinks=False)) != target.link_stamp:
                return True  # the operator moved it since the look; look again
            placed = repoint(root_fd, target.alias, version, note)
        except (RepointError, OSError) as error:  # not refused: the wish is right, and is tried again
            strays.extend(found.stray(f"a wish for {found.facts.name}, but {error}; {advice}") for found in wishes)
            return False
        self._leave(target, placed, newest.facts.ctime_ns)
        for found in wishes:
            self._remove(found)
        self.notes.append(
            f"{newest.path} -> {newest.facts.text} was made by `ln -sf`: "
            f"{target.alias} now points to {version}; {advice}"
        )
        return True

    def _sweep_overtaken(self, scene: _Scene, targets: Sequence[Target]) -> None:
        """Remove wishes for an alias that the operator moved before they were seen: they mean nothing any more, and
        would stay in the version that the alias left. One that may have been for another link stays."""
        known = self._last
        self._last = {target.alias: target for target in targets}
        if self._strict or scene.before is None:
            return
        for target in targets:
            last, trail = known.get(target.alias), self._trails.get(target.alias)
            if last is None or last.link_stamp == target.link_stamp:
                continue
            if trail is not None and trail.placed == target.link_stamp:
                continue  # zwatch moved it: what lies there now came later, see _late_wishes
            since = last.link_stamp.ctime_ns
            swept = [
                found
                for found in find_strays(scene.root_fd, last.directory, only_versions=True)
                if found.facts.ctime_ns <= target.link_stamp.ctime_ns
                and judge(found.facts, since, scene.trusted, [target.alias]) is None
            ]
            if not swept:
                continue  # which links led there is asked only now: the models root may have thousands
            others = {
                *scene.links.led_to(scene.root_fd, last.identity, scene.before),
                *scene.links.leading_to(scene.root_fd, last.identity),
            }
            links = [target.alias, *sorted(others - {target.alias})]
            outside = scene.links.outside(scene.root_fd)
            for found in swept:
                moved = [path for path, at in outside.items() if at >= found.facts.ctime_ns]
                before = self._refused.reason(found.link_stamp)
                if judge(found.facts, since, scene.trusted, links, moved, before) is None:
                    self._remove(found)

    def _leave(self, target: Target, placed: LinkStamp, wish_ns: int) -> None:
        trail = self._trails.get(target.alias)
        left = trail.left if trail is not None else []
        left.append((self._clock() + _TRAIL_SECONDS, target.directory.duplicate()))
        self._trails[target.alias] = _Trail(placed, wish_ns, left)
        self._placed[target.alias] = placed

    def _drop_old_trails(self, targets: Sequence[Target]) -> None:
        """Forget versions that were left long ago, and the trails of aliases that the operator moved since."""
        now = self._clock()
        stamps = {target.alias: target.link_stamp for target in targets}
        for alias, trail in list(self._trails.items()):
            trail.left = [(until, directory) for until, directory in trail.left if until > now]
            if not trail.left or stamps.get(alias, trail.placed) != trail.placed:
                del self._trails[alias]

    def _late_wishes(
        self, scene: _Scene, target: Target, followed: set[tuple[int, int]], strays: list[Stray]
    ) -> list[FoundStray]:
        """Return wishes that landed in a version which the alias had just left. One in a version to which a followed
        alias leads now is judged there."""
        trail = self._trails.get(target.alias)
        late: dict[LinkStamp, FoundStray] = {}
        for _, directory in trail.left if trail is not None else []:
            identity = _identity(directory)
            if trail is None or identity in followed:
                continue
            aliases = sorted(name for name, other in self._trails.items() if other.holds(identity))
            for found, reason in self._judged(scene, directory, aliases, trail.last_wish_ns):
                if reason is None:
                    late[found.link_stamp] = found
                elif found.facts.ctime_ns >= trail.last_wish_ns and (stray := found.stray(reason)) not in strays:
                    strays.append(stray)
        return list(late.values())

    def _remove(self, found: FoundStray) -> None:
        try:
            # The name may hold a newer link by now; that one is another wish and stays.
            if (
                LinkStamp.of(os.stat(found.facts.name, dir_fd=found.directory.fd, follow_symlinks=False))
                == found.link_stamp
            ):
                os.unlink(found.facts.name, dir_fd=found.directory.fd)
        except FileNotFoundError:
            return
        except OSError as error:
            self._refuse(found, "it was followed already, but could not be removed")
            self.notes.append(f"{found.path} could not be removed: {error.strerror}")


def _by_directory(targets: Iterable[Target]) -> list[list[Target]]:
    """Group the targets that are the same directory."""
    groups: dict[tuple[int, int], list[Target]] = {}
    for target in targets:
        groups.setdefault(target.identity, []).append(target)
    return list(groups.values())


def _identity(directory: Directory) -> tuple[int, int]:
    status = os.fstat(directory.fd)
    return status.st_dev, status.st_ino
