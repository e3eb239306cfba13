"""What crashes mean: which versions are set aside, and what serves instead. Pure rules over what was saved.

A crash is counted for every version that was serving or being tried, unless it had proved itself in that run; or only for the
one that drew on trial when the device was lost or hung, if there was one. Versions with two crashes in a row are set aside: they are not loaded until a link to them is made anew or they are sealed anew.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import AfterValidator, Field

from zwatch.deploy.resolving import LinkStamp
from zwatch.deploy.versions import is_version_name
from zwatch.rollout.lifecycle import VersionKey

CRASHES_TO_SET_ASIDE = 2
FIRST_PAUSE, LONGEST_PAUSE = 60.0, 600.0
"""Seconds from the start until the only version that ever proved itself is tried although it was set aside; doubled with
each further crash."""

Stamps = frozenset[LinkStamp | None]


def _checked(key: VersionKey) -> VersionKey:
    if not is_version_name(key.version):
        raise ValueError(f"{key.version!r} is not a version name")
    return key


SavedKey = Annotated[VersionKey, AfterValidator(_checked)]
"""A version as it is in the state file."""


@dataclass(slots=True)
class Crash:
    """How many crashes in a row are counted for a version, and the stamp of a link that led to it then; None if none did.
    A version to which several links led has an entry for each."""

    key: SavedKey
    count: Annotated[int, Field(ge=1, lt=2**31)]
    link_stamp: Annotated[LinkStamp | None, Field(alias="stamp")]
    on_trial: Annotated[bool, Field(exclude_if=lambda on_trial: not on_trial)] = False
    """Whether it drew on trial when the device was lost or hung: good images do not acquit it."""


@dataclass(frozen=True, slots=True)
class Run:
    """How one run ended. `used` has what was serving or being tried at its end, with the stamps of the links that led to it;
    `served` those that were serving, `proved` all that had proved themselves in this run."""

    crashed: bool
    used: Mapping[VersionKey, Stamps] = field(default_factory=dict)
    served: frozenset[VersionKey] = frozenset()
    proved: frozenset[VersionKey] = frozenset()
    on_trial: VersionKey | None = None
    """What drew on trial when the device was lost or hung."""

    @property
    def blamed(self) -> frozenset[VersionKey]:
        """The versions for which its crash is counted."""
        if not self.crashed:
            return frozenset()
        return frozenset(self.used) - self.proved if self.on_trial is None else frozenset({self.on_trial})

    @property
    def unjudged(self) -> frozenset[VersionKey]:
        """The versions about which it says nothing, although they were in use: another one is to blame for its crash."""
        return frozenset(self.used) - self.blamed if self.crashed and self.on_trial is not None else frozenset()


def after(crashes: Sequence[Crash], run: Run) -> list[Crash]:
    """Return the crashes that count after a run."""
    if not run.used and not run.proved:
        return list(crashes)  # it tried nothing, and says nothing about any version
    acquitted = run.proved if run.crashed else run.proved | run.served
    blamed = run.blamed
    kept = [
        crash
        for crash in crashes
        if crash.key not in acquitted | blamed
        and (crash.count >= CRASHES_TO_SET_ASIDE or crash.key in run.unjudged)  # else: not in a row
    ]
    for key in sorted(blamed, key=str):
        stamps = run.used.get(key, frozenset()) | _stamps(crashes, key)
        kept += _entries(key, count(crashes, key) + 1, stamps, on_trial=key == run.on_trial)
    return kept


def count(crashes: Iterable[Crash], key: VersionKey) -> int:
    """Return how many crashes in a row count for a version."""
    return max((crash.count for crash in crashes if crash.key == key), default=0)


def is_set_aside(crashes: Iterable[Crash], key: VersionKey) -> bool:
    """Say whether a version is not to be loaded."""
    return count(crashes, key) >= CRASHES_TO_SET_ASIDE


def without_new_links(crashes: Sequence[Crash], links: Mapping[VersionKey, Stamps]) -> list[Crash]:
    """Return the crashes that count while these links lead to these versions: a link made since begins at zero."""
    return [crash for crash in crashes if _times(links.get(crash.key, ())) <= _times(_stamps(crashes, crash.key))]


def without(crashes: Sequence[Crash], key: VersionKey) -> list[Crash]:
    """Return the crashes that count after a version was sealed anew."""
    return [crash for crash in crashes if crash.key != key]


def without_proved(crashes: Sequence[Crash], key: VersionKey) -> list[Crash]:
    """Return the crashes that count after a version has made some good images, or served for a while."""
    return [crash for crash in crashes if crash.key != key or crash.on_trial]


def fallbacks(
    good: Sequence[VersionKey], promoted: Sequence[VersionKey], crashes: Sequence[Crash], wish: VersionKey | None
) -> list[VersionKey]:
    """Return what serves, in the order to try it, while the wish cannot: what has proved itself, newest first, then what
    was promoted last. What is wished has its own attempts."""
    known = dict.fromkeys([*good, *promoted])
    return [key for key in known if key != wish and not is_set_aside(crashes, key)]


def last_resorts(good: Sequence[VersionKey], crashes: Sequence[Crash]) -> dict[VersionKey, float]:
    """Return what was set aside but has proved itself before, with the seconds after the start from which it is tried if
    nothing else can serve: what made it crash may be over. The pauses keep that from being a crash loop."""
    return {
        key: min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(10, count(crashes, key) - CRASHES_TO_SET_ASIDE))
        for key in good
        if is_set_aside(crashes, key)
    }


def _entries(key: VersionKey, number: int, stamps: Stamps, *, on_trial: bool) -> list[Crash]:
    known = sorted((stamp for stamp in stamps if stamp is not None), key=lambda stamp: stamp.ctime_ns)
    return [Crash(key, number, stamp, on_trial) for stamp in known] or [Crash(key, number, None, on_trial)]


def _stamps(crashes: Iterable[Crash], key: VersionKey) -> Stamps:
    return frozenset(crash.link_stamp for crash in crashes if crash.key == key)


def _times(stamps: Iterable[LinkStamp | None]) -> set[int | None]:
    """Return what tells links from different runs apart. Numbers of devices, and of inodes on some file systems, change when
    the machine starts again."""
    return {None if stamp is None else stamp.ctime_ns for stamp in stamps}
