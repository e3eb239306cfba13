"""The thread of a load: its stages run there one by one, and one that does not get on is given up."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from zwatch.bridge import Begun, Bridge, NoAnswer
from zwatch.errors import Abandoned, Rejection
from zwatch.rollout.lifecycle import Attempt
from zwatch.shadow.control import LoadControl
from zwatch.shadow.faults import described, is_memory_short

_log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

CHECK_SECONDS = 0.1
"""Seconds between two looks at a stage that runs."""


@dataclass(frozen=True, slots=True)
class LoadLimits:
    """How long a load's stage may take, in seconds."""

    stalled: float = 60.0
    """Without a sign of progress: a chunk that was read, a tensor that was built."""
    slow: float = 300.0
    """The same for what shows none: compiling kernels (half a minute the first time), an image on a slow processor."""
    abandoned: float = 2.0
    """From its abandonment until it returns. A chunk takes milliseconds."""
    exchange: float = 60.0
    """The same for an exchange, which puts back what served."""
    unwinding: float = 2.0
    """For a stage that was given up to give back what it holds."""
    again: float = 5.0
    """Until a thread that was left is interrupted, and again from then on."""


class LoadThread:
    """Runs the stages of loads on the lane `load`; called on the event loop. `left` is called when a thread was left."""

    def __init__(self, bridge: Bridge, limits: LoadLimits, left: Callable[[], object]) -> None:
        self.is_stopping = False
        """Whether the service stops: then nothing has to be put back."""
        self.lingering: list[str] = []
        """The versions whose loads were left and have not returned: they still hold memory."""
        self._bridge = bridge
        self._limits = limits
        self._left = left

    async def run(self, attempt: Attempt, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a stage of an attempt in the thread. If it was given up and returns all the same, its result is closed.

        Raises:
            Abandoned: the load was abandoned and the stage did not return.
            Rejection: `stalled`, the stage did not get on; what else the stage raises.
        """
        control = attempt.control
        assert control is not None  # it is made with the attempt of a load
        try:
            begun = self._bridge.begin("load", function, *args, **kwargs)
        except NoAnswer:
            versions = ", ".join(self.lingering)
            raise Rejection("stalled", f"the threads of earlier loads have not returned: {versions}") from None
        control.got_on = time.monotonic()
        try:
            if (end := await self._watch(begun, control, is_exchange=function.__name__ == "exchange")) is None:
                return begun.future.result()
            await self._give_up(begun, attempt, control, end)
            raise end
        finally:
            del begun  # an error's frames, of which this is one, hold the memory of a failed load

    def explained(self, rejection: Rejection) -> Rejection:
        """Return a rejection, and where memory was lacking, which loads still hold some though they were given up."""
        if not self.lingering or rejection.code not in ("insufficient_memory", "out_of_memory"):
            return rejection
        held = f"; {', '.join(self.lingering)} still hold memory: their loads were given up and have not returned"
        return Rejection(rejection.code, rejection.reason + held)

    async def _watch(self, begun: Begun[R], control: LoadControl, *, is_exchange: bool) -> Abandoned | Rejection | None:
        """Wait for a stage; return None when it has returned, or why it has to be given up."""
        abandoned = math.inf
        while not begun.future.done():
            await asyncio.wait([begun.future], timeout=CHECK_SECONDS)
            now, limits = time.monotonic(), self._limits
            if not begun.has_begun:
                control.got_on = now  # it waits for another load's stage
            if control.is_abandoned:
                abandoned = min(abandoned, now)
                if now - abandoned > (limits.exchange if is_exchange and not self.is_stopping else limits.abandoned):
                    return Abandoned()
            elif now - control.got_on > (limit := limits.slow if control.is_slow else limits.stalled):
                return Rejection("stalled", _stalled(control, limit))
        return None

    async def _give_up(
        self, begun: Begun[R], attempt: Attempt, control: LoadControl, end: Abandoned | Rejection
    ) -> None:
        """End a stage that does not get on, or leave its thread."""
        control.abandon()
        if isinstance(end, Rejection):
            begun.interrupt()
            await asyncio.wait([begun.future], timeout=self._limits.unwinding)
        version = attempt.key.version
        control.is_left = not begun.future.done()
        if control.is_left:
            self.lingering.append(version)
            self._left()
            _log.warning("the load of %s does not return; going on without it (%s)", version, control.activity)
            self._interrupt_later(begun)
        begun.leave(lambda result: self._bridge.post(self._returned, control, version, result))

    def _returned(self, control: LoadControl, version: str, result: object) -> None:
        if control.is_left:
            self.lingering.remove(version)
            _log.info("the load of %s that did not return has ended", version)
        if (close := getattr(result, "close", None)) is not None:  # an engine or a directory
            self._bridge.begin("close", close)

    def _interrupt_later(self, begun: Begun[R]) -> None:
        def interrupt() -> None:
            if not begun.has_ended:
                begun.interrupt()
                self._interrupt_later(begun)

        asyncio.get_running_loop().call_later(self._limits.again, interrupt)


def rejection_of(version: str, error: Exception) -> Rejection:
    """Return the rejection for what has ended a load of a version."""
    if isinstance(error, Rejection):
        return error
    if isinstance(error, OSError):
        where = f"{error.filename}: " if isinstance(error.filename, str) else ""
        return Rejection("io_error", f"{version}: {where}{error.strerror or error}")
    if is_memory_short(error):
        return Rejection("out_of_memory", f"{version}: {described(error)}")
    _log.error("load failed unexpectedly", exc_info=error)
    return Rejection("internal_error", described(error))


def _stalled(control: LoadControl, limit: float) -> str:
    read = f" ({control.bytes_done} of {control.bytes_total} bytes were read)" if control.bytes_total else ""
    return (
        f"{control.activity} did not get on for {limit:g} s{read} and was given up; expected progress: check the disk or "
        "file server that has the version"
    )
