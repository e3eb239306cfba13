"""Deploy, roll back, load, unload and verify versions."""

import asyncio
import time
from typing import Annotated

from aiohttp import web
from pydantic import Field
from typing_extensions import TypedDict

from zwatch.api import views
from zwatch.api.answers import answer
from zwatch.api.bodies import read_request
from zwatch.api.schema import ByteCount, Digest, Request, Seconds, VersionName, choice
from zwatch.api.services import SERVICES, Services
from zwatch.bridge import NoAnswer
from zwatch.deploy.look import has_version, point, without_root
from zwatch.deploy.shares import parse_share
from zwatch.errors import RepointError, RequestError, retry_after
from zwatch.generation.fields import Flag, Text
from zwatch.generation.request import PRIMARY
from zwatch.rollout.operator import PATIENCE, Outcome
from zwatch.rollout.supervisor import TICK

UNLOADING = RequestError(
    "model_not_loaded", "the model is unloaded; POST /api/load_model loads it", headers=retry_after(10)
)
AliasName = Annotated[str, Text(), Field(examples=[PRIMARY])]


class AliasRequest(Request):
    """The alias that a call is about."""

    alias: AliasName = PRIMARY


class DeployRequest(Request):
    """The version to deploy. Without `wait` the call returns as soon as the link is changed."""

    version: Annotated[str, Text(required=True), Field(examples=["v1", "v2"])]
    alias: AliasName = PRIMARY
    wait: Annotated[bool, Flag()] = True


class NoFields(Request):
    """An empty object."""


class Deployed(TypedDict):
    """The version serves."""

    status: Annotated[str, choice("success")]
    message: str
    version: VersionName | None
    seconds: Seconds


class Linked(TypedDict):
    """The alias points to the version; whether it will serve is not yet known."""

    status: Annotated[str, choice("accepted")]
    message: str
    version: VersionName


class Unloaded(TypedDict):
    """Nothing is resident any more."""

    status: Annotated[str, choice("success")]
    message: str


class Verified(TypedDict):
    """Every resident byte is as it was sealed."""

    status: Annotated[str, choice("success")]
    version: VersionName
    digest: Digest | None
    bytes: ByteCount
    seconds: Seconds


def followed(services: Services, alias: str) -> str:
    """Return the alias if the service follows it.

    Raises:
        RequestError: 404, it does not.
    """
    if (share := parse_share(alias)) is not None:
        why = f"{alias!r} is a share of {share.alias!r}: /api/share makes, moves and ends it, /api/promote deploys its version"
        raise RequestError("not_found", why, param="alias")
    if alias not in services.supervisor.aliases:
        raise RequestError("not_found", f"{alias[:100]!r} is not an alias that is followed", param="alias")
    return alias


def rejected(message: str, reason: object = None) -> RequestError:
    """Return the error for a call that was rejected."""
    return RequestError("rejected", message, extra={"reason": reason})


def answer_outcome(outcome: Outcome, seconds: float, message: str | None = None) -> web.Response:
    """Return the answer to a call whose wish ended so.

    Raises:
        RequestError: 409, it does not serve.
    """
    if not outcome.serves:
        raise rejected(outcome.message, views.attempt_view(outcome.attempt))
    body: Deployed = {
        "status": "success",
        "message": message or outcome.message,
        "version": outcome.version,
        "seconds": round(seconds, 4),
    }
    return answer(body)


async def _deploy(services: Services, alias: str, version: str, *, wait: bool) -> web.Response:
    begun = time.monotonic()
    try:
        stamp = await services.bridge.run("inspect", point, services.models, alias, version)
    except RepointError as error:
        raise rejected(str(error)) from None
    services.queue.reopen()
    services.supervisor.ring()
    if not wait:
        linked: Linked = {"status": "accepted", "message": f"{alias} now points to {version}", "version": version}
        return answer(linked, 202)
    outcome = await services.operator.outcome(alias, version, stamp)
    return answer_outcome(outcome, time.monotonic() - begun)


