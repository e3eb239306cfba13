"""Exchanging what serves for a new version, on a device with no room for both: requests wait, and none fails."""

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING

from zwatch.bridge import Pulse
from zwatch.deploy.resolving import Directory
from zwatch.errors import Rejection
from zwatch.rollout.alias import Alias
from zwatch.rollout.engines import EngineCloser, EngineRegistry
from zwatch.rollout.lifecycle import Attempt, EngineState, LoadWay, Resident
from zwatch.rollout.load_thread import CHECK_SECONDS, LoadThread
from zwatch.rollout.prepare import Preparation

if TYPE_CHECKING:
    from zwatch.engine.factory import EngineFactory
    from zwatch.engine.pipeline import Engine
    from zwatch.shadow.control import LoadControl
    from zwatch.shadow.loader import Plan

_log = logging.getLogger(__name__)


class Exchanger:
    """Exchanges versions. It runs on the event loop, as a part of the loads of `attempt`."""

    def __init__(
        self,
        records: Mapping[str, Alias],
        thread: LoadThread,
        engines: EngineRegistry,
        preparation: Preparation,
        changes: Pulse,
    ) -> None:
        self._records = records
        self._thread = thread
        self._engines = engines
        self._preparation = preparation
        self._changes = changes

    async def is_needed(
        self, factory: "EngineFactory", alias: Alias, attempt: Attempt, planned: "Plan", old: Resident
    ) -> bool:
        """Say whether a version fits only if what the alias serves, and no other alias does, releases its memory."""
        if self._sharers(alias, old):
            return False
        run = self._thread.run
        if not await run(attempt, factory.lacks, planned):
            return False
        return await run(attempt, factory.fits_instead, planned, old.engine, self._others(old))

    async def exchange(
        self,
        factory: "EngineFactory",
        alias: Alias,
        attempt: Attempt,
        directory: Directory,
        planned: "Plan",
        old: Resident,
        after_promotion: ExitStack,
    ) -> "Engine":
        """Verify in host memory, let the running request finish, hold the others back, and exchange with what serves.

        Requests are held back until `after_promotion` is closed: the caller promotes before.

        Raises:
            Rejection, Abandoned: as `EngineFactory.exchange`; what served goes on serving, unless even that failed.
        """
        control = attempt.control
        assert control is not None  # the plan was made under it
        attempt.way = LoadWay.HOST
        # The memory that is being pinned is meant for this load; as much again might be too much.
        while self._preparation.is_running:
            control.check()
            await self._changes.wait()
        staged = await self._thread.run(
            attempt, factory.stage, directory, planned, control, old.engine, self._others(old)
        )
        control.check()
        if sharers := self._sharers(alias, old):
            raise Rejection(
                "insufficient_memory",
                f"{planned.version} does not fit next to {old.key.version}, which {' and '.join(sharers)} now also serves",
            )
        attempt.begin_warming()
        after_promotion.callback(self._engines.end_exchange)
        after_promotion.enter_context(self._engines.begin_exchange(old.key))
        while old.leases > 1:  # one is ours
            control.check()
            await self._changes.wait()
        begun = time.monotonic()
        after_promotion.callback(lambda: setattr(attempt, "requests_waited", time.monotonic() - begun))
        try:
            return await self._thread.run(attempt, factory.exchange, old.engine, self._others(old), staged, control)
        except BaseException:
            if not old.engine.is_complete:
                _log.error("%s could not be restored; it no longer serves", old.key.version)
                if alias.serving is old:
                    self._engines.withdraw(alias.key)
            raise

    async def give_up(
        self, share: Alias, version: str, old: Resident, control: "LoadControl", closer: EngineCloser
    ) -> None:
        """Free what a share serves, so that its next `version` fits: its alias draws the requests meanwhile, and none waits.

        Raises:
            Rejection: something else serves it again meanwhile, so that it keeps its memory.
            Abandoned: `control` was told to abandon the load.
        """
        _log.info("%s gives up %s to make room for its next version", share.name, old.key.version)
        self._engines.withdraw(share.key)
        share.saved.serving = None
        while self._engines.resident(old.key) is old and old.state is not EngineState.WARM:
            control.check()
            if sharers := self._sharers(share, old):
                raise Rejection(
                    "insufficient_memory",
                    f"{version} does not fit next to {old.key.version}, which {' and '.join(sharers)} now also serves",
                )
            await self._changes.wait()
        await closer.free_warm()
        while closer.is_closing:
            control.check()
            await asyncio.sleep(CHECK_SECONDS)

    def _sharers(self, alias: Alias, old: Resident) -> list[str]:
        """Return the other aliases that serve what would have to make room."""
        return [other.name for other in self._records.values() if other is not alias and other.serving is old]

    def _others(self, old: Resident) -> list["Engine"]:
        return [resident.engine for resident in self._engines.residents if resident is not old]
