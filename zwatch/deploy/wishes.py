"""Following the wishes of `ln -sf v2 current`: judges the strays in the versions that the followed aliases resolve to,
repoints the alias for which one was made, and cleans up.
"""

import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

from zwatch.deploy.chains import LinkStamp, Place
from zwatch.deploy.links import LinkNote, repoint
from zwatch.deploy.refused import RefusedStray, RefusedStrays
from zwatch.deploy.resolving import Directory, Target
from zwatch.deploy.root_links import RootLinks
from zwatch.deploy.strays import AHEAD, OLDER, FoundStray, Stray, find_strays, judge
from zwatch.deploy.versions import is_version_name
from zwatch.errors import RepointError

_TRAIL_SECONDS = 2.0
"""How long the version that an alias just left is searched for a wish that was being made meanwhile."""
_CLOCK_TOLERANCE_NS = 60 * 10**9
"""How far a link's time may be ahead of this machine's clock, as on a file server, before it says nothing, nanoseconds."""


@dataclass(slots=True)
class _Trail:
    """The versions that a link left a moment ago because zwatch repointed it. A wish typed while that happened landed
    in one of them: it counts if the link is still as zwatch left it and the wish is newer than the last one followed."""

    placed: LinkStamp
    last_wish_ns: int
    left: list[tuple[float, Directory]]

    def holds(self, place: Place) -> bool:
        return any(Place.of(directory.fd) == place for _, directory in self.left)


@dataclass(frozen=True, slots=True)
class _FirstSight:
    """The strays in a directory, name and stamp, when certain links (`key`) were first seen to lead there."""

    key: tuple[object, tuple[int, int]]
    strays: frozenset[tuple[str, LinkStamp]]


@dataclass(frozen=True, slots=True)
class _Scene:
    """What one round knows: the models root, when its entries last changed (mtime, nanoseconds), who may make wishes, its
    links now and in the round before."""

    root_fd: int
    changed_ns: int
    trusted: frozenset[int]
    links: RootLinks
    before: RootLinks | None


