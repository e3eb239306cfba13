"""The one bridge between the event loop and threads.

The event loop alone changes what serves and every state, so none of that needs a lock. Whatever blocks (disk, hashing,
imports, the device, image encoding) runs in a lane: threads of its own, so that a slow disk read never waits behind a
generation. Results come back as awaited values; progress comes through `post`.

Nothing waits for ever: a call that does not return within its lane's limit is left. Its thread lingers, and another takes
its place.
"""

import asyncio
import contextvars
import errno
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, ParamSpec, TypeVar, TypeVarTuple

from zwatch.lanes import Lane as Threads

P = ParamSpec("P")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")

Lane = Literal[
    "look",
    "state",
    "import",
    "load",
    "pin",
    "generate",
    "lora",
    "encode",
    "decode",
    "history",
    "loras",
    "inspect",
    "device",
    "thumbnail",
    "search",
    "votes",
    "memory",
    "verify",
    "watch",
    "close",
]


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """How many threads a lane has; the seconds after which a call is left (None: its caller decides); how many calls that were
    left may linger before new ones are refused, 1 where no two calls may run at the same time; the threads' nice value; and whether
    a call may have those seconds from when it begins, and so many before, in which it waits for others."""

    width: int = 1
    seconds: float | None = None
    most_left: int = 1
    nice: int = 0
    waits: bool = False

    @property
    def is_exclusive(self) -> bool:
        """Whether no two calls may run at the same time."""
        return self.width == self.most_left == 1


LANES: dict[Lane, LaneLimits] = {
    "look": LaneLimits(seconds=60.0),
    "state": LaneLimits(seconds=5.0),
    "import": LaneLimits(),
    "load": LaneLimits(most_left=4),
    "pin": LaneLimits(),
    "generate": LaneLimits(most_left=4),
    "lora": LaneLimits(seconds=60.0, most_left=4, waits=True),
    "encode": LaneLimits(width=2),
    "decode": LaneLimits(width=2, seconds=30.0, most_left=4, nice=5, waits=True),
    "history": LaneLimits(seconds=20.0),
    "loras": LaneLimits(seconds=20.0),
    "inspect": LaneLimits(width=4, seconds=10.0, most_left=8),
    "device": LaneLimits(seconds=30.0),  # whether it answers: in milliseconds if it works. Nothing else waits here
    "thumbnail": LaneLimits(width=2, seconds=20.0, most_left=4, nice=10),
    "search": LaneLimits(seconds=20.0),
    "votes": LaneLimits(seconds=20.0),
    "memory": LaneLimits(seconds=10.0),
    "verify": LaneLimits(seconds=600.0),
    "watch": LaneLimits(seconds=3.0),
    "close": LaneLimits(seconds=30.0, most_left=8),
}
CLOSE_SECONDS = 2.0
"""Seconds that a stop waits for calls that have begun."""


class NoAnswer(TimeoutError):
    """A call did not return in time. An `OSError`: what it waited for, a disk or a device, does not answer. `has_begun` says whether the
    call itself took the time; else earlier ones did."""

    def __init__(self, lane: str, seconds: float | None, *, has_begun: bool = False) -> None:
        within = "an earlier call still waits" if seconds is None else f"nothing came back within {seconds:g} s"
        super().__init__(errno.ETIMEDOUT, f"no answer: {within}")
        self.lane = lane
        self.has_begun = has_begun


class Begun(Generic[R]):
    """A call that was begun in a lane; `future` gets its result. Its caller may leave it."""

    def __init__(self, threads: Threads, future: Future[R]) -> None:
        self.future = asyncio.wrap_future(future)
        self._threads = threads
        self._in_thread = future

    def interrupt(self) -> None:
        """End a loop of Python code in the call, see `Lane.interrupt`."""
        self._threads.interrupt(self._in_thread)

    @property
    def stack(self) -> str:
        """Where its thread is, as in a traceback."""
        return self._threads.stack(self._in_thread)

    @property
    def has_begun(self) -> bool:
        """Whether it waits for no other call."""
        return self._in_thread.running() or self._in_thread.done()

    @property
    def has_ended(self) -> bool:
        """Whether its thread is done with it."""
        return self._in_thread.done()

    def leave(self, late: Callable[[R | None], object] = lambda result: None) -> None:
        """Stop waiting, and let others run in the lane. When the call ends, `late` gets its result, or None if it has none;
        in the call's thread, or at once if it has ended."""
        self._threads.leave(self._in_thread)
        self._in_thread.add_done_callback(partial(_give, late))
        self.future.cancel()


