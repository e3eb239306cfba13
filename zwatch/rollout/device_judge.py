"""Judging whether the device is lost to this process: after an error that may be the device's, and while nothing uses it.

After some errors, such as an access to a wrong address, CUDA refuses every further call of the process. Which error a library
then raises, and where, says little, so the device itself is asked.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from zwatch.bridge import Bridge, NoAnswer
from zwatch.errors import Ending, FatalError
from zwatch.shadow.faults import may_be_the_device, named

if TYPE_CHECKING:
    from zwatch.shadow.device import Device

_log = logging.getLogger(__name__)

CHECK_SECONDS = 10.0
"""Seconds between two checks while nothing uses the device."""


class DeviceJudge:
    """Asks the device whether it still works. `device` returns it, None before it is opened; `fail` is called if it is lost."""

    def __init__(
        self, bridge: Bridge, device: "Callable[[], Device | None]", fail: Callable[[FatalError], None]
    ) -> None:
        self._bridge = bridge
        self._device = device
        self._fail = fail
        self._suspecting: asyncio.Task[bool] | None = None

    async def judge(self, error: BaseException | str | None = None) -> bool:
        """Return whether the device is lost, after an error that may have been its; then the service stops."""
        device = self._device()
        if device is None:
            return False
        try:
            why = await self._bridge.run("device", device.lost)
        except NoAnswer as silence:
            why = silence.strerror
        except (
            OSError,
            RuntimeError,
        ) as failure:  # of the thread that would ask: none can be started, or the service ends
            _log.warning("whether the device works could not be asked: %s", failure)
            return False
        if why is None:
            return False
        text = named(error) if isinstance(error, BaseException) else error
        first = "" if text is None else f" after {text[:300]}"
        reason = f"{device.torch_device} does not work any more ({why}){first}"
        self._fail(FatalError(reason, is_crash=True, ending=Ending.DEVICE_LOST))
        return True

    def note(self, error: BaseException) -> None:
        """Judge soon if an error of any call in a thread may have been the device's, whoever handles it. Any thread may call it."""
        if may_be_the_device(error):
            # The text only: the error's frames hold the memory of a failed load.
            self._bridge.post(self.suspect, named(error)[:300])

    def suspect(self, text: str) -> None:
        """Judge soon, unless that is about to happen."""
        if self._suspecting is None or self._suspecting.done():
            self._suspecting = asyncio.create_task(self.judge(text), name="judge the device")

    async def watch(self, is_used: Callable[[], bool]) -> None:
        """Judge every `CHECK_SECONDS` while nothing uses the device, until cancelled: one that fell off the bus is noticed before
        the next request."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            if not is_used():
                await self.judge()
