"""For machines that look after the service: its metrics, and the description of its calls."""

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from zwatch.service.services import SERVICES


async def metrics(request: web.Request) -> web.Response:
    """Return all metrics in Prometheus' text format."""
    services = request.app[SERVICES]
    factory = services.supervisor.factory
    if factory is not None:
        services.metrics.device_memory = await services.bridge.run("inspect", factory.device.memory)
    text = generate_latest(services.metrics.registry)
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


ROUTES = [web.get("/metrics", metrics)]
