"""Another process of zwatch on the same device, for a moment: one that takes over, or the one that was taken over."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from zwatch.bridge import Bridge, NoAnswer
from zwatch.rollout.alias import Alias
from zwatch.rollout.engines import EngineCloser, EngineRegistry
from zwatch.rollout.load_thread import CHECK_SECONDS
from zwatch.rollout.prepare import Preparation
from zwatch.shadow.control import LoadControl

if TYPE_CHECKING:
    from zwatch.shadow.device import Device


class Neighbour:
    """Lends memory to a process that takes over, and waits for the memory of one that was taken over."""

    def __init__(
        self, records: Mapping[str, Alias], bridge: Bridge, closer: EngineCloser, preparation: Preparation
    ) -> None:
        self.is_leaving: Callable[[], bool] = lambda: False
        """Says whether a process, from which this one took over, still holds memory of the device, and will end."""
        self._records = records
        self._bridge = bridge
        self._closer = closer
        self._preparation = preparation
        self._borrows = False

    @property
    def needs_room(self) -> bool:
        """Whether another process needs memory more than the next version does."""
        return self._borrows or self.is_leaving()

    async def lend_room(self, device: "Device | None") -> None:
        """Free everything that does not serve, and let nothing be reserved until `end_lending`."""
        self._borrows = True
        await self._closer.free_warm()
        if device is not None:
            await self._bridge.run("memory", device.give_room)

    async def free_all(self, engines: EngineRegistry, device: "Device | None") -> None:
        """Free everything, after the last request: the other process may wait for this memory."""
        for alias in self._records.values():
            engines.withdraw(alias.key)
        for resident in engines.residents:
            if resident.leases == 0:
                await self._closer.free(resident.key)
        if device is not None:
            with suppress(NoAnswer):  # the end does not wait for it
                await self._bridge.run("memory", device.give_room)

    def end_lending(self) -> None:
        """Let memory for the next version be reserved again, if `lend_room` was called."""
        if not self._borrows:
            return
        self._borrows = False
        for alias in self._records.values():
            if alias.serving is not None:
                self._preparation.note_promoted(alias.serving.key)

    async def wait_for_room(self, control: LoadControl) -> None:
        """Wait while a process that was taken over still holds memory.

        Raises:
            Abandoned: `control` was told to abandon the load.
        """
        while self.is_leaving():
            control.check()
            await asyncio.sleep(CHECK_SECONDS)
