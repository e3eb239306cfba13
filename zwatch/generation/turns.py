"""The turns of jobs: which of them are drawn now, one on each device that draws."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zwatch.generation.job import Job


class Turns:
    """The jobs that are drawn now, each in a task of its own."""

    def __init__(self) -> None:
        self.capacity: Callable[[], int] = lambda: 1
        """How many jobs can be drawn at the same time."""
        self._tasks: dict[Job, asyncio.Task[None]] = {}
        self._failure: Exception | None = None

    @property
    def jobs(self) -> "list[Job]":
        """The jobs that are drawn now, in the order in which they were begun."""
        return list(self._tasks)

    @property
    def free(self) -> int:
        """How many more could be drawn now."""
        return max(0, self.capacity() - len(self._tasks))

    def begin(self, job: "Job", drawing: Coroutine[Any, Any, None]) -> None:
        """Give a job its turn."""
        self._tasks[job] = asyncio.create_task(drawing, name="draw")

    def end(self, job: "Job") -> None:
        """End a job's turn."""
        del self._tasks[job]

    def fail(self, error: Exception) -> None:
        """Note an error of a turn that was not meant to have one."""
        self._failure = error

    def check(self) -> None:
        """Raise the error of a turn, if there was one: nothing is left that could be answered."""
        if self._failure is not None:
            raise self._failure

    def seconds_until_room(self, pace: float, waiting: float) -> float:
        """Estimate when a client that is refused now finds room: when what runs and half of what waits is done. `pace` is in seconds for
        each megapixel x step x image, `waiting` how many of those wait."""
        rest = [job.remaining or pace * job.work for job in self._tasks]
        return min(rest, default=0.0) + pace * waiting / 2 / self.capacity()

    async def cancel(self) -> None:
        """Cancel all turns, and wait until they have ended."""
        tasks = [*self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
