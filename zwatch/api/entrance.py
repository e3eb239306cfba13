"""New connections until the head of their first request is complete. Thousands that send nothing, or half a head, cost a socket and
some bytes each: no parser, no task, no timer. Those that are complete go first.

asyncio accepts all that wait in one turn of the event loop, and reads from all that have sent something in the next: with thousands
of clients at once nobody else is answered for half a second. Here each turn has a bounded share of that work.
"""

import asyncio
import errno
import logging
import re
import socket
import time
from collections import deque
from itertools import islice
from typing import cast

from aiohttp import web

from zwatch.api.answers import TOO_MANY_CONNECTIONS, raw_answer
from zwatch.api.server import Server

_log = logging.getLogger(__name__)

_ACCEPTED, _BEGUN, _BEGUN_WITHOUT_BODY = 32, 4, 1
"""How many connections are accepted in a turn of the event loop, and how many begin to be served: with a whole request, and with one
whose body has not arrived."""
_CLOSED = 32
"""How many are closed in a turn."""
_READ = 2**14
_MOST_HEAD = 2**13
"""Bytes of a head that are kept here; a longer one is the parser's, which refuses it."""
_EVICTED_SECONDS = 1.0
"""Where too many connections are open, one that has waited so long for its request gives way to a new one."""
_PAUSE = 0.5
"""Seconds until it is tried again to accept, where that needs something of which there is none."""
_WANTING = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_METHOD = re.compile(rb"[A-Z]{1,20}(?: |\Z)")
_END = re.compile(rb"\r?\n\r?\n")
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*\r?\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\ntransfer-encoding[ \t]*:", re.IGNORECASE)


class _Arriving:
    """A connection whose first head is not complete, and what has arrived of it."""

    __slots__ = ("begun", "data", "socket")

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.data = b""
        self.begun = time.monotonic()


class Entrance:
    """Accepts the connections of one site. It takes the place of asyncio's server, whose listening sockets it uses."""

    def __init__(self, server: Server, bound: asyncio.Server, backlog: int) -> None:
        self._server = server
        self._bound = bound
        self._loop = asyncio.get_running_loop()
        self.sockets = tuple(one.dup() for one in bound.sockets)
        self._waiting: dict[_Arriving, None] = {}
        """The one that has waited for longest is the first."""
        self._whole: deque[_Arriving] = deque()
        self._parts: deque[_Arriving] = deque()
        self._connecting: set[asyncio.Task[None]] = set()
        self._turn: asyncio.Handle | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._is_closed = False
        self._is_stopped = False
        server.entrances.append(self)
        for listening in self.sockets:
            listening.setblocking(False)
            listening.listen(backlog)
            self._loop.add_reader(listening, self._accept, listening)

    @property
    def count(self) -> int:
        """How many connections have been accepted and are not served yet."""
        return len(self._waiting) + len(self._whole) + len(self._parts) + len(self._connecting)

    # --- accepting

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTED):
            try:
                connected, _address = listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _WANTING:
                    self._loop.remove_reader(listening)
                    self._loop.call_later(_PAUSE, self._resume, listening)
                    _log.warning("connections cannot be accepted: %s; see `ulimit -n`", error.strerror)
                    return
                continue  # the client has left already
            connected.setblocking(False)
            if self._server.is_full and not self._evict():
                _close(connected, raw_answer(TOO_MANY_CONNECTIONS))
                self._server.refusals.count("connections beyond the limit")
                continue
            one = _Arriving(connected)
            if self._read(one):
                self._waiting[one] = None
                self._loop.add_reader(connected, self._read_more, one)
                if self._sweep is None:
                    self._sweep = self._loop.call_later(self._server.limits.head, self._close_overdue)

    def _resume(self, listening: socket.socket) -> None:
        if not self._is_closed and not self._is_stopped and not self._server.is_leaving:
            self._loop.add_reader(listening, self._accept, listening)

    def stop(self) -> None:
        """Leave new connections in the sockets' queues, for another process that has the same sockets, or until `accept`."""
        self._is_stopped = True
        for listening in self.sockets:
            self._loop.remove_reader(listening)

    def accept(self) -> None:
        """Accept connections again after `stop`."""
        self._is_stopped = False
        for listening in self.sockets:
            self._resume(listening)

    def _evict(self) -> bool:
        """Close the connection that has waited for longest, if that is long; return whether there was one."""
        oldest = next(iter(self._waiting), None)
        if oldest is None or time.monotonic() - oldest.begun < _EVICTED_SECONDS:
            return False
        self._leave(oldest)
        _close(oldest.socket)
        self._server.refusals.count("connection closed: it has sent no request, and others need its place")
        return True

    # --- reading

    def _read_more(self, one: _Arriving) -> None:
        if one in self._waiting and not self._read(one) and one in self._waiting:
            self._leave(one)

    def _read(self, one: _Arriving) -> bool:
        """Read what is there; return whether more is awaited."""
        try:
            data = one.socket.recv(_READ)
        except (BlockingIOError, InterruptedError):
            return True
        except OSError:
            data = b""
        if not data:  # it has left: half a head needs no answer
            if one in self._waiting:
                self._leave(one)  # before its descriptor is closed, by which it is found
            _close(one.socket)
            return False
        one.data += data
        if _is_awaited(one.data):
            return True
        (self._whole if _is_whole(one.data) else self._parts).append(one)
        if self._turn is None:
            self._turn = self._loop.call_soon(self._begin)
        return False

    def _leave(self, one: _Arriving) -> None:
        """Stop waiting for a connection."""
        del self._waiting[one]
        self._loop.remove_reader(one.socket)

    # --- ends

    def _begin(self) -> None:
        """Begin to serve some of the connections with a head, and the others in the next turns."""
        for queue, most in ((self._whole, _BEGUN), (self._parts, _BEGUN_WITHOUT_BODY)):
            for _ in range(min(most, len(queue))):
                task = self._loop.create_task(self._connect(queue.popleft()))
                self._connecting.add(task)
                task.add_done_callback(self._connecting.discard)
        self._turn = self._loop.call_soon(self._begin) if self._whole or self._parts else None

    async def _connect(self, one: _Arriving) -> None:
        try:
            await self._loop.connect_accepted_socket(lambda: self._server.connection(one.data), one.socket)
        except OSError:  # the client has left
            one.socket.close()

    def _close_overdue(self) -> None:
        """Close connections whose head has not arrived in time, and look again when that holds for the next."""
        self._sweep = None
        limit = self._server.limits.head
        for one in list(islice(self._waiting, _CLOSED)):
            if (rest := one.begun + limit - time.monotonic()) > 0:
                self._sweep = self._loop.call_later(rest, self._close_overdue)
                return
            self._leave(one)
            _close(one.socket)
            self._server.refusals.count(f"connection closed: no whole head of a request within {limit:g} s")
        if self._waiting:
            self._sweep = self._loop.call_later(0.0, self._close_overdue)

    def close(self) -> None:
        """Accept no more. Connections without a whole head are closed, or served where another process takes over: then each can
        still go there."""
        self._is_closed = True
        for listening in self.sockets:
            self._loop.remove_reader(listening)
            listening.close()
        self._bound.close()
        for one in list(self._waiting):
            self._leave(one)
            if self._server.is_leaving:
                self._whole.append(one)
            else:
                _close(one.socket)
        if self._whole and self._turn is None:
            self._turn = self._loop.call_soon(self._begin)

    async def wait_closed(self) -> None:
        """Return: there is nothing to wait for."""


