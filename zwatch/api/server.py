"""The HTTP server below the application.

Connections are closed if they send no request or read no answer for too long, and refused beyond a number that leaves
file descriptors for everything else. Errors that aiohttp answers itself get the shape of all errors.
"""

import asyncio
import logging
import math
import resource
import time
import uuid
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from zwatch.api.answers import ID_HEADER, encoded, error_answer, error_object
from zwatch.api.services import TimeLimits
from zwatch.errors import RequestError

_log = logging.getLogger(__name__)

BACKLOG = 1024
"""Connections that may wait to be accepted: enough for many clients that connect at the same moment."""
MAX_FILES = 65536
"""File descriptors that the service asks for at most."""
_WARNING_SECONDS = 60.0
"""Least time between two warnings about too many connections."""
_TOO_MANY = RequestError("too_many_connections", "too many connections are open", headers={"Retry-After": "5"})


def connection_limits() -> tuple[int, int]:
    """Raise the limit of open files as far as possible (a shell's is often 1,024); return how many connections may be open,
    and how many may wait to be accepted.

    asyncio accepts all that wait at once, in each iteration of the event loop, and a refused connection is closed only four
    iterations later. Without a free descriptor by then, asyncio would log a traceback for each connection and answer none.
    A quarter of the descriptors is for everything else.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = MAX_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_FILES)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return files // 2, min(BACKLOG, files // 16)


class Runner(web.AppRunner):
    """Runs an application, with at most `max_connections` at a time."""

    def __init__(self, app: web.Application, *, max_connections: int, limits: TimeLimits, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        self._max_connections = max_connections
        self._limits = limits

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            max_connections=self._max_connections,
            limits=self._limits,
            **{**made._kwargs, "keepalive_timeout": self._limits.idle},  # noqa: SLF001 (there is no public way)
        )


class _Server(web.Server):
    """Makes connections and knows how many are open."""

    def __init__(self, *args: Any, max_connections: int, limits: TimeLimits, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.limits = limits
        self._max_connections = max_connections
        self._warned = -math.inf

    @property
    def is_full(self) -> bool:
        """Whether another connection must be refused."""
        if len(self._connections) < self._max_connections:
            return False
        if time.monotonic() - self._warned > _WARNING_SECONDS:
            self._warned = time.monotonic()
            _log.warning("%d connections are open, more are refused; see `ulimit -n`", self._max_connections)
        return True

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    """One connection of a client."""

    __slots__ = ("_server", "_stall")

    def __init__(self, server: _Server, **kwargs: Any) -> None:
        super().__init__(server, **kwargs)
        self._server = server
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin the connection, or refuse it if too many are open."""
        if self._server.is_full and isinstance(transport, asyncio.Transport):
            transport.write(_refusal())
            transport.close()
            return
        super().connection_made(transport)

    def pause_writing(self) -> None:
        """Watch the client: the transport's buffer is full, because the client reads too slowly."""
        super().pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        """Stop watching: the client has read enough."""
        self._stop_watching()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End the connection."""
        self._stop_watching()
        super().connection_lost(exc)

    def _watch_reading(self, before: float = math.inf) -> None:
        """Close the connection unless fewer than `before` bytes wait to be sent; else check again later."""
        transport = self.transport
        if transport is None:
            return
        waiting = transport.get_write_buffer_size()
        if waiting < before:
            self._stall = asyncio.get_running_loop().call_later(self._server.limits.stall, self._watch_reading, waiting)
            return
        _log.info("connection closed: the client read nothing of its answer for %g s", self._server.limits.stall)
        transport.abort()

    def _stop_watching(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

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
            _log.info("invalid HTTP from %s", request.remote)
            error = RequestError("invalid_http", f"this is not HTTP: {' '.join((message or '').split())[:300]}")
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
        """Send an answer; an error that aiohttp raised before any middleware (417) gets the shape of all errors.

        aiohttp then reads the rest of the request's body, so that the client sees the answer. A compressed body is not
        read: 10 MB may decompress to 10 GB, which would block the event loop.
        """
        if isinstance(resp, web.HTTPException) and resp.status >= 400:
            reason = " ".join((resp.text or resp.reason).split())[:300]
            resp = error_answer(RequestError("invalid_http", reason, status=resp.status))
        sent = await super().finish_response(request, resp, start_time)
        if "Content-Encoding" in request.headers and not request.content.is_eof():
            self.force_close()
        return sent


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
