"""One client's connection: clients that send half a request, that read nothing, that close their sending side, that leave, or that
are refused again and again."""

import asyncio
import logging
import math
import select
import socket
import uuid
from collections.abc import Callable
from typing import Any, cast

from aiohttp import web
from aiohttp.http_exceptions import ContentEncodingError
from aiohttp.web_protocol import RequestPayloadError

from zwatch.api.answers import ID_HEADER, TOO_MANY_CONNECTIONS, error_answer, raw_answer, route_of
from zwatch.api.bodies import unsupported
from zwatch.api.framing import Framing
from zwatch.api.pieces import bound_buffers, in_pieces
from zwatch.api.probes import LEFT, BegunTransport, state_of
from zwatch.api.refusals import Bucket, Refusals, Slowdown
from zwatch.api.services import TimeLimits
from zwatch.errors import RequestError

_log = logging.getLogger(__name__)

_SOON, _LATER = 0.01, 1.0
"""Seconds until it is looked again whether a client that closed its sending side is there: the pause doubles."""
_GROWTH = 4.0
"""By how much the time between two probes grows, so that the prefix lasts for many minutes."""
TOO_SLOW = 408
_LEAST_READ = 4096
"""Bytes that a client reads of a long answer in `TimeLimits.stall`, at least."""


class ConnectionServer(web.Server):
    """What a connection needs of its server; `server.Server` is it."""

    limits: TimeLimits
    refusals: Refusals
    slowdown: Slowdown
    is_leaving: bool
    """Whether another process has taken over: connections end."""
    passes_on: bool
    """Whether connections go there instead, where that is possible."""

    @property
    def is_full(self) -> bool:
        """Whether another connection must be refused."""
        raise NotImplementedError


