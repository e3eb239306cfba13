"""Python work beside images being made, such that they do not notice."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode

BURST = 0.0005
"""Seconds from one pause to the next, at least: what does not call torch meanwhile makes it longer."""
LONGEST = 0.1
"""Longest pause, seconds: nobody's hurry may hold up a load for good."""


class GivingWay(TorchFunctionMode):
    """Inside, this thread's calls of torch pause now and then: while `busy`, as long as they worked before; while `urgent`
    until that is over. Before each pause `check` is called, which may raise to stop.

    Two threads that both call torch without pause hand the interpreter's lock to each other at every call, and each
    then waits for the other far longer than the calls themselves take. Whoever makes an image is so far ahead of the
    device that short bursts beside it cost nothing, but one long stretch does.
    """

    def __init__(self, busy: Callable[[], bool], urgent: Callable[[], bool], check: Callable[[], None]) -> None:
        super().__init__()
        self._busy = busy
        self._urgent = urgent
        self._check = check
        self._paused = time.perf_counter()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call it, perhaps after a pause."""
        worked = time.perf_counter() - self._paused
        if worked > BURST or self._urgent():
            self._pause(worked)
            self._paused = time.perf_counter()
        return func(*args, **(kwargs or {}))

    def _pause(self, worked: float) -> None:
        self._check()
        if self._busy():
            time.sleep(min(worked, LONGEST))
        end = time.perf_counter() + LONGEST
        while self._urgent() and time.perf_counter() < end:
            time.sleep(BURST)
