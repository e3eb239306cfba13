"""The jobs of one client that names itself: a page that is closed and opened again finds them, and follows all of them at
once."""

from collections.abc import Iterator
from typing import NamedTuple

from zwatch.generation.job import Audience, Job


class ClientJobs:
    """A client's jobs that are kept, by id, oldest first."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}
        self.audience = Audience()

    def add(self, job: Job) -> None:
        """Add an accepted job."""
        self.jobs[job.id] = job
        job.audience = self.audience
        self.audience.changes.fire()

    @property
    def is_idle(self) -> bool:
        """Whether it has no jobs, and nobody follows them."""
        return not self.jobs and not self.audience.followers


class _Told(NamedTuple):
    """What a follower was told of a job: its revision, and how many previews there had been."""

    revision: int
    previews: int


class Follower:
    """Tells one follower which of a client's jobs have changed. It gets only the newest state of each, not every change."""

    def __init__(self, client: ClientJobs) -> None:
        self._client = client
        self._told: dict[str, _Told] = {}

    def news(self) -> Iterator[tuple[Job, bool]]:
        """Give each job that has changed since the last time, and whether its preview is new; at first all jobs."""
        jobs = self._client.jobs
        self._told = {identity: told for identity, told in self._told.items() if identity in jobs}
        for job in list(jobs.values()):
            told = self._told.get(job.id, _Told(-1, 0))
            if job.revision != told.revision:
                self._told[job.id] = _Told(job.revision, job.previews)
                yield job, job.previews > told.previews