class WishFollower:
    """Finds strays in the versions that the followed aliases resolve to, and acts on those that are wishes."""

    def __init__(
        self,
        *,
        strict: bool,
        refused: Iterable[RefusedStray] = (),
        clock: Callable[[], float] = time.monotonic,
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`clock` returns seconds of a monotonic clock, `wall_ns` the time of day in nanoseconds."""
        self._clock, self._wall_ns = clock, wall_ns
        self._strict = strict
        self._refused = RefusedStrays(refused)
        self._trails: dict[str, _Trail] = {}
        self._placed: dict[str, LinkStamp] = {}  # by name, the link that zwatch made last
        self._first: dict[str, _FirstSight] = {}  # by version
        self._last: dict[str, Target] = {}
        self._links: RootLinks | None = None
        self.notes: list[str] = []
        """What was done since the caller last emptied it, a sentence each, for the log."""

    @property
    def refused(self) -> tuple[RefusedStray, ...]:
        """The strays that were refused and still exist, to be kept across restarts."""
        return self._refused.all()

    def forget_links(self) -> None:
        """Forget where links led, because the models root could not be read for a while: they may have moved unseen."""
        self._links = None

    def take_wishes(
        self, root_fd: int, targets: Sequence[Target], changed_ns: int | None = None
    ) -> tuple[list[Stray], bool]:
        """Act on every wish; return the strays that are none, and whether to look again at once: a link was repointed,
        or moved during this look. `changed_ns` is the models root's mtime before zwatch changed anything there.

        Raises:
            OSError: something could not be read. Nothing was followed then that may not be followed.
        """
        links = RootLinks.read(root_fd)
        if any(
            link.name is not None and links.stamp(link.name) not in (None, link.stamp)
            for target in targets
            for link in target.chain
        ):
            return [], True
        root = os.fstat(root_fd)
        trusted = frozenset({0, root.st_uid, os.geteuid()})
        scene = _Scene(root_fd, root.st_mtime_ns if changed_ns is None else changed_ns, trusted, links, self._links)
        self._links = links
        strays: list[Stray] = []
        self._refused.prune(root_fd)
        self._sweep_overtaken(scene, targets)
        self._drop_old_trails(links)
        present = [target for target in targets if target.alias in links.links]  # others are missing for a moment
        followed = [Place.of(target.directory.fd) for target in present]
        self._first = {key: first for key, first in self._first.items() if any(key == t.version for t in present)}
        wishes: dict[str, tuple[Target, list[FoundStray]]] = {}
        for here in _by_directory(present, followed):
            wishes |= self._wishes_in(scene, here, followed, strays)
        if wishes and RootLinks.read(root_fd) != links:
            return strays, True  # a link moved while strays were searched for: the two do not belong together
        # Not before all are judged: a repointed alias would count as one that leads to the next directory.
        moved = [self._follow(scene, link, target, found, strays) for link, (target, found) in wishes.items()]
        self._refused.prune(root_fd)
        return strays, any(moved)

    def _wishes_in(
        self, scene: _Scene, here: list[Target], followed: Sequence[Place], strays: list[Stray]
    ) -> dict[str, tuple[Target, list[FoundStray]]]:
        """Judge the strays in one directory, to which the targets `here` lead, and late ones in those that they left.
        Return wishes by the link to move, each with an alias that leads through it."""
        place, since = Place.of(here[0].directory.fd), max(target.linked_ns for target in here)
        holders = {target.holder: target for target in sorted(here, key=lambda target: len(target.chain))}
        trail = self._trails.get(here[0].holder)
        if len(holders) == 1 and trail is not None and trail.holds(place):
            since = trail.last_wish_ns  # it left this version, and came back: a late wish may lie in it
        found = find_strays(scene.root_fd, here[0].directory)
        came = self._came_later(here, found)
        wishes: dict[str, list[FoundStray]] = {holder: [] for holder in holders}
        for stray, reason, holder in self._judged(scene, place, here, found, since, came):
            if reason is None:
                wishes[holder].append(stray)
            elif reason == AHEAD:  # not refused: it may be right
                advice = f"type `ln -sfn {stray.facts.name} {holder}`"
                strays.append(stray.stray(f"{AHEAD}; {advice}", is_wish=True))
            else:
                self._refuse(stray, reason)
                strays.append(stray.stray(reason))
        for holder in holders:
            wishes[holder] += self._late_wishes(scene, holder, followed, strays)
        return {holder: (holders[holder], found) for holder, found in wishes.items() if found}

    def _came_later(self, here: list[Target], found: Sequence[FoundStray]) -> set[LinkStamp]:
        """Return the strays that were not there when the present links were first seen to lead to this directory. They
        are newer than these links, whatever their times say: a clock may have been wrong when a link was made."""
        key = (tuple((target.alias, target.link_stamp) for target in here), here[0].identity)
        first = self._first.get(here[0].version)
        if first is None or first.key != key:
            stamps = frozenset((stray.facts.name, stray.link_stamp) for stray in found)
            first = self._first[here[0].version] = _FirstSight(key, stamps)
        return {stray.link_stamp for stray in found if (stray.facts.name, stray.link_stamp) not in first.strays}

    def _judged(
        self,
        scene: _Scene,
        place: Place,
        here: Sequence[Target | str],
        found: Sequence[FoundStray],
        since: int,
        came: Collection[LinkStamp] = (),
    ) -> list[tuple[FoundStray, str | None, str]]:
        """Judge strays in a directory: each with the reason why it is no wish, or None, and the link that it is for. `here`
        are the targets, or the links, that lead there or have just left it; those in `came` are newer than these."""
        if not found:
            return []
        aliases = [one if isinstance(one, str) else one.alias for one in here]
        others = [name for name in scene.links.leading_to(scene.root_fd, place) if name not in aliases]
        links_here = [*aliases, *others]
        targets = [one for one in here if isinstance(one, Target) and one.is_reached_by(links_here)]
        # The links of one chain are one place: the last is moved, and the others lead through it as before.
        places = [targets[0].holder] if targets else links_here
        judged = []
        for stray in found:
            ctime_ns = stray.facts.ctime_ns
            moved = self._may_have_led(scene, place, ctime_ns, links_here)
            # With strict links, _follow gives the reason.
            before = None if self._strict else self._refused.reason(stray.link_stamp, stray.path)
            after = 0 if stray.link_stamp in came else since
            reason = judge(stray.facts, after, scene.trusted, places, moved, before)
            if reason is None:  # looked for last, and seldom: the models root may have thousands of directories
                nested = scene.links.nested(scene.root_fd, place)
                reason = judge(stray.facts, after, scene.trusted, [*places, *nested], moved, before)
            elif reason == OLDER and since > self._wall_ns() + _CLOCK_TOLERANCE_NS:
                in_doubt = judge(stray.facts, 0, scene.trusted, places, moved, before) is None
                reason = AHEAD if in_doubt else OLDER
            judged.append((stray, reason, places[0]))
        return judged

    def _may_have_led(self, scene: _Scene, place: Place, ctime_ns: int, links_here: Sequence[str]) -> list[str]:
        """Return links that do not lead to a directory now, but may have when a stray was made there.

        While zwatch runs, it knows from the look before where every link led. At its start it knows nothing of the kind:
        any link that is newer than the stray may have been repointed by hand after the stray had failed to do so, and if
        the models root changed since the stray was made, a link may have been removed from it.
        """
        if scene.before is None:
            moved = scene.links.newer_than(ctime_ns)
        else:
            moved = scene.links.moved_from(scene.root_fd, place, scene.before, self._placed)
        moved += scene.links.newer_outside(scene.root_fd, ctime_ns)
        moved = [name for name in moved if name not in links_here]
        if scene.before is None and not moved and scene.changed_ns >= ctime_ns:
            return ["a link that was removed"]
        return moved

    def _refuse(self, found: FoundStray, reason: str) -> None:
        if is_version_name(found.facts.name):  # others can never become a wish
            self._refused.add(found.path, found.link_stamp, reason)

    def _follow(self, scene: _Scene, link: str, target: Target, wishes: list[FoundStray], strays: list[Stray]) -> bool:
        """Repoint a link to the newest of its wishes and remove the strays that said so. `target` leads through it."""
        newest = max(wishes, key=lambda found: found.facts.ctime_ns)
        version = newest.facts.name
        advice = f"`ln -sfn {version} {link}` is the form that needs no help"
        if self._strict:
            for found in wishes:
                reason = f"a wish for {found.facts.name}, but --strict-links forbids to follow it; {advice}"
                self._refuse(found, reason)
                strays.append(found.stray(reason))
            return False
        try:
            left = target.directory.duplicate()  # before anything is changed: there may be no descriptor for it
            note = LinkNote.take(scene.root_fd, link)
            now = LinkStamp.of(os.stat(link, dir_fd=scene.root_fd, follow_symlinks=False))
            if link not in scene.links.links or now != scene.links.links[link].link_stamp:
                return True  # the operator moved it since the look; look again
            placed = repoint(scene.root_fd, link, version, note)
        except (RepointError, OSError) as error:  # not refused: the wish is right, and is tried again
            why = error if isinstance(error, RepointError) else error.strerror
            strays.extend(
                found.stray(f"a wish for {found.facts.name}, but {why}; {advice}", is_wish=True) for found in wishes
            )
            return False
        self._leave(link, left, placed, newest.facts.ctime_ns)
        for found in wishes:
            self._remove(found)
        chain = ""
        if link != target.alias:
            chain = f" ({target.alias} leads through {link}, which held {target.version}, so {link} was moved)"
        self.notes.append(
            f"{newest.path} -> {newest.facts.text} was made by `ln -sf`: {link} now points to {version}{chain}; {advice}"
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
            last, trail = known.get(target.alias), self._trails.get(target.holder)
            if last is None or last.link_stamp == target.link_stamp:
                continue
            if trail is not None and trail.placed == scene.links.stamp(target.holder):
                continue  # zwatch moved it: what lies there now came later, see _late_wishes
            found = find_strays(scene.root_fd, last.directory)
            if not found:
                continue
            place = Place.of(last.directory.fd)
            others = {
                *scene.before.led_to(scene.root_fd, place),
                *scene.links.leading_to(scene.root_fd, place),
            }
            links = [target.alias, *sorted(others - {target.alias})]
            for stray in found:
                if stray.facts.ctime_ns > target.linked_ns:
                    continue
                moved = scene.links.newer_outside(scene.root_fd, stray.facts.ctime_ns)
                before = self._refused.reason(stray.link_stamp, stray.path)
                if judge(stray.facts, last.linked_ns, scene.trusted, links, moved, before) is None:
                    self._remove(stray)

    def _leave(self, link: str, directory: Directory, placed: LinkStamp, wish_ns: int) -> None:
        trail = self._trails.get(link)
        left = trail.left if trail is not None else []
        left.append((self._clock() + _TRAIL_SECONDS, directory))
        self._trails[link] = _Trail(placed, wish_ns, left)
        self._placed[link] = placed

    def _drop_old_trails(self, links: RootLinks) -> None:
        """Forget versions that were left long ago, and the trails of links that the operator moved since."""
        now = self._clock()
        for link, trail in list(self._trails.items()):
            trail.left = [(until, directory) for until, directory in trail.left if until > now]
            if not trail.left or links.stamp(link) not in (None, trail.placed):
                del self._trails[link]

    def _late_wishes(
        self, scene: _Scene, link: str, followed: Sequence[Place], strays: list[Stray]
    ) -> list[FoundStray]:
        """Return wishes that landed in a version which the link had just left. One in a version to which a followed
        alias leads now is judged there."""
        trail = self._trails.get(link)
        late: dict[tuple[str, LinkStamp], FoundStray] = {}
        for _, directory in trail.left if trail is not None else []:
            place = Place.of(directory.fd)
            if trail is None or place in followed:
                continue
            links = sorted(name for name, other in self._trails.items() if other.holds(place))
            found = find_strays(scene.root_fd, directory)
            for stray, reason, _ in self._judged(scene, place, links, found, trail.last_wish_ns):
                if reason is None:
                    late[stray.path, stray.link_stamp] = stray
                    continue
                if reason != AHEAD:
                    self._refuse(stray, reason)
                if stray.facts.ctime_ns >= trail.last_wish_ns and (refused := stray.stray(reason)) not in strays:
                    strays.append(refused)
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


def _by_directory(targets: Sequence[Target], places: Sequence[Place]) -> list[list[Target]]:
    """Group the targets, whose places are given, that are the same directory."""
    groups: list[tuple[Place, list[Target]]] = []
    for target, place in zip(targets, places, strict=True):
        group = next((group for known, group in groups if known == place), None)
        if group is None:
            groups.append((place, [target]))
        else:
            group.append(target)
    return [group for _, group in groups]
