"""Ctrl-C, SIGTERM and SIGHUP while a version is made: before the rename each ends it in order, after it they wait until that is
said."""

import signal
import threading
from types import FrameType
from typing import Any

from zwatch.errors import Ended

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_before: dict[int, Any] = {}
_late: list[int] = []


def end_in_order() -> None:
    """Let SIGTERM and SIGHUP end the command as Ctrl-C does: by an exception, so that what is complete is kept and named."""
    _restore()  # another command may have run in this process
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:  # not under nohup
            _set(number, _end)


def _end(number: int, frame: FrameType | None) -> None:
    raise Ended(number)


def put_off() -> None:
    """Let these signals wait from now on, until `go_on`, or for ever: `zwatch.__main__` ignores them at the end."""
    for number in _NUMBERS:
        if number not in _before and signal.getsignal(number) not in (None, signal.SIG_IGN, signal.SIG_DFL):
            _before[number] = signal.getsignal(number)
            _set(number, lambda number, frame: _late.append(number))


def go_on() -> None:
    """Let these signals act again.

    Raises:
        KeyboardInterrupt: one came meanwhile.
    """
    if late := _restore():
        raise Ended(late[0])


def _restore() -> list[int]:
    """Let the handlers be as before `put_off`, and return which signals came meanwhile."""
    late = list(_late)
    _late.clear()
    while _before:
        _set(*_before.popitem())
    return late


def _set(number: int, handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():  # no other may
        signal.signal(number, handler)
