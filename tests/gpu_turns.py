"""Turns of the processes of one test run on the GPU that they share."""

import fcntl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ENTRANCE, _INSIDE = Path(__file__), Path(__file__).with_name("conftest.py")
"""Files whose locks are taken; nothing is written to them."""
COMPILING_SECONDS = 120
"""Longest wait for kernels that a test left compiling."""


@contextmanager
def turn(*, alone: bool) -> Iterator[None]:
    """Use the GPU inside: beside others, or alone, as a test does that takes its whole memory or counts what is free. Who finds no
    memory draws on another way (`zwatch.engine.decoding`), whose pixels differ by a little."""
    with _ENTRANCE.open() as entrance, _INSIDE.open() as inside:
        # Who waits for the end of all others stands in the entrance: nobody passes, or it would wait for ever.
        fcntl.flock(entrance, fcntl.LOCK_EX)
        fcntl.flock(inside, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(entrance, fcntl.LOCK_UN)
        yield


def wait_for_kernels() -> None:
    """Wait for the threads in which the devices of a test compile: they allocate memory."""
    for thread in threading.enumerate():
        if thread.name.startswith("zwatch-kernels"):
            thread.join(COMPILING_SECONDS)
