"""The states of a job, what it makes, and the events that its followers get."""

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from zwatch.errors import RequestError
from zwatch.rollout.lifecycle import VersionKey

if TYPE_CHECKING:
    from zwatch.engine.parameters import GenerationParameters


class JobState(Enum):
    """`QUEUED -> RUNNING -> DONE | FAILED`; `QUEUED` and `RUNNING` can also become `FAILED` or `CANCELLED`, and
    `RUNNING` becomes `QUEUED` again if the version's first image shows that it is bad."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether no other state follows."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class Picture:
    """One finished image. `file` is None once only the history has it, `name` is None if the history has not stored it."""

    seed: int
    file: bytes | None
    name: str | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The result of a job. `key` is the version that made it, taken from the lease; `timings` are seconds by phase."""

    key: VersionKey
    parameters: "GenerationParameters"
    truncated: bool
    timings: dict[str, float]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Queued:
    """The job waits; `position` other jobs are before it."""

    position: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """The job runs: `step` of `steps` denoising steps are done, counted over all its images. `preview` is a JPEG file, or
    None if there is none newer than the last one sent."""

    step: int
    steps: int
    preview: bytes | None


@dataclass(frozen=True, slots=True)
class Done:
    """The job is done."""

    finished: Finished


@dataclass(frozen=True, slots=True)
class Failed:
    """The job failed or was cancelled."""

    error: RequestError


@dataclass(frozen=True, slots=True)
class Quiet:
    """Nothing happened for one heartbeat interval: send something to keep the connection open."""


JobEvent = Queued | Stepped | Done | Failed | Quiet
