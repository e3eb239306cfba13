"""The golden images that the warm-up had no time for are checked beside requests: one at a time, while nothing waits.

A check runs in the requests' own thread, so that a request that comes meanwhile runs as soon as the check has given way: at its next
step. What a check finds is told to `on_checked`, as a fault of the version.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zwatch.bridge import Bridge, NoAnswer, Pulse
from zwatch.errors import GenerationCancelled, Rejection
from zwatch.generation.generator import STALL, STALL_ON_GPU
from zwatch.generation.queue import GenerationQueue
from zwatch.lanes import Interrupted
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import EngineState, Resident, VersionKey
from zwatch.shadow.faults import described, is_memory_short

if TYPE_CHECKING:
    from zwatch.engine.pipeline import Engine

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.5
"""Seconds between two looks at a check that runs, and after one that could not run."""


class GoldenChecks:
    """Checks golden images of what serves. Called on the event loop."""

    def __init__(self, bridge: Bridge, engines: EngineRegistry, queue: GenerationQueue, changes: Pulse) -> None:
        self.on_checked: list[Callable[[VersionKey, str | None], object]] = []
        """Called with each version whose golden image was checked, and what was wrong with it, None if nothing was."""
        self.remember: Callable[[Engine], object] = lambda engine: None
        """Called with an engine after each check: what was checked need not be checked at the next start."""
        self._bridge, self._engines, self._queue, self._changes = bridge, engines, queue, changes
        self._sign = time.monotonic()

    async def run(self) -> None:
        """Check golden images until cancelled."""
        while True:
            coming = self._changes.next()
            resident = self._due()
            if resident is None:
                await asyncio.shield(coming)
            elif not await self._check(resident):
                await asyncio.sleep(_LOOK_SECONDS)

    def _due(self) -> Resident | None:
        """Return a version that serves and has golden images to check, if nothing else is drawn."""
        if not self._is_idle():
            return None
        return next((one for one in self._engines.residents if self._has_to_check(one)), None)

    def _is_idle(self) -> bool:
        queue = self._queue
        return (
            not queue.waiting
            and queue.running is None
            and queue.closed is None
            and self._engines.being_exchanged is None
        )

    def _has_to_check(self, resident: Resident) -> bool:
        is_usable = resident.state is EngineState.SERVING and self._engines.is_usable(resident)
        return is_usable and resident.engine.golden.next is not None

    async def _check(self, resident: Resident) -> bool:
        """Check one golden image; return whether it was."""
        engine, given_up = resident.engine, threading.Event()
        picture = engine.golden.next
        assert picture is not None
        with self._engines.hold(resident):
            try:
                fault = await self._drawn(engine, picture.image, given_up, resident)
            except (GenerationCancelled, NoAnswer):
                return False
            except Exception as error:
                fault = f"{picture.image}: {error.reason if isinstance(error, Rejection) else described(error)}"
                if not isinstance(error, Rejection) and not is_memory_short(error):
                    _log.error("a golden image could not be drawn", exc_info=error)
                    if (judge := self._queue.drawer.judge) is not None:
                        await judge(error, resident.key)
            engine.golden.note(fault)
            self._tell(resident, fault)
        return True

    def _tell(self, resident: Resident, fault: str | None) -> None:
        engine, key = resident.engine, resident.key
        golden = engine.golden
        if fault is not None:
            _log.warning("%s does not draw a golden image as it should: %s", key.version, fault)
        if golden.next is None:
            of, missed = len(golden.pictures), golden.missed
            _log.info("all %d golden images of %s are checked; %d missed", of, key.version, missed)
        self.remember(engine)
        for listener in self.on_checked:
            listener(key, fault)
        self._changes.fire()

    async def _drawn(self, engine: "Engine", image: str, given_up: threading.Event, resident: Resident) -> str | None:
        """Draw the next golden image of an engine, of the path `image`, in a thread, and return what is wrong with it.

        Raises:
            GenerationCancelled: it gave way to something else.
            NoAnswer: earlier images have not come back.
            Whatever the device raises.
        """
        self._sign = time.monotonic()
        begun = self._bridge.begin("generate", self._draw, engine, given_up)
        is_on_gpu = self._queue.generator.is_on_gpu()
        # Half of what a request has: one that waits behind this check must not be given up for it.
        limit = (self._queue.generator.stall or (STALL_ON_GPU if is_on_gpu else STALL)) / 2
        while not begun.future.done():
            coming: asyncio.Future[Any] = self._changes.next()
            await asyncio.wait([begun.future, coming], timeout=_LOOK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if not self._is_idle() or not self._has_to_check(resident):
                given_up.set()
            if not begun.future.done() and time.monotonic() - self._sign > limit:
                fault = f"{image}: the image made no progress for {limit:g} s"
                await self._queue.generator.end(begun, engine, self._sign, limit, fault, engine.version)
                return fault
        try:
            return begun.future.result()
        except Interrupted:
            raise GenerationCancelled from None
        finally:
            del begun  # an error's frames, of which this is one, hold the memory of a failed generation

    def _draw(self, engine: "Engine", given_up: threading.Event) -> str | None:
        from zwatch.engine.comparing import check_next

        def cancelled() -> bool:
            self._sign = time.monotonic()
            return given_up.is_set()

        def check() -> None:
            if given_up.is_set():
                raise GenerationCancelled

        with engine.device.beside(), engine.device.giving_way(check):
            return check_next(engine, cancelled=cancelled)
