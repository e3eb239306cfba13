"""A job: the state of one accepted request."""

import asyncio
import math
import secrets
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from zwatch.bridge import Pulse
from zwatch.errors import RequestError
from zwatch.generation.fitting import steps_of
from zwatch.generation.following import follow
from zwatch.generation.job_events import Done, Failed, Finished, JobEvent, JobState, Picture, Queued, Stepped
from zwatch.generation.loras import JobLoras
from zwatch.generation.request import GenerateRequest
from zwatch.generation.second_turn import SecondTurn
from zwatch.generation.sources import Source
from zwatch.logs import request_id
from zwatch.rollout.engines import Lease
from zwatch.rollout.lifecycle import VersionKey
from zwatch.timeline import Phase, Phases

if TYPE_CHECKING:
    from zwatch.engine.parameters import GenerationParameters

jobs_of_request: ContextVar[list["Job"]] = ContextVar("jobs_of_request")
"""The jobs that the current HTTP request created, for its log line."""
client_of_request: ContextVar[str | None] = ContextVar("client_of_request", default=None)
"""The name that the client of the current HTTP request gave itself."""
POLL_SECONDS = 10.0
"""How long after a poll a client counts as watching the job."""


@dataclass(eq=False)
class Audience:
    """Those who follow all jobs of one client: how many, and what wakes them."""

    followers: int = 0
    changes: Pulse = field(default_factory=Pulse)


