"""A job: one request on its way through the queue, and what whoever follows it gets to see."""

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from typing import TYPE_CHECKING

from zwatch.bridge import Pulse
from zwatch.errors import RequestError
from zwatch.generation.request import GenerateRequest
from zwatch.logs import request_id
from zwatch.rollout.engines import Lease
from zwatch.rollout.lifecycle import VersionKey

if TYPE_CHECKING:
    from zwatch.engine.pipeline import GenerationParameters

jobs_of_request: ContextVar[list["Job"]] = ContextVar("jobs_of_request")
"""The jobs that the HTTP request being handled has led to, for its line in the log."""
GLANCE_SECONDS = 10.0
"""For how long somebody who asked once about a job is taken to be watching it."""


class JobState(Enum):
    """`QUEUED -> RUNNING -> DONE | FAILED`, and from both of the first to `CANCELLED`."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing comes after it."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True, slots=True)
class Picture:
    """One finished image. `file` is None once only the history has it, `name` is None if the history has it not."""

    seed: int
    file: bytes | None
    name: str | None


@dataclass(frozen=True, slots=True)
class Finished:
    """What came of a job, and from which version: `key` comes from the lease. Timings in seconds by phase."""

    key: VersionKey
    parameters: "GenerationParameters"
    truncated: bool
    timings: dict[str, float]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True, slots=True)
class Queued:
    """It waits; `position` others are before it."""

    position: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """It runs: `step` of `steps` denoising steps are done, over all its images. `preview` is a JPEG file, or None if
    there is none newer than the one sent before."""

    step: int
    steps: int
    preview: bytes | None


@dataclass(frozen=True, slots=True)
class Done:
    """It is done."""

    finished: Finished


@dataclass(frozen=True, slots=True)
class Failed:
    """It failed or was cancelled."""

    error: RequestError


@dataclass(frozen=True, slots=True)
class Quiet:
    """Nothing happened for a while: time to show that the connection lives."""


JobEvent = Queued | Stepped | Done | Failed | Quiet


class Job:
    """One request, from its acceptance to its end and a while beyond. Lives on the event loop; only `is_cancelled` and
    `is_watched` are read in other threads.

    An `attended` job has a client that waits for the answer: when it leaves, the job is cancelled. The pictures of one
    that `keeps_files` stay fetchable also where the history has them not. `ended` is called once, at its end.
    """

    def __init__(
        self,
        request: GenerateRequest,
        lease: Lease | None,
        ended: Callable[["Job"], None] = lambda job: None,
        *,
        attended: bool = True,
        keeps_files: bool = False,
    ) -> None:
        self.id = f"j-{secrets.token_hex(8)}"
        self.request = request
        self.lease = lease
        self.attended = attended
        self.keeps_files = keeps_files
        self.request_id = request_id.get()
        self.state = JobState.QUEUED
        self.position = 0
        self.step = 0
        self.steps = request.steps * request.n
        self.preview: bytes | None = None
        self.finished: Finished | None = None
        self.error: RequestError | None = None
        self.created = datetime.now(UTC)
        self.seconds: float | None = None
        """From acceptance to the end, once it has ended."""
        self.changes = Pulse()
        self._ended = ended
        self._accepted = time.monotonic()
        self._begun = 0.0
        self._previews = 0
        self._followers = 0
        self._glanced = -GLANCE_SECONDS
        self._cancelled = threading.Event()
        self._late: RequestError | None = None

    @property
    def age(self) -> float:
        """Seconds since it was accepted."""
        return time.monotonic() - self._accepted

    @property
    def remaining(self) -> float | None:
        """Seconds that its other steps will take, if they take as long as those before; None before the first."""
        if not self.step:
            return None
        return (time.monotonic() - self._begun) / self.step * (self.steps - self.step)

    @property
    def is_cancelled(self) -> bool:
        """Whether it shall stop at the next step."""
        return self._cancelled.is_set()

    @property
    def is_watched(self) -> bool:
        """Whether somebody would see a preview."""
        return self._followers > 0 or time.monotonic() - self._glanced < GLANCE_SECONDS

    def glance(self) -> None:
        """Note that somebody looked, who will come again: previews are made for a while."""
        self._glanced = time.monotonic()

    async def result(self) -> Finished:
        """Wait for the end and return what came of it.

        Raises:
            RequestError: it failed, or was cancelled.
        """
        while not self.state.is_final:
            await self.changes.wait()
        if self.finished is None:
            assert self.error is not None  # one of the two, at the end
            raise self.error.with_traceback(None)
        return self.finished

    async def follow(self, heartbeat: float) -> AsyncGenerator[JobEvent, None]:
        """Give what there is to tell, from the present state on, until the job's end; `Quiet` after each `heartbeat`
        seconds without news. Who takes long between two events gets the newest of what happened meanwhile.

        Use it within `contextlib.aclosing`: previews are made as long as it is open.
        """
        self._followers += 1
        said: object = None
        previews = 0
        try:
            while True:
                coming = self.changes.next()
                now = (self.state, self.position, self.step, self._previews)
                if now != said:
                    said = now
                    yield self._event(previews)
                    if now[0].is_final:
                        return
                    previews = now[3]
                    continue  # more may have happened while that was sent
                try:
                    async with asyncio.timeout(heartbeat):
                        await asyncio.shield(coming)
                    quiet = False
                except TimeoutError:
                    quiet = True
                if quiet:
                    yield Quiet()
        finally:
            self._followers -= 1

    def _event(self, previews: int) -> JobEvent:
        if self.finished is not None:
            return Done(self.finished)
        if self.error is not None:
            return Failed(self.error)
        if self.state is JobState.QUEUED:
            return Queued(self.position)
        return Stepped(self.step, self.steps, self.preview if self._previews > previews else None)

    # --- what the queue does with it

    def move(self, position: int) -> None:
        """Note its place among those that wait."""
        if position != self.position:
            self.position = position
            self.changes.fire()

    def begin(self) -> None:
        """Its turn has come."""
        self.state = JobState.RUNNING
        self._begun = time.monotonic()
        self.changes.fire()

    def advance(self, step: int, preview: bytes | None = None) -> None:
        """Note how many steps are done, and how the image looked then (a JPEG file)."""
        if self.state is not JobState.RUNNING:
            return
        self.step = max(self.step, step)
        if preview is not None:
            self.preview = preview
            self._previews += 1
        self.changes.fire()

    def be_late(self, error: RequestError) -> None:
        """Note that its client was told this because it took too long; the cancellation that follows means this."""
        self._late = error

    def finish(self, finished: Finished) -> None:
        """It is done; nothing happens if it ended otherwise before."""
        self._end(JobState.DONE, finished, None)

    def fail(self, error: RequestError) -> None:
        """It failed; nothing happens if it ended otherwise before."""
        self._end(JobState.FAILED, None, error)

    def cancel(self) -> None:
        """Take it for ended from now on; what runs stops between two denoising steps."""
        self._cancelled.set()
        if self._late is not None:
            self._end(JobState.FAILED, None, self._late)
            return
        error = RequestError("cancelled", "the job was cancelled")
        self._end(JobState.CANCELLED, None, error)

    def let_go_of_files(self, *, all_of_them: bool) -> None:
        """Drop the pictures' bytes where the history has them too, or everywhere."""
        if self.finished is not None:
            pictures = tuple(
                replace(picture, file=None) if all_of_them or picture.name is not None else picture
                for picture in self.finished.pictures
            )
            self.finished = replace(self.finished, pictures=pictures)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the pictures that it holds itself."""
        return sum(len(picture.file or b"") for picture in self.finished.pictures) if self.finished is not None else 0

    def _end(self, state: JobState, finished: Finished | None, error: RequestError | None) -> None:
        if self.state.is_final:
            return
        self.state, self.finished, self.error = state, finished, error
        self.preview = None
        self.seconds = self.age
        self.changes.fire()
        self._ended(self)