class Bridge:
    """Runs functions in threads for the event loop that made it. `limits` replaces those of some lanes."""

    def __init__(self, limits: dict[Lane, LaneLimits] | None = None) -> None:
        self.on_error: Callable[[BaseException], object] = lambda error: None
        """Called with each error of a call, in the call's thread, whoever handles it. It must not keep it: its frames hold the
        memory of a failed load."""
        self._loop = asyncio.get_running_loop()
        self._limits = LANES | (limits or {})
        self._lanes = {
            lane: Threads(lane, limits.width, is_exclusive=limits.is_exclusive, nice=limits.nice)
            for lane, limits in self._limits.items()
        }

    def begin(self, lane: Lane, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Begun[R]:
        """Run a blocking function in a lane; for callers that decide themselves how long to wait.

        Raises:
            NoAnswer: too many earlier calls of this lane have not returned.
        """
        threads = self._lanes[lane]
        if threads.left >= self._limits[lane].most_left:
            raise NoAnswer(lane, None)
        context = contextvars.copy_context()
        future = threads.submit(partial(context.run, partial(function, *args, **kwargs)))
        future.add_done_callback(self._note_error)
        return Begun(threads, future)

    def _note_error(self, future: Future[Any]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            try:
                self.on_error(error)
            finally:
                del error

    async def run(self, lane: Lane, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a blocking function in a lane and return what it returns.

        Raises:
            NoAnswer: it did not return within the lane's limit, or too many earlier calls did not.
        """
        limits, started = self._limits[lane], asyncio.Event()
        seconds = limits.seconds
        if limits.waits:
            function = partial(_noted, partial(self.post, started.set), function)
        begun = self.begin(lane, function, *args, **kwargs)
        try:
            if limits.waits:
                with suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await started.wait()
            done, _ = await asyncio.wait([begun.future], timeout=seconds if not limits.waits or started.is_set() else 0)
        except asyncio.CancelledError:
            begun.future.cancel()  # it does not run if it has not begun
            raise
        try:
            if not done:
                has_begun = started.is_set() if limits.waits else begun.has_begun
                begun.leave()
                raise NoAnswer(lane, seconds, has_begun=has_begun)
            return begun.future.result()
        finally:
            del begun, done  # an error's frames, of which this is one, hold the memory of a failed load

    def left(self, lane: Lane) -> int:
        """Return how many calls of a lane were left and have not returned."""
        return self._lanes[lane].left

    def post(self, function: Callable[[*Ts], object], *args: *Ts) -> None:
        """Call a function on the event loop soon; any thread may call this. Ignored if the loop has ended."""
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            pass

    @property
    def is_busy(self) -> bool:
        """Whether a call runs that was not left."""
        return any(threads.running for threads in self._lanes.values())

    def close(self, seconds: float = CLOSE_SECONDS) -> list[str]:
        """Accept no more functions, wait for those that run, and return the lanes of those that do not end in time."""
        for threads in self._lanes.values():
            threads.close()
        end = time.monotonic() + seconds
        while self.is_busy and time.monotonic() < end:
            time.sleep(0.005)
        return [lane for lane, threads in self._lanes.items() if threads.running or threads.left]


def _noted(begins: Callable[[], object], function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    begins()
    return function(*args, **kwargs)


def _give(late: Callable[[R | None], object], future: Future[R]) -> None:
    late(None if future.cancelled() or future.exception() is not None else future.result())


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
