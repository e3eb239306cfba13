"""The state of the service as JSON objects."""

from datetime import UTC, datetime
from typing import Annotated

from pydantic import Field
from typing_extensions import TypedDict

from zwatch.api.golden_view import GoldenView, golden_view
from zwatch.api.health import HEALTH_STATES, health
from zwatch.api.lora_views import LoraView
from zwatch.api.replica_views import ReplicaStatus
from zwatch.api.schema import ByteCount, Digest, Fraction, Number, Seconds, SignerName, Time, VersionName, choice
from zwatch.deploy.following import ShareSeen
from zwatch.deploy.resolving import Fault
from zwatch.deploy.shares import alias_of_key, parse_share
from zwatch.errors import REJECTION_CODES
from zwatch.generation.kept_image import HistoryView
from zwatch.generation.queue import GenerationQueue
from zwatch.generation.request import PRIMARY
from zwatch.rollout.alias import WITHDRAWN
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import Attempt, AttemptState, EngineState, LoadWay
from zwatch.rollout.supervisor import Supervisor


class AttemptView(TypedDict):
    """An attempt to bring a version into service. `phases` are seconds by phase; `held` is how long requests waited."""

    alias: str
    version: VersionName
    digest: Digest | None
    signer: SignerName | None
    state: Annotated[str, choice(*(state.value for state in AttemptState))]
    code: Annotated[str, choice(*REJECTION_CODES)] | None
    reason: str | None
    started: Time
    seconds: Seconds
    bytes: ByteCount
    progress: Fraction
    phases: dict[str, Seconds]
    shared: Annotated[list[str], Field(description="Components that were already resident.")]
    way: Annotated[str, choice(*(way.value for way in LoadWay))]
    held: Seconds
    fallback: bool
    activity: Annotated[str | None, Field(description="What it does now; null after its end.")]


class ServingView(TypedDict):
    """The version that an alias serves, how many images it has made, and its default and its largest side, pixels."""

    version: VersionName
    digest: Digest | None
    signer: SignerName | None
    since: Time
    images: Number
    default_size: Number
    max_size: Number


class FaultView(TypedDict):
    """Why an alias resolves to no version, or that what it asks for was withdrawn."""

    code: str
    message: str


class AliasState(TypedDict):
    """What an alias's link points to, what the alias serves, and the name of its share, if it has one that counts."""

    link: Annotated[str | None, Field(description="The link's text.")]
    target: VersionName | None
    fault: FaultView | None
    serving: VersionName | None
    unloaded: bool
    share: str | None


class ShareState(TypedDict):
    """A share: a link that sends `percent` of its alias's requests to its target; 0 of them while `counts` is false or `serving` is
    null. Of a name that is no share's, and is in the way or was meant to be one, only the fault is known."""

    alias: str
    link: Annotated[str | None, Field(description="The link's text.")]
    target: VersionName | None
    percent: Annotated[int | None, Field(ge=0, le=100)]
    counts: bool
    fault: FaultView | None
    serving: VersionName | None
    unloaded: bool


class ShareView(ShareState):
    """A share, with its last attempt."""

    attempt: AttemptView | None


class AliasView(AliasState):
    """An alias, with its last attempt."""

    attempt: AttemptView | None


class EngineView(TypedDict):
    """A resident engine."""

    version: VersionName
    digest: Digest | None
    signer: SignerName | None
    state: Annotated[str, choice(*(state.value for state in EngineState))]
    leases: Number
    bytes: Annotated[ByteCount, Field(description="Of its weights on the device.")]
    text_encoder: Annotated[
        str,
        choice("device", "host"),
        Field(description="Where its weights are; those in host memory visit the device for each new prompt."),
    ]
    host_bytes: Annotated[ByteCount, Field(description="Of its weights in host memory.")]
    precision: Annotated[
        str,
        Field(
            description="What it computes in: bf16, fp32, fp16, fp8 or int8; two, joined by +, where the text encoder differs."
        ),
    ]
    control: Annotated[bool, Field(description="Whether it has a controlnet, so that a control image can guide it.")]
    golden: Annotated[GoldenView | None, Field(description="Null if the version has no golden images.")]


