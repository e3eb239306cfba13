"""A comparison: the same request to several models. Each is a job of its own, with its own lease, so every image is drawn wholly by
one version; together they are followed, cancelled and answered as one.

It has no state beside its jobs, and its id is theirs: whoever has the jobs, as another process after a handover, has the comparison.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING

from zwatch.bridge import Pulse
from zwatch.errors import RequestError
from zwatch.generation.fields import invalid
from zwatch.generation.job import Job
from zwatch.generation.job_events import Done, Failed, JobEvent, JobState, Queued, Stepped
from zwatch.generation.request import MAX_MODELS, GenerateRequest

if TYPE_CHECKING:
    from zwatch.generation.job_store import JobStore
    from zwatch.generation.loras import JobLoras
    from zwatch.generation.queue import GenerationQueue
    from zwatch.generation.sources import Source

_BETWEEN = "."
"""Between the ids of the jobs in the id of a comparison."""


class Comparison:
    """The jobs of one request, in the order of its models."""

    def __init__(self, jobs: Sequence[Job]) -> None:
        self.jobs = tuple(jobs)
        self._changes = Pulse()

    @property
    def id(self) -> str:
        """Its id, by which `found` finds it again."""
        return _BETWEEN.join(job.id for job in self.jobs)

    @property
    def created(self) -> datetime:
        """When it was accepted."""
        return self.jobs[0].created

    @property
    def state(self) -> JobState:
        """`FAILED` or `CANCELLED` as soon as one job is, `DONE` when all are; `QUEUED` until the first runs."""
        states = [job.state for job in self.jobs]
        for ending in (JobState.FAILED, JobState.CANCELLED):
            if ending in states:
                return ending
        return states[0] if len(set(states)) == 1 else JobState.RUNNING

    @property
    def failed(self) -> Job | None:
        """The first job that ended it with an error; None if there is none."""
        state = self.state
        return next((job for job in self.jobs if job.state is state and job.error is not None), None)

    @property
    def error(self) -> RequestError | None:
        """The error that ended it, with the name of the model that it came from; None if there is none."""
        if (job := self.failed) is None or job.error is None:
            return None
        return job.error if job.state is JobState.CANCELLED else _named(job, job.error)

    @property
    def position(self) -> int:
        """How many jobs wait before its next one."""
        return min((job.position for job in self.jobs if job.state is JobState.QUEUED), default=0)

    @property
    def step(self) -> int:
        """How many steps are done, over all images of all models."""
        return sum(job.steps if job.state is JobState.DONE else job.step for job in self.jobs)

    @property
    def steps(self) -> int:
        """How many steps there are."""
        return sum(job.steps for job in self.jobs)

    @property
    def preview(self) -> bytes | None:
        """The preview of the job that runs, a JPEG file."""
        return next((job.preview for job in self.jobs if job.state is JobState.RUNNING), None)

    @property
    def previews(self) -> int:
        """How many previews there have been."""
        return sum(job.previews for job in self.jobs)

    @property
    def remaining(self) -> float | None:
        """Estimated seconds for the remaining steps of the job that runs, as if it were alone; None before its first step."""
        return next((job.remaining for job in self.jobs if job.state is JobState.RUNNING), None)

    @property
    def lateness(self) -> str:
        """Which models are not done."""
        late = [job.request.model for job in self.jobs if job.state is not JobState.DONE]
        return f"{' and '.join(late)} {'was' if len(late) == 1 else 'were'} not done"

    def note_poll(self) -> None:
        """Note that a client polled it, see `Job.note_poll`."""
        for job in self.jobs:
            job.note_poll()

    def note_timeout(self, error: RequestError) -> None:
        """Note that the client got this error because the time limit passed, see `Job.note_timeout`."""
        for job in self.jobs:
            job.note_timeout(error)

    async def result(self) -> None:
        """Wait until all jobs are done.

        Raises:
            RequestError: one failed or was cancelled.
        """
        for job in self.jobs:
            with suppress(RequestError):
                await job.result()
        if (error := self.error) is not None:
            raise error.to_keep()

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Count as a follower of every job inside the block, once at a time."""
        changes = self._changes
        with ExitStack() as stack:
            for job in self.jobs:
                stack.enter_context(job.followed())
                job.pulses += (changes,)
            try:
                yield
            finally:
                for job in self.jobs:
                    job.pulses = tuple(pulse for pulse in job.pulses if pulse is not changes)

    def coming(self) -> asyncio.Future[None]:
        """Return what is done at the next change of a job; to be called inside `followed`."""
        return self._changes.next()

    def event(self, previews: int) -> JobEvent:
        """Return the present state; with a preview if there have been more than `previews`."""
        if (error := self.error) is not None:
            return Failed(error)
        if self.state is JobState.QUEUED:
            return Queued(self.position)
        last = self.jobs[-1].finished
        if self.state is JobState.DONE and last is not None:
            return Done(last)  # that all are: the answer is made of every job
        return Stepped(self.step, self.steps, self.preview if self.previews > previews else None)


def submit_comparison(
    queue: "GenerationQueue",
    requests: Sequence[GenerateRequest],
    *,
    attended: bool,
    keeps_files: bool = False,
    loras: "JobLoras | None" = None,
    source: "Source | None" = None,
) -> Comparison:
    """Accept the request to every model, or none; each changes the same image, if there is one. They count as so much work, and as so many that wait.

    Raises:
        RequestError: as `GenerationQueue.submit`; 400, together they are too much.
    """
    work = sum(queue.check(one, after=number, source=source, loras=loras) for number, one in enumerate(requests))
    if work > queue.max_work:
        raise invalid(
            "model",
            f"by {len(requests)} models it is {work:.4g} megapixel-steps, more than the {queue.max_work:.4g} that --max-work allows: "
            "name fewer models, or ask for fewer images or steps",
        )
    comparison = Comparison(
        [queue.submit(one, attended=attended, keeps_files=keeps_files, source=source, loras=loras) for one in requests]
    )
    for job in comparison.jobs:
        job.together = comparison.jobs
    return comparison


def end_together(queue: "GenerationQueue", job: Job) -> None:
    """Cancel the other jobs of a comparison of which one failed or was cancelled; to be called with each job that ends. Their
    pictures that are drawn already stay in the history."""
    if job.state is not JobState.DONE:
        for other in job.together:
            queue.cancel(other)


@contextmanager
def attending(queue: "GenerationQueue", comparison: Comparison) -> Iterator[None]:
    """Cancel its jobs if this block is left before they have ended, see `GenerationQueue.attending`."""
    with ExitStack() as stack:
        for job in comparison.jobs:
            stack.enter_context(queue.attending(job))
        yield


def found(jobs: "JobStore", identity: str) -> Job | Comparison:
    """Return a job or a comparison.

    Raises:
        RequestError: 404, there is none with that id, or it is no longer kept.
    """
    parts = identity.split(_BETWEEN)
    if len(parts) == 1 or len(parts) > MAX_MODELS:
        return jobs.find(identity)
    return Comparison([jobs.find(part) for part in parts])


def _named(job: Job, error: RequestError) -> RequestError:
    if error.code == "timeout":
        return error  # it names those that were late
    return RequestError(
        error.code, f"{job.request.model}: {error.message}", status=error.status, param=error.param, headers=error.headers, extra=error.extra,
    )  # fmt: skip
