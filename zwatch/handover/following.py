"""The new process of a handover, from the exchange to the old one's end: its jobs and connections come over."""

import asyncio
import logging
import os
import socket
import time
from contextlib import suppress

from zwatch.api.server import Runner
from zwatch.api.services import Services
from zwatch.handover.channel import Channel, Message
from zwatch.handover.jobs import JobMirror
from zwatch.handover.standstill import end_process, has_ended
from zwatch.handover.taking import Taken

_log = logging.getLogger(__name__)

_WATCH_SECONDS = 1.0
_ENTRANCE_SECONDS = 1.0
_EXIT_SECONDS = 60.0
"""For the old process to end after its last word; to free the memory of a GPU takes seconds."""


class Following:
    """The rest of the conversation with the old process. `budget`: bytes for weights once it has ended; `limit`: seconds for which
    its memory is waited for. If the old process is not heard of for `silence` seconds it stands still."""

    def __init__(
        self, taken: Taken, channel: Channel, services: Services, runner: Runner, budget: int | None, limit: float,
        silence: float,
    ) -> None:  # fmt: skip
        self.ended = asyncio.Event()
        """Set once the old process has ended."""
        self._taken = taken
        self._channel = channel
        self._services = services
        self._runner = runner
        self._budget = budget
        self._silence = silence if taken.beats else None
        self._end = time.monotonic() + limit
        self._mirror = JobMirror(services.queue, services.history, channel, services.bridge)
        self._has_freed = False
        self._process: int | None = None
        with suppress(OSError):  # it has ended, or is in a container of its own
            self._process = os.pidfd_open(channel.peer[0])

    @property
    def is_leaving(self) -> bool:
        """Whether the old process still holds memory, and has time to end."""
        return not self.ended.is_set() and not self._has_freed and time.monotonic() < self._end

    async def begin(self) -> None:
        """Take over the jobs; to be called before this process listens."""
        for message in self._taken.jobs:
            await self._note(message)
        self._taken.jobs.clear()

    async def take_entrance(self) -> None:
        """Let the old process accept no more connections; to be called just before this one listens on the same sockets. Else a
        client could be answered by the old one that does not know a job of this one."""
        self._channel.send({"ask": "accept"})
        with suppress(TimeoutError):
            async with asyncio.timeout(_ENTRANCE_SECONDS):
                while (message := await self._channel.receive()) is not None and "accepting" not in message.body:
                    await self._note(message)

    async def run(self, *, takes_connections: bool) -> None:
        """Say that this process serves, and follow the old one until it ends."""
        self._channel.send({"ask": "end", "connections": takes_connections})
        watching = asyncio.create_task(self._keep_watching(), name="tell what is watched")
        try:
            while (message := await self._next()) is not None:
                await self._note(message)
        finally:
            watching.cancel()
        self._mirror.redraw()
        # Its memory of the device is free when the process has ended, not when its last word came.
        await self._ended_process()
        _log.info("the process that was taken over has ended")
        self.ended.set()
        self._take_room()

    async def _next(self) -> Message | None:
        """Return the next message of the old process; None if it has ended, or is ended since it stands still."""
        if self._silence is None:
            return await self._channel.receive()
        try:
            return await self._channel.receive_of_living(self._silence)
        except TimeoutError:
            await end_process(self._channel.peer[0], "the zwatch that was taken over")
            return None  # also if it could not be ended: its jobs are drawn here

    def _take_room(self) -> None:
        """Let loads have the memory that the old process had."""
        if (factory := self._services.supervisor.factory) is not None:
            factory.device.budget = self._budget
            factory.device.peak_elsewhere = 0
        self._services.supervisor.ring()
        self._services.supervisor.changes.fire()

    async def _ended_process(self) -> None:
        """Wait until the old process has ended, as far as that can be seen from here."""
        if self._process is None:
            return
        try:
            if not await has_ended(self._process, _EXIT_SECONDS):
                _log.warning("process %d does not end; going on without waiting for it", self._channel.peer[0])
        finally:
            self._close_process()

    def _close_process(self) -> None:
        if self._process is not None:
            os.close(self._process)
            self._process = None

    async def _note(self, message: Message) -> None:
        body = message.body
        try:
            if "job" in body:
                await self._mirror.note(body, message.fds)
            elif "freed" in body:
                self._has_freed = True
                self._take_room()  # also of the budget: a load that waited looks at it now
            elif "connection" in body:
                await self._runner.adopt(socket.socket(fileno=message.fds.pop()))
        except Exception:  # of one job or connection: the others come over all the same
            _log.exception("a message of the process that was taken over could not be used")
        message.close()
        if "sync" in body:
            self._channel.send({"synced": body["sync"]})

    async def _keep_watching(self) -> None:
        while True:
            self._mirror.tell_watched()
            await asyncio.sleep(_WATCH_SECONDS)

    async def close(self) -> None:
        """End the conversation; the old process notices."""
        await self._mirror.stop()
        self._channel.close()
        self._close_process()
