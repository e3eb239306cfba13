"""What is going on: the status, attempts, versions, events and health."""

import time
from typing import Any

from aiohttp import web

from zwatch.api import views
from zwatch.api.answers import answer
from zwatch.api.services import SERVICES, Services
from zwatch.api.streams import stream_changes
from zwatch.deploy.look import summaries
from zwatch.errors import RequestError


async def _status(services: Services) -> dict[str, Any]:
    factory = services.supervisor.factory
    memory = None if factory is None else await services.bridge.run("inspect", factory.device.memory)
    uptime = time.monotonic() - services.started
    view = views.status_view(services.supervisor, services.engines, services.queue, memory, uptime)
    return {**view, "history": None if services.history is None else services.history.view()}


async def status(request: web.Request) -> web.Response:
    """Say everything about the present."""
    return answer(await _status(request.app[SERVICES]))


async def attempts(request: web.Request) -> web.Response:
    """List the last attempts, newest first."""
    found = request.app[SERVICES].supervisor.attempts
    return answer({"attempts": [views.attempt_view(attempt) for attempt in found]})


async def versions(request: web.Request) -> web.Response:
    """List the version directories."""
    services = request.app[SERVICES]
    try:
        found = await services.bridge.run("inspect", summaries, services.models)
    except OSError as error:
        raise RequestError(500, "internal_error", f"the models root cannot be read: {error.strerror}") from None
    return answer({"versions": [views.version_view(one, services.supervisor, services.engines) for one in found]})


async def events(request: web.Request) -> web.StreamResponse:
    """Stream what changes: the whole status first, then each part that has another value."""
    services = request.app[SERVICES]
    supervisor, engines, queue = services.supervisor, services.engines, services.queue

    def parts() -> dict[str, Any]:
        found: dict[str, Any] = {"serving": views.serving_view(engines), "queue": views.queue_view(queue)}
        for alias in supervisor.aliases:
            view = views.alias_view(supervisor, engines, alias)
            found[f"attempt {alias}"] = view.pop("attempt")
            found[f"alias {alias}"] = {"alias": alias, **view}
        return found

    return await stream_changes(request, _status(services), parts, supervisor.changes)


async def health(request: web.Request) -> web.Response:
    """Say in a word how it is, for people and load balancers."""
    services = request.app[SERVICES]
    state, reasons = views.health(services.supervisor, services.engines)
    serving = services.engines.serving(views.PRIMARY)
    body = {"status": state, "version": None if serving is None else serving.key.version, "reasons": reasons}
    return answer(body, 503 if state == "unavailable" else 200)


async def live(request: web.Request) -> web.Response:
    """Answer, which is the answer."""
    return answer({"status": "live"})


async def ready(request: web.Request) -> web.Response:
    """Say whether something serves."""
    serves = request.app[SERVICES].engines.serving(views.PRIMARY) is not None
    return answer({"status": "ready" if serves else "unavailable"}, 200 if serves else 503)


ROUTES = [
    web.get("/status", status),
    web.get("/attempts", attempts),
    web.get("/versions", versions),
    web.get("/events", events, allow_head=False),
    web.get("/health", health),
    web.get("/health/live", live),
    web.get("/health/ready", ready),
]
