"""The place in the state directory at which processes come that want to take over."""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from zwatch.bridge import Bridge, NoAnswer
from zwatch.handover.channel import Channel, Door

_log = logging.getLogger(__name__)

_AGAIN_SECONDS, _LOOK_SECONDS = 1.0, 5.0


async def keep_open(directory: Path, bridge: Bridge, meet: Callable[[Channel], object], given: asyncio.Event) -> None:
    """Call `meet` with all that come, until cancelled or `given` is set. A socket that cannot be made, or is
    gone, is tried again now and then."""
    said: str | None = None
    while not given.is_set():
        try:
            door = await bridge.run("state", Door, directory)
        except OSError as error:
            if said != error.strerror:
                said = error.strerror
                _log.warning(
                    "%s: no socket can be made there (%s), so that no other zwatch can take over", directory, said
                )
            await asyncio.sleep(_LOOK_SECONDS)
            continue
        accepting = asyncio.create_task(_keep_accepting(door, meet), name="accept")
        over = asyncio.create_task(given.wait())
        try:
            await _until_gone(door, bridge, over)
        finally:
            for task in (accepting, over):
                task.cancel()
            await asyncio.gather(accepting, over, return_exceptions=True)
            # Before the other process knows that this one has ended, and makes its own socket of this name.
            with suppress(NoAnswer):
                await bridge.run("state", door.close)


async def _until_gone(door: Door, bridge: Bridge, over: "asyncio.Task[bool]") -> None:
    while not over.done():
        await asyncio.wait([over], timeout=_LOOK_SECONDS)
        with suppress(NoAnswer):
            if not await bridge.run("state", door.is_there):
                return


async def _keep_accepting(door: Door, meet: Callable[[Channel], object]) -> None:
    while True:
        try:
            channel = await door.accept()
        except OSError as error:  # no free descriptor
            _log.warning("a process that wants to take over cannot be answered: %s", error.strerror)
            await asyncio.sleep(_AGAIN_SECONDS)
            continue
        meet(channel)
