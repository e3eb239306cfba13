"""The replicas of a fleet as JSON objects."""

from collections.abc import Sequence
from typing import Annotated, Protocol

from pydantic import Field
from typing_extensions import TypedDict

from zwatch.api.schema import ByteCount, Number, Seconds, VersionName, choice
from zwatch.fleet.views import ReplicaState, ReplicaView


class Replicas(Protocol):
    """Where the replicas are told."""

    @property
    def views(self) -> list[ReplicaView] | None:
        """What is known of each; None where there is one device, and no fleet."""


class ReplicaStatus(TypedDict):
    """A replica: what it has ready, and what it does. `running` requests are drawn there now; `redrawn` (taken from it, and drawn
    again by another) and `losses` are counted since the service began; `requests` are those drawn."""

    name: str
    host: str | None
    device: str | None
    state: Annotated[str, choice(*(state.value for state in ReplicaState))]
    version: Annotated[
        VersionName | None, Field(description="What `current` serves, if it has that ready; else the last that it has.")
    ]
    versions: list[VersionName]
    attempt: Annotated[str | None, Field(description="What it does for a rollout; null if nothing.")]
    running: Number
    requests: Number
    redrawn: Number
    losses: Number
    pid: int | None
    problem: Annotated[str | None, Field(description="Why it is out of the fleet, or lost.")]
    since: Annotated[Seconds, Field(description="For how long it has been in this state.")]
    free: ByteCount | None
    total: Annotated[ByteCount | None, Field(description="Bytes of its device's memory that weights may take.")]


def replica_views(found: Sequence[ReplicaView] | None, serving: str | None) -> list[ReplicaStatus] | None:
    """Return the replicas; null where there is one device. `serving` is the version that `current` serves."""
    return None if found is None else [_replica_view(one, serving) for one in found]


def replica_changes(found: Sequence[ReplicaView], serving: str | None) -> dict[str, object]:
    """Return what an event tells of the replicas: all but what changes all the time."""
    left_out = ("since", "free", "total")
    views = [
        {name: value for name, value in _replica_view(one, serving).items() if name not in left_out} for one in found
    ]
    return {"replicas": views}


def _replica_view(one: ReplicaView, serving: str | None) -> ReplicaStatus:
    return {
        "name": one.name,
        "host": one.host,
        "device": one.device,
        "state": one.state.value,
        "version": serving if serving in one.versions else next(reversed(one.versions), None),
        "versions": [*one.versions],
        "attempt": one.attempt,
        "running": one.running,
        "requests": one.drawn,
        "redrawn": one.redrawn,
        "losses": one.losses,
        "pid": one.pid,
        "problem": one.problem,
        "since": one.since,
        "free": one.free,
        "total": one.total,
    }
