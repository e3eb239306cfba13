"""One client's connection: clients that read nothing, that close their sending side, that leave, or that are refused again
and again."""

import asyncio
import contextlib
import logging
import math
import select
import uuid
from collections.abc import Callable, Iterable
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError
from aiohttp.web_protocol import RequestPayloadError

from zwatch.api.answers import ID_HEADER, encoded, error_answer, error_object, route_of
from zwatch.api.bodies import unsupported
from zwatch.api.refusals import Bucket, Refusals, Slowdown
from zwatch.api.services import TimeLimits
from zwatch.errors import RequestError, retry_after

_log = logging.getLogger(__name__)

_PREFIX = b"HTTP/1."
"""The first bytes of every answer."""
_SOON, _LATER = 0.01, 1.0
"""Seconds until it is looked again whether a client that closed its sending side is there: the pause doubles."""
_GROWTH = 4.0
"""By how much the time between two probes grows, so that the prefix lasts for many minutes."""
_LEFT = select.POLLERR | select.POLLHUP
_TOO_MANY = RequestError("too_many_connections", "too many connections are open", headers=retry_after(5))


class ConnectionServer(web.Server):
    """What a connection needs of its server; `server.Server` is it."""

    limits: TimeLimits
    refusals: Refusals
    slowdown: Slowdown

    @property
    def is_full(self) -> bool:
        """Whether another connection must be refused."""
        raise NotImplementedError


