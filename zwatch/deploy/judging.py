"""Judging strays: which links lead to a stray's directory, or may have when it was made, and whether it was refused before.

`strays.judge` decides from facts. Which links lead where is asked only for a stray that may be a wish by all other facts: the
models root may have thousands of links.
"""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from zwatch.deploy.chains import LinkStamp, Place
from zwatch.deploy.refused import RefusedStrays
from zwatch.deploy.resolving import Directory, Target
from zwatch.deploy.root_links import RootLinks
from zwatch.deploy.strays import AHEAD, OLDER, FoundStray, find_strays, judge
from zwatch.deploy.versions import is_version_name

_CLOCK_TOLERANCE_NS = 60 * 10**9
"""How far a link's time may be ahead of this machine's clock, as on a file server, before it says nothing, nanoseconds."""

StrayKey = tuple[str, LinkStamp]
"""A stray in its directory: its name and its stamp."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What one round knows: the models root, when its entries last changed (mtime, nanoseconds), who may make wishes, its
    links now and in the round before."""

    root_fd: int
    changed_ns: int
    trusted: frozenset[int]
    links: RootLinks
    before: RootLinks | None


@dataclass(frozen=True, slots=True)
class _FirstSight:
    """The strays in a directory when certain links (`key`) were first seen to lead there."""

    key: tuple[object, tuple[int, int]]
    times: frozenset[tuple[str, str, int]]


@dataclass(frozen=True, slots=True)
class _Led:
    """The links that lead to a directory (`here`), and the `places` that a wish there may be for: one link if all belong to
    one chain. Those that `left` it since the look before, those that may have left it when they changed (ctime by path), those
    that were made or removed between two looks and may have led there meanwhile (`passed`, likewise), and when one may have
    been removed; times are nanoseconds."""

    here: list[str]
    places: list[str]
    left: list[str]
    changed: Mapping[str, int]
    passed: Mapping[str, int]
    removed_ns: int | None

    def moved(self, since_ns: int) -> list[str]:
        """Return links that do not lead there now, but may have when a stray was made."""
        changed = sorted(name for name, at in self.changed.items() if at >= since_ns)
        # Not in the same clock tick: to lead there, to make a stray and to leave takes three commands.
        changed += sorted(name for name, at in self.passed.items() if at > since_ns)
        moved = [name for name in dict.fromkeys([*self.left, *changed]) if name not in self.here]
        if not moved and self.removed_ns is not None and self.removed_ns >= since_ns:
            return ["a link that was removed"]
        return moved


