"""Server-sent events: changes of the service's state, and the progress of a job."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing, suppress
from typing import Protocol, TypeVar

from aiohttp import web

from zwatch.api.answers import encoded, error_object
from zwatch.api.connection import Connection
from zwatch.api.results import failed_fields, failed_headers
from zwatch.api.services import TIME_LIMITS
from zwatch.bridge import Pulse
from zwatch.errors import RequestError
from zwatch.generation.following import Followed, follow
from zwatch.generation.image_files import data_url
from zwatch.generation.job_events import Done, Failed, Finished, JobEvent, Queued, Quiet, Stepped

LAST_EVENT = "end"
"""The id of the last event of a job's stream."""
_PAUSE = 0.1
"""Least seconds between two comparisons of the state, so that many small changes are sent as one."""

_COMMENT = b": still here\n\n"

R_co = TypeVar("R_co", covariant=True)

SendEvent = Callable[[web.StreamResponse, JobEvent], Awaitable[None]]
"""Sends an event of a job, in the format of the client's API."""
CLOSING = web.AppKey("closing", asyncio.Event)
"""Set when the service stops, to end the streams."""


async def stream_changes(
    request: web.Request,
    first: Awaitable[object],
    parts: Callable[[], Mapping[str, object]],
    changes: Pulse,
    patience: Callable[[], float | None] = lambda: None,
    send_others: Callable[[web.StreamResponse], Coroutine[object, object, None]] | None = None,
) -> web.StreamResponse:
    """Send `first` as `status`, then each of `parts` whose value has changed, until the client disconnects; beside them what
    `send_others` sends, which is cancelled at the end. `patience` says after how many seconds to look at the parts without a
    change, None: not at all.

    A part's event type is the first word of its name. A part that is gone (nothing serves) is None, sent as null.
    """
    coming, known = changes.next(), parts()  # before the status, so that no change between the two is missed
    status = await first
    response = await open_stream(request)
    await send(response, "status", encoded(status))
    async with asyncio.TaskGroup() as tasks:
        others = None if send_others is None else tasks.create_task(_unless_gone(send_others(response)))
        await _unless_gone(_send_changes(request, response, parts, known, changes, coming, patience))
        if others is not None:
            others.cancel()
    return response


async def _unless_gone(sending: Coroutine[object, object, None]) -> None:
    with suppress(ConnectionResetError):  # the client disconnected
        await sending


async def _send_changes(
    request: web.Request,
    response: web.StreamResponse,
    parts: Callable[[], Mapping[str, object]],
    known: Mapping[str, object],
    changes: Pulse,
    coming: asyncio.Future[None],
    patience: Callable[[], float | None],
) -> None:
    closing, heartbeat = request.app[CLOSING], request.app[TIME_LIMITS].heartbeat
    while not closing.is_set():
        wait = patience()
        try:
            async with asyncio.timeout(heartbeat if wait is None else wait):
                await asyncio.shield(coming)
        except TimeoutError:
            if wait is None:
                await beat(response)
        # In this order: a change while this is sent, or in the pause, is then found in the next round.
        coming, found = changes.next(), parts()
        for name, value in found.items():
            if known.get(name) != value:
                await send(response, name.partition(" ")[0], encoded(value))
        known = found
        await asyncio.sleep(_PAUSE)


async def open_stream(request: web.Request) -> web.StreamResponse:
    """Begin an answer of server-sent events. Such routes must refuse HEAD: the events would be sent after its headers."""
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    _beats(request, response, _COMMENT)
    return response


async def send(response: web.StreamResponse, event: str, data: bytes, identity: str | None = None) -> None:
    """Send one event; `data` is JSON without line breaks. Its `identity` is what `EventSource` sends as `Last-Event-ID` when it
    connects again."""
    line = b"" if identity is None else b"id: %b\n" % identity.encode()
    await response.write(b"event: %b\ndata: %b\n%b\n" % (event.encode(), data, line))


