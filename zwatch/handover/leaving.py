"""The end of a process whose sockets another one has or gets: its connections go over, and what it has begun ends."""

import asyncio
import logging
import socket
import time
from collections import deque
from contextlib import suppress
from typing import Protocol, cast

from zwatch import systemd
from zwatch.api.connection import Connection
from zwatch.api.server import Runner, Server
from zwatch.api.services import Services, TimeLimits
from zwatch.api.streams import CLOSING
from zwatch.ending import begin_end
from zwatch.handover.channel import Channel

_log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.01
_GRACE_SECONDS = 2.0
"""For connections that the other process cannot take over: how long they may be idle before they are closed."""
_HEAD_SECONDS = 10.0
"""For the rest of a request whose head has begun to arrive."""
_ACCEPT_SECONDS = 0.1
_STORE_SECONDS = 2.0
"""For systemd to take the last connections."""
_AT_ONCE = 256
"""Connections that are looked at without a pause, so that thousands hold up no request."""


class Onward(Protocol):
    """Where connections go. `is_open` says whether they still can."""

    @property
    def is_open(self) -> bool:
        """Whether connections still can go there."""

    def take(self, released: socket.socket) -> None:
        """Give a client's connection away; it is closed here."""


class ToProcess:
    """To the process at the other end of a channel."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    @property
    def is_open(self) -> bool:
        """Whether the process is there."""
        return not self._channel.is_closed

    def take(self, released: socket.socket) -> None:
        """Send it."""
        with released:
            self._channel.send({"connection": True}, [released.fileno()])

    def freed(self) -> None:
        """Tell the process."""
        self._channel.send({"freed": True})


class ToSystemd:
    """To systemd, which passes connections to the next process of the unit."""

    is_open = True

    def __init__(self) -> None:
        self._waiting: deque[socket.socket] = deque()

    def take(self, released: socket.socket) -> None:
        """Send it, or keep it for `flush` while systemd's socket is full."""
        self._waiting.append(released)
        self._send()

    async def flush(self, seconds: float) -> None:
        """Send what is left, for `seconds` at most."""
        end = time.monotonic() + seconds
        while self._waiting and time.monotonic() < end:
            self._send()
            await asyncio.sleep(_LOOK_SECONDS)
        for one in self._waiting:
            one.close()

    def _send(self) -> None:
        while self._waiting and systemd.store_connection(self._waiting[0]):
            self._waiting.popleft().close()


class Leaving:
    """Ends a service of which another process has taken over the rest, or will take the sockets over. Connections go `onward` if
    that is not None."""

    def __init__(self, services: Services, runner: Runner, onward: Onward | None) -> None:
        self._services = services
        self._runner = runner
        self._onward = onward
        self._has_freed = False

    async def drain(self, seconds: float) -> None:
        """Stop accepting, let every connection go over, and end what has begun, for `seconds` at most."""
        # Connections whose head is complete begin to be served meanwhile.
        await asyncio.sleep(_ACCEPT_SECONDS)
        for site in list(self._runner.sites):
            await site.stop()
        end = time.monotonic() + seconds
        idle_since: dict[Connection, float] = {}
        server = cast("Server", self._runner.server)
        queue = self._services.queue
        while time.monotonic() < end:
            connections = [one for one in server.connections if isinstance(one, Connection)]
            connections.sort(key=lambda one: not one.is_idle)
            for connection in connections[:_AT_ONCE]:
                with suppress(OSError):  # no free descriptor
                    self._pass_on(connection, idle_since)
            if not queue.jobs.unsettled and queue.running is None:
                if not connections and not server.arriving:
                    break
                await self._free()  # a client that reads slowly needs none of it
            await asyncio.sleep(_LOOK_SECONDS)
        try:
            async with asyncio.timeout(max(0.0, end - time.monotonic())):
                await queue.drained()
        except TimeoutError:
            _log.warning("%d requests were still waiting after %g s", queue.waiting, seconds)

    async def _free(self) -> None:
        """Free the device's memory once, and tell the other process."""
        supervisor, engines = self._services.supervisor, self._services.engines
        if isinstance(self._onward, ToProcess) and not self._has_freed:
            self._has_freed = True
            device = None if supervisor.factory is None else supervisor.factory.device
            await supervisor.runner.neighbour.free_all(engines, device)
            self._onward.freed()

    def _pass_on(self, connection: Connection, idle_since: dict[Connection, float]) -> None:
        onward, passes_on = self._onward, cast("Server", self._runner.server).passes_on
        if passes_on and onward is not None and onward.is_open and (released := connection.release()) is not None:
            onward.take(released)
            return
        now = time.monotonic()
        grace = _HEAD_SECONDS if connection.framing.is_in_head else _GRACE_SECONDS
        if not connection.is_idle:
            idle_since.pop(connection, None)
        elif now - idle_since.setdefault(connection, now) > grace:
            connection.end_idle()


async def leave_to_systemd(services: Services, runner: Runner, limits: TimeLimits) -> None:
    """End a service whose listening sockets systemd keeps: new connections wait there for the next process, idle ones are kept by
    systemd until then, and what has begun is answered. If the service has failed, that is only what is drawn already."""
    runner.stop_accepting()
    server = cast("Server", runner.server)
    server.is_leaving, server.passes_on = True, systemd.is_told()
    runner.app[CLOSING].set()
    services.supervisor.changes.fire()
    seconds = begin_end(services, limits)
    onward = ToSystemd()
    await Leaving(services, runner, onward).drain(seconds)
    await onward.flush(_STORE_SECONDS)
