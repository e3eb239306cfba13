"""Between loads: having the memory of the next version ready, so that a swap itself allocates nothing."""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from zwatch.bridge import Bridge
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import EngineState, VersionKey

if TYPE_CHECKING:
    from zwatch.engine.pipeline import Engine
    from zwatch.shadow.device import Device

_log = logging.getLogger(__name__)


class Preparation:
    """Once after each promotion, when all is quiet. `done` is called when it ends."""

    def __init__(self, bridge: Bridge, engines: EngineRegistry, done: Callable[[], None]) -> None:
        self._bridge = bridge
        self._engines = engines
        self._done = done
        self._promoted: VersionKey | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_going_on(self) -> bool:
        """Whether memory is being made ready now."""
        return self._task is not None and not self._task.done()

    def note_promoted(self, key: VersionKey) -> None:
        """Note that the next version will be as large as this one, for all that is known."""
        self._promoted = key

    def begin(self, device: "Device") -> None:
        """Begin, if there is reason to and nothing is going on; to be called while nothing loads."""
        residents = self._engines.residents
        if self.is_going_on or any(resident.state is EngineState.DRAINING for resident in residents):
            return
        key, self._promoted = self._promoted, None
        resident = None if key is None else self._engines.resident(key)
        if resident is not None:
            reserving = self._reserve(device, resident.engine, alone=len(residents) == 1)
            self._task = asyncio.create_task(reserving, name="reserve")
            self._task.add_done_callback(lambda _: self._done())

    def cancel(self) -> None:
        """Wait for it no longer."""
        if self._task is not None:
            self._task.cancel()

    async def _reserve(self, device: "Device", engine: "Engine", *, alone: bool) -> None:
        """Have a shadow ready on the device; where not even one other version fits, for two in the host's memory: what
        comes, and what makes room for it."""
        sizes = engine.sizes
        files = [buffer.size for component in engine.components for buffer in component.buffers]
        try:
            reserved = await self._bridge.run("load", device.reserve, sizes)
            if not reserved and alone and not await self._bridge.run("inspect", device.has_room, sizes):
                await self._bridge.run("pin", device.host.reserve, files * 2)
        except Exception:
            _log.exception("memory for the next version could not be made ready; it will load more slowly")
