"""What is known of the replicas of a fleet, for the status, metrics and the page."""

from dataclasses import dataclass
from enum import Enum


class ReplicaState(Enum):
    """What a replica does. The values are part of the status; in lower case, of the metrics."""

    STARTING = "STARTING"
    """Its process begins, or opens its device."""
    PREPARING = "PREPARING"
    """It loads what it does not have yet of what serves, and gets no requests."""
    READY = "READY"
    """It draws."""
    OUT = "OUT"
    """It could not prepare what serves; it tries again, and gets no requests meanwhile."""
    LOST = "LOST"
    """Its process has died, or does not answer; Ray begins it again."""
    LEAVING = "LEAVING"
    """It ends, because fewer replicas are needed."""


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """One replica at one moment. `versions` are those that it has ready, by name; `attempt` is what it does for a rollout, None if it does
    nothing; `problem` says why it is `out` or `lost`. `running` are the requests in flight; `drawn`, `redrawn` (taken from it, and drawn
    again by another) and `losses` are counted since the service began. `free` and `total` are bytes of its device's memory."""

    name: str
    host: str | None
    device: str | None
    state: ReplicaState
    versions: tuple[str, ...]
    attempt: str | None
    running: int
    drawn: int
    redrawn: int
    losses: int
    pid: int | None
    problem: str | None
    since: float
    """For how many seconds it has been in this state."""
    free: int | None
    total: int | None