async def deploy(request: web.Request) -> web.Response:
    """Repoint an alias, and wait for the outcome unless `wait` is false."""
    services = request.app[SERVICES]
    asked = await read_request(request, DeployRequest, may_be_empty=True)
    version, alias = asked.version, followed(services, asked.alias)
    await check_version(services, version)
    return await _deploy(services, alias, version, wait=asked.wait)


async def check_version(services: Services, version: str) -> None:
    """Check that there is such a version; an I/O error may pass, so ask again for a while.

    Raises:
        RequestError: 404, there is none; 409, that could not be found out.
    """
    if not await _is_there(services, version):
        raise RequestError("not_found", f"there is no version {version[:100]!r} under the models root", param="version")


async def _is_there(services: Services, version: str) -> bool:
    limit = time.monotonic() + PATIENCE
    while True:
        try:
            return await services.bridge.run("inspect", has_version, services.models, version)
        except NoAnswer:
            raise
        except OSError as error:
            if (away := without_root(services.models, error)) is not None:
                raise rejected(f"{version} could not be looked at: {away}") from None
            if time.monotonic() >= limit:
                why = f"{version} could not be looked at: {error.strerror}; nothing was changed, try again"
                raise rejected(why) from None
            await asyncio.sleep(TICK)


async def rollback(request: web.Request) -> web.Response:
    """Repoint an alias to the version that it served before."""
    services = request.app[SERVICES]
    alias = followed(services, (await read_request(request, AliasRequest, may_be_empty=True)).alias)
    previous, serving = services.supervisor.previous(alias), services.engines.serving(alias)
    is_withdrawn = services.supervisor.withdrawal.reason(alias) is not None
    if is_withdrawn and serving is not None and serving.key != services.supervisor.wish(alias):
        previous = serving.key  # it serves that again already; only the link has to follow
    elif previous is None:
        raise rejected(f"{alias} has served no other version before")
    elif serving is not None and serving.key.version == previous.version:
        raise rejected(f"{previous.version} was sealed again; its earlier content cannot be linked to")
    return await _deploy(services, alias, previous.version, wait=True)


async def load_model(request: web.Request) -> web.Response:
    """Load what an alias points to, also after a rejection or an unload."""
    services = request.app[SERVICES]
    alias = followed(services, (await read_request(request, AliasRequest, may_be_empty=True)).alias)
    begun = time.monotonic()
    services.queue.reopen()
    outcome = await services.operator.load(alias)
    return answer_outcome(outcome, time.monotonic() - begun, "Model loaded successfully")


async def unload_model(request: web.Request) -> web.Response:
    """Finish accepted requests, then free all engines."""
    services = request.app[SERVICES]
    await read_request(request, NoFields, may_be_empty=True)
    asked = await services.operator.moment_of_call()
    services.queue.close(UNLOADING)
    try:
        # A newer link or load ends the unload at once: otherwise requests that the newer version could serve are refused.
        await services.queue.drained(lambda: services.operator.moment() != asked)
        unloaded = await services.operator.unload(asked)
    finally:
        services.queue.reopen()
    if not unloaded:
        raise rejected("superseded: a load was requested or the link was replaced before unloading finished")
    body: Unloaded = {"status": "success", "message": "Model unloaded from memory"}
    return answer(body)


async def verify(request: web.Request) -> web.Response:
    """Hash the serving version's resident weights."""
    services = request.app[SERVICES]
    alias = followed(services, (await read_request(request, AliasRequest, may_be_empty=True)).alias)
    while (lease := services.engines.lease(alias)) is None and services.engines.being_exchanged is not None:
        await services.supervisor.changes.wait()  # two versions are being exchanged: wait, as requests do
    if lease is None:
        raise services.queue.not_served(alias)
    begun = time.monotonic()
    with lease:
        count, problems = await services.bridge.run("verify", lease.engine.verify_resident)
    if problems:
        raise rejected("; ".join(problems), {"files": problems})
    body: Verified = {
        "status": "success",
        "version": lease.key.version,
        "digest": lease.key.digest,
        "bytes": count,
        "seconds": round(time.monotonic() - begun, 4),
    }
    return answer(body)
