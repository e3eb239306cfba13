"""What a fleet consists of, as the options say it. Nothing here imports Ray or torch."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

_MOST = 1024


@dataclass(frozen=True, slots=True)
class ReplicaCount:
    """How many replicas there are: from `least` to `most`. `follows_cluster`: as many as the cluster has devices, at least `least`."""

    least: int
    most: int
    follows_cluster: bool = False

    @property
    def is_elastic(self) -> bool:
        """Whether their number changes with the length of the queue."""
        return not self.follows_cluster and self.most > self.least


def replica_count(text: str) -> ReplicaCount:
    """Return what `N`, `auto` or `MIN..MAX` says.

    Raises:
        ValueError: it says none of these.
    """
    if text == "auto":
        return ReplicaCount(1, _MOST, follows_cluster=True)
    found = re.fullmatch(r"([0-9]{1,4})(?:\.\.([0-9]{1,4}))?", text)
    least = 0 if found is None else int(found[1])
    most = least if found is None or found[2] is None else int(found[2])
    if not 1 <= least <= most <= _MOST:
        raise ValueError(f"expected a number from 1 to {_MOST}, auto, or MIN..MAX such as 2..8, got {text!r}")
    return ReplicaCount(least, most)


@dataclass(frozen=True, slots=True)
class Quorum:
    """How many replicas must be ready for a promotion: of so many, `share` (numerator, denominator), or `number` of them; all if both
    are None."""

    text: str = "all"
    share: tuple[int, int] | None = None
    number: int | None = None

    def of(self, replicas: int) -> int:
        """Return how many of so many replicas must be ready; at least one."""
        if self.share is not None:
            return max(1, math.ceil(replicas * self.share[0] / self.share[1]))
        return max(1, replicas if self.number is None else min(self.number, replicas))


ALL = Quorum()


def quorum(text: str) -> Quorum:
    """Return what `all`, `N` or a fraction such as `2/3` says.

    Raises:
        ValueError: it says none of these.
    """
    if text == "all":
        return ALL
    found = re.fullmatch(r"([1-9][0-9]{0,3})(?:/([1-9][0-9]{0,3}))?", text)
    if found is not None and found[2] is None:
        return Quorum(text, number=int(found[1]))
    if found is not None and int(found[1]) <= int(found[2]):
        return Quorum(text, share=(int(found[1]), int(found[2])))
    raise ValueError(f"expected all, a number of replicas, or a fraction of them such as 2/3, got {text!r}")


def devices(text: str) -> tuple[str, ...]:
    """Return the devices of `all`, `0,1` (GPUs by their numbers) or `cpu,cpu`, one for each replica.

    Raises:
        ValueError: it says none of these, or names a GPU twice.
    """
    named = tuple(part.strip().removeprefix("cuda:") for part in text.split(","))
    if named == ("all",) or all(one == "cpu" for one in named):
        return named
    if all(re.fullmatch("0|[1-9][0-9]{0,2}", one) for one in named):
        if len(set(named)) < len(named):
            raise ValueError(f"expected each GPU once, got {text!r}")
        return named
    raise ValueError(f"expected all, GPUs by their numbers such as 0,1, or cpu,cpu, got {text!r}")


def local_devices(count: ReplicaCount, device: str) -> tuple[str, ...]:
    """Return the devices of so many replicas on this host, as `devices` does: GPUs, or the CPU if `device` says so or there is no GPU.

    Raises:
        ValueError: there are not so many GPUs, or their number is to change.
    """
    if count.is_elastic:
        raise ValueError(
            "--replicas MIN..MAX is for the hosts of a cluster: give --ray ADDRESS too, or one number for this host"
        )
    gpus = [] if device == "cpu" else _gpus()
    if not gpus and device == "cuda":
        raise ValueError("--device cuda: this host has no GPU that may be used; give --device cpu")
    if not gpus:
        return ("cpu",) * count.least
    if count.follows_cluster:
        return ("all",)
    if count.least > len(gpus):
        raise ValueError(
            f"--replicas {count.least}: this host has {len(gpus)} GPUs; give --replicas {len(gpus)}, or --device cpu"
        )
    return tuple(gpus[: count.least])


def _gpus() -> list[str]:
    """Return the GPUs of this host by their numbers, or what CUDA_VISIBLE_DEVICES leaves of them, without asking the driver."""
    there = [str(number) for number, _ in enumerate(sorted(Path("/proc/driver/nvidia/gpus").glob("*")))]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (
        there
        if visible is None
        else [one.strip() for one in visible.split(",") if there and one.strip() not in ("", "-1")]
    )


@dataclass(frozen=True, slots=True)
class Place:
    """Where one replica runs, other than its settings say; for tests of several hosts on one machine. `resources` are those of Ray that
    only its host has; `host` is the name that is shown for it."""

    host: str | None = None
    resources: Mapping[str, float] = field(default_factory=dict)
    models: Path | None = None
    loras: Path | None = None


@dataclass(frozen=True, slots=True)
class FleetLimits:
    """How long a fleet waits, in seconds."""

    look: float = 1.0
    """Between two looks at each replica."""
    silent: float = 20.0
    """Without an answer to a look, after which a replica is given up: it is ended, and begins anew. Importing libraries may keep one from
    answering for some seconds."""
    begin: float = 180.0
    """For a replica to begin and to open its device, and for one that was lost to come back, before a rollout goes on."""
    await_version: float = 300.0
    """For a host to have a version that the controller's host has."""
    straggler: float = 30.0
    """For the rest, once as many replicas as the quorum asks for have a version ready."""
    stalled: float = 60.0
    """Without progress of a replica's load."""
    slow: float = 300.0
    """The same for what shows none: a warm-up image on a slow processor."""
    call: float = 60.0
    """For a call that is answered at once."""
    again: float = 10.0
    """Before a replica that could not prepare what serves tries it again; doubled each time, 60 times this at most."""
    left: float = 120.0
    """For which engines of an earlier controller are kept for this one."""
    orphaned: float = 600.0
    """After which a local cluster whose controller is gone ends."""
    idle: float = 300.0
    """Without a request, after which replicas beyond the least number end."""


USUAL_LIMITS = FleetLimits()


@dataclass(frozen=True, slots=True)
class FleetSettings:
    """One fleet. `devices` are those of a local cluster (one replica each), `address` that of a cluster that is there, with `count`
    replicas. `cache` and `state_dir` are the controller's; a replica's host uses the same path for its own cache."""

    models: Path
    loras: Path
    state_dir: Path
    devices: tuple[str, ...] | None
    address: str | None
    count: ReplicaCount | None
    quorum: Quorum
    device: str
    memory_budget: int | None
    exact: bool | None
    dtype: str
    quantize: str | None
    text_encoder: str
    step_seconds: float | None
    """Without a step, after which a replica that draws hangs; None: what suits its device."""
    places: tuple[Place, ...] = ()
    limits: FleetLimits = USUAL_LIMITS
