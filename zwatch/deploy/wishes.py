"""Following the wishes of `ln -sf v2 current`: finds the strays in the versions that the followed aliases resolve to,
repoints the link for which one was made, and cleans up. `judging` says which of them are wishes.
"""

import errno
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from zwatch.deploy.chains import LinkStamp, Place
from zwatch.deploy.judging import Scene, StrayJudge
from zwatch.deploy.links import LinkNote, repoint
from zwatch.deploy.refused import RefusedStray, RefusedStrays
from zwatch.deploy.resolving import Directory, Target, opened_version
from zwatch.deploy.root_links import RootLinks
from zwatch.deploy.strays import AHEAD, FoundStray, Stray, find_strays
from zwatch.deploy.versions import is_version_name
from zwatch.errors import RepointError

_TRAIL_SECONDS = 2.0
"""How long the version that an alias just left is searched for a wish that was being made meanwhile."""
_MOST_VERSIONS = 64
"""Of more versions, those that a link left unseen are not searched for overtaken wishes: a flip would wait for it."""


@dataclass(slots=True)
class _Trail:
    """The versions that a link left a moment ago because zwatch repointed it. A wish typed while that happened landed
    in one of them: it counts if the link is still as zwatch left it and the wish is newer than the last one followed."""

    placed: LinkStamp
    last_wish_ns: int
    left: list[tuple[float, Directory]]

    def holds(self, place: Place) -> bool:
        return any(Place.of(directory.fd) == place for _, directory in self.left)


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
        self._clock = clock
        self._strict = strict
        self._refused = RefusedStrays(refused)
        self._judge = StrayJudge(strict=strict, refused=self._refused, wall_ns=wall_ns)
        self._trails: dict[str, _Trail] = {}
        self._last: dict[str, Target] = {}
        self._passed: dict[
            str, tuple[Directory, int]
        ] = {}  # by link, where zwatch moved it in the last round, and since when the wish existed
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
        scene = Scene(root_fd, root.st_mtime_ns if changed_ns is None else changed_ns, trusted, links, self._links)
        self._links = links
        strays: list[Stray] = []
        self._refused.prune(root_fd, forget=False)
        self._sweep_overtaken(scene, targets)
        self._drop_old_trails(links)
        present = [target for target in targets if target.alias in links.links]  # others are missing for a moment
        followed = [Place.of(target.directory.fd) for target in present]
        self._judge.keep_first({target.version for target in present})
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
        self, scene: Scene, here: list[Target], followed: Sequence[Place], strays: list[Stray]
    ) -> dict[str, tuple[Target, list[FoundStray]]]:
        """Judge the strays in one directory, to which the targets `here` lead, and late ones in those that they left.
        Return wishes by the link to move, each with an alias that leads through it."""
        place, since = Place.of(here[0].directory.fd), max(target.linked_ns for target in here)
        holders = {target.holder: target for target in sorted(here, key=lambda target: len(target.chain))}
        trail = self._trails.get(here[0].holder)
        if len(holders) == 1 and trail is not None and trail.holds(place):
            since = trail.last_wish_ns  # it left this version, and came back: a late wish may lie in it
        found = find_strays(scene.root_fd, here[0].directory)
        came = self._judge.came_later(here, found)
        wishes: dict[str, list[FoundStray]] = {holder: [] for holder in holders}
        for stray, reason, holder in self._judge.judged(scene, place, here, found, since, came):
            if reason is None:
                wishes[holder].append(stray)
            elif reason == AHEAD:  # not refused: it may be right
                advice = f"type `ln -sfn {stray.facts.name} {holder}`"
                strays.append(stray.stray(f"{AHEAD}; {advice}", is_wish=True))
            else:
                self._judge.refuse(stray, reason)
                strays.append(stray.stray(reason))
        for holder in holders:
            wishes[holder] += self._late_wishes(scene, holder, followed, strays)
        return {holder: (holders[holder], found) for holder, found in wishes.items() if found}

    def _follow(self, scene: Scene, link: str, target: Target, wishes: list[FoundStray], strays: list[Stray]) -> bool:
        """Repoint a link to the newest of its wishes and remove the strays that said so. `target` leads through it."""
        newest = max(wishes, key=lambda found: found.facts.since_ns)
        version = newest.facts.name
        advice = f"`ln -sfn {version} {link}` is the form that needs no help"
        if self._strict:
            for found in wishes:
                reason = f"a wish for {found.facts.name}, but --strict-links forbids to follow it; {advice}"
                self._judge.refuse(found, reason)
                strays.append(found.stray(reason))
            return False
        try:
            left = target.directory.duplicate()  # before anything is changed: there may be no descriptor for it
            passed = opened_version(scene.root_fd, version), newest.facts.since_ns
            note = LinkNote.take(scene.root_fd, link)
            now = LinkStamp.of(os.stat(link, dir_fd=scene.root_fd, follow_symlinks=False))
            if link not in scene.links.links or now != scene.links.links[link].link_stamp:
                return True  # the operator moved it since the look; look again
            self._passed[link] = passed  # before: it may be moved on in the very moment in which it arrives there
            placed = repoint(scene.root_fd, link, version, note)
        except (RepointError, OSError) as error:  # not refused: the wish is right, and is tried again
            why = error if isinstance(error, RepointError) else error.strerror
            strays.extend(
                found.stray(f"a wish for {found.facts.name}, but {why}; {advice}", is_wish=True) for found in wishes
            )
            return False
        self._leave(link, left, placed, newest.facts.since_ns)
        for found in wishes:
            self._remove(found)
        chain = ""
        if link != target.alias:
            chain = f" ({target.alias} leads through {link}, which held {target.version}, so {link} was moved)"
        self.notes.append(
            f"{newest.path} -> {newest.facts.text} was made by `ln -sf`: {link} now points to {version}{chain}; {advice}"
        )
        return True

    def _sweep_overtaken(self, scene: Scene, targets: Sequence[Target]) -> None:
        """Remove wishes for an alias that the operator moved before they were seen: they mean nothing any more, and
        would stay in the version that the alias left. One that may have been for another link stays."""
        known, passed = self._last, self._passed
        self._last, self._passed = {target.alias: target for target in targets}, {}
        if self._strict or scene.before is None:
            return
        for target in targets:
            last, trail = known.get(target.alias), self._trails.get(target.holder)
            if last is None or last.link_stamp == target.link_stamp:
                continue
            if trail is not None and trail.placed == scene.links.stamp(target.holder):
                continue  # zwatch moved it: what lies there now came later, see _late_wishes
            left = [(last.directory, last.linked_ns)]
            # The operator may have moved it again before it was seen where zwatch had moved it.
            left += [passed[target.holder]] if target.holder in passed else []
            for directory, since in left:
                for stray in self._judge.overtaken(scene, directory, since, target):
                    self._remove(stray)
            for directory in _may_have_led(scene.root_fd, last, target):
                for stray in self._judge.overtaken(scene, directory, last.linked_ns, target):
                    if stray.facts.since_ns < target.linked_ns and not _leads_anywhere(stray):
                        self._remove(stray)

    def _leave(self, link: str, directory: Directory, placed: LinkStamp, wish_ns: int) -> None:
        trail = self._trails.get(link)
        left = trail.left if trail is not None else []
        left.append((self._clock() + _TRAIL_SECONDS, directory))
        self._trails[link] = _Trail(placed, wish_ns, left)
        self._judge.placed[link] = placed

    def _drop_old_trails(self, links: RootLinks) -> None:
        """Forget versions that were left long ago, and the trails of links that the operator moved since."""
        now = self._clock()
        for link, trail in list(self._trails.items()):
            trail.left = [(until, directory) for until, directory in trail.left if until > now]
            if not trail.left or links.stamp(link) not in (None, trail.placed):
                del self._trails[link]

    def _late_wishes(self, scene: Scene, link: str, followed: Sequence[Place], strays: list[Stray]) -> list[FoundStray]:
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
            for stray, reason, _ in self._judge.judged(scene, place, links, found, trail.last_wish_ns):
                if reason is None:
                    late[stray.path, stray.link_stamp] = stray
                    continue
                if reason != AHEAD:
                    self._judge.refuse(stray, reason)
                if stray.facts.since_ns >= trail.last_wish_ns and (refused := stray.stray(reason)) not in strays:
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
            self._judge.refuse(found, "it was followed already, but could not be removed")
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


def _may_have_led(root_fd: int, last: Target, target: Target) -> list[Directory]:
    """Return the versions to which the operator may have moved a link between two looks, and from there on to `target`: those
    that changed since it led to `last`."""
    names = [name for name in os.listdir(root_fd) if is_version_name(name) and name != target.version]
    if len(names) > _MOST_VERSIONS:
        return []
    found = []
    for name in names:
        try:
            if os.stat(name, dir_fd=root_fd, follow_symlinks=False).st_mtime_ns >= last.linked_ns:
                found.append(opened_version(root_fd, name))
        except OSError:
            continue  # no directory, or it cannot be read: a stray in it stays, which means nothing
    return found


def _leads_anywhere(found: FoundStray) -> bool:
    """Say whether a stray is of any use as a link. `ln -sf v2 current` leaves one that leads to itself."""
    try:
        os.stat(found.facts.name, dir_fd=found.directory.fd)
    except OSError as error:
        return error.errno not in (errno.ELOOP, errno.ENOENT)
    return True
