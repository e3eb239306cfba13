"""The jobs that clients can query: all waiting and running ones, and for an hour those that have ended."""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from zwatch.errors import RequestError
from zwatch.generation.client_jobs import ClientJobs
from zwatch.generation.job import Job

KEEP_SECONDS = 3600.0
KEEP_JOBS = 1000
KEEP_BYTES = 256 * 2**20
"""Most bytes of images that ended jobs keep in memory if the history has not stored them. The oldest are dropped first."""


class JobStore:
    """Finds jobs by their id. Ended jobs are kept for `KEEP_SECONDS`, `keep_jobs` of them and `keep_bytes` of images at
    most."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        keep_jobs: int = KEEP_JOBS,
        keep_bytes: int = KEEP_BYTES,
    ) -> None:
        self._clock = clock
        self.keep_jobs = keep_jobs
        self.keep_bytes = keep_bytes
        self._open: dict[str, Job] = {}
        self._ended: OrderedDict[str, tuple[float, Job]] = OrderedDict()
        self._bytes = 0
        self._clients: dict[str, ClientJobs] = {}

    def add(self, job: Job) -> None:
        """Add an accepted job."""
        self._open[job.id] = job
        if job.client_name is not None:
            self._clients.setdefault(job.client_name, ClientJobs()).add(job)
        self._expire()

    def find(self, identity: str) -> Job:
        """Return a job.

        Raises:
            RequestError: 404, there is no job with that id, or it is no longer kept.
        """
        self._expire()
        job = self._open.get(identity)
        if job is None and identity in self._ended:
            job = self._ended[identity][1]
        if job is None:
            raise RequestError(
                "not_found",
                f"there is no job {identity[:100]!r}; ended ones are kept an hour, {self.keep_jobs} at most",
            )
        return job

    def of_client(self, name: str) -> list[Job]:
        """Return the jobs of a client, oldest first."""
        self._expire()
        return list(self._clients[name].jobs.values()) if name in self._clients else []

    @contextmanager
    def following(self, name: str) -> Iterator[ClientJobs]:
        """Count as a follower of a client's jobs inside the block."""
        self._expire()
        client = self._clients.setdefault(name, ClientJobs())
        client.audience.followers += 1
        try:
            yield client
        finally:
            client.audience.followers -= 1
            self._forget(name)

    @property
    def unsettled(self) -> list[Job]:
        """All jobs that have not ended or that a client still waits for."""
        return list(self._open.values())

    @property
    def ended(self) -> list[tuple[float, Job]]:
        """All jobs that have ended and are kept, oldest first, each with the seconds since its end."""
        self._expire()
        now = self._clock()
        return [(now - ended, job) for ended, job in self._ended.values()]

    def adopt(self, job: Job, ended_ago: float) -> None:
        """Add a job that ended some seconds ago in another process."""
        self.add(job)
        self.settle(job, ended_ago)
        # Sorted already, but for this one: the first to have ended is the first to be forgotten.
        self._ended = OrderedDict(sorted(self._ended.items(), key=lambda item: item[1][0]))

    def settle(self, job: Job, ended_ago: float = 0.0) -> None:
        """Move a job that has ended, and that no client waits for, to the jobs that expire."""
        if self._open.pop(job.id, None) is None:
            return
        job.drop_files(also_unsaved=not job.keeps_files)
        self._ended[job.id] = (self._clock() - ended_ago, job)
        self._bytes += job.kept_bytes
        self._expire()
        if self._bytes > self.keep_bytes:
            self._drop_files()

    def _expire(self) -> None:
        now = self._clock()
        while self._ended:
            ended, job = next(iter(self._ended.values()))
            if len(self._ended) <= self.keep_jobs and now - ended < KEEP_SECONDS:
                return
            self._bytes -= job.kept_bytes
            del self._ended[job.id]
            if job.client_name is not None:
                del self._clients[job.client_name].jobs[job.id]
                self._forget(job.client_name)

    def _forget(self, name: str) -> None:
        """Forget a client without jobs that nobody follows."""
        if self._clients[name].is_idle:
            del self._clients[name]

    def _drop_files(self) -> None:
        for _, job in self._ended.values():
            self._bytes -= job.kept_bytes
            job.drop_files(also_unsaved=True)
            if self._bytes <= self.keep_bytes:
                return
