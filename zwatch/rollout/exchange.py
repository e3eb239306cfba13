"""A version in the place of the one that serves, on a device with no room for both: requests wait, and none fails."""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from zwatch.bridge import Bridge, Pulse
from zwatch.deploy.resolving import Directory
from zwatch.errors import Rejection
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import Attempt, Resident
from zwatch.rollout.prepare import Preparation

if TYPE_CHECKING:
    from zwatch.engine.factory import EngineFactory
    from zwatch.engine.pipeline import Engine
    from zwatch.shadow.loader import Plan

_log = logging.getLogger(__name__)


class Exchanger:
    """Lets versions change places. On the event loop, like the supervisor whose loads it does in part."""

    def __init__(
        self, aliases: Sequence[str], bridge: Bridge, engines: EngineRegistry, preparation: Preparation, changes: Pulse
    ) -> None:
        self._aliases = aliases
        self._bridge = bridge
        self._engines = engines
        self._preparation = preparation
        self._changes = changes

    async def is_needed(self, factory: "EngineFactory", attempt: Attempt, planned: "Plan", old: Resident) -> bool:
        """Say whether a version fits only where what serves gives it its memory, and no other alias serves that too."""
        if self._sharers(attempt, old):
            return False
        if not await self._bridge.run("load", factory.lacks, planned):
            return False
        return await self._bridge.run("load", factory.fits_instead, planned, old.engine, self._others(old))

    async def exchange(
        self,
        factory: "EngineFactory",
        attempt: Attempt,
        directory: Directory,
        planned: "Plan",
        old: Resident,
        held: ExitStack,
    ) -> "Engine":
        """Verify in host memory, let the request in flight finish, hold the others, and change places with what serves.

        They are held until `held` is closed: the caller promotes before.

        Raises:
            Rejection, Abandoned: as `EngineFactory.exchange`; what served serves on, unless even that failed.
        """
        control = attempt.control
        assert control is not None  # the plan was made under it
        attempt.way = "host"
        while self._preparation.is_going_on:  # what is being pinned is meant for this; as much again might be too much
            control.check()
            await self._changes.wait()
        staged = await self._bridge.run(
            "load", factory.stage, directory, planned, control, old.engine, self._others(old)
        )
        control.check()
        if sharers := self._sharers(attempt, old):
            raise Rejection(
                "insufficient_memory",
                f"{planned.version} has no room beside {old.key.version}, which {' and '.join(sharers)} serves by now too",
            )
        attempt.warming()
        held.callback(self._engines.stay)
        held.enter_context(self._engines.let_go(old.key))
        while old.leases > 1:  # one is ours
            control.check()
            await self._changes.wait()
        begun = time.monotonic()
        held.callback(lambda: setattr(attempt, "held", time.monotonic() - begun))
        try:
            return await self._bridge.run("load", factory.exchange, old.engine, self._others(old), staged, control)
        except BaseException:
            if not old.engine.is_complete:
                _log.error("%s could not be put back; it does not serve any more", old.key.version)
                if self._engines.serving(attempt.alias) is old:
                    self._engines.withdraw(attempt.alias)
            raise

    def _sharers(self, attempt: Attempt, old: Resident) -> list[str]:
        """Return the other aliases that serve what would have to make room."""
        return [alias for alias in self._aliases if alias != attempt.alias and self._engines.serving(alias) is old]

    def _others(self, old: Resident) -> list["Engine"]:
        return [resident.engine for resident in self._engines.residents if resident is not old]
