"""Server-sent events: what changes in the service, and what happens to a job until its client has its answer."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing, suppress

from aiohttp import web

from zwatch.api.answers import encoded, error_object
from zwatch.bridge import Pulse
from zwatch.errors import RequestError
from zwatch.generation.image_files import data_url
from zwatch.generation.job import Done, Failed, Finished, Job, JobEvent, Queued, Quiet, Stepped

HEARTBEAT = 10.0
"""Seconds after which a quiet stream sends a comment, so that proxies keep it open and a dead client is noticed."""
_PAUSE = 0.1
"""Seconds between two looks at what changed, at least."""

LAST_EVENT_SECONDS = 5.0
"""How long the last event may take to be sent to a client whose time is up."""

SendEvent = Callable[[web.StreamResponse, JobEvent], Awaitable[None]]
"""Sends a job's event to a client, in the form that this client expects."""
CLOSING = web.AppKey("closing", asyncio.Event)
"""Set when the service stops: streams end then."""


async def stream_changes(
    request: web.Request, first: Awaitable[object], parts: Callable[[], Mapping[str, object]], changes: Pulse
) -> web.StreamResponse:
    """Send `first` as `status`, then each of `parts` that has another value than before, until the client leaves.

    A part's event is the first word of its name; what is no more (nothing serves) is sent as null.
    """
    coming, known = changes.next(), parts()  # before the status, so that nothing between the two is missed
    status = await first
    response = await open_stream(request)
    await send(response, "status", encoded(status))
    closing = request.app[CLOSING]
    while not closing.is_set():
        try:
            async with asyncio.timeout(HEARTBEAT):
                await asyncio.shield(coming)
        except TimeoutError:
            await beat(response)
        # Taken before the look: what changes while this is sent, or in the pause, is looked at in the next round.
        coming, found = changes.next(), parts()
        for name, value in found.items():
            if known.get(name) != value:
                await send(response, name.partition(" ")[0], encoded(value))
        known = found
        await asyncio.sleep(_PAUSE)
    return response


async def open_stream(request: web.Request) -> web.StreamResponse:
    """Begin an answer of server-sent events. Their routes take no HEAD: the events would follow it all the same."""
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    return response


async def send(response: web.StreamResponse, event: str, data: bytes) -> None:
    """Send one event; `data` is JSON, which has no line ends."""
    await response.write(b"event: %b\ndata: %b\n\n" % (event.encode(), data))


async def beat(response: web.StreamResponse) -> None:
    """Send a comment, so that the connection stays open and a dead client is noticed."""
    await response.write(b": still here\n\n")


async def outcome(job: Job, limit: float | None) -> Finished:
    """Wait for a job, `limit` seconds at most.

    Raises:
        RequestError: it failed; 504, it took longer.
    """
    try:
        async with asyncio.timeout(limit):
            return await job.result()
    except TimeoutError:
        error = too_late(limit)
        job.note_timeout(error)
        raise error from None


def too_late(limit: float | None) -> RequestError:
    """Return the error for a request that took longer than its limit."""
    message = f"it was not done within {limit:g} s; see --timeout"
    return RequestError("timeout", message)  # it would take as long again


async def stream_job(
    request: web.Request, job: Job, body: Callable[[Finished], Awaitable[bytes]], limit: float | None
) -> web.StreamResponse:
    """Send what happens to a job as `queued`, `step`, and at the end `done` (with `body` of it, JSON) or
    `error`; after `limit` seconds, if there is a limit, an error too."""

    async def send_event(response: web.StreamResponse, event: JobEvent) -> None:
        match event:
            case Queued(position):
                await send(response, "queued", encoded({"position": position}))
            case Stepped(step, steps, preview):
                shown = None if preview is None else data_url(preview)
                await send(response, "step", encoded({"step": step, "steps": steps, "preview": shown}))
            case Done(finished):
                await send(response, "done", await body(finished))
            case Failed(error):
                await send(response, "error", encoded({"error": error_object(error), **error.extra}))

    return await relay(request, job, send_event, limit)


async def relay(request: web.Request, job: Job, send_event: SendEvent, limit: float | None) -> web.StreamResponse:
    """Answer with a stream of what happens to a job, each event sent by `send_event`, which is also given the error after
    `limit` seconds, if there is a limit. While nothing happens, comments are sent."""
    response = await open_stream(request)
    try:
        try:
            async with asyncio.timeout(limit), aclosing(job.follow(HEARTBEAT)) as events:
                async for event in events:
                    if isinstance(event, Quiet):
                        await beat(response)
                    else:
                        await send_event(response, event)
        except TimeoutError:
            error = too_late(limit)
            job.note_timeout(error)
            with suppress(TimeoutError):  # a client that reads nothing must not keep the job
                async with asyncio.timeout(LAST_EVENT_SECONDS):
                    await send_event(response, Failed(error))
    except ConnectionResetError:
        pass  # the client left
    return response
