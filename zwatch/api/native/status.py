"""The state of the service: status, attempts, versions, events and health checks."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

from aiohttp import web
from typing_extensions import TypedDict

from zwatch.api import version_views, views
from zwatch.api.answers import answer, encoded, json_answer
from zwatch.api.health import HEALTH_STATES
from zwatch.api.health import health as judge_health
from zwatch.api.lora_views import lora_views, loras_view
from zwatch.api.native.client_jobs import client_in_query, send_jobs
from zwatch.api.native.progress import Progress, next_look
from zwatch.api.replica_views import replica_changes, replica_views
from zwatch.api.schema import VersionName, choice
from zwatch.api.services import SERVICES, Services
from zwatch.api.streams import stream_changes
from zwatch.bridge import NoAnswer
from zwatch.deploy.summaries import RootSummary
from zwatch.deploy.versions import VersionSummary
from zwatch.errors import Rejection, retry_after
from zwatch.generation.request import PRIMARY
from zwatch.rollout.verdicts import Verdict
from zwatch.signing.judged import SIGNATURE_CODES


class Attempts(TypedDict):
    """The last attempts, newest first; 100 at most."""

    attempts: list[views.AttemptView | None]


class UnusableDirectory(TypedDict):
    """A directory in the models root whose name cannot be a version's."""

    name: str
    reason: str


class Versions(TypedDict):
    """All version directories; only resident versions while the models root cannot be read, and `problem` says why."""

    versions: list[version_views.VersionView]
    unusable: list[UnusableDirectory]
    problem: str | None


class Health(TypedDict):
    """The health of the service; `reasons` is empty if it is `ok`."""

    status: Annotated[str, choice(*HEALTH_STATES)]
    version: VersionName | None
    reasons: list[str]


class Probe(TypedDict):
    """The result of a health check."""

    status: str


async def _status(services: Services) -> views.StatusView:
    memory = await services.device_memory()
    uptime = time.monotonic() - services.started
    history = None if services.history is None else services.history.view()
    loras, replicas = lora_views(services.loras), replica_views(services.fleet.views, _serving(services))
    return views.status_view(
        services.supervisor, services.engines, services.queue, history, memory, uptime, loras, replicas
    )


def _serving(services: Services) -> str | None:
    """Return the version that `current` serves."""
    return None if (resident := services.engines.serving(PRIMARY)) is None else resident.key.version


async def status(request: web.Request) -> web.Response:
    """Return the whole status."""
    return answer(await _status(request.app[SERVICES]))


async def attempts(request: web.Request) -> web.Response:
    """List the last attempts, newest first."""
    found = request.app[SERVICES].supervisor.attempts
    body: Attempts = {"attempts": [views.attempt_view(attempt) for attempt in found]}
    return answer(body)


async def versions(request: web.Request) -> web.Response:
    """List the version directories."""
    services = request.app[SERVICES]
    problem = None
    try:
        found = await services.bridge.run("inspect", services.summaries.read)
        judged = await services.bridge.run("inspect", services.supervisor.gate.judge, services.models, found.versions)
    except NoAnswer:
        raise
    except OSError as error:
        problem = f"{services.models}: {error.strerror}; expected the models root, see --models"
        found = RootSummary(_resident(services, problem), ())
        judged = {one.key.version: one.signer for one in services.engines.residents if one.signer is not None}
    marks = version_views.version_marks(services.supervisor, services.engines)
    verdict = _at_present(services.supervisor.runner.verdicts.find, judged)
    # In a thread: there may be tens of thousands of directories.
    return json_answer(await services.bridge.run("inspect", _versions, found, marks, verdict, judged, problem))