class StrayView(TypedDict):
    """A link inside a version directory that was ignored, and why."""

    path: str
    text: str
    reason: str


class QueueView(TypedDict):
    """The queue's length."""

    waiting: Number
    running: Number
    limit: Number


class HistoryChange(TypedDict):
    """How many images the history has, and the name of the newest."""

    images: Number
    newest: str | None


class DeviceView(TypedDict):
    """The device and its memory in bytes; null before the device is opened."""

    name: str | None
    free: Number | None
    total: Number | None


class StatusView(TypedDict):
    """The whole state of the service."""

    status: Annotated[str, choice(*HEALTH_STATES)]
    reasons: list[str]
    serving: ServingView | None
    aliases: dict[str, AliasView]
    engines: list[EngineView]
    strays: list[StrayView]
    shares: dict[str, ShareView]
    queue: QueueView
    device: DeviceView
    replicas: list[ReplicaStatus] | None
    uptime: Seconds
    history: HistoryView | None
    loras: list[LoraView]


def time_text(moment: datetime) -> str:
    """Return a moment as ISO 8601 in UTC, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def attempt_view(attempt: Attempt | None) -> AttemptView | None:
    """Return an attempt, or null."""
    if attempt is None:
        return None
    control, rejection = attempt.control, attempt.rejection
    # An atomic copy: the loading thread adds phases concurrently.
    phases = {} if control is None else control.phases.copy()
    done, total = (control.bytes_done, control.bytes_total) if control is not None else (0, 0)
    return {
        "alias": attempt.link_name,
        "version": attempt.key.version,
        "digest": attempt.key.digest,
        "signer": attempt.signer,
        "state": attempt.state.value,
        "code": None if rejection is None else rejection.code,
        "reason": attempt.abandoned if rejection is None else rejection.reason,
        "started": time_text(attempt.started),
        "seconds": round(attempt.seconds, 4),
        "bytes": done,
        "progress": round(done / total, 4) if total else (0.0 if attempt.running else 1.0),
        "phases": {name: round(spent, 4) for name, spent in phases.items()},
        "shared": [] if control is None else list(control.shared),
        "way": attempt.way.value,
        "held": round(attempt.requests_waited, 4),
        "fallback": attempt.fallback,
        "activity": control.activity if control is not None and attempt.running else None,
    }


def serving_view(engines: EngineRegistry, alias: str = PRIMARY) -> ServingView | None:
    """Return what an alias serves, or null."""
    if (resident := engines.serving(alias)) is None:
        return None
    key, engine = resident.key, resident.engine
    return {
        "version": key.version,
        "digest": key.digest,
        "signer": resident.signer,
        "since": time_text(resident.since),
        "images": resident.images,
        "default_size": engine.default_size,
        "max_size": engine.max_side,
    }


def alias_state(supervisor: Supervisor, engines: EngineRegistry, alias: str) -> AliasState:
    """Return what an alias's link points to and what the alias serves."""
    seen, serving = supervisor.seen, engines.serving(alias)
    target, fault = seen.targets.get(alias), seen.faults.get(alias)
    shares = seen.shares.get(alias, ShareSeen())
    withdrawn = supervisor.withdrawal.reason(alias)
    problem = _fault_view(fault, withdrawn) or _fault_view(shares.fault, None)
    return {
        "link": target.link if target is not None else fault.link if fault is not None else None,
        "target": None if target is None else target.version,
        "fault": problem,
        "serving": None if serving is None else serving.key.version,
        "unloaded": supervisor.is_unloaded(alias),
        "share": None if shares.link is None else shares.link.name,
    }


