"""Python work at the same time as image generation, without slowing that down."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode

BURST = 0.0005
"""Least seconds from one pause to the next; longer where the code between does not call torch."""
LONGEST = 0.1
"""Longest pause, seconds: urgent work must not stop a load for good."""


class GivingWay(TorchFunctionMode):
    """Inside, this thread's calls of torch pause regularly: while `busy`, for as long as they worked before; while
    `urgent`, until it no longer is. Before each pause `check` is called, which may raise to stop.

    Two threads that both call torch without pause pass the interpreter's lock to each other at every call, and each
    then waits for the other far longer than the calls themselves take. The thread that makes an image is so far ahead of
    the device that short bursts of another thread cost nothing, but one long burst does.
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
        """Call `func`, after a pause if one is due."""
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
