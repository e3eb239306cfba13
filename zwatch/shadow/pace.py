"""Python work beside images being made, such that they do not notice."""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch.overrides import TorchFunctionMode

BURST = 0.0005
"""Seconds from one pause to the next."""
PAUSE = 0.001
"""Seconds of a pause: twice a burst, so that images being made have the interpreter most of the time."""


class GivingWay(TorchFunctionMode):
    """Inside, this thread's calls of torch pause now and then while `busy` says so.

    Two threads that both call torch without pause hand the interpreter's lock to each other at every call, and each
    then waits for the other far longer than the calls themselves take. Whoever makes an image is so far ahead of the
    device that short bursts beside it cost nothing, but one long stretch does.
    """

    def __init__(self, busy: Callable[[], bool]) -> None:
        super().__init__()
        self._busy = busy
        self._paused = time.perf_counter()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call it, perhaps after a pause."""
        if time.perf_counter() - self._paused > BURST:
            if self._busy():
                time.sleep(PAUSE)
            self._paused = time.perf_counter()
        return func(*args, **(kwargs or {}))
