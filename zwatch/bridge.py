"""The one bridge between the event loop and threads.

The event loop alone changes what serves and every state, so none of that needs a lock. Whatever blocks (disk, hashing,
imports, the device, image encoding) runs in a lane: a thread pool of its own, so that a slow disk read never waits
behind a generation. Results come back as awaited values; progress comes through `post`.
"""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, ParamSpec, TypeVar, TypeVarTuple

P = ParamSpec("P")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

Lane = Literal["look", "state", "load", "pin", "generate", "encode", "history", "inspect", "close"]
_WIDTHS: dict[Lane, int] = {
    "look": 1, "state": 1, "load": 1, "pin": 1, "generate": 1, "encode": 2, "history": 1, "inspect": 2, "close": 1,
}  # fmt: skip


class Bridge:
    """Runs functions in threads for the event loop that made it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._lanes = {
            lane: ThreadPoolExecutor(width, thread_name_prefix=f"zwatch-{lane}") for lane, width in _WIDTHS.items()
        }

    async def run(self, lane: Lane, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a blocking function in a lane and return what it returns."""
        context = contextvars.copy_context()
        return await self._loop.run_in_executor(self._lanes[lane], lambda: context.run(function, *args, **kwargs))

    def post(self, function: Callable[[*Ts], object], *args: *Ts) -> None:
        """Call a function on the event loop soon; any thread may call this. Ignored if the loop has ended."""
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            pass

    def close(self) -> None:
        """Wait for running functions to finish and accept no more."""
        for pool in self._lanes.values():
            pool.shutdown(wait=True, cancel_futures=True)


class Pulse:
    """Wakes all tasks that wait for the next change. Fired on the event loop only."""

    def __init__(self) -> None:
        self._next: asyncio.Future[None] | None = None

    def fire(self) -> None:
        """Wake all waiting tasks."""
        if self._next is not None and not self._next.done():
            self._next.set_result(None)
        self._next = None

    def next(self) -> asyncio.Future[None]:
        """Return a future that is done at the next firing. Await it shielded: it is shared.

        Take it before reading the state, so that no change between the two is missed.
        """
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        return self._next

    async def wait(self) -> None:
        """Return at the next firing."""
        await asyncio.shield(self.next())