class _BegunTransport:
    """A transport on which the first bytes of the next answer were sent already."""

    def __init__(self, connection: "Connection", transport: asyncio.Transport) -> None:
        self._connection = connection
        self._transport = transport
        self._sent = 0

    def send_next(self) -> None:
        """Send the next byte of the prefix, if there is one."""
        self._transport.write(_PREFIX[self._sent : self._sent + 1])
        self._sent = min(self._sent + 1, len(_PREFIX))

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write the rest of an answer's first bytes. What follows goes to the transport itself."""
        self._connection.transport = self._transport
        self._transport.write(memoryview(data)[self._sent :])

    def writelines(self, parts: Iterable[bytes]) -> None:
        """Write as `write` does."""
        self.write(b"".join(parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Connection(web.RequestHandler):
    """One connection of a client.

    A client that closes its sending side (`shutdown(SHUT_WR)`) may still wait for its answers, or may be gone: both look the
    same until something is sent, which the network of a client that is gone rejects. So the first bytes of the answer, which
    are always the same, are sent one by one as probes; a stream of events sends comments.
    """

    __slots__ = ("_gap", "_is_half_closed", "_next_probe", "_pause", "_server", "_stall", "_watch", "beat", "bucket")

    def __init__(self, server: ConnectionServer, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._server = server
        self._stall: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._is_half_closed = False
        self._pause, self._gap, self._next_probe = _SOON, 1.0, -math.inf
        self.bucket: Bucket | None = None
        self.beat: Callable[[], None] | None = None
        """Sends a comment in the stream of events that is the present answer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the connection, or refuse it if too many are open."""
        if self._server.is_full and isinstance(transport, asyncio.Transport):
            transport.write(_refusal())
            transport.close()
            self._server.refusals.count("connections beyond the limit")
            return
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End the connection."""
        self._stop_watching()
        if self._watch is not None:
            self._watch.cancel()
        super().connection_lost(exc)

    # --- a client that reads nothing

    def pause_writing(self) -> None:
        """Watch the client: the transport's buffer is full, because the client reads too slowly."""
        super().pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        """Stop watching: the client has read enough."""
        self._stop_watching()
        super().resume_writing()

    def _watch_reading(self, before: float = math.inf) -> None:
        """Close the connection unless fewer than `before` bytes wait to be sent; else check again later."""
        transport = self.transport
        if transport is None:
            return
        waiting = transport.get_write_buffer_size()
        if waiting < before:
            self._stall = asyncio.get_running_loop().call_later(self._server.limits.stall, self._watch_reading, waiting)
            return
        self._server.refusals.count(
            f"connection closed: the client read nothing of its answer for {self._server.limits.stall:g} s"
        )
        transport.abort()

    def _stop_watching(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    # --- a client that sends nothing more, or is gone

    def eof_received(self) -> bool:  # type: ignore[override]  # aiohttp's says None, asyncio's takes either
        """Keep the connection while requests are not answered; return whether it is kept."""
        if self._is_idle:
            return False
        if self._messages and not self._messages[-1][1].is_eof():
            self._messages.pop()  # its body will never be complete
        self._is_half_closed = True
        self._watch_client()
        return True

    def look(self) -> None:
        """Look whether the client is gone, if nothing else would show it: while more requests wait than are read ahead,
        nothing is read. To be called now and then."""
        transport = self.transport
        if transport is None or transport.is_reading() or self._watch is not None:
            return
        state = self._state(transport)
        if state & _LEFT:
            transport.abort()
        elif state & select.POLLRDHUP:
            self._watch_client()

    def _watch_client(self) -> None:
        """Close the connection if its client is gone or has got all its answers; else probe, and look again later."""
        self._watch = None
        transport, request = self.transport, self._current_request
        if transport is None:
            return
        if self._is_half_closed:
            if self._is_idle:
                transport.close()
                return
            if request is not None and not request.content.is_eof():  # its body will never be complete
                transport.abort()
                return
        elif transport.is_reading():
            return
        if self._state(transport) & _LEFT:
            transport.abort()
            return
        loop = asyncio.get_running_loop()
        if request is not None and loop.time() >= self._next_probe and not self.writing_paused:
            self._probe(transport, request)
            self._next_probe = loop.time() + self._gap
            self._gap *= _GROWTH
        self._watch = loop.call_later(self._pause, self._watch_client)
        self._pause = min(2 * self._pause, _LATER)

    def _probe(self, transport: asyncio.Transport, request: web.BaseRequest) -> None:
        """Send something that does not change the answer."""
        if request.writer.output_size > 0:
            if self.beat is not None:
                self.beat()
            return
        if not isinstance(transport, _BegunTransport):
            transport = cast("asyncio.Transport", _BegunTransport(self, transport))
            self.transport = transport
        cast("_BegunTransport", transport).send_next()

    @property
    def _is_idle(self) -> bool:
        """Whether every request was answered and the next one is awaited."""
        return self._waiter is not None and not self._waiter.done() and not self._messages

    @staticmethod
    def _state(transport: asyncio.Transport) -> int:
        poll = select.poll()
        poll.register(transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
        return next((events for _, events in poll.poll(0)), 0)

    # --- answers

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer a request that is not valid HTTP, or an unexpected error outside of the application."""
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has already begun")
        identity = uuid.uuid4().hex
        if status == 400:
            text = " ".join((message or "").split())[:300]
            if isinstance(exc, ContentEncodingError):
                error = unsupported("br" if "(br)" in text else "zstd" if "(zstd)" in text else text)
            else:
                error = RequestError("invalid_http", f"this is not HTTP: {text}")
            self._server.refusals.count("invalid HTTP")
        else:
            _log.error("request failed outside of the application, X-Request-Id %s", identity, exc_info=exc)
            error = RequestError("internal_error", "unexpected error", status=status)
        response = error_answer(error)
        response.headers[ID_HEADER] = identity
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Log an error of aiohttp, unless a body could not be decoded: the client was told, and it is logged as a 400."""
        if not isinstance(kwargs.get("exc_info"), RequestPayloadError):
            super().log_exception(*args, **kwargs)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; an error that aiohttp raised before any middleware (417) gets the shape of all errors. A client that
        is refused again and again waits for it.

        aiohttp then reads the rest of the request's body, so that the client sees the answer. A compressed body is not
        read: 10 MB may decompress to 10 GB, which would block the event loop.
        """
        if isinstance(resp, web.HTTPException) and resp.status >= 400:
            reason = " ".join((resp.text or resp.reason).split())[:300]
            resp = error_answer(RequestError("invalid_http", reason, status=resp.status))
        if isinstance(resp, web.Response):
            await self._server.slowdown.wait(self, request.remote or "", _route(request), resp.status)
        sent = await super().finish_response(request, resp, start_time)
        self.beat = None
        if "Content-Encoding" in request.headers and not request.content.is_eof():
            self.force_close()
        if self._is_half_closed and not self._messages:
            self.close()
        return sent


def beats(request: web.Request, response: web.StreamResponse, comment: bytes) -> None:
    """Let the connection send this comment in a stream of events, when it wants to know whether the client is there."""
    tasks: set[asyncio.Task[None]] = set()  # the event loop keeps only weak references

    async def write() -> None:
        with contextlib.suppress(ConnectionError, RuntimeError):  # it is gone; the stream has ended
            await response.write(comment)

    def beat() -> None:
        task = asyncio.get_running_loop().create_task(write())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    if isinstance(request.protocol, Connection):
        request.protocol.beat = beat


def _route(request: web.BaseRequest) -> str | None:
    return route_of(request) if isinstance(request, web.Request) and request._match_info is not None else None  # noqa: SLF001


def _refusal() -> bytes:
    """Return a whole HTTP answer, for a connection that never reaches aiohttp's parser."""
    body = encoded({"error": error_object(_TOO_MANY)})
    headers = {
        **_TOO_MANY.headers,
        ID_HEADER: uuid.uuid4().hex,
        "Content-Type": "application/json; charset=utf-8",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {_TOO_MANY.status} Service Unavailable\r\n{head}\r\n".encode() + body
