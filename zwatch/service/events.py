"""Server-sent events: a stream of what changes."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web

from zwatch.bridge import Pulse
from zwatch.service.answers import encoded

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
    headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    response = web.StreamResponse(headers=headers)
    coming, known = changes.next(), parts()  # before the status, so that nothing between the two is missed
    status = await first
    await response.prepare(request)
    await _send(response, "status", status)
    closing = request.app[CLOSING]
    while not closing.is_set():
        try:
            async with asyncio.timeout(HEARTBEAT):
                await asyncio.shield(coming)
        except TimeoutError:
            await response.write(b": still here\n\n")
        # Taken before the look: what changes while this is sent, or in the pause, is looked at in the next round.
        coming, found = changes.next(), parts()
        for name, value in found.items():
            if known.get(name) != value:
                await _send(response, name.partition(" ")[0], value)
        known = found
        await asyncio.sleep(_PAUSE)
    return response


async def _send(response: web.StreamResponse, event: str, data: dict[str, Any] | None) -> None:
    await response.write(b"event: %b\ndata: %b\n\n" % (event.encode(), encoded(data)))
