"""The states of an attempt and of an engine: both transition tables, and the only code that changes a state."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING, TypeVar

from zwatch.errors import Rejection

if TYPE_CHECKING:  # torch is imported by the first load, not by the service's start
    from zwatch.engine.pipeline import Engine
    from zwatch.shadow.control import LoadControl


@dataclass(frozen=True, slots=True, order=True)
class VersionKey:
    """What an engine holds: a version and its digest. The digest is None for a version without a readable seal."""

    version: str
    digest: str | None


class AttemptState(Enum):
    """The state of one attempt to bring a version into service."""

    LOADING = "LOADING"
    WARMING = "WARMING"
    PROMOTED = "PROMOTED"
    REJECTED = "REJECTED"
    ABANDONED = "ABANDONED"


class LoadWay(Enum):
    """How an attempt brings its version into service. The values are part of the API."""

    DEVICE = "device"
    """Loaded on the device beside what serves."""
    RESIDENT = "resident"
    """Promoted without a load: the engine was resident already."""
    HOST = "host"
    """Verified in host memory and exchanged for what served, while requests waited."""


class EngineState(Enum):
    """The state of a resident engine. It is created when its version is promoted."""

    SERVING = "SERVING"
    DRAINING = "DRAINING"
    WARM = "WARM"
    FREED = "FREED"


ATTEMPT_MOVES: Mapping[AttemptState, frozenset[AttemptState]] = {
    AttemptState.LOADING: frozenset({AttemptState.WARMING, AttemptState.REJECTED, AttemptState.ABANDONED}),
    AttemptState.WARMING: frozenset({AttemptState.PROMOTED, AttemptState.REJECTED, AttemptState.ABANDONED}),
    AttemptState.PROMOTED: frozenset(),
    AttemptState.REJECTED: frozenset(),
    AttemptState.ABANDONED: frozenset(),
}
ENGINE_MOVES: Mapping[EngineState, frozenset[EngineState]] = {
    EngineState.SERVING: frozenset({EngineState.DRAINING}),
    # Back to SERVING: a flip back must not wait until the last requests have drained.
    EngineState.DRAINING: frozenset({EngineState.SERVING, EngineState.WARM, EngineState.FREED}),
    EngineState.WARM: frozenset({EngineState.SERVING, EngineState.FREED}),
    EngineState.FREED: frozenset(),
}

S = TypeVar("S", AttemptState, EngineState)


def _transition(moves: Mapping[S, frozenset[S]], old: S, new: S) -> S:
    if new not in moves[old]:
        raise AssertionError(f"no transition from {old.name} to {new.name}")
    return new


@dataclass(eq=False)
class Attempt:
    """One attempt to bring a target into service. `fallback`: it loads last-known-good, not what the alias asks for.
    `requests_waited`: seconds that requests had to wait for an exchange."""

    alias: str
    key: VersionKey
    way: LoadWay
    control: "LoadControl | None" = None
    fallback: bool = False
    state: AttemptState = AttemptState.LOADING
    rejection: Rejection | None = None
    abandoned: str | None = None
    """Why it was abandoned."""
    requests_waited: float = 0.0
    linked_ns: int | None = None
    """When the link was made that asks for it, by the system's clock; None for a fallback."""
    signer: str | None = None
    """Who signed its version, where a signature is required and was verified."""
    shown: str | None = None
    """The name of the link that it is for, if that is another one than `alias`: of a share, which is known by its key."""
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    begun: float = field(default_factory=time.monotonic)
    _seconds: float | None = None

    @property
    def link_name(self) -> str:
        """The name of the link that it is for."""
        return self.shown or self.alias

    @property
    def seconds(self) -> float:
        """Seconds from its start until now, or until its end."""
        return time.monotonic() - self.begun if self._seconds is None else self._seconds

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return bool(ATTEMPT_MOVES[self.state])

    def begin_warming(self) -> None:
        """Note that all bytes are verified and the warm-up image is being made."""
        self._to(AttemptState.WARMING)

    def promote(self) -> None:
        """Note that its version serves."""
        self._to(AttemptState.PROMOTED)

    def reject(self, rejection: Rejection) -> None:
        """End it because something is wrong with its version."""
        self.rejection = rejection
        self._to(AttemptState.REJECTED)

    def abandon(self, reason: str | None = None) -> None:
        """End it because its version is not wanted any more, or cannot be loaded by this process."""
        self.abandoned = reason
        self._to(AttemptState.ABANDONED)

    def _to(self, state: AttemptState) -> None:
        self.state = _transition(ATTEMPT_MOVES, self.state, state)
        if not self.running:
            self._seconds = time.monotonic() - self.begun


@dataclass(eq=False)
class Resident:
    """An engine on the device, with the leases that requests hold on it."""

    key: VersionKey
    engine: "Engine"
    state: EngineState = EngineState.SERVING
    leases: int = 0
    images: int = 0
    signer: str | None = None
    """Who signed it, where a signature was required and verified when it was promoted last."""
    is_bad: bool = False
    """Whether it cannot make usable images, as its first ones showed: it gets no leases, and is freed."""
    since: datetime = field(default_factory=lambda: datetime.now(UTC))
    serving_from: float = field(default_factory=time.monotonic)

    def serve(self) -> None:
        """Give it new leases from now on, or again."""
        if self.state is not EngineState.SERVING:
            self.state = _transition(ENGINE_MOVES, self.state, EngineState.SERVING)
            self.since, self.serving_from = datetime.now(UTC), time.monotonic()

    def drain(self) -> None:
        """Give it no new leases; those it has go on."""
        self.state = _transition(ENGINE_MOVES, self.state, EngineState.DRAINING)

    def keep(self) -> None:
        """Keep it for a flip back after its last lease was released."""
        self.state = _transition(ENGINE_MOVES, self.state, EngineState.WARM)

    def free(self) -> None:
        """Mark it as freed; it has no lease."""
        self.state = _transition(ENGINE_MOVES, self.state, EngineState.FREED)
