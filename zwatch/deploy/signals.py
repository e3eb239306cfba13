"""Signals that end a command in order: raised as exceptions that are not lost, and put off while a few writes belong together."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from zwatch.errors import Ended

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ending:
    """Ends a command at SIGINT, SIGTERM and SIGHUP by an exception, so that what is half written is removed.

    The interpreter drops an exception that a handler raises while a callback of a weak reference or a finalizer runs. So
    `check` raises it again.
    """

    def __init__(self) -> None:
        self._number = 0
        for number in _NUMBERS:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):  # not under nohup
                signal.signal(number, self._end)

    def _end(self, number: int, frame: FrameType | None) -> None:
        self._number = number
        self.check()

    def check(self) -> None:
        """Raise Ended if one of the signals came."""
        if self._number:
            raise Ended(self._number)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put off Ctrl-C and an orderly end until the block has ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []

    def put_off(number: int, frame: FrameType | None) -> None:
        pending.append(number)

    before = {
        number: signal.signal(number, put_off)
        for number in _NUMBERS
        if signal.getsignal(number) is not None  # a handler that is not Python's
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for late in pending:
            signal.raise_signal(late)
