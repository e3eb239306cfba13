"""When a version that is new to its requests is withdrawn: pure rules over what became of the requests.

A version is on trial while it serves through a share, and for `--probation` seconds after an alias was promoted to it. It is
withdrawn if it fails in `FAULTS` of its last `OF` requests while the other version does not.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum

from zwatch.rollout.lifecycle import VersionKey

FAULTS, OF = 3, 20
"""A version on trial that fails in so many of its last so many requests is withdrawn."""
MISSES = 3
"""A version on trial that misses so many golden images is withdrawn, and one that misses half of them or more."""
PROBATION = 60.0
"""Seconds for which a version is on trial after its promotion, by default."""
MOST_TIMES = 10.0
"""A version on trial that takes so many times what the other version takes for such a request is given up."""
LEAST_PATIENCE = 10.0
"""Seconds for which a version on trial may draw whatever the other version takes: small requests vary."""
MARGIN = 1.5
"""How many times what the other version takes has to remain, for a request to be drawn again within its time limit."""


class FaultKind(Enum):
    """How a request failed because of the version, the device or its memory; never because of the client."""

    ERROR = "error"
    """The device or the model raised an error."""
    NOT_FINITE = "not_finite"
    ONE_COLOUR = "one_colour"
    OUT_OF_MEMORY = "out_of_memory"
    SLOW = "slow"
    """It was given up, or the request's time limit passed while it drew."""

    @property
    def needs_proof(self) -> bool:
        """Whether it is a fault only if the other version could draw the same request: a picture may be wanted in one colour, and
        a request may be too large for the device."""
        return self in (FaultKind.ONE_COLOUR, FaultKind.OUT_OF_MEMORY)


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A request that failed with a version on trial, until it is known whether the other version can draw it."""

    key: VersionKey
    kind: FaultKind
    text: str
    by_share: str | None = None
    """The share by which that version got the request."""
    by: str | None = None
    """The key of the alias or share by which it did; None if the request named the version."""


class Redraw(Enum):
    """What became of a request when the other version was to draw it."""

    WELL = "well"
    ONE_COLOUR = "one_colour"
    FAILED = "failed"
    NONE = "none"
    """It was not drawn again: no other version was there, or the client left."""


@dataclass(frozen=True, slots=True)
class Checked:
    """How many of a version's golden images were checked, of how many, and how many of these were missed."""

    checked: int
    of: int
    missed: int

    @property
    def is_failing(self) -> bool:
        """Whether too many were missed. Each is checked once, so good requests between two checks excuse none."""
        return self.missed >= MISSES or (self.checked == self.of and 0 < self.of <= 2 * self.missed)

    @property
    def described(self) -> str:
        """How many of how many were missed."""
        return f"missed {self.missed} of {self.checked} golden images"


class Outcomes:
    """What became of the last requests of one version: None each, or the sentence about the fault; and of its golden images."""

    def __init__(self) -> None:
        self._last: deque[str | None] = deque(maxlen=OF)
        self._golden: tuple[Checked, str | None] | None = None

    def add(self, fault: str | None) -> None:
        """Add a request at its end, or a golden image that was checked."""
        self._last.append(fault)

    def add_golden(self, checked: Checked, fault: str | None) -> None:
        """Add a golden image that was checked, after which so many were."""
        before = None if self._golden is None else self._golden[1]
        self._golden = checked, fault or before
        self.add(fault)

    @property
    def faults(self) -> list[str]:
        """The faults among them, oldest first."""
        return [fault for fault in self._last if fault is not None]

    @property
    def is_failing(self) -> bool:
        """Whether there are too many faults."""
        return self._misses is not None or len(self.faults) >= FAULTS

    @property
    def _misses(self) -> str | None:
        """What is said of golden images, if too many were missed."""
        if self._golden is None or not self._golden[0].is_failing:
            return None
        checked, fault = self._golden
        return f"it {checked.described}" + ("" if fault is None else f"; the last one: {fault}")

    @property
    def described(self) -> str:
        """How many of how many failed, and the last fault."""
        return (
            self._misses
            or f"{len(self.faults)} of its last {len(self._last)} requests failed; the last one: {self.faults[-1]}"
        )


def is_on_trial(*, by_share: bool, promoted_ago: float | None, probation: float) -> bool:
    """Say whether a version that serves is on trial; `promoted_ago` is in seconds, None if its promotion does not count."""
    return by_share or (promoted_ago is not None and promoted_ago < probation)


def is_to_be_withdrawn(own: Outcomes, other: Outcomes) -> bool:
    """Say whether a version on trial is withdrawn: it fails, and the other version does not."""
    return own.is_failing and not other.is_failing


def settled(first: Suspicion, redraw: Redraw, other: VersionKey | None) -> list[tuple[VersionKey, str | None]]:
    """Return what to note of which version, once a request that failed with a version on trial was drawn again by `other`.

    If that fails as well, the request is at fault, or the device: it says nothing about either version.
    """
    own = (first.key, first.text)
    match redraw:
        case Redraw.NONE:
            return [] if first.kind.needs_proof else [own]
        case Redraw.FAILED:
            return []
        case Redraw.ONE_COLOUR if first.kind is FaultKind.ONE_COLOUR:
            return []
    return [own] if other is None else [own, (other, None)]


def patience(remaining: float | None, usual: float | None, least: float = LEAST_PATIENCE) -> float | None:
    """Return after how many seconds a generation by a version on trial is given up, so that the other version can draw the request
    within its time limit; None: never.

    `remaining` is what is left of the time limit (None: there is none), `usual` what the other version takes for such a request
    (None: it is not known).
    """
    if usual is None:
        return None if remaining is None else remaining / 2
    most = max(least, MOST_TIMES * usual)
    if remaining is None:
        return most
    latest = remaining - MARGIN * usual
    # Without time for both, the version on trial may as well use all of it.
    return min(most, latest) if latest > usual else None


def is_too_slow(drawn: float, limit: float, usual: float | None) -> bool:
    """Say whether a request that reached its time limit did so because of the version that drew it for `drawn` seconds, and not
    because it waited."""
    return drawn > limit / 2 and (usual is None or drawn > 2 * usual)
