"""The replicas of a fleet: who of them has what ready, and which of them draws the next request."""

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from zwatch.errors import GenerationCancelled
from zwatch.fleet.cluster import Cluster
from zwatch.fleet.member import Member
from zwatch.fleet.messages import Failure, Progress
from zwatch.fleet.settings import FleetSettings
from zwatch.fleet.views import ReplicaState, ReplicaView

if TYPE_CHECKING:
    from zwatch.shadow.control import LoadControl

_log = logging.getLogger(__name__)

_CHECK_SECONDS = 0.1


class Prepared(Protocol):
    """What has to be known here of an engine."""

    id: str
    version: str
    digest: str
    is_live: bool
    is_complete: bool


class Roster:
    """All replicas. Any thread may call its methods, of which some block, see there."""

    def __init__(self, settings: FleetSettings) -> None:
        self.settings, self.limits = settings, settings.limits
        self.on_change: Callable[[], object] = lambda: None
        """Called, in some thread, when a replica's state has changed."""
        self.engines: dict[str, Prepared] = {}
        """Those that are live, by id, in the order in which they became so."""
        self.members: list[Member] = []
        """Replaced, never changed in place: other threads iterate over it."""
        self.lock = threading.Condition()
        self.used = time.monotonic()
        """When the last drawing ended, on the monotonic clock."""
        self.connected: Cluster | None = None

    @property
    def cluster(self) -> Cluster:
        """The cluster that it runs on; to be asked for only once it is open."""
        assert self.connected is not None
        return self.connected

    @property
    def is_gpu(self) -> bool:
        """Whether its replicas draw on GPUs."""
        asked = self.settings
        return asked.device != "cpu" if asked.devices is None else asked.devices[0] != "cpu"

    # --- what others ask

    @property
    def capacity(self) -> int:
        """How many requests can be drawn at the same time; at least one, which waits for the first replica."""
        return max(1, sum(one.is_usable and bool(one.holds) for one in self.members))

    def views(self) -> list[ReplicaView]:
        """Return what is known of each replica."""
        versions = {engine_id: engine.version for engine_id, engine in list(self.engines.items())}
        return [member.view(versions) for member in self.members]

    def changed(self) -> None:
        """Wake what waits, and tell that something has changed."""
        with self.lock:
            self.lock.notify_all()
        self.on_change()

    def set_state(self, member: Member, epoch: int, state: ReplicaState, problem: str | None = None) -> None:
        """Change a replica's state, unless it was lost since an epoch."""
        with self.lock:
            is_other = member.epoch == epoch and member.change(state, problem)
        if is_other:
            self.changed()

    def gather(self, control: "LoadControl") -> dict[Member, Failure | None]:
        """Wait until all replicas are open, as long as the limits allow; return each, with why it is not. One that came later counts
        only once it is open: its host may not be there for long.

        Raises:
            Abandoned: `control` was told to abandon the load.
        """
        end, enough_until = time.monotonic() + self.limits.begin, math.inf
        while True:
            members = [
                one
                for one in self.members
                if one.state is not ReplicaState.LEAVING and (one.is_open or not one.is_extra)
            ]
            missing = [one for one in members if not one.is_open]
            needed = self.settings.quorum.of(len(members))
            is_enough = needed < len(members) and len(members) - len(missing) >= needed
            enough_until = min(enough_until, time.monotonic() + self.limits.straggler) if is_enough else math.inf
            if not missing or time.monotonic() > min(end, enough_until):
                return {
                    one: Failure("lost", f"{one.where} does not answer: {one.problem or one.state.value}") if one in missing else None
                    for one in members
                }  # fmt: skip
            if any(one.problem is not None and one.state is ReplicaState.OUT for one in missing):
                end = min(end, time.monotonic())
            control.begin(f"waiting for {', '.join(one.where for one in missing)}", is_slow=True)
            with self.lock:
                self.lock.wait(_CHECK_SECONDS)

    # --- drawing

    @contextmanager
    def taken(self, engine: Prepared, run_id: str, cancelled: Callable[[], bool]) -> Iterator[tuple[Member, int]]:
        """Have a replica that draws nothing else, of those that have an engine ready, and its epoch; wait for one if there is none.

        Raises:
            GenerationCancelled: `cancelled` returned true.
            RuntimeError: the engine is closed.
        """
        with self.lock:
            while (member := self._idle(engine)) is None:
                if not engine.is_complete:
                    raise RuntimeError(f"version {engine.version} cannot make images: it is closed")
                self.lock.wait(_CHECK_SECONDS)
                if cancelled():
                    raise GenerationCancelled
            epoch = member.epoch  # that in which it was chosen: it may be lost before it is called
            member.running.add(run_id)
        try:
            yield member, epoch
        finally:
            with self.lock:
                member.running.discard(run_id)
                member.last_drawn = self.used = time.monotonic()
                self.lock.notify_all()

    def _idle(self, engine: Prepared) -> Member | None:
        free = [one for one in self.members if one.is_usable and engine.id in one.holds and not one.running]
        return min(free, key=lambda one: one.last_drawn, default=None)

    def lose(self, member: Member, epoch: int, why: str, *, ends: bool = False) -> None:
        """Note that a replica is lost, unless that is known. It begins again, by itself if its process has died; else it `ends` first."""
        with self.lock:
            # While it is lost, each look fails until it is back: that is no other loss.
            if member.epoch != epoch or member.state in (ReplicaState.LEAVING, ReplicaState.LOST):
                return
            member.epoch += 1
            member.losses += 1
            member.holds.clear()
            member.is_open = False
            member.change(ReplicaState.LOST, why)
        _log.warning("%s is lost: %s", member.where, why)
        if ends:
            member.actor.end(for_good=False)
        self.changed()

    def is_stalled(self, progress: Progress) -> bool:
        """Return whether a replica's load does not get on. One that waits for its host to have the version has its own limit."""
        return not progress.is_waiting and progress.silence > (
            self.limits.slow if progress.is_slow else self.limits.stalled
        )
