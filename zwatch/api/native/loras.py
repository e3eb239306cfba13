"""The LoRAs that requests can name."""

import asyncio
from contextlib import suppress

from aiohttp import web

from zwatch.api.answers import answer
from zwatch.api.lora_views import loras_view
from zwatch.api.services import SERVICES, Services

_LOOK_SECONDS = 2.0
"""How long an answer waits for a look: a file system that does not answer must not hold it up."""


async def looked(services: Services) -> None:
    """Look for LoRAs now, so that an import that has just ended is seen."""
    with suppress(TimeoutError):
        async with asyncio.timeout(_LOOK_SECONDS):
            await services.loras.look_now()


async def list_loras(request: web.Request) -> web.Response:
    """List the LoRAs."""
    services = request.app[SERVICES]
    await looked(services)
    return answer(loras_view(services.loras))