def _versions(
    found: RootSummary,
    marks: Mapping[str, version_views.VersionMarks],
    verdict: version_views.FindVerdict,
    judged: Mapping[str, str | Rejection],
    problem: str | None,
) -> bytes:
    signers = {name: one for name, one in judged.items() if isinstance(one, str)}
    body: Versions = {
        "versions": [version_views.version_view(one, marks, verdict, signers.get(one.name)) for one in found.versions],
        "unusable": [{"name": name, "reason": reason} for name, reason in found.unusable],
        "problem": problem,
    }
    return encoded(body)


def _at_present(find: version_views.FindVerdict, judged: Mapping[str, str | Rejection]) -> version_views.FindVerdict:
    """Return what finds why a version was rejected: for want of a signature only as long as the policy still says so."""

    def found(version: str, digest: str | None) -> Verdict | None:
        known, present = find(version, digest), judged.get(version)
        if known is None or present is None or known.code not in SIGNATURE_CODES:
            return known
        return None if isinstance(present, str) else replace(known, code=present.code, reason=present.reason)

    return found


def _resident(services: Services, problem: str) -> list[VersionSummary]:
    """Describe the resident versions without their files: the digest and the sizes are those that were loaded."""
    found = {}
    for resident in services.engines.residents:
        key, sizes = resident.key, [stamp.size for stamp in resident.engine.plan.stamps.values() if stamp is not None]
        sealed = key.digest is not None
        found[key.version] = VersionSummary(
            key.version, sealed, key.digest, key.version, sum(sizes), len(sizes), None, problem
        )
    return [found[name] for name in sorted(found)]


async def events(request: web.Request) -> web.StreamResponse:
    """Stream changes: the whole status first, then each part that changes, and each job of the client if it names itself."""
    services, client = request.app[SERVICES], client_in_query(request)
    supervisor, engines, queue = services.supervisor, services.engines, services.queue

    progress = Progress()

    def parts() -> dict[str, object]:
        found: dict[str, object] = {"serving": views.serving_view(engines), "queue": views.queue_view(queue)}
        for alias in supervisor.aliases:
            found[f"attempt {alias}"] = progress.view(supervisor.attempt(alias))
            found[f"alias {alias}"] = {"alias": alias, **views.alias_state(supervisor, engines, alias)}
        for share in supervisor.records.shares:
            found[f"attempt {share.key}"] = progress.view(share.attempt)
        for name, state in views.share_states(supervisor).items():
            found[f"alias {name}"] = {**state, "alias": name, "of": state["alias"]}
        found["aliases"] = {"aliases": [*supervisor.aliases], "shares": [*views.share_states(supervisor)]}
        found["loras"] = loras_view(services.loras)
        if services.history is not None:
            found["history"] = views.history_change(services.history.view())
        if (replicas := services.fleet.views) is not None:
            found["replicas"] = replica_changes(replicas, _serving(services))
        return found

    def patience() -> float | None:
        return next_look(record.attempt for record in supervisor.records.values())

    send_others = None if client is None else lambda response: send_jobs(request, response, client)
    return await stream_changes(request, _status(services), parts, supervisor.changes, patience, send_others)


async def health(request: web.Request) -> web.Response:
    """Return the health, for people and load balancers."""
    services = request.app[SERVICES]
    fault = None if services.history is None else services.history.fault
    state, reasons = judge_health(services.supervisor, services.engines, fault)
    serving = services.engines.serving(PRIMARY)
    body: Health = {"status": state, "version": None if serving is None else serving.key.version, "reasons": reasons}
    return answer(body, 503, retry_after(2)) if state == "unavailable" else answer(body)


async def live(request: web.Request) -> web.Response:
    """Answer that the process is alive."""
    body: Probe = {"status": "live"}
    return answer(body)


async def ready(request: web.Request) -> web.Response:
    """Return whether `current` serves and requests are accepted: not while the service stops or unloads."""
    services = request.app[SERVICES]
    serves = services.queue.closed is None and services.engines.serving(PRIMARY) is not None
    body: Probe = {"status": "ready" if serves else "unavailable"}
    return answer(body) if serves else answer(body, 503, retry_after(2))
