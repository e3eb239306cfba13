"""The native calls: generate, what is going on, and deploying by HTTP."""

import asyncio
import base64
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from zwatch.bridge import Bridge
from zwatch.deploy.look import has_version, point, summaries
from zwatch.errors import RepointError, RequestError
from zwatch.rollout.gate import Gate
from zwatch.rollout.supervisor import Outcome, Supervisor
from zwatch.service import views
from zwatch.service.answers import answer, encoded, read_body
from zwatch.service.events import stream_changes
from zwatch.service.images import encode
from zwatch.service.parameters import FORMATS, boolean, parse_generate, parse_json, refuse_unknown, text
from zwatch.service.queue import GenerationQueue, Job, Result


@dataclass(frozen=True, slots=True)
class Services:
    """What the handlers work with."""

    bridge: Bridge
    gate: Gate
    supervisor: Supervisor
    queue: GenerationQueue
    models: Path
    timeout: float
    started: float


SERVICES = web.AppKey("services", Services)

UNLOADING = RequestError(503, "model_not_loaded", "the model is unloaded", headers={"Retry-After": "10"})


def add_routes(app: web.Application) -> None:
    """Add the native calls to an application."""
    app.add_routes(
        [
            web.post("/generate", generate),
            web.get("/status", status),
            web.get("/attempts", attempts),
            web.get("/versions", versions),
            web.get("/events", events),
            web.get("/health", health),
            web.get("/health/live", live),
            web.get("/health/ready", ready),
            web.post("/api/deploy", deploy),
            web.post("/api/rollback", rollback),
            web.post("/api/load_model", load_model),
            web.post("/api/unload_model", unload_model),
            web.post("/api/verify", verify),
        ]
    )


# --- generate


async def generate(request: web.Request) -> web.Response:
    """Make images; the answer is the image itself, or JSON for who accepts that."""
    services = request.app[SERVICES]
    wanted = parse_generate(parse_json(await read_body(request)))
    as_json = _accepts_json(request)
    if wanted.n > 1 and not as_json:
        raise RequestError(
            400, "invalid_value", f"n is {wanted.n}, one answer is one image: send Accept: application/json", param="n"
        )
    job = services.queue.submit(wanted)
    try:
        async with asyncio.timeout(services.timeout):
            result = await services.queue.result(job)
    except TimeoutError:
        raise RequestError(504, "timeout", f"it was not done within {services.timeout:g} s") from None
    begun = time.perf_counter()
    files = [await services.bridge.run("encode", encode, result, number, wanted.format) for number in range(wanted.n)]
    if as_json:
        body = await services.bridge.run("encode", _result_body, job, result, files, time.perf_counter() - begun)
        return web.Response(body=body, content_type="application/json", charset="utf-8")
    headers = {
        "X-Zwatch-Version": result.key.version,
        "X-Zwatch-Digest": str(result.key.digest),
        "X-Zwatch-Seed": str(wanted.seed),
        "X-Zwatch-Job": job.id,
    }
    return web.Response(body=files[0], content_type=FORMATS[wanted.format], headers=headers)


def _accepts_json(request: web.Request) -> bool:
    """Say whether the answer shall be JSON: what is named goes before a wildcard, and an image before JSON.

    Raises:
        RequestError: 406, neither is accepted.
    """
    accepted = [part.partition(";")[0].strip().lower() for part in request.headers.get("Accept", "*/*").split(",")]
    if any(part.startswith("image/") for part in accepted):
        return False
    if any(part in ("application/json", "application/*") for part in accepted):
        return True
    if any(part in ("*/*", "") for part in accepted):
        return False
    raise RequestError(
        406, "not_acceptable", f"Accept is {', '.join(accepted)[:200]!r}; there are image/* and application/json"
    )


def _result_body(job: Job, result: Result, files: list[bytes], write: float) -> bytes:
    """Return the JSON of a result. It has megabytes of base64, which needs no escaping: joined here, in a thread and
    image by image, so that the event loop never waits for it."""
    timings = {"queue": result.queued, **result.generation.timings, "write": write, "total": job.age}
    view = {
        "id": job.id,
        "version": result.key.version,
        "digest": result.key.digest,
        "model": job.request.model,
        "truncated": result.generation.truncated,
        "timings": {name: round(seconds, 4) for name, seconds in timings.items()},
    }
    images = [
        b'{"seed": %d, "b64_json": "%b"}' % (seed, base64.b64encode(file))
        for seed, file in zip(result.parameters.seeds, files, strict=True)
    ]
    return b'%b, "images": [%b]}' % (encoded(view)[:-1], b", ".join(images))


# --- what is going on


async def _status(services: Services) -> dict[str, Any]:
    factory = services.supervisor.factory
    memory = None if factory is None else await services.bridge.run("inspect", factory.device.memory)
    uptime = time.monotonic() - services.started
    return views.status_view(services.supervisor, services.gate, services.queue, memory, uptime)


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
    return answer({"versions": [views.version_view(one, services.supervisor, services.gate) for one in found]})


async def events(request: web.Request) -> web.StreamResponse:
    """Stream what changes: the whole status first, then each part that has another value."""
    services = request.app[SERVICES]
    supervisor, gate, queue = services.supervisor, services.gate, services.queue

    def parts() -> dict[str, Any]:
        found: dict[str, Any] = {"serving": views.serving_view(gate), "queue": views.queue_view(queue)}
        for alias in supervisor.aliases:
            view = views.alias_view(supervisor, gate, alias)
            found[f"attempt {alias}"] = view.pop("attempt")
            found[f"alias {alias}"] = {"alias": alias, **view}
        return found

    return await stream_changes(request, _status(services), parts, supervisor.changes)


async def health(request: web.Request) -> web.Response:
    """Say in a word how it is, for people and load balancers."""
    services = request.app[SERVICES]
    state, reasons = views.health(services.supervisor, services.gate)
    serving = services.gate.serving(views.PRIMARY)
    body = {"status": state, "version": None if serving is None else serving.key.version, "reasons": reasons}
    return answer(body, 503 if state == "unavailable" else 200)


async def live(request: web.Request) -> web.Response:
    """Answer, which is the answer."""
    return answer({"status": "live"})


async def ready(request: web.Request) -> web.Response:
    """Say whether something serves."""
    serves = request.app[SERVICES].gate.serving(views.PRIMARY) is not None
    return answer({"status": "ready" if serves else "unavailable"}, 200 if serves else 503)


# --- deploying by HTTP


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
    outcome = await services.supervisor.outcome(alias, version, stamp)
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
    previous, serving = services.supervisor.previous(alias), services.gate.serving(alias)
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
    outcome = await services.supervisor.load(alias)
    return _answer_outcome(outcome, time.monotonic() - begun, "Model loaded successfully")


async def unload_model(request: web.Request) -> web.Response:
    """Let accepted requests finish, then free everything."""
    services = request.app[SERVICES]
    await _admin_body(request)
    asked = await services.supervisor.moment_of_call()
    services.queue.close(UNLOADING)
    try:
        # A newer wish ends it at once: until then requests are refused, and the newer version could serve them.
        await services.queue.drained(lambda: services.supervisor.moment() != asked)
        unloaded = await services.supervisor.unload(asked)
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
    lease = services.gate.lease(alias)
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
