"""Following the LoRA root while the service runs: new LoRAs, some that are sealed anew, some that are gone."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection

from zwatch.bridge import Bridge, NoAnswer, Pulse
from zwatch.deploy.loras import FoundLora, LoraRoot
from zwatch.rollout.gate import Gate

_log = logging.getLogger(__name__)

TICK = 0.25
"""Seconds between two looks when nothing calls `ring`: the cost of a lost event."""
_SHARE = 0.02
"""The part of one core that looks may take: with thousands of LoRAs the tick is longer. Time in which a look waits for a disk or a
network does not count."""
_MOST_FOLDERS = 256
"""Directories of LoRAs that are watched; the tick sees changes in the others."""


class LoraFollower:
    """Knows the LoRAs that are there, as a look less than a second ago found them. It is used on the event loop."""

    def __init__(self, root: LoraRoot, bridge: Bridge, gate: Gate, changed: Callable[[], None]) -> None:
        """`changed` is called when `seen` or `fault` is another one."""
        self.root = root
        self.seen: tuple[FoundLora, ...] = ()
        """The LoRAs of the latest look, sorted by name, with what is wrong with each."""
        self.fault: str | None = None
        """Why the LoRA root could not be looked at the last time; None if it could, or is not there."""
        self.residents: Callable[[], Collection[str]] = tuple
        """Returns the digests of the LoRAs that are on the device."""
        self._bridge, self._gate, self._changed = bridge, gate, changed
        self._ringing, self._looked = asyncio.Event(), Pulse()
        self._cost = 0.0
        """Seconds of processor time of the latest look that came back."""

    def ring(self) -> None:
        """Look again now. From another thread, go through the bridge."""
        self._ringing.set()

    async def look_now(self) -> None:
        """Return after a look that began after this call."""
        # The running look may have begun before this call; the one after it did not.
        for _ in range(2):
            coming = self._looked.next()
            self.ring()
            await asyncio.shield(coming)

    def folders(self) -> list[str]:
        """Return the absolute paths of the directories in which a change may matter."""
        root = self.root.path.absolute()
        return [str(root), *(str(root / one.name) for one in self.seen[:_MOST_FOLDERS])]

    def find(self, name: str) -> FoundLora | None:
        """Return what the latest look found of a LoRA; None if it is not there."""
        return next((one for one in self.seen if one.name == name), None)

    async def run(self) -> None:
        """Look at every tick, and when `ring` is called."""
        while True:
            self._ringing.clear()
            await self._look()
            self._looked.fire()
            try:
                async with asyncio.timeout(max(TICK, self._cost / _SHARE)):
                    await self._ringing.wait()
            except TimeoutError:
                pass

    async def _look(self) -> None:
        fault = None
        try:
            found, self._cost = await self._bridge.run("loras", self._found)
            fault = self.root.fault
        except NoAnswer as error:
            found, fault = self.seen, f"{self.root.path}: {error.strerror}; it is looked at again"
        except Exception as error:  # without this the LoRA root would be followed no longer
            found, fault = self.seen, f"{self.root.path}: {type(error).__name__}: {error}"
            if self.fault != fault:
                _log.exception("the LoRA root could not be looked at; retrying")
        if (found, fault) != (self.seen, self.fault):
            self._tell(found, fault)
            self.seen, self.fault = found, fault
            self._changed()

    def _found(self) -> tuple[tuple[FoundLora, ...], float]:
        begun = time.thread_time()
        found = tuple(self._gate.judge_loras(self.root.path, self.root.look()))
        return found, time.thread_time() - begun

    def _tell(self, found: tuple[FoundLora, ...], fault: str | None) -> None:
        """Log what is new: a LoRA that can be used, or not; one that is gone."""
        before = {one.name: one for one in self.seen}
        for one in found:
            known = before.pop(one.name, None)
            if known == one:
                continue
            if one.problem is not None:
                _log.warning("the LoRA %s cannot be used: %s", one.name, one.problem)
            else:
                _log.info("the LoRA %s can be used, rank %d, digest %s", one.name, one.rank, one.digest)
        for name in before:
            _log.info("the LoRA %s is gone", name)
        if fault is not None and fault != self.fault:
            _log.error("%s", fault)
