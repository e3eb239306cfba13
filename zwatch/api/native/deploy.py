"""Deploying by HTTP."""

import time
from typing import Any

from aiohttp import web

from zwatch.api import views
from zwatch.api.answers import answer, read_body
from zwatch.api.services import SERVICES, Services
from zwatch.deploy.look import has_version, point
from zwatch.errors import RepointError, RequestError
from zwatch.generation.request import boolean, parse_json, refuse_unknown, text
from zwatch.rollout.operator import Outcome

UNLOADING = RequestError(503, "model_not_loaded", "the model is unloaded", headers={"Retry-After": "10"})


async def _admin_body(request: web.Request, *known: str) -> dict[str, Any]:
    """Return the body of an administrative call; none at all is an empty one."""
    raw = await read_body(request)
    body = parse_json(raw) if raw.strip() else {}
    refuse_unknown(body, known)
    return body


def _alias(services: Services, body: dict[str, Any]) -> str:
    alias = text(body, "alias", views.PRIMARY)
    if alias not in services.supervisor.aliases:
        raise RequestError(404, "not_found", f"{alias[:100]!r} is not an alias that is followed", param="alias")
    return alias


def _answer_outcome(outcome: Outcome, seconds: float, message: str | None = None) -> web.Response:
    if outcome.serves:
        text_ = message or outcome.message
        body = {"status": "success", "message": text_, "version": outcome.version, "seconds": round(seconds, 4)}
        return answer(body)
    raise RequestError(409, "rejected", outcome.message, extra={"reason": views.attempt_view(outcome.attempt)})


async def _deploy(services: Services, alias: str, version: str, *, wait: bool) -> web.Response:
    begun = time.monotonic()
    try:
        stamp = await services.bridge.run("inspect", point, services.models, alias, version)
    except RepointError as error:
        raise RequestError(409, "rejected", str(error), extra={"reason": None}) from None
    services.queue.reopen()
    services.supervisor.ring()
    if not wait:
        return answer({"status": "accepted", "message": f"{alias} now points to {version}", "version": version}, 202)
    outcome = await services.operator.outcome(alias, version, stamp)
    return _answer_outcome(outcome, time.monotonic() - begun)


async def deploy(request: web.Request) -> web.Response:
    """Repoint an alias and wait for what comes of it; with `"wait": false`, do not wait."""
    services = request.app[SERVICES]
    body = await _admin_body(request, "version", "alias", "wait")
    version, alias, wait = text(body, "version", None), _alias(services, body), boolean(body, "wait", True)
    if not await services.bridge.run("inspect", has_version, services.models, version):
        raise RequestError(
            404, "not_found", f"there is no version {version[:100]!r} under the models root", param="version"
        )
    return await _deploy(services, alias, version, wait=wait)


async def rollback(request: web.Request) -> web.Response:
    """Repoint an alias to the version that it served before."""
    services = request.app[SERVICES]
    alias = _alias(services, await _admin_body(request, "alias"))
    previous, serving = services.supervisor.previous(alias), services.engines.serving(alias)
    if previous is None:
        raise RequestError(409, "rejected", f"{alias} has served no other version before", extra={"reason": None})
    if serving is not None and serving.key.version == previous.version:
        raise RequestError(
            409, "rejected", f"{previous.version} was sealed anew; its earlier content cannot be linked to",
            extra={"reason": None},
        )  # fmt: skip
    return await _deploy(services, alias, previous.version, wait=True)


async def load_model(request: web.Request) -> web.Response:
    """Look at an alias now, also after a rejection or an unload."""
    services = request.app[SERVICES]
    alias = _alias(services, await _admin_body(request, "alias"))
    begun = time.monotonic()
    services.queue.reopen()
    outcome = await services.operator.load(alias)
    return _answer_outcome(outcome, time.monotonic() - begun, "Model loaded successfully")


async def unload_model(request: web.Request) -> web.Response:
    """Let accepted requests finish, then free everything."""
    services = request.app[SERVICES]
    await _admin_body(request)
    asked = await services.operator.moment_of_call()
    services.queue.close(UNLOADING)
    try:
        # A newer wish ends it at once: until then requests are refused, and the newer version could serve them.
        await services.queue.drained(lambda: services.operator.moment() != asked)
        unloaded = await services.operator.unload(asked)
    finally:
        services.queue.reopen()
    if not unloaded:
        raise RequestError(
            409, "rejected", "superseded: a load was asked for, or a link was made anew, before all was freed",
            extra={"reason": None},
        )  # fmt: skip
    return answer({"status": "success", "message": "Model unloaded from memory"})


async def verify(request: web.Request) -> web.Response:
    """Hash what is resident of the serving version, where it serves."""
    services = request.app[SERVICES]
    alias = _alias(services, await _admin_body(request, "alias"))
    while (lease := services.engines.lease(alias)) is None and services.engines.being_exchanged is not None:
        await services.supervisor.changes.wait()  # versions change places; as for an image, that is waited for
    if lease is None:
        raise RequestError(503, "model_not_loaded", f"{alias} serves nothing at present", headers={"Retry-After": "2"})
    begun = time.monotonic()
    with lease:
        count, problems = await services.bridge.run("inspect", lease.engine.verify_resident)
    if problems:
        raise RequestError(409, "rejected", "; ".join(problems), extra={"reason": {"files": problems}})
    key, seconds = lease.key, round(time.monotonic() - begun, 4)
    return answer(
        {"status": "success", "version": key.version, "digest": key.digest, "bytes": count, "seconds": seconds}
    )


ROUTES = [
    web.post("/api/deploy", deploy),
    web.post("/api/rollback", rollback),
    web.post("/api/load_model", load_model),
    web.post("/api/unload_model", unload_model),
    web.post("/api/verify", verify),
]
