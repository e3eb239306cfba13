"""The HTTP server below the application.

Connections are closed if they send no request or read no answer for too long, and refused beyond a number that leaves
file descriptors for everything else. What happens within one is in `connection`.
"""

import asyncio
import logging
import math
import re
import resource
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol, cast

from aiohttp import web
from aiohttp.http_parser import RawRequestMessage

from zwatch.api.connection import Connection, ConnectionServer
from zwatch.api.refusals import Refusals, Slowdown
from zwatch.api.services import TimeLimits

_log = logging.getLogger(__name__)

BACKLOG = 4096
"""Connections that may wait to be accepted: enough for many clients that connect at the same moment."""
MAX_FILES = 65536
"""File descriptors that the service asks for at most."""
_WARNING_SECONDS = 60.0
"""Least time between two warnings about too many connections."""
_LOOK_SECONDS = 1.0
"""How often connections that are not read are looked at."""
_SLASHES = re.compile("//+")


def connection_limits() -> tuple[int, int]:
    """Raise the limit of open files as far as possible (a shell's is often 1,024); return how many connections may be open,
    and how many may wait to be accepted.

    Half of the descriptors is for everything else.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return files // 2, min(BACKLOG, files // 16)


class Arrivals(Protocol):
    """Where connections are before they are served."""

    @property
    def count(self) -> int:
        """How many there are."""

    def stop(self) -> None:
        """Accept no more connections, until `accept`."""

    def accept(self) -> None:
        """Accept connections again."""


class Runner(web.AppRunner):
    """Runs an application, with at most `max_connections` at a time."""

    def __init__(
        self,
        app: web.Application,
        *,
        max_connections: int,
        limits: TimeLimits,
        refusals: Refusals | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(app, **kwargs)
        self._max_connections = max_connections
        self._limits = limits
        self._refusals = refusals or Refusals()

    @property
    def listening_sockets(self) -> list[socket.socket]:
        """The sockets on which connections are accepted."""
        servers = [cast("asyncio.Server | None", site._server) for site in self.sites]  # noqa: SLF001 (no public way)
        return [one for server in servers if server is not None for one in server.sockets]

    def stop_accepting(self) -> None:
        """Leave new connections to another process that has the same sockets: they wait in the sockets' queues."""
        for entrance in cast("Server", self.server).entrances:
            entrance.stop()

    def accept_again(self) -> None:
        """Undo `stop_accepting`."""
        for entrance in cast("Server", self.server).entrances:
            entrance.accept()

    async def adopt(self, connected: socket.socket) -> None:
        """Serve a client's connection that another process has accepted."""
        connected.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(cast("Server", self.server), connected)
        except OSError:  # the client has left
            connected.close()

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return Server(
            made.request_handler,
            request_factory=_with_single_slashes(made.request_factory),
            handler_cancellation=made.handler_cancellation,
            max_connections=self._max_connections,
            limits=self._limits,
            refusals=self._refusals,
            **{**made._kwargs, "keepalive_timeout": self._limits.idle},  # noqa: SLF001 (there is no public way)
        )


def _with_single_slashes(make: Callable[..., web.BaseRequest]) -> Callable[..., web.BaseRequest]:
    """Return the request factory that takes double slashes in a path as one: a base URL may end with a slash."""

    def made(message: RawRequestMessage, *others: Any) -> web.BaseRequest:
        if "//" in message.url.raw_path:
            url = message.url.with_path(_SLASHES.sub("/", message.url.raw_path), encoded=True, keep_query=True)
            message = message._replace(url=url, path=url.raw_path_qs)
        return make(message, *others)

    return made


class Server(ConnectionServer):
    """Makes connections and knows how many are open."""

    def __init__(self, *args: Any, max_connections: int, limits: TimeLimits, refusals: Refusals, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits = limits
        self.refusals = refusals
        self.slowdown = Slowdown(max(1, max_connections // 4))
        self.is_leaving = self.passes_on = False
        self.entrances: list[Arrivals] = []
        self._looking: asyncio.TimerHandle | None = None
        self._max_connections = max_connections
        self._warned = -math.inf

    @property
    def is_full(self) -> bool:
        """Whether another connection must be refused."""
        if len(self._connections) + self.arriving < self._max_connections:
            return False
        if time.monotonic() - self._warned > _WARNING_SECONDS:
            self._warned = time.monotonic()
            _log.warning("%d connections are open, more are refused; see `ulimit -n`", self._max_connections)
        return True

    @property
    def arriving(self) -> int:
        """How many connections were accepted, but have no whole head of a request yet."""
        return sum(entrance.count for entrance in self.entrances)

    def __call__(self) -> web.RequestHandler:
        """Return the protocol of a new connection."""
        return self.connection()

    def connection(self, begun: bytes | None = None) -> Connection:
        """Return the protocol of a connection that was admitted by an entrance, which has read its first bytes, or of a new one."""
        if self._looking is None:
            self._looking = self._loop.call_later(_LOOK_SECONDS, self._look)
        return Connection(self, begun, loop=self._loop, **self._kwargs)

    def _look(self) -> None:
        """Look for clients that are gone, as long as connections are open."""
        self._looking = self._loop.call_later(_LOOK_SECONDS, self._look) if self._connections else None
        for connection in self.connections:
            if isinstance(connection, Connection):
                connection.look()