async def beat(response: web.StreamResponse) -> None:
    """Send a comment, which clients ignore."""
    await response.write(_COMMENT)


class Awaited(Followed, Protocol[R_co]):
    """What has a result at its end."""

    async def result(self) -> R_co:
        """Wait for the end, and return the result."""


async def outcome(job: Awaited[R_co], limit: float | None) -> R_co:
    """Return the result of a job or a comparison, waiting at most `limit` seconds (None: without limit).

    Raises:
        RequestError: the job failed or was cancelled; 504, it took longer. Its headers name the version.
    """
    try:
        async with asyncio.timeout(limit):
            return await job.result()
    except RequestError as error:
        raise error.with_headers(failed_headers(job)) from None
    except TimeoutError:
        late = too_late(limit, job)
        job.note_timeout(late)
        raise late.with_headers(failed_headers(job)) from None


def too_late(limit: float | None, what: Followed) -> RequestError:
    """Return the error for a request that took longer than `limit` seconds."""
    return RequestError("timeout", f"{what.lateness} within {limit:g} s; see --timeout")


async def stream_job(
    request: web.Request, job: Followed, body: Callable[[Finished], Awaitable[bytes]], limit: float | None
) -> web.StreamResponse:
    """Stream a job's progress as `queued`, `step`, and at the end `done` (with the JSON that `body` returns), or `failed` and
    `error`, which are the same: `EventSource` has an event `error` of its own. The event that a client names in `Last-Event-ID`
    is not sent again.

    After `limit` seconds (None: never) the stream ends with a timeout error.
    """
    known = request.headers.get("Last-Event-ID")

    async def send_event(response: web.StreamResponse, event: JobEvent) -> None:
        match event:
            case Queued(position):
                if (identity := f"queued-{position}") != known:
                    await send(response, "queued", encoded({"position": position}), identity)
            case Stepped(step, steps, preview):
                shown = None if preview is None else data_url(preview)
                if (identity := f"step-{step}") != known or shown is not None:
                    await send(response, "step", encoded({"step": step, "steps": steps, "preview": shown}), identity)
            case Done(finished):
                await send(response, "done", await body(finished), LAST_EVENT)
            case Failed(error):
                data = encoded({"error": error_object(error), **failed_fields(job), **error.extra})
                for name in ("failed", "error"):
                    await send(response, name, data, LAST_EVENT)

    return await relay(request, job, send_event, limit)


async def relay(request: web.Request, job: Followed, send_event: SendEvent, limit: float | None) -> web.StreamResponse:
    """Answer with a stream of a job's events, each sent by `send_event`; comments are sent while there are none.

    After `limit` seconds (None: never) the last event is a timeout error.
    """
    limits = request.app[TIME_LIMITS]
    response = await open_stream(request)
    try:
        try:
            async with asyncio.timeout(limit), aclosing(follow(job, limits.heartbeat)) as events:
                async for event in events:
                    if isinstance(event, Quiet):
                        await beat(response)
                    else:
                        await send_event(response, event)
        except TimeoutError:
            error = too_late(limit, job)
            job.note_timeout(error)
            with suppress(TimeoutError):  # a client that does not read must not keep the job
                async with asyncio.timeout(limits.last_event):
                    await send_event(response, Failed(error))
    except ConnectionResetError:
        pass  # the client disconnected
    return response


def _beats(request: web.Request, response: web.StreamResponse, comment: bytes) -> None:
    """Let the connection send this comment in a stream of events, when it wants to know whether the client is there."""
    tasks: set[asyncio.Task[None]] = set()  # the event loop keeps only weak references

    async def write() -> None:
        with suppress(ConnectionError, RuntimeError):  # it is gone; the stream has ended
            await response.write(comment)

    def beat() -> None:
        task = asyncio.get_running_loop().create_task(write())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    if isinstance(request.protocol, Connection):
        request.protocol.beat = beat