def share_states(supervisor: Supervisor) -> dict[str, ShareState]:
    """Return the shares by the names of their links, and what else has such a name but cannot count."""
    found: dict[str, ShareState] = {}
    seen = supervisor.seen
    for record in supervisor.records.shares:
        if record.share is None:
            continue  # taken over, and not looked at yet
        alias, serving, fault = alias_of_key(record.key) or "", record.serving, seen.faults.get(record.key)
        link = record.target.link if record.target is not None else fault.link if fault is not None else None
        found[record.name] = {
            "alias": alias,
            "link": link,
            "target": None if record.target is None else record.target.version,
            "percent": record.share.percent,
            "counts": record.counts,
            "fault": _fault_view(fault, None if record.withdrawn is None else record.withdrawn.reason),
            "serving": None if serving is None else serving.key.version,
            "unloaded": record.is_unloaded,
        }
    for alias, shares in seen.shares.items():
        for name, fault in shares.faults.items():
            meant = parse_share(name)
            others: ShareState = {
                "alias": alias, "link": None, "target": None, "percent": None if meant is None else meant.percent,
                "counts": False, "fault": None, "serving": None, "unloaded": False,
            }  # fmt: skip
            found[name] = {**found.get(name, others), "fault": _fault_view(fault, None)}
    return found


def share_views(supervisor: Supervisor) -> dict[str, ShareView]:
    """Return the shares by name, each with its last attempt."""
    attempts = {record.name: record.attempt for record in supervisor.records.shares}
    return {
        name: {**state, "attempt": attempt_view(attempts.get(name))} for name, state in share_states(supervisor).items()
    }


def _fault_view(fault: Fault | None, withdrawn: str | None) -> FaultView | None:
    if fault is not None:
        return {"code": fault.code, "message": fault.message}
    return None if withdrawn is None else {"code": WITHDRAWN, "message": withdrawn}


def alias_view(supervisor: Supervisor, engines: EngineRegistry, alias: str) -> AliasView:
    """Return an alias, with its last attempt."""
    return {**alias_state(supervisor, engines, alias), "attempt": attempt_view(supervisor.attempt(alias))}


def queue_view(queue: GenerationQueue) -> QueueView:
    """Return the queue's length."""
    return {"waiting": queue.waiting, "running": len(queue.turns.jobs), "limit": queue.limit}


def history_change(history: HistoryView) -> HistoryChange:
    """Return what of the history an event says."""
    return {"images": history["images"], "newest": history["newest"]}


def status_view(
    supervisor: Supervisor,
    engines: EngineRegistry,
    queue: GenerationQueue,
    history: HistoryView | None,
    memory: tuple[int, int] | None,
    uptime: float,
    loras: list[LoraView],
    replicas: list[ReplicaStatus] | None = None,
) -> StatusView:
    """Return the whole status. `memory` is the device's (free, total) bytes, None before the device is opened."""
    state, reasons = health(supervisor, engines, None if history is None else history["fault"])
    device = supervisor.factory.device.name if supervisor.factory is not None else None
    free, total = memory or (None, None)
    return {
        "status": state,
        "reasons": reasons,
        "serving": serving_view(engines),
        "aliases": {alias: alias_view(supervisor, engines, alias) for alias in supervisor.aliases},
        "engines": [
            {
                "version": resident.key.version,
                "digest": resident.key.digest,
                "signer": resident.signer,
                "state": resident.state.value,
                "leases": resident.leases,
                "bytes": resident.engine.nbytes,
                "text_encoder": "host" if resident.engine.host_nbytes else "device",
                "host_bytes": resident.engine.host_nbytes,
                "precision": resident.engine.precision,
                "control": resident.engine.has_control,
                "golden": golden_view(resident.engine.golden),
            }
            for resident in engines.residents
        ],
        "strays": [
            {"path": stray.path, "text": stray.text, "reason": stray.reason} for stray in supervisor.seen.strays
        ],
        "shares": share_views(supervisor),
        "queue": queue_view(queue),
        "device": {"name": device, "free": free, "total": total},
        "replicas": replicas,
        "uptime": round(uptime, 3),
        "history": history,
        "loras": loras,
    }
