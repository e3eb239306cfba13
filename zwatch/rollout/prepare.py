"""Between loads: reserving the memory of the next version, so that a deploy itself allocates nothing."""

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
    """Reserves memory once after each promotion, while nothing loads or drains. `done` is called when it ends."""

    def __init__(self, bridge: Bridge, engines: EngineRegistry, done: Callable[[], None]) -> None:
        self._bridge = bridge
        self._engines = engines
        self._done = done
        self._promoted: VersionKey | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def is_running(self) -> bool:
        """Whether memory is being reserved now."""
        return self._task is not None and not self._task.done()

    def note_promoted(self, key: VersionKey) -> None:
        """Note what serves now; the next version is expected to be as large."""
        self._promoted = key

    def begin(self, device: "Device") -> None:
        """Begin, if a version was promoted since and nothing drains; call it only while nothing loads."""
        residents = self._engines.residents
        if self.is_running or any(resident.state is EngineState.DRAINING for resident in residents):
            return
        key, self._promoted = self._promoted, None
        resident = None if key is None else self._engines.resident(key)
        if resident is not None:
            reserving = self._reserve(device, resident.engine, alone=len(residents) == 1)
            self._task = asyncio.create_task(reserving, name="reserve")
            self._task.add_done_callback(lambda _: self._done())

    def cancel(self) -> None:
        """Stop waiting for it; its thread finishes by itself."""
        if self._task is not None:
            self._task.cancel()

    async def _reserve(self, device: "Device", engine: "Engine", *, alone: bool) -> None:
        """Reserve a shadow on the device. Where no second version fits there, reserve host memory for two: the version
        that is loaded, and the one that makes room for it."""
        sizes = engine.sizes
        files = [buffer.size for buffer in engine.device_buffers]
        try:
            reserved = await self._bridge.run("load", device.reserve, sizes)
            if not reserved and alone and not await self._bridge.run("memory", device.has_room, sizes):
                await self._bridge.run("pin", device.host.reserve, files * 2)
        except Exception:
            _log.exception("memory for the next version could not be reserved; its load will be slower")