class Job:
    """One request, from its acceptance until it is forgotten some time after its end. Used on the event loop only, except
    `is_cancelled` and `is_watched`, which other threads read. `phases` has what took how long: `queue`, `generate` and within that
    the engine's phases, and `write`.

    `client` is the key by which its client stays on one side of a share; None: it is never moved to a share. `client_name` is what its client calls itself, to find its jobs. An `attended` job has a client that waits for the answer: if the client disconnects, the job is cancelled. A job that
    `keeps_files` keeps the images that the history has not stored. `ended` is called once, when the job ends.
    """

    loras: JobLoras | None = None  # until it ends
    signer: str | None = None
    """Who signed the version that makes its images, where a signature is required."""
    together: tuple["Job", ...] = ()
    """The jobs of the comparison that it is a part of."""
    pulses: tuple[Pulse, ...] = ()
    """Those of what follows it as a part; fired at each change too."""
    by_share: str | None = None
    """The share by which it got that version, such as `current@10`; None if it was not by one."""
    trial: str = ""
    """The id of the trial in which its end, and votes on its pictures, count; "" for none."""
    source_digest: str | None = None
    """The digest of the image that it changes or changed; None if it makes one from noise."""
    control_digest: str | None = None
    """The digest of the image that guides it; None if none does."""
    finished: Finished | None = None
    error: RequestError | None = None
    has_mask = False
    """Whether that has a mask."""
    work = 0.0
    """Megapixels x steps x images, to estimate how long it takes."""
    seconds: float | None = None
    """Seconds from acceptance to the end; None before the end."""
    time_limit: float = math.inf
    """Seconds from its acceptance after which its client gets an error."""

    # Long: one line for each attribute.
    def __init__(
        self,
        request: GenerateRequest,
        lease: Lease | None,
        ended: Callable[["Job"], None] = lambda job: None,
        *,
        attended: bool = True,
        keeps_files: bool = False,
        client: str | None = None,
        source: Source | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.id = f"j-{secrets.token_hex(8)}"
        self.request, self.lease = request, lease
        self.source = source
        """The image that it changes, or that guides it, until it ends; None if there is none."""
        if source is not None and source.guides:
            self.control_digest = source.digest
        elif source is not None:
            self.source_digest, self.has_mask = source.digest, source.mask is not None
        self.lora_digests: dict[str, str] = {}
        """The digests of its LoRAs by name, if another process accepted it and has told them."""
        self.attended, self.keeps_files = attended, keeps_files
        self.request_id = request_id.get()
        self.client, self.client_name = client, client_of_request.get()
        self.audience = Audience()
        """That of the client's jobs, once the job is in the store."""
        self.state = JobState.QUEUED
        self.position = self.step = 0
        self.steps = steps_of(request, source) * request.n
        self.second_turn = SecondTurn()
        self.preview: bytes | None = None
        self.key: VersionKey | None = None
        """The version that makes its images; None before it runs."""
        self.parameters: GenerationParameters | None = None
        """What its images are made from; None before it runs."""
        self.pictures: tuple[Picture, ...] = ()
        """Those that are stored so far, in the order of their seeds; a job that is cancelled or fails keeps them."""
        self.created = datetime.now(UTC)
        self.phases, self.changes = Phases(), Pulse()
        self.has_image: Callable[[str], bool] = lambda name: True
        """Says whether the history still has the image of a name: it deletes those beyond its limits."""
        self.revision = self.previews = 0
        """How many changes and previews there have been."""
        self._ended = ended
        self._clock = clock
        self._accepted = self._waiting_from = clock()
        self._begun = 0.0
        self._first_step = (0.0, 0)  # when it was done, and its number
        self._followers = 0
        self._polled: float | None = None
        self._cancelled = threading.Event()
        self._timeout: RequestError | None = None

    @property
    def lateness(self) -> str:
        """What an error says of it when it took too long."""
        return "it was not done"

    @property
    def age(self) -> float:
        """Seconds since the job was accepted."""
        return self._clock() - self._accepted

    @property
    def accepted(self) -> float:
        """When it was accepted, on the monotonic clock."""
        return self._accepted

    @property
    def time_left(self) -> float | None:
        """Seconds of its time limit that remain; None if it has none."""
        return None if math.isinf(self.time_limit) else max(0.0, self.time_limit - self.age)

    @property
    def is_timed_out(self) -> bool:
        """Whether its time limit has passed."""
        return self._timeout is not None

    @property
    def remaining(self) -> float | None:
        """Estimated seconds for the remaining steps, from those that are done; None before the first step."""
        if not self.step:
            return None
        # From the first step's end: before it the prompt is encoded, once.
        begun, before = self._first_step if self.step > self._first_step[1] else (self._begun, 0)
        return (self._clock() - begun) / (self.step - before) * (self.steps - self.step)

    @property
    def is_cancelled(self) -> bool:
        """Whether the job must stop at the next step."""
        return self._cancelled.is_set()

    @property
    def is_watched(self) -> bool:
        """Whether a client would see a preview: one follows the job or all jobs of its client, or polled it in the last
        `POLL_SECONDS`."""
        if self._followers > 0 or self.audience.followers > 0:
            return True
        return self._polled is not None and self._clock() - self._polled < POLL_SECONDS

    def note_poll(self) -> None:
        """Note that a client polled the job and will probably poll again: previews are made for `POLL_SECONDS`."""
        self._polled = self._clock()

    async def result(self) -> Finished:
        """Wait for the end of the job and return its result.

        Raises:
            RequestError: the job failed or was cancelled.
        """
        while not self.state.is_final:
            await self.changes.wait()
        if self.finished is None:
            assert self.error is not None  # an ended job has one of the two
            raise self.error.to_keep()
        return self.finished

    def follow(self, heartbeat: float) -> AsyncGenerator[JobEvent, None]:
        """Yield the present state and every change until the job ends, see `following.follow`. Previews are made meanwhile."""
        return follow(self, heartbeat)

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Count as a follower inside the block."""
        self._followers += 1
        try:
            yield
        finally:
            self._followers -= 1

    def coming(self) -> asyncio.Future[None]:
        """Return what is done at the next change."""
        return self.changes.next()

    def event(self, previews: int) -> JobEvent:
        """Return the present state; with its preview if there have been more than `previews`."""
        if self.finished is not None:
            return Done(self.finished)
        if self.error is not None:
            return Failed(self.error)
        if self.state is JobState.QUEUED:
            return Queued(self.position)
        return Stepped(self.step, self.steps, self.preview if self.previews > previews else None)

    # --- state changes, made by the queue

    def set_position(self, position: int) -> None:
        """Set the number of jobs that wait before this one."""
        if position != self.position:
            self.position = position
            self._changed()

    def take_second_turn(self) -> None:
        """Note that another version is to draw it."""
        if not self.second_turn.is_taken:
            self.second_turn.is_taken, self.second_turn.trial, self.trial = True, self.trial, ""

    def begin(self) -> None:
        """Change to `RUNNING`."""
        self.state = JobState.RUNNING
        self._begun = self._clock()
        self.phases.append(Phase("queue", self._waiting_from, self._begun))
        self._changed()

    def restart(self) -> None:
        """Begin again while it runs: another version draws it."""
        self.step, self.preview = 0, None
        self._begun = self._clock()
        self._changed()

    def wait_again(self) -> None:
        """Change back to `QUEUED`: what was made so far is not usable."""
        self.state, self.lease, self.key, self.parameters, self.signer = JobState.QUEUED, None, None, None, None
        self.by_share = None
        self.step, self.preview, self.pictures = 0, None, ()
        self._waiting_from = self._clock()
        self._changed()

    def assign(self, key: VersionKey, parameters: "GenerationParameters") -> None:
        """Note which version makes its images, and from what."""
        self.key, self.parameters = key, parameters
        if self.lease is not None:
            self.signer, self.by_share = self.lease.signer, self.lease.by_share
        self._changed()

    def advance(self, step: int, preview: bytes | None = None) -> None:
        """Set the number of steps that are done, and the preview after that step (a JPEG file)."""
        if self.state is not JobState.RUNNING:
            return
        self._first_step = self._first_step if self.step else (self._clock(), step)
        self.step = max(self.step, step)
        if preview is not None:
            self.preview = preview
            self.previews += 1
        self._changed()

    def add_picture(self, picture: Picture) -> None:
        """Add a picture that is stored. After the job's end (it was cancelled), one that only the job would have is dropped."""
        if self.state.is_final:
            if picture.name is None:
                return
            picture = replace(picture, file=None)
        self.pictures = (*self.pictures, picture)
        self._changed()

    def note_timeout(self, error: RequestError) -> None:
        """Note that the client got this error because the time limit passed: the cancellation that follows ends the job
        as `FAILED` with this error."""
        self._timeout = error

    def finish(self, finished: Finished) -> None:
        """Change to `DONE`; ignored if the job has ended."""
        if not self.state.is_final:
            self.pictures = finished.pictures
        self._end(JobState.DONE, finished, None)

    def fail(self, error: RequestError) -> None:
        """Change to `FAILED`; ignored if the job has ended."""
        self._end(JobState.FAILED, None, error)

    def cancel(self) -> None:
        """End the job now; the generation stops between two denoising steps. Ignored if the job has ended."""
        self._cancelled.set()
        if self._timeout is not None:
            self._end(JobState.FAILED, None, self._timeout)
            return
        error = RequestError("cancelled", "the job was cancelled")
        self._end(JobState.CANCELLED, None, error)

    def stored_name(self, picture: Picture) -> str | None:
        """Return the name under which the history has one of the job's images now; None if it does not have it, or no longer has it."""
        return picture.name if picture.name is not None and self.has_image(picture.name) else None

    def drop_files(self, *, also_unsaved: bool) -> None:
        """Drop the bytes of the images that the history has, or of all images."""
        self.pictures = tuple(
            replace(picture, file=None) if also_unsaved or self.stored_name(picture) is not None else picture
            for picture in self.pictures
        )
        if self.finished is not None:
            self.finished = replace(self.finished, pictures=self.pictures)

    @property
    def kept_bytes(self) -> int:
        """Bytes of the images that the job itself keeps."""
        return sum(len(picture.file or b"") for picture in self.pictures)

    def _changed(self) -> None:
        self.revision += 1
        self.changes.fire()
        self.audience.changes.fire()
        for pulse in self.pulses:
            pulse.fire()

    def _end(self, state: JobState, finished: Finished | None, error: RequestError | None) -> None:
        if self.state.is_final:
            return
        self.state, self.finished = state, finished
        self.error = None if error is None else error.to_keep()
        self.preview = self.source = self.loras = None
        self.seconds = self.age
        self._changed()
        self._ended(self)
