"""Try a version on a part of an alias's requests, end the trial, and promote its version."""

import time
from collections.abc import Callable
from typing import Annotated, ParamSpec, TypeVar

from aiohttp import web
from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from zwatch.api import views
from zwatch.api.answers import answer
from zwatch.api.bodies import read_request
from zwatch.api.golden_view import missed
from zwatch.api.native.deploy import AliasName, answer_outcome, check_version, followed, rejected
from zwatch.api.schema import Request, Seconds, VersionName, choice
from zwatch.api.services import SERVICES, Services
from zwatch.deploy.resolving import Target
from zwatch.deploy.shares import MOST_PERCENT, share_key
from zwatch.deploy.sharing import end_share, make_share, promote_share
from zwatch.errors import RepointError
from zwatch.generation.fields import Flag, Text, Whole
from zwatch.generation.request import PRIMARY
from zwatch.rollout.alias import Alias

P = ParamSpec("P")
R = TypeVar("R")


class ShareRequest(Request):
    """Which version to try on how many percent of the alias's requests: 0 only holds it ready, null ends the trial. `version` may be
    left out where there is a share: then only the percentage is moved. Without `wait` the call returns as soon as the link is
    changed."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": "v3", "percent": 10}, {"percent": None}]})

    percent: Annotated[int, Whole(0, MOST_PERCENT)] | None
    version: Annotated[str, Text(required=True)] | None = None
    alias: AliasName = PRIMARY
    wait: Annotated[bool, Flag()] = True


class PromoteRequest(Request):
    """The alias whose share becomes the alias. Without `wait` the call returns as soon as the link is renamed."""

    alias: AliasName = PRIMARY
    wait: Annotated[bool, Flag()] = True


class Shared(TypedDict):
    """The share's version is ready and draws its part of the requests, or the trial has ended: then `share` and `percent` are
    null, and `version` is what was tried."""

    status: Annotated[str, choice("success")]
    message: str
    version: VersionName | None
    percent: Annotated[int, Field(ge=0, le=MOST_PERCENT)] | None
    share: Annotated[str | None, Field(description="The name of the share's link.", examples=["current@10"])]
    seconds: Seconds


class ShareLinked(TypedDict):
    """The share's link is changed; whether its version will be ready is not yet known."""

    status: Annotated[str, choice("accepted")]
    message: str
    version: VersionName | None
    percent: Annotated[int, Field(ge=0, le=MOST_PERCENT)]
    share: str


class Promoting(TypedDict):
    """The share's link is the alias's."""

    status: Annotated[str, choice("accepted")]
    message: str
    version: VersionName


async def share(request: web.Request) -> web.Response:
    """Make, move or end an alias's share, and wait until its version is ready unless `wait` is false."""
    services = request.app[SERVICES]
    asked = await read_request(request, ShareRequest)
    alias = followed(services, asked.alias)
    if asked.version is not None:
        await check_version(services, asked.version)
    await services.supervisor.look_now()  # what was linked just before
    if asked.percent is None:
        return await _end(services, alias, asked.version)
    return await _share(services, alias, asked.version, asked.percent, wait=asked.wait)


async def _share(services: Services, alias: str, version: str | None, percent: int, *, wait: bool) -> web.Response:
    begun = time.monotonic()
    record = _record(services, alias)
    serving = services.engines.serving(alias)
    if version is not None and serving is not None and serving.key.version == version:
        raise rejected(f"{version} is what {alias} serves: a trial needs another version")
    # What was refused or unloaded is tried again when its link is made again. Without its name that was not asked for.
    is_out = record is not None and (record.is_unloaded or record.refusals.find(record.wish) is not None)
    anew = is_out and version is not None
    placed = await _changed(services, make_share, services.models, alias, version, percent, anew=anew)
    services.supervisor.ring()
    if not wait:
        linked: ShareLinked = {
            "status": "accepted",
            "message": f"{placed.name} now points to {placed.text}",
            "version": version,
            "percent": percent,
            "share": placed.name,
        }
        return answer(linked, 202)
    outcome = await services.operator.outcome(share_key(alias), version, placed.stamp)
    if not outcome.serves:
        raise rejected(outcome.message, views.attempt_view(outcome.attempt))
    gets = f"gets {percent} % of the requests for {alias}" if percent else "is held ready, and gets no requests"
    body: Shared = {
        "status": "success",
        "message": f"{outcome.version} {gets}",
        "version": outcome.version,
        "percent": percent,
        "share": placed.name,
        "seconds": round(time.monotonic() - begun, 4),
    }
    return answer(body)


