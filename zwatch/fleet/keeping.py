"""Looking at every replica now and then. One that does not answer is ended, and Ray begins it again, here or on another host; how many there
are follows the cluster, or the length of the queue."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from itertools import count

from zwatch.fleet.cluster import Gone
from zwatch.fleet.joining import Joining
from zwatch.fleet.member import Member
from zwatch.fleet.messages import Failure, Sign
from zwatch.fleet.roster import Roster
from zwatch.fleet.settings import Place
from zwatch.fleet.views import ReplicaState

_log = logging.getLogger(__name__)

_PRESSURE_SECONDS = 5.0
"""For which more requests wait than the replicas draw next, before there is another replica."""


class Keeper:
    """The thread that looks at the replicas. `make` returns a new one of a name, `waiting` how many requests wait."""

    def __init__(
        self, roster: Roster, joining: Joining, make: Callable[[str, Place], Member], waiting: Callable[[], int]
    ) -> None:
        self._roster, self._joining, self._make, self._waiting = roster, joining, make, waiting
        self._ended = threading.Event()
        self._opened = time.monotonic()
        self._pressed_since: float | None = None

    def begin(self) -> None:
        """Begin to look."""
        threading.Thread(target=self._keep, name="zwatch-fleet", daemon=True).start()

    def end(self) -> None:
        """Look no more."""
        self._ended.set()

    def _keep(self) -> None:
        while not self._ended.is_set():
            try:
                self._look()
                self._scale()
            except Exception:
                if self._ended.is_set():
                    return
                _log.exception("the replicas could not be looked at; trying again")
            self._ended.wait(self._roster.limits.look / 4)

    def _look(self) -> None:
        now = time.monotonic()
        for member in list(self._roster.members):
            if member.look is None and now - member.looked >= self._roster.limits.look:
                with contextlib.suppress(Gone):
                    member.look, member.looked, member.look_epoch = member.actor.call("look"), now, member.epoch
        asked = {member.look: member for member in list(self._roster.members) if member.look is not None}
        for call in self._roster.cluster.done(asked, self._roster.limits.look / 4):
            member = asked[call]
            member.look = None
            try:
                self._note(member, call.result())
            except Gone as error:
                self._roster.lose(member, member.look_epoch, str(error))
        for member in self._roster.members:
            is_waited_for = member.state not in (ReplicaState.LOST, ReplicaState.STARTING)
            if (
                member.look is not None
                and is_waited_for
                and time.monotonic() - member.looked > self._roster.limits.silent
            ):
                self._roster.lose(
                    member, member.epoch, f"it has not answered for {self._roster.limits.silent:g} s", ends=True
                )
        self._joining.look()
        if time.monotonic() - self._opened > self._roster.limits.left:
            self._opened = float("inf")
            for member in self._roster.members:
                member.actor.tell("forget_left")

    def _note(self, member: Member, sign: Sign | Failure) -> None:
        if isinstance(sign, Failure):
            return
        for record in sign.records:
            record.emit(member.name)
        before, member.sign = member.sign, sign
        is_known = member.state is ReplicaState.LOST
        if before is not None and before.incarnation != sign.incarnation and not is_known:
            self._roster.lose(member, member.look_epoch, "its process has died")
        if member.state is ReplicaState.LOST:
            _log.info("%s is back", member.where)
            self._joining.begin(member)

    # --- how many there are

    def _scale(self) -> None:
        asked = self._roster.settings.count
        if asked is None or self._roster.settings.places:
            return
        if asked.follows_cluster:
            there = self._roster.cluster.gpus() if self._roster.is_gpu else self._roster.cluster.nodes()
            if there > len(self._roster.members):
                self._grow("the cluster has another device")
            return
        now, waiting = time.monotonic(), self._waiting()
        is_pressed = waiting > self._roster.capacity and all(
            one.state is ReplicaState.READY for one in self._roster.members
        )
        self._pressed_since = (self._pressed_since or now) if is_pressed else None
        if (
            self._pressed_since is not None
            and now - self._pressed_since > _PRESSURE_SECONDS
            and len(self._roster.members) < asked.most
        ):
            self._pressed_since = None
            self._grow(f"{waiting} requests wait")
        elif (
            not waiting
            and len(self._roster.members) > asked.least
            and now - self._roster.used > self._roster.limits.idle
        ):
            self._roster.used = now
            self._shrink()

    def _grow(self, why: str) -> None:
        names = {one.name for one in self._roster.members}
        name, place = next(name for name in (f"r{number}" for number in count()) if name not in names), Place()
        _log.info("replica %s is begun: %s", name, why)
        member = self._make(name, place)
        member.is_extra = True
        self._roster.members = [*self._roster.members, member]
        self._joining.begin(member)
        self._roster.changed()

    def _shrink(self) -> None:
        with self._roster.lock:
            member = self._roster.members[-1]
            if member.running:
                return
            member.change(ReplicaState.LEAVING)
            self._roster.members = self._roster.members[:-1]
        _log.info("%s ends: fewer are needed", member.where)
        member.actor.end(for_good=True)
        self._roster.changed()
