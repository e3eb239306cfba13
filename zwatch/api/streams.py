"""Server-sent events: a stream of what changes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from zwatch.api.answers import encoded
from zwatch.bridge import Pulse

HEARTBEAT = 10.0
"""Seconds after which a quiet stream sends a comment, so that proxies keep it open and a dead client is noticed."""
_PAUSE = 0.1  # at most ten looks a second, however fast things change

CLOSING = web.AppKey("closing", asyncio.Event)
"""Set when the service stops: streams end then."""


async def stream_changes(
    request: web.Request, first: Awaitable[dict[str, Any]], parts: Callable[[], dict[str, Any]], changes: Pulse
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