async def _end(services: Services, alias: str, version: str | None) -> web.Response:
    begun = time.monotonic()
    record = _record(services, alias)
    tried = None if record is None or record.target is None else record.target.version
    if version is not None and tried is not None and version != tried:
        raise rejected(f"{alias} shares its requests with {tried}, not with {version}: the trial goes on")
    ended = await _changed(services, end_share, services.models, alias)
    await services.operator.gone(share_key(alias))  # the answer says that no request goes to it any more
    body: Shared = {
        "status": "success",
        "message": f"{ended[0].name} is removed: the trial has ended" if ended else f"{alias} has no share",
        "version": tried,
        "percent": None,
        "share": None,
        "seconds": round(time.monotonic() - begun, 4),
    }
    return answer(body)


async def promote(request: web.Request) -> web.Response:
    """Put an alias's share in the alias's place, and wait for the outcome unless `wait` is false."""
    services = request.app[SERVICES]
    asked = await read_request(request, PromoteRequest, may_be_empty=True)
    alias, begun = followed(services, asked.alias), time.monotonic()
    await services.supervisor.look_now()
    if (problem := services.operator.problem_of_share(share_key(alias))) is not None:
        raise rejected(problem)
    target = _ready(alias, _record(services, alias))
    version = target.version
    placed = await _changed(services, promote_share, services.models, alias, target.link_stamp)
    services.queue.reopen()
    services.supervisor.ring()
    if not asked.wait:
        promoting: Promoting = {
            "status": "accepted",
            "message": f"{alias} now points to {placed.text}",
            "version": version,
        }
        return answer(promoting, 202)
    outcome = await services.operator.outcome(alias, version, placed.stamp)
    return answer_outcome(outcome, time.monotonic() - begun)


def _record(services: Services, alias: str) -> Alias | None:
    """Return what is known of an alias's share; None if it has none."""
    return services.supervisor.records.get(share_key(alias))


def _ready(alias: str, record: Alias | None) -> Target:
    """Return where an alias's share leads, if that can be promoted.

    Raises:
        RequestError: 409, there is none, or its version is not ready, was withdrawn, or missed golden images.
    """
    if record is None or (record.target is None and record.fault is None):
        raise rejected(f"{alias} has no share to promote; `zwatch deploy VERSION` deploys a version without a trial")
    if record.target is None:
        assert record.fault is not None
        raise rejected(record.fault.message)
    version, attempt = record.target.version, views.attempt_view(record.attempt)
    force = f"`zwatch deploy {version}{'' if alias == PRIMARY else f' --alias {alias}'}` deploys it all the same"
    if (refusal := record.refusals.find(record.wish)) is not None:
        raise rejected(f"{record.name}: {version} is not promoted: {refusal.rejection.reason}; {force}", attempt)
    if record.serving is None or record.serving.key != record.wish:
        raise rejected(f"{record.name}: {version} is not ready yet; try again when it is, or {force}", attempt)
    if (how := missed(record.serving.engine.golden)) is not None:
        raise rejected(f"{record.name}: {version} is not promoted: it {how}; {force}", attempt)
    return record.target


async def _changed(services: Services, change: Callable[P, R], *given: P.args, **named: P.kwargs) -> R:
    """Change the link of a share in a thread; of several calls one at a time, so that none takes another's link for an operator's.

    Raises:
        RequestError: 409, they were not changed.
    """
    try:
        async with services.operator.sharing:
            return await services.bridge.run("inspect", change, *given, **named)
    except RepointError as error:
        raise rejected(str(error)) from None
