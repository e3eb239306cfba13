"""Progress as the protocol wants it, and waiting for the service without holding up other calls."""

import math
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import anyio.to_thread
from mcp.server import ServerRequestContext

P = ParamSpec("P")
R = TypeVar("R")


async def in_thread(function: Callable[P, R], *arguments: P.args, **names: P.kwargs) -> R:
    """Return what a function returns that waits for the service. Cancelling abandons its thread."""
    return await anyio.to_thread.run_sync(lambda: function(*arguments, **names), abandon_on_cancel=True)


class Meter:
    """Reports the progress of a call. Each report is more than the one before, as the protocol demands: what takes long without
    a step, the queue or a load, comes nearer to the next whole number and does not reach it."""

    def __init__(self, context: ServerRequestContext[Any]) -> None:
        self._session = context.session
        self._last = 0.0

    async def report(self, done: float, total: float | None, what: str) -> None:
        """Say that `done` of `total` is done, and what is being done. Nothing is sent to a client that did not ask for it."""
        between = self._last + (math.floor(self._last) + 1 - self._last) / 20
        self._last = max(done, between)
        await self._session.report_progress(self._last, total, what)