class Connection(web.RequestHandler):
    """One connection of a client.

    A client that closes its sending side (`shutdown(SHUT_WR)`) may still wait for its answers, or may be gone: both look the
    same until something is sent, which the network of a client that is gone rejects. So the first bytes of the answer, which
    are always the same, are sent one by one as probes; a stream of events sends comments.
    """

    __slots__ = (
        "_begun",
        "_gap",
        "_head",
        "_heads",
        "_is_half_closed",
        "_next_probe",
        "_pause",
        "_server",
        "_stall",
        "_watch",
        "_wire",
        "arrived",
        "beat",
        "bucket",
        "framing",
    )

    def __init__(self, server: ConnectionServer, begun: bytes | None = None, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._server = server
        self._begun = begun
        """What was read before; None if nobody has looked whether there is room for this connection."""
        self._wire: asyncio.Transport | None = None
        """The transport, also after aiohttp has given it up, but waits until everything is sent."""
        self.arrived = 0
        """How many bytes have arrived."""
        self._heads = 0
        self._head: asyncio.TimerHandle | None = None
        """Runs while a part of a head has arrived."""
        self._stall: asyncio.TimerHandle | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._is_half_closed = False
        self.framing = Framing()
        self._pause, self._gap, self._next_probe = _SOON, 1.0, -math.inf
        self.bucket: Bucket | None = None
        self.beat: Callable[[], None] | None = None
        """Sends a comment in the stream of events that is the present answer."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the connection, or refuse it if too many are open."""
        self._wire = cast("asyncio.Transport", transport)
        if self._begun is None and self._server.is_full:
            self._wire.write(raw_answer(TOO_MANY_CONNECTIONS))
            self._wire.close()
            self._server.refusals.count("connections beyond the limit")
            return
        bound_buffers(self._wire)
        super().connection_made(transport)
        if self._begun:
            # Before anything is read: the transport begins to read in a later turn of the event loop.
            self._loop.call_soon(self.data_received, self._begun)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End the connection."""
        self._stop_watching()
        for timer in (self._watch, self._head):
            if timer is not None:
                timer.cancel()
        self._wire = None
        super().connection_lost(exc)

    # --- a client that sends half a head

    def data_received(self, data: bytes) -> None:
        """Read what a client sent."""
        self._begun = b""
        self.arrived += len(data)
        self.framing.feed(data)
        super().data_received(data)
        if self._head is not None and self.framing.heads != self._heads:
            self._head.cancel()
            self._head = None
        self._heads = self.framing.heads
        if self._head is None and self.framing.is_in_head:
            self._head = self._loop.call_later(self._server.limits.head, self._end_head)

    def _end_head(self) -> None:
        """Close the connection if its next head is still not complete; it has as long again while an answer is being made."""
        self._head = None
        if not self.is_idle:
            self._head = self._loop.call_later(self._server.limits.head, self._end_head)
            return
        self._server.refusals.count(
            f"connection closed: no whole head of a request within {self._server.limits.head:g} s"
        )
        self.force_close()

    # --- another process takes over

    def release(self) -> socket.socket | None:
        """Return the socket if the connection waits for its next request, of which nothing was read, and end it here without
        the client's notice; None if it has to stay for now."""
        transport = self.transport
        if (
            not isinstance(transport, asyncio.Transport)
            or transport.is_closing()
            or not self.is_idle
            or self._is_half_closed
            or not self.framing.is_between
            or self._begun
            or transport.get_write_buffer_size()
        ):
            return None
        released = transport.get_extra_info("socket").dup()
        self.force_close()  # closes another descriptor of the same socket
        return cast("socket.socket", released)

    def end_idle(self) -> None:
        """Close the connection if it waits for its next request."""
        if self.is_idle:
            self.force_close()

    def _prepare_to_leave(self, response: web.StreamResponse) -> None:
        """Read nothing more, so that another process reads the next request; where one is read already, end with it."""
        if self._messages:
            return
        if not self.framing.is_between or not self._server.passes_on:
            # The client closes it: what it has sent already would be answered by a reset, which may reach it before the answer.
            response.headers["Connection"] = "close"
        elif self.transport is not None and not self._is_half_closed:
            self.transport.pause_reading()

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
        """Close the connection unless `_LEAST_READ` bytes fewer than `before` wait to be sent, or none; else check again later."""
        transport = self._wire
        if transport is None:
            return
        waiting = transport.get_write_buffer_size()
        if not waiting:
            self._stall = None
            return
        if before - waiting >= _LEAST_READ:
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
        if self.is_idle:
            return False
        if self._messages and not self._messages[-1][1].is_eof():
            self._messages.pop()  # its body will never be complete
        self._is_half_closed = True
        self._watch_client()
        return True

    def look(self) -> None:
        """Look whether the client is gone, if nothing else would show it: while more requests wait than are read ahead,
        nothing is read. Look also whether it reads the end of an answer, which waits in the transport. To be called now and then."""
        if self._stall is None and self._wire is not None and self._wire.get_write_buffer_size():
            self._watch_reading()
        transport = self.transport
        if transport is None or transport.is_reading() or self._watch is not None:
            return
        state = state_of(transport)
        if state & LEFT:
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
            if self.is_idle:
                transport.close()
                return
            if request is not None and not request.content.is_eof():  # its body will never be complete
                transport.abort()
                return
        elif transport.is_reading():
            return
        if state_of(transport) & LEFT:
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
        if not isinstance(transport, BegunTransport):
            transport = cast("asyncio.Transport", BegunTransport(self, transport))
            self.transport = transport
        cast("BegunTransport", transport).send_next()

    @property
    def is_idle(self) -> bool:
        """Whether every request was answered and the next one is awaited."""
        return self._waiter is not None and not self._waiter.done() and not self._messages

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
            in_pieces(resp)
        if self.framing.is_lost:
            resp.force_close()  # half a head behind it would not be noticed
        if self._server.is_leaving:
            self._prepare_to_leave(resp)
        sent = await super().finish_response(request, resp, start_time)
        self.beat = None
        if not request.content.is_eof() and ("Content-Encoding" in request.headers or resp.status == TOO_SLOW):
            self.force_close()  # the body that did not arrive in time is not waited for again
        if self._is_half_closed and not self._messages:
            self.close()
        return sent


def _route(request: web.BaseRequest) -> str | None:
    return route_of(request) if isinstance(request, web.Request) and request._match_info is not None else None  # noqa: SLF001