class _Site(web.BaseSite):
    """A site whose connections come through an entrance."""

    async def _open(self, bound: asyncio.Server) -> None:
        server = self._runner.server
        assert isinstance(server, Server)
        self._server = cast("asyncio.Server", Entrance(server, bound, self._backlog))  # what a site needs of one


class TCPSite(web.TCPSite, _Site):
    """Listens on a host and a port."""

    async def start(self) -> None:
        """Bind and listen.

        Raises:
            OSError: the address cannot be bound.
        """
        await web.BaseSite.start(self)
        loop, server = asyncio.get_running_loop(), self._runner.server
        assert server is not None
        await self._open(
            await loop.create_server(
                server, self._host, self._port, reuse_address=self._reuse_address, start_serving=False
            )
        )


class SockSite(web.SockSite, _Site):
    """Listens on a bound socket."""

    async def start(self) -> None:
        """Listen."""
        await web.BaseSite.start(self)
        loop, server = asyncio.get_running_loop(), self._runner.server
        assert server is not None
        await self._open(await loop.create_server(server, sock=self._sock, start_serving=False))


def _is_awaited(data: bytes) -> bool:
    """Return whether more of a head has to arrive before it makes sense to parse it."""
    begun = data.lstrip(b"\r\n")
    return len(data) < _MOST_HEAD and (not begun or _METHOD.match(begun) is not None) and _END.search(begun) is None


def _is_whole(data: bytes) -> bool:
    """Return whether nothing more has to arrive before the first request is answered."""
    end = _END.search(data.lstrip(b"\r\n"))
    if end is None:
        return True  # it is not HTTP, and answered at once
    begun = data.lstrip(b"\r\n")
    head = begun[: end.end()]
    lengths = _LENGTH.findall(head)
    return _CHUNKED.search(head) is None and (not lengths or len(begun) - len(head) >= int(lengths[0]))


def _close(connected: socket.socket, answer: bytes = b"") -> None:
    """Close a connection, with an answer if there is one."""
    try:
        if answer:
            connected.send(answer)
    except OSError:
        pass
    connected.close()
