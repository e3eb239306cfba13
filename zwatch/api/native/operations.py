"""For machines that look after the service: its metrics, and the description of its calls."""

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from zwatch.api.services import SERVICES

DOCUMENT = web.AppKey("document", bytes)
"""The description of all calls, as JSON."""


async def metrics(request: web.Request) -> web.Response:
    """Return all metrics in Prometheus' text format."""
    services = request.app[SERVICES]
    factory = services.supervisor.factory
    if factory is not None:
        services.metrics.device_memory = await services.bridge.run("inspect", factory.device.memory)
    # A thousand lines of counters take milliseconds, in which the event loop goes on.
    text = await services.bridge.run("inspect", generate_latest, services.metrics.registry)
    text += generate_latest(services.metrics.present)
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


async def openapi(request: web.Request) -> web.Response:
    """Return the description of all calls."""
    return web.Response(body=request.app[DOCUMENT], content_type="application/json", charset="utf-8")


ROUTES = [web.get("/metrics", metrics), web.get("/openapi.json", openapi)]
