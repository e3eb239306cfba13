"""What a SIGHUP is for."""

import os
from collections.abc import Callable


def has_terminal() -> bool:
    """Return whether this process has a controlling terminal that has not been closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


class Hangup:
    """Decides what a SIGHUP is for: the kernel and the shell send it when the terminal is closed from which the service was
    started, and then it stops; any other one asks to look again."""

    def __init__(self, look_again: Callable[[], None], stop: Callable[[], None]) -> None:
        self._had_terminal = has_terminal()
        self._look_again = look_again
        self._stop = stop

    def __call__(self) -> None:
        """Take one signal."""
        if self._had_terminal and not has_terminal():
            self._stop()
        else:
            self._look_again()
