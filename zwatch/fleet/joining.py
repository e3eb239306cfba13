"""How a replica that comes, or comes back, gets ready: it opens its device and prepares what serves before it gets a request."""

import logging
import threading
import time

from zwatch.fleet.cluster import Call, Gone
from zwatch.fleet.member import Member
from zwatch.fleet.messages import Failure, Progress, Sign
from zwatch.fleet.roster import Prepared, Roster
from zwatch.fleet.views import ReplicaState

_log = logging.getLogger(__name__)

_MOST_PAUSE = 60
_CHECK_SECONDS = 0.25


class Joining:
    """Prepares replicas, each in a thread of its own."""

    def __init__(self, fleet: Roster) -> None:
        self._fleet = fleet

    def begin(self, member: Member) -> None:
        """Prepare a replica, unless that is being done."""
        if not member.is_joining:
            member.is_joining = True
            threading.Thread(
                target=self._run, args=(member, member.epoch), name=f"zwatch-{member.name}", daemon=True
            ).start()

    def look(self) -> None:
        """Prepare those that lack an engine, if it is time to try that again."""
        now = time.monotonic()
        for member in self._fleet.members:
            epoch = member.epoch
            if member.is_joining or member.state in (ReplicaState.LOST, ReplicaState.STARTING, ReplicaState.LEAVING):
                continue
            if not self.missing(member):
                member.failures = 0
                if member.is_open:
                    self._fleet.set_state(member, epoch, ReplicaState.READY)
            elif now >= member.try_again:
                self.begin(member)

    def missing(self, member: Member) -> list[Prepared]:
        """Return the engines that a replica has to prepare, the newest first: that serves, or will."""
        engines = list(self._fleet.engines.values())
        return [one for one in reversed(engines) if one.is_live and one.id not in member.holds]

    def _run(self, member: Member, epoch: int) -> None:
        fleet = self._fleet
        try:
            problem = self._prepared(member, epoch)
        except Gone as error:
            problem = None
            fleet.lose(member, epoch, str(error))
        finally:
            member.is_joining = False
            member.attempt = None
        if member.epoch != epoch:
            return
        if problem is None:
            member.failures = 0
            fleet.set_state(member, epoch, ReplicaState.READY)
            return
        member.failures += 1
        pause = fleet.limits.again * min(_MOST_PAUSE, 2 ** (member.failures - 1))
        member.try_again = time.monotonic() + pause
        _log.warning("%s is out of the fleet (tried again in %g s): %s", member.where, pause, problem)
        fleet.set_state(member, epoch, ReplicaState.OUT, problem)

    def _prepared(self, member: Member, epoch: int) -> str | None:
        """Open a replica's device and prepare what it lacks; return why that was not possible.

        Raises:
            Gone: it was lost.
        """
        fleet, limits = self._fleet, self._fleet.limits
        if not member.is_open:
            fleet.set_state(member, epoch, ReplicaState.STARTING)
            opened = self._got(member, epoch, member.actor.call("open"), limits.begin)
            if isinstance(opened, Failure):
                return f"its device cannot be opened: {opened.text}"
            assert isinstance(opened, Sign)
            with fleet.lock:
                if member.epoch != epoch:  # another process has not opened its device
                    raise Gone("it was lost meanwhile")
                member.sign, member.is_open = opened, True
            fleet.changed()
        while missing := self.missing(member):
            engine = missing[0]
            if member.sign is not None and engine.id in member.sign.held:  # it was out of reach, and has it still
                self._has(member, epoch, engine)
                continue
            fleet.set_state(member, epoch, ReplicaState.PREPARING)
            member.attempt = f"preparing {engine.version}"
            for stage in (
                ("plan", engine.id, engine.version, engine.digest, limits.await_version),
                ("build", engine.id, engine.digest),
                ("warm", engine.id),
            ):
                found = self._got(member, epoch, member.actor.call(*stage), None, engine.id)
                if isinstance(found, Failure):
                    member.actor.tell("forget", engine.id)
                    if engine.is_live:
                        return f"{engine.version} cannot be prepared: {found.text}"
                    break
            else:
                self._has(member, epoch, engine)
        return None

    def _has(self, member: Member, epoch: int, engine: Prepared) -> None:
        fleet = self._fleet
        with fleet.lock:
            is_wanted = engine.is_live and member.epoch == epoch
            if is_wanted:
                member.holds.add(engine.id)
        if is_wanted:
            _log.info("%s has %s ready", member.where, engine.version)
        else:
            member.actor.tell("forget", engine.id)
        fleet.changed()

    def _got(
        self, member: Member, epoch: int, call: Call, seconds: float | None, engine_id: str | None = None
    ) -> object:
        """Return what a call returns, or a failure once it takes too long.

        Raises:
            Gone: the replica was lost.
        """
        fleet, begun = self._fleet, time.monotonic()
        asking: Call | None = None
        while not fleet.cluster.done([call], _CHECK_SECONDS):
            if member.epoch != epoch:
                raise Gone("it was lost meanwhile")
            if seconds is not None and time.monotonic() - begun > seconds:
                return Failure("rejection", f"it took more than {seconds:g} s", "stalled")
            if engine_id is not None:
                if asking is None:
                    asking = member.actor.call("progress", engine_id)
                elif fleet.cluster.done([asking], 0):
                    progress, asking = asking.result(), None
                    if isinstance(progress, Progress) and fleet.is_stalled(progress):
                        return Failure(
                            "rejection", f"no progress for {progress.silence:.0f} s: {progress.activity}", "stalled"
                        )
        return call.result()
