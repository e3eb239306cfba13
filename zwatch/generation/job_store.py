"""The jobs that can be asked about: all that wait or run, and for a while those that have ended."""

import time
from collections import OrderedDict
from collections.abc import Callable

from zwatch.errors import RequestError
from zwatch.generation.job import Job

KEEP_SECONDS = 3600.0
KEEP_JOBS = 1000
KEEP_BYTES = 256 * 2**20
"""Most bytes of pictures that ended jobs hold in memory, where the history has them not. The oldest go first."""


class JobStore:
    """Finds jobs by their id. Ended ones stay an hour, 1,000 at most."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: dict[str, Job] = {}
        self._ended: OrderedDict[str, tuple[float, Job]] = OrderedDict()
        self._bytes = 0

    def add(self, job: Job) -> None:
        """Know a job that was accepted."""
        self._open[job.id] = job
        self._forget_old()

    def find(self, identity: str) -> Job:
        """Return a job.

        Raises:
            RequestError: 404, there is none of that id, or not any more.
        """
        self._forget_old()
        job = self._open.get(identity)
        if job is None and identity in self._ended:
            job = self._ended[identity][1]
        if job is None:
            raise RequestError(
                "not_found",
                f"there is no job {identity[:100]!r}; ended ones are kept an hour, {KEEP_JOBS} at most",
            )
        return job

    @property
    def unsettled(self) -> list[Job]:
        """All that have not ended, or that a client still waits for."""
        return list(self._open.values())

    def settle(self, job: Job) -> None:
        """Put a job that has ended, and that no client waits for, among those that are forgotten in time."""
        if self._open.pop(job.id, None) is None:
            return
        job.let_go_of_files(all_of_them=not job.keeps_files)
        self._ended[job.id] = (self._clock(), job)
        self._bytes += job.kept_bytes
        self._forget_old()
        if self._bytes > KEEP_BYTES:
            self._drop_files()

    def _forget_old(self) -> None:
        now = self._clock()
        while self._ended:
            ended, job = next(iter(self._ended.values()))
            if len(self._ended) <= KEEP_JOBS and now - ended < KEEP_SECONDS:
                return
            self._bytes -= job.kept_bytes
            del self._ended[job.id]

    def _drop_files(self) -> None:
        for _, job in self._ended.values():
            self._bytes -= job.kept_bytes
            job.let_go_of_files(all_of_them=True)
            if self._bytes <= KEEP_BYTES:
                return
