"""Waiting for a job on behalf of a client: for its end, or for everything on the way there."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress

from aiohttp import web

from zwatch.api.answers import encoded, error_object
from zwatch.api.streams import HEARTBEAT, beat, open_stream, send
from zwatch.errors import RequestError
from zwatch.generation.image_files import data_url
from zwatch.generation.job import Done, Failed, Finished, Job, JobEvent, Queued, Quiet, Stepped

LAST_WORD_SECONDS = 5.0
"""How long a client whose time is up may take to hear of it."""

Teller = Callable[[web.StreamResponse, JobEvent], Awaitable[None]]
"""Sends a job's event to a client, in the client's own terms."""


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
        job.be_late(error)
        raise error from None


def too_late(limit: float | None) -> RequestError:
    """Return the error for a request that took longer than its limit."""
    message = f"it was not done within {limit:g} s; see --timeout"
    return RequestError(504, "timeout", message, headers={"x-should-retry": "false"})  # it would take as long again


async def stream_job(
    request: web.Request, job: Job, body: Callable[[Finished], Awaitable[bytes]], limit: float | None
) -> web.StreamResponse:
    """Send what happens to a job as `queued`, `step`, and at the end `done` (with `body` of it, JSON) or
    `error`; after `limit` seconds, if there is a limit, an error too."""

    async def tell(response: web.StreamResponse, event: JobEvent) -> None:
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

    return await relay(request, job, tell, limit)


async def relay(request: web.Request, job: Job, tell: Teller, limit: float | None) -> web.StreamResponse:
    """Answer with a stream of what happens to a job, each event sent by `tell`, which is also given the error after
    `limit` seconds, if there is a limit. While nothing happens, comments are sent."""
    response = await open_stream(request)
    try:
        try:
            async with asyncio.timeout(limit), aclosing(job.follow(HEARTBEAT)) as events:
                async for event in events:
                    if isinstance(event, Quiet):
                        await beat(response)
                    else:
                        await tell(response, event)
        except TimeoutError:
            error = too_late(limit)
            job.be_late(error)
            with suppress(TimeoutError):  # who takes nothing hears nothing, and keeps no device busy by it
                async with asyncio.timeout(LAST_WORD_SECONDS):
                    await tell(response, Failed(error))
    except ConnectionResetError:
        pass  # the client left; there is nobody to tell
    return response
