"""Signals that end a command in order: raised as exceptions that are not lost, and put off while a few writes belong together."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from zwatch.errors import Ended

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ending:
    """Ends a command at SIGINT, SIGTERM and SIGHUP by an exception, so that what is half written is removed; from `put_off` on they
    wait. Handlers that are not the interpreter's own stay: under nohup, SIGHUP is ignored.

    The interpreter drops an exception that a handler raises while a callback of a weak reference or a finalizer runs. So
    `check`, `put_off` and `go_on` raise it again.
    """

    def __init__(self) -> None:
        self._number = 0
        self._waits = False
        self._before: dict[int, Any] = {}
        if threading.current_thread() is not threading.main_thread():  # no other gets signals
            return
        for number in _NUMBERS:
            handler = signal.getsignal(number)
            if handler in (signal.SIG_DFL, signal.default_int_handler) or _is_of_another(handler):
                self._before[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._number = self._number or number
        self.check()

    def check(self) -> None:
        """Raise what a signal asks for, unless it waits.

        Raises:
            Ended: one of the signals came.
        """
        if self._number and not self._waits:
            raise Ended(self._number)

    def put_off(self) -> None:
        """Let signals wait from now on, until `go_on`, or for ever: `zwatch.__main__` ignores them at the end.

        Raises:
            Ended: as `check`.
        """
        self.check()
        self._waits = True

    def go_on(self) -> None:
        """Let signals act again.

        Raises:
            Ended: one came meanwhile.
        """
        self._waits = False
        self.check()

    @contextmanager
    def uninterrupted(self) -> Iterator[None]:
        """Let signals wait until the block has ended.

        Raises:
            Ended: as `put_off` and `go_on`.
        """
        self.put_off()
        try:
            yield
        finally:
            self.go_on()

    def close(self) -> None:
        """Let the signals be handled as before."""
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._note:
                signal.signal(number, handler)
        self._before.clear()


def _is_of_another(handler: Any) -> bool:
    """Say whether a handler is that of another command, which ran in this process before."""
    return isinstance(getattr(handler, "__self__", None), Ending)
