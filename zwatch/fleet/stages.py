"""One stage of a rollout on many replicas at the same time: it ends when all that count have done it, or too many cannot."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from zwatch.errors import Abandoned
from zwatch.fleet.cluster import Call, Gone
from zwatch.fleet.member import Member
from zwatch.fleet.messages import Failure, Progress

if TYPE_CHECKING:
    from zwatch.fleet.roster import Roster
    from zwatch.shadow.control import LoadControl

_log = logging.getLogger(__name__)

_WAIT_SECONDS = 0.05
_ASK_SECONDS = 0.2
"""Between two questions for the progress of a load."""


@dataclass(eq=False)
class Rollout:
    """One version on its way to all replicas. `failed` are those that are out, and why; `needed` must remain."""

    engine_id: str
    version: str
    digest: str
    members: list[Member]
    needed: int
    failed: dict[Member, Failure] = field(default_factory=dict)
    epochs: dict[Member, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.epochs = {member: member.epoch for member in self.members}

    def fail(self, member: Member, failure: Failure) -> None:
        """Note that a replica is out."""
        self.failed[member] = failure.at(member.where)
        self.members = [one for one in self.members if one is not member]
        member.actor.tell("forget", self.engine_id)


class Stage:
    """Runs one stage. `begin` begins the call of one replica; `what` it does is for texts."""

    def __init__(
        self, fleet: "Roster", rollout: Rollout, control: "LoadControl", what: str, begin: Callable[[Member], Call]
    ) -> None:
        self._fleet, self._rollout, self._control, self._what = fleet, rollout, control, what
        self._begin = begin
        self._pending: dict[Call, Member] = {}
        self._done: dict[Member, Any] = {}
        self._asking: dict[Call, Member] = {}
        self._progress: dict[Member, Progress] = {}
        self._asked = self._enough_since = 0.0

    def run(self) -> dict[Member, Any]:
        """Return what each replica that is not out returned.

        Raises:
            Rejection: fewer than `needed` replicas remain; with the first reason.
            Abandoned: the load was abandoned; all replicas were told.
        """
        try:
            self.check()
            for member in [*self._rollout.members]:
                member.attempt = f"{self._what} {self._rollout.version}"
                self._start(member)
            while self._pending:
                self._collect()
                self.check()
                if self._control.is_abandoned:
                    raise Abandoned("superseded by a newer target")
                self._follow()
            return self._done
        except BaseException:
            for member in self._rollout.members:
                member.actor.tell("forget", self._rollout.engine_id)
            raise
        finally:
            for member in [*self._rollout.members, *self._rollout.failed]:
                member.attempt = None

    def check(self) -> None:
        """Reject the version if too few replicas remain.

        Raises:
            Rejection: with the reason of the first that is out.
        """
        rollout = self._rollout
        if len(rollout.members) < rollout.needed:
            none = Failure("lost", f"no replica has {rollout.version} ready")
            raise next(iter(rollout.failed.values()), none).rejection

    def _start(self, member: Member) -> None:
        if member.epoch != self._rollout.epochs[member]:
            self._out(member, Failure("lost", f"it was lost before it was {self._what} {self._rollout.version}"))
            return
        try:
            self._pending[self._begin(member)] = member
        except Gone as error:
            self._out(member, Failure("lost", f"it died: {error}"))

    def _collect(self) -> None:
        for call in self._fleet.cluster.done(self._pending, _WAIT_SECONDS):
            member = self._pending.pop(call)
            try:
                found = call.result()
            except Gone as error:
                found = Failure("lost", f"it died while it was {self._what} {self._rollout.version}: {error}")
            if isinstance(found, Failure):
                self._out(member, found)
            else:
                self._done[member] = found
        for member in [*self._rollout.members]:  # also one that has done the stage: it would be promoted without it
            if member.epoch != self._rollout.epochs[member]:
                self._pending = {call: one for call, one in self._pending.items() if one is not member}
                self._done.pop(member, None)
                text = f"it was lost while {self._rollout.version} was prepared ({self._what}): {member.problem}"
                self._out(member, Failure("lost", text))

    def _out(self, member: Member, failure: Failure) -> None:
        self._rollout.fail(member, failure)
        if len(self._rollout.members) >= self._rollout.needed:
            _log.warning(
                "%s leaves the fleet; the rollout of %s goes on",
                self._rollout.failed[member].text,
                self._rollout.version,
            )

    # --- progress

    def _follow(self) -> None:
        """Ask the replicas how far they are, and tell the load's control."""
        now = time.monotonic()
        for call in self._fleet.cluster.done(self._asking, 0) if self._asking else ():
            member = self._asking.pop(call)
            try:
                progress = call.result()
            except Gone:
                continue  # the stage's own call says so too
            if isinstance(progress, Progress):
                self._note(member, progress)
        if now - self._asked >= _ASK_SECONDS:
            self._asked = now
            for member in set(self._pending.values()) - set(self._asking.values()):
                try:
                    self._asking[member.actor.call("progress", self._rollout.engine_id)] = member
                except Gone:
                    continue
        self._await_stragglers(now)

    def _note(self, member: Member, progress: Progress) -> None:
        before = self._progress.get(member)
        self._progress[member] = progress
        member.attempt = progress.activity
        control = self._control
        if (
            before is None
            or progress.silence < before.silence
            or progress.bytes_done > before.bytes_done
            or progress.is_waiting
        ):
            control.got_on = time.monotonic()
        waiting = [
            one.where for one, found in self._progress.items() if found.is_waiting and one in self._pending.values()
        ]
        control.activity = (
            f"{member.where}: {progress.activity}" if not waiting else f"{', '.join(waiting)}: {progress.activity}"
        )
        control.is_slow = progress.is_slow
        self._count()
        if self._fleet.is_stalled(progress):
            for call in [call for call, one in self._pending.items() if one is member]:
                del self._pending[call]
                text = f"no progress for {progress.silence:.0f} s: {progress.activity}"
                self._out(member, Failure("rejection", text, "stalled"))

    def _count(self) -> None:
        """Add up the bytes of all replicas."""
        known = self._progress.values()
        self._control.bytes_total = sum(one.bytes_total for one in known)
        self._control.bytes_done = sum(one.bytes_done for one in known)
        self._control.advance(0)

    def _await_stragglers(self, now: float) -> None:
        """Give the rest a while, once as many replicas as are needed have done the stage."""
        if (
            len(self._done) < self._rollout.needed
            or not self._pending
            or self._rollout.needed == len(self._rollout.epochs)
        ):
            self._enough_since = 0.0
            return
        self._enough_since = self._enough_since or now
        if now - self._enough_since > self._fleet.limits.straggler:
            for member in self._pending.values():
                doing = self._progress.get(member)
                text = f"the others were ready {self._fleet.limits.straggler:g} s before it"
                self._out(member, Failure("rejection", f"{text}: {doing.activity}" if doing else text, "stalled"))
            self._pending.clear()


def everywhere(fleet: "Roster", members: Iterable[Member], method: str, *args: object) -> dict[Member, Any]:
    """Call all of some replicas and return what those return that answer within the limit; what goes wrong is a `Failure`."""
    calls: dict[Call, Member] = {}
    found: dict[Member, Any] = {}
    for member in members:
        try:
            calls[member.actor.call(method, *args)] = member
        except Gone as error:
            found[member] = Failure("lost", str(error))
    end = time.monotonic() + fleet.limits.call
    while calls and time.monotonic() < end:
        for call in fleet.cluster.done(calls, 0.5):
            member = calls.pop(call)
            try:
                found[member] = call.result()
            except Gone as error:
                found[member] = Failure("lost", str(error))
    for member in calls.values():
        found[member] = Failure("lost", f"no answer within {fleet.limits.call:g} s")
    return found
