"""Below the calls: what aiohttp answers by itself gets our shape of errors, and who says nothing, or takes nothing, loses
the line. There are never more connections than the process may have files open."""

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
from zwatch.errors import RequestError

_log = logging.getLogger(__name__)

SILENCE_SECONDS = 75.0
"""How long a connection may take to send the whole head of its first request, or of the next one. Longer than the 60 s
that proxies keep an idle connection, so that it is they who close it, and never in the moment of a request."""
STALL_SECONDS = 75.0
"""How long a client may take nothing of an answer that waits for it: each such answer may hold megabytes of images."""
BACKLOG = 1024
"""Connections that may wait to be accepted: a crowd that comes at once is answered, not left to its own retries."""
FILES = 65536
"""Open files that are enough for anybody."""
_TOLD_SECONDS = 60.0
FULL = RequestError("too_many_connections", "too many connections are open", headers={"Retry-After": "5"})


def room() -> tuple[int, int]:
    """Let the process open as many files as it may (a shell's limit is often 1,024); return how many connections may be
    open, and how many may wait to be accepted.

    All that wait are accepted at once, and again and again until the first of them has been refused and closed, four turns of
    the event loop later. Were no file left then, asyncio would log a traceback for each, and answer nobody. A quarter is for
    everything else.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = FILES if hard == resource.RLIM_INFINITY else min(hard, FILES)
    if soft != resource.RLIM_INFINITY and soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return files // 2, min(BACKLOG, files // 16)


class Runner(web.AppRunner):
    """Runs an application, client by client, as `_Connection` says; `most` of them at a time."""

    def __init__(self, app: web.Application, *, most: int, **kwargs: Any) -> None:
        super().__init__(app, **kwargs)
        self._most = most

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(
            made.request_handler,
            request_factory=made.request_factory,
            handler_cancellation=made.handler_cancellation,
            most=self._most,
            **{**made._kwargs, "keepalive_timeout": SILENCE_SECONDS},  # noqa: SLF001 (there is no public way)
        )


class _Server(web.Server):
    def __init__(self, *args: Any, most: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._most = most
        self._told = -math.inf

    @property
    def is_full(self) -> bool:
        """Whether there is no room for another connection."""
        if len(self._connections) < self._most:
            return False
        if time.monotonic() - self._told > _TOLD_SECONDS:
            self._told = time.monotonic()
            _log.warning("%d connections are open, more are refused; see `ulimit -n`", self._most)
        return True

    def __call__(self) -> web.RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)


class _Connection(web.RequestHandler):
    __slots__ = ("_stall",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Somebody came; refused at once if there is no room."""
        if isinstance(self._manager, _Server) and self._manager.is_full and isinstance(transport, asyncio.Transport):
            transport.write(_refusal())
            transport.close()
            return
        super().connection_made(transport)

    def pause_writing(self) -> None:
        """More waits to be sent than the client takes: see that it takes something."""
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        """Enough was taken."""
        self._forget_sending()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The client left, or lost the line."""
        self._forget_sending()
        super().connection_lost(exc)

    def _watch_sending(self, before: float = math.inf) -> None:
        transport = self.transport
        if transport is None:
            return
        waiting = transport.get_write_buffer_size()
        if waiting < before:
            self._stall = asyncio.get_running_loop().call_later(STALL_SECONDS, self._watch_sending, waiting)
            return
        _log.info("a client took nothing of its answer for %g s: closed", STALL_SECONDS)
        transport.abort()

    def _forget_sending(self) -> None:
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
        """Answer what never reached the application because it is no HTTP, or what broke around the application."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer had begun already")
        identity = uuid.uuid4().hex
        if status == 400:
            _log.info("not HTTP, from %s", request.remote)
            error = RequestError("invalid_http", f"this is not HTTP: {' '.join((message or '').split())[:300]}")
        else:
            _log.error("a request failed below the calls, X-Request-Id %s", identity, exc_info=exc)
            error = RequestError("internal_error", "unexpected error", status=status)
        response = error_answer(error)
        response.headers[ID_HEADER] = identity
        response.force_close()
        return response

    def log_exception(self, *args: Any, **kwargs: Any) -> None:
        """Log what aiohttp finds wrong, but not once more that a body cannot be read: its sender was told."""
        if not isinstance(kwargs.get("exc_info"), RequestPayloadError):
            super().log_exception(*args, **kwargs)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send an answer; one that aiohttp raised before any middleware (417) is put in our shape first.

        What is left of a body is read and thrown away, so that the client sees the answer; but not if it is compressed:
        10 MB may unfold to 10 GB, and all that time nobody else would be served.
        """
        if isinstance(resp, web.HTTPException) and resp.status >= 400:
            reason = " ".join((resp.text or resp.reason).split())[:300]
            resp = error_answer(RequestError("invalid_http", reason, status=resp.status))
        sent = await super().finish_response(request, resp, start_time)
        if "Content-Encoding" in request.headers and not request.content.is_eof():
            self.force_close()
        return sent


def _refusal() -> bytes:
    body = encoded({"error": error_object(FULL)})
    headers = {
        **FULL.headers,
        ID_HEADER: uuid.uuid4().hex,
        "Content-Type": "application/json; charset=utf-8",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {FULL.status} Service Unavailable\r\n{head}\r\n".encode() + body