class StrayJudge:
    """Judges strays and remembers which were refused, and which lay there when an alias came to their directory."""

    def __init__(self, *, strict: bool, refused: RefusedStrays, wall_ns: Callable[[], int] = time.time_ns) -> None:
        """`wall_ns` returns the time of day in nanoseconds."""
        self._strict = strict
        self._wall_ns = wall_ns
        self.refused = refused
        self.placed: dict[str, LinkStamp] = {}
        """By name, the link that zwatch made last."""
        self._first: dict[str, _FirstSight] = {}  # by version

    def refuse(self, found: FoundStray, reason: str) -> None:
        """Remember that a stray was refused."""
        if not is_version_name(found.facts.name):
            return  # it can never become a wish
        identity = found.path, found.link_stamp, found.made
        if found.facts.may_be_renamed and self.refused.reason(*identity) is None:
            return  # not under this name, but it may be a wish when it has its own
        self.refused.add(found.path, found.link_stamp, reason, found.made)

    def judged(
        self,
        scene: Scene,
        place: Place,
        here: Sequence[Target | str],
        found: Sequence[FoundStray],
        since: int,
        came: Collection[StrayKey] = (),
    ) -> list[tuple[FoundStray, str | None, str]]:
        """Judge strays in a directory: each with the reason why it is no wish, or None, and the link that it is for. `here`
        are the targets, or the links, that lead there or have just left it; those in `came` are newer than these.

        Raises:
            OSError: what decides could not be read.
        """
        first = [one if isinstance(one, str) else one.alias for one in here][:1]
        is_ahead = since > self._wall_ns() + _CLOCK_TOLERANCE_NS
        led: _Led | None = None
        judged = []
        for stray in found:
            after = 0 if (stray.facts.name, stray.link_stamp) in came else since
            reason = judge(stray.facts, after, scene.trusted, first)
            in_doubt = reason == OLDER and is_ahead and judge(stray.facts, 0, scene.trusted, first) is None
            if reason is None or in_doubt:
                led = led or self._led(scene, place, here)
            if led is not None and in_doubt:
                reason = AHEAD if self._reason(scene, stray, led, 0) is None else OLDER
            elif led is not None and reason is None:
                reason = self._reason(scene, stray, led, after)
                if reason is None:  # looked for last, and seldom: the models root may have thousands of directories
                    reason = self._reason(scene, stray, led, after, scene.links.nested(scene.root_fd, place))
            judged.append((stray, reason, first[0] if led is None else led.places[0]))
        return judged

    def _reason(self, scene: Scene, stray: FoundStray, led: _Led, after: int, nested: Sequence[str] = ()) -> str | None:
        # With strict links, the follower gives the reason.
        before = None if self._strict else self.refused.reason(stray.path, stray.link_stamp, stray.made)
        moved = led.moved(stray.facts.since_ns)
        return judge(stray.facts, after, scene.trusted, [*led.places, *nested], moved, before)

    def _led(self, scene: Scene, place: Place, here: Sequence[Target | str]) -> _Led:
        """Return which links lead to a directory, and which may have.

        While zwatch runs, it knows from the look before where every link led. At its start it knows nothing of the kind:
        any link that is newer than a stray may have been repointed by hand after the stray had failed to do so, and if the
        models root changed since the stray was made, a link may have been removed from it.
        """
        aliases = [one if isinstance(one, str) else one.alias for one in here]
        others = [name for name in scene.links.leading_to(scene.root_fd, place) if name not in aliases]
        links_here = [*aliases, *others]
        targets = [one for one in here if isinstance(one, Target) and one.is_reached_by(links_here)]
        # The links of one chain are one place: the last is moved, and the others lead through it as before.
        places = [targets[0].holder] if targets else links_here
        outside = scene.links.outside(scene.root_fd)
        if scene.before is not None:
            left = scene.links.moved_from(scene.root_fd, place, scene.before, self.placed)
            passed = scene.links.come_and_gone(scene.before, self.placed, scene.changed_ns)
            return _Led(links_here, places, left, outside, passed, None)
        changed = {name: link.link_stamp.ctime_ns for name, link in scene.links.links.items()}
        return _Led(links_here, places, [], {**changed, **outside}, {}, scene.changed_ns)

    def keep_first(self, versions: Collection[str]) -> None:
        """Forget what lay in other versions than these when an alias came there."""
        self._first = {version: first for version, first in self._first.items() if version in versions}

    def came_later(self, here: Sequence[Target], found: Sequence[FoundStray]) -> set[StrayKey]:
        """Return the strays that were not there when the present links were first seen to lead to this directory. They
        are newer than these links, whatever their times say: a clock may have been wrong when a link was made."""
        key = (tuple((target.alias, target.link_stamp) for target in here), here[0].identity)
        first = self._first.get(here[0].version)
        if first is None or first.key != key:
            times = frozenset(time for stray in found for time in stray.times)
            first = self._first[here[0].version] = _FirstSight(key, times)
        return {(stray.facts.name, stray.link_stamp) for stray in found if first.times.isdisjoint(stray.times)}

    def overtaken(self, scene: Scene, directory: Directory, since: int, target: Target) -> list[FoundStray]:
        """Return the wishes for an alias in a directory to which it led `since` then (ctime, nanoseconds) that are older than
        its present target. One that may have been for another link is not among them.

        Raises:
            OSError: what decides could not be read.
        """
        found = [
            stray
            for stray in find_strays(scene.root_fd, directory, only_versions=True)
            if stray.facts.since_ns <= target.linked_ns
            and judge(stray.facts, since, scene.trusted, [target.alias]) is None
        ]
        if not found:
            return []
        place = Place.of(directory.fd)
        others = set(scene.links.leading_to(scene.root_fd, place))
        if scene.before is not None:
            others.update(scene.links.led_to(scene.root_fd, place, scene.before))
        links = [target.alias, *sorted(others - {target.alias})]
        outside = scene.links.outside(scene.root_fd)
        overtaken = []
        for stray in found:
            moved = sorted(path for path, at in outside.items() if at >= stray.facts.since_ns)
            before = self.refused.reason(stray.path, stray.link_stamp, stray.made)
            if judge(stray.facts, since, scene.trusted, links, moved, before) is None:
                overtaken.append(stray)
        return overtaken
