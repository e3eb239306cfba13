"""What operators request: loading, unloading, and waiting for what becomes of a link."""

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zwatch.bridge import Bridge
from zwatch.deploy.look import read_stamps
from zwatch.deploy.resolving import LinkStamp, are_unchanged
from zwatch.deploy.shares import alias_of_key
from zwatch.errors import RequestError
from zwatch.rollout.alias import Alias
from zwatch.rollout.lifecycle import Attempt
from zwatch.rollout.load import AbandonReason
from zwatch.rollout.supervisor import TICK, Supervisor

if TYPE_CHECKING:
    from zwatch.engine.pipeline import Engine

PATIENCE = 5.0
"""Seconds that a call waits for a link that cannot be read because of an I/O error."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a wish ended: it serves, or it does not and `attempt` or `message` says why."""

    serves: bool
    message: str
    version: str | None = None
    attempt: Attempt | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """What was requested at one moment: how many loads operators had requested, and each alias's link stamp."""

    loads: int
    link_stamps: Mapping[str, LinkStamp]


class Operator:
    """Carries out what operators request, and waits for the outcome. On the event loop, like the supervisor."""

    def __init__(self, supervisor: Supervisor, bridge: Bridge) -> None:
        self._supervisor = supervisor
        self._bridge = bridge
        self._loads_requested = 0
        self.sharing = asyncio.Lock()
        """Held by a call while it changes the link of a share."""

    # --- waiting for a link

    async def outcome(self, key: str, version: str | None, link_stamp: LinkStamp) -> Outcome:
        """Wait until the wish that a link with this stamp expresses is decided. The link is that of an alias, or of a share, which is
        known by its key; without a version, it may lead to any."""
        await self._supervisor.look_now()
        limit = time.monotonic() + PATIENCE
        while True:
            self._check_running(f"the link stays, and the next start loads {version or 'what it leads to'}")
            record = self._supervisor.records.get(key)
            if (problem := self.problem_of_share(key)) is not None:
                return Outcome(False, problem)
            if record is None:
                return Outcome(False, f"superseded: the link to {version or 'a version'} is gone, or is not followed")
            target, fault = record.target, record.fault
            if target is not None and target.link_stamp == link_stamp and version in (None, target.version):
                decided = self._decided(record)
                if decided is not None:
                    return decided
            elif not self._may_come(record):
                if record.is_share and fault is not None:
                    return Outcome(False, fault.message)
                return Outcome(
                    False, f"superseded: {record.name} was linked again before {version or 'it'} was decided"
                )
            elif fault is not None and time.monotonic() >= limit:
                return Outcome(False, f"{version or record.name} is linked, but not decided yet: {fault.message}")
            await self._next_change(record, limit)

    def problem_of_share(self, key: str) -> str | None:
        """Return why a share with this key does not count, because its alias has several; else None."""
        share = self._supervisor.seen.shares.get(alias_of_key(key) or "")
        fault = share.fault if share is not None and share.is_ambiguous else None
        return None if fault is None else fault.message

    @staticmethod
    def _may_come(record: Alias) -> bool:
        """Say whether a later look may show the link that is waited for: this one could not read it, or it is briefly
        missing."""
        return record.fault.may_pass if record.fault is not None else record.target is None

    async def _next_change(self, record: Alias, limit: float) -> None:
        """Return at the next change; if the link cannot be read, at the limit too, and after it a little later."""
        waiting = self._supervisor.changes.wait()
        if record.fault is None or not record.fault.may_pass:
            return await waiting
        try:
            async with asyncio.timeout(max(TICK, limit - time.monotonic())):
                await waiting
        except TimeoutError:
            pass

    async def gone(self, key: str) -> None:
        """Wait until a link that was removed is not followed any more, or is there again. A link may be missing for a moment."""
        before = self._supervisor.records.get(key)
        stamp = None if before is None else before.link_stamp
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                await self._supervisor.look_now()
                while (record := self._supervisor.records.get(key)) is not None and record.link_stamp == stamp:
                    await self._supervisor.changes.wait()

    # --- loading

    async def load(self, alias: str) -> Outcome:
        """Load what the alias asks for, also after a rejection, an unload, or if it serves but its files changed."""
        await (
            self._supervisor.is_restored.wait()
        )  # HTTP answers before; an unload that is read then would undo this load
        record = self._supervisor.records[alias]
        share = self._supervisor.records.share_of(alias)
        if share is not None:  # it is for this alias's requests
            share.saved.unloaded = None
            share.try_again()
        was_unloaded, record.saved.unloaded = record.saved.unloaded is not None, None
        self._loads_requested += 1
        self._supervisor.changes.fire()  # an unload may be waiting; this is newer
        record.try_again()
        if was_unloaded:  # also if there is nothing to load now
            await self._supervisor.state.save()
        await self._supervisor.look_now()
        serving = record.serving
        if serving is not None and serving.key == record.wish and await self._files_changed(record, serving.engine):
            record.forced = True
            self._supervisor.ring()
        limit = time.monotonic() + PATIENCE
        while True:
            self._check_running("the next start loads what the link points to")
            if self._supervisor.records.get(record.key) is not record:
                return Outcome(False, f"{record.name} is gone")
            decided = self._decided(record)
            is_decided = decided is not None and (not record.forced or record.is_unloaded)
            if record.fault is not None and not (record.fault.may_pass and is_decided):
                if not record.fault.may_pass or time.monotonic() >= limit:
                    return Outcome(False, record.fault.message)
            elif decided is not None and is_decided:
                return decided
            await self._next_change(record, limit)

    async def _files_changed(self, record: Alias, engine: "Engine") -> bool:
        assert record.target is not None  # it has a wish
        try:
            stamps = await self._bridge.run("look", record.target.directory.file_stamps, list(engine.plan.stamps))
        except OSError:
            return True  # the load will say what cannot be read, or that nothing changed
        return not are_unchanged(engine.plan.stamps, stamps)

    def _check_running(self, then: str) -> None:
        """Raise RequestError if nothing is decided any more."""
        if self._supervisor.is_stopping:
            failure = self._supervisor.failure
            why = "" if failure is None else f" ({failure})"
            raise RequestError("shutting_down", f"the service stops{why}: {then}", headers={"Retry-After": "5"})

    def _decided(self, record: Alias) -> Outcome | None:
        """Return how the alias's present wish ended, or None while it is not decided."""
        serving, wish, load = record.serving, record.wish, self._supervisor.runner.running
        if record.is_unloaded:
            return Outcome(False, f"{record.name} was unloaded meanwhile")
        if load is not None and load.alias is record and not load.attempt.fallback:
            return None
        if wish is not None and (refusal := record.refusals.find(wish)) is not None:
            return Outcome(False, refusal.rejection.reason, wish.version, record.attempt)
        if serving is not None and serving.key == wish:
            return Outcome(True, f"{serving.key.version} is serving", serving.key.version, record.attempt)
        return None

    # --- unloading

    def moment(self) -> Moment:
        """Note what is requested now, to find out later whether something newer was."""
        stamps = {key: record.link_stamp for key, record in self._supervisor.records.items()}
        return Moment(self._loads_requested, stamps)

    def _is_newer(self, asked: Moment) -> bool:
        """Say whether a load was requested, or a link made, since that moment. A link that is gone asks for nothing."""
        now = self.moment()
        return now.loads != asked.loads or any(
            asked.link_stamps.get(key) != stamp for key, stamp in now.link_stamps.items()
        )

    async def moment_of_call(self) -> Moment:
        """Note what is requested now, including a link made before this call that no look has seen yet. A link made after
        this call is newer: it is left out, so that `moment` differs."""
        before = self.moment()
        # Read now, and not judged by its time: a file server's clock may differ from this machine's.
        names = {key: record.name for key, record in self._supervisor.records.items()}
        called = await self._bridge.run("inspect", read_stamps, self._supervisor.root, list(names.values()))
        await self._supervisor.look_now()
        stamps = {key: stamp for key, stamp in zip(names, called, strict=True) if stamp is not None}
        return Moment(before.loads, {**before.link_stamps, **stamps})

    async def unload(self, asked: Moment | None = None) -> bool:
        """Serve nothing and free everything, until a load is requested or a link is made again.

        Requests that hold a lease finish first; the caller makes sure that no others wait. Return False if a load was
        requested, or a link made again, after `asked` (by default this call): that is the newer wish.
        """
        supervisor, asked = self._supervisor, asked or self.moment()
        if self._is_newer(asked):
            return False
        for record in supervisor.records.values():
            record.unload()
        # Not left to the next action: the load may end before that is decided.
        supervisor.runner.abandon(AbandonReason.UNLOADED)
        await supervisor.state.save()
        supervisor.ring()
        while not supervisor.is_empty:
            self._check_running("nothing is loaded until a load is requested")
            if self._is_newer(asked):
                return False
            supervisor.ring()
            await supervisor.changes.wait()
        if supervisor.factory is not None:
            supervisor.factory.loras.give_room()  # no engine draws with them any more
        return True
