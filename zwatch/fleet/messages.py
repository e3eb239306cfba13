"""What the controller and its replicas tell each other. Errors cross as values: most do not survive pickling, and none of their frames
shall."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from zwatch import __version__
from zwatch.engine.golden import GoldenImages
from zwatch.errors import Abandoned, GenerationCancelled, Rejection
from zwatch.shadow.faults import is_memory_short, named

PROTOCOL = f"{__version__}/1"
"""What both sides must have in common; the number changes with these messages."""


@dataclass(frozen=True, slots=True)
class ReplicaSettings:
    """How a replica opens its device, and where it finds versions and LoRAs. An earlier controller's replica is taken over only if these
    are equal."""

    name: str
    host: str | None
    device: str
    models: str
    loras: str
    cache: str
    memory_budget: int | None
    exact: bool | None
    dtype: str
    quantize: str | None
    text_encoder: str
    threads: int | None
    """Of the processor, for a replica that draws on it; None: as Ray sets it."""
    protocol: str = PROTOCOL


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a replica could not do something: `kind` is `rejection` (with `code`), `abandoned`, `cancelled`, `memory`, `error`, `lost`: the
    replica, or its device, cannot be used any more, or `anew`: its process has begun anew since."""

    kind: str
    text: str
    code: str = ""

    @classmethod
    def of(cls, error: BaseException) -> "Failure":
        """Return the failure that an error is."""
        if isinstance(error, Rejection):
            return cls("rejection", error.reason, error.code)
        if isinstance(error, Abandoned):
            return cls("abandoned", str(error))
        if isinstance(error, GenerationCancelled):
            return cls("cancelled", "")
        return cls("memory" if is_memory_short(error) else "error", named(error))

    def at(self, where: str) -> "Failure":
        """Return the same, with the replica's name in the text."""
        return replace(self, text=f"{where}: {self.text}")

    @property
    def rejection(self) -> Rejection:
        """The rejection of a rollout for this reason."""
        codes = {
            "rejection": self.code,
            "memory": "out_of_memory",
            "lost": "device_error",
            "anew": "device_error",
            "error": "device_error",
        }
        return Rejection(codes.get(self.kind, "internal_error"), self.text)

    @property
    def error(self) -> Exception:
        """The error of a request for this reason."""
        match self.kind:
            case "cancelled":
                return GenerationCancelled()
            case "memory":
                return MemoryError(f"out of memory: {self.text}")
            case "rejection":
                return self.rejection
        return RuntimeError(self.text)


def begun_anew() -> Failure:
    """Return the failure of a replica that does not know what it is asked for: its process is another one than that which was told."""
    return Failure("anew", "its process has begun anew meanwhile")


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What the controller has to know of an engine that a replica has ready."""

    version: str
    digest: str
    default_size: int
    max_side: int
    precision: str
    nbytes: int
    host_nbytes: int
    sizes: tuple[int, ...]
    linear_shapes: Mapping[str, tuple[int, int]]
    has_control: bool
    golden: GoldenImages
    phases: Mapping[str, float] = field(default_factory=dict)
    """Seconds by phase that its load took there; empty if it was resident."""
    shared: tuple[str, ...] = ()
    bytes_done: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load is. `silence` is the seconds since it last got on; `is_waiting`: for its host to have the version."""

    activity: str
    bytes_done: int = 0
    bytes_total: int = 0
    silence: float = 0.0
    is_slow: bool = False
    is_waiting: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """A line of a replica's log."""

    logger: str
    level: int
    text: str

    def emit(self, name: str) -> None:
        """Log it here, with the replica's name."""
        logging.getLogger(self.logger).log(self.level, "%s: %s", name, self.text)


@dataclass(frozen=True, slots=True)
class Sign:
    """What a replica tells at each look. `incarnation` is another one after each of its beginnings; `held` are the digests of its engines by
    their ids; `loras` are bytes by digest."""

    incarnation: str
    pid: int
    host: str
    device: str | None
    is_gpu: bool
    memory: tuple[int, int] | None
    held: Mapping[str, str]
    drawing: int
    loras: Mapping[str, int]
    records: tuple[Record, ...] = ()


@dataclass(frozen=True, slots=True)
class Stepped:
    """So many steps are done, over all images. `preview` is uint8 of shape (h / 8, w / 8, 3), if one was made."""

    done: int
    preview: Any = None


@dataclass(frozen=True, slots=True)
class Made:
    """An image is made: uint8 of shape (h, w, 3); `is_finite`: whether all of its numbers were."""

    number: int
    pixels: Any
    is_finite: bool = True


@dataclass(frozen=True, slots=True)
class Drawn:
    """All images are made. `phases` has (name, seconds since the beginning of the drawing, the same at its end)."""

    truncated: bool
    finite: bool
    timings: Mapping[str, float]
    phases: tuple[tuple[str, float, float], ...]


DrawEvent = Stepped | Made | Drawn | Failure
