"""Asking file systems that may not answer: a file server that is gone, an automount that never comes."""

import errno
import os
import time
import weakref
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from typing import Any, ParamSpec, TypeVar

from zwatch.deploy.resolving import Directory
from zwatch.lanes import Lane

P = ParamSpec("P")
R = TypeVar("R")

ANSWER_SECONDS = 3.0
"""Seconds to wait for an answer. A look takes a millisecond, and a slow file server some hundred."""
_MOST_WAITING = 32
"""Most questions without an answer: each holds a thread."""


class Unanswered(OSError):
    """A file system did not answer in time."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            errno.ETIMEDOUT, f"nothing came back within {seconds:g} s; its disk or file server may be gone"
        )


class Direct:
    """Calls functions as they are, in the caller's thread: for a caller that is asked itself, see `Asker`."""

    def is_waiting(self, subject: Hashable) -> bool:
        """Return False: nothing is left."""
        return False

    def ask(self, subject: Hashable, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function."""
        return function(*args, **kwargs)

    def ask_in(self, subject: Hashable, root_fd: int, function: Callable[..., R], *args: object) -> R:
        """Call a function whose first argument is a directory's descriptor."""
        return function(root_fd, *args)


class Asker:
    """Calls functions in a thread, and goes on without those that do not return. For one caller at a time."""

    def __init__(self, seconds: float = ANSWER_SECONDS) -> None:
        self.seconds = seconds
        self._lane = Lane("ask")
        self._waiting: dict[Hashable, Future[Any]] = {}
        self.unanswered_at = float("-inf")
        """When a call did not return the last time, or was not made for that reason, on the monotonic clock."""
        weakref.finalize(self, self._lane.close)

    def is_waiting(self, subject: Hashable) -> bool:
        """Whether an earlier call about a subject has not returned."""
        return subject in self._waiting and not self._waiting[subject].done()

    def ask(self, subject: Hashable, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Call a function that asks about a subject. While an earlier call about it has not returned, none is made.

        Raises:
            Unanswered: it did not return in time. A late result is dropped.
        """
        self._refuse_if_waiting(subject)
        future = self._lane.submit(partial(function, *args, **kwargs))
        try:
            return future.result(self.seconds)
        except TimeoutError:
            if future.done():  # the function's own
                raise
            self._lane.leave(future)
            self._waiting[subject] = future
            self.unanswered_at = time.monotonic()
            raise Unanswered(self.seconds) from None
        finally:
            del future

    def ask_in(self, subject: Hashable, root_fd: int, function: Callable[..., R], *args: object) -> R:
        """As `ask`, for a function whose first argument is a directory's descriptor: it gets one of its own, which stays
        open until it returns."""
        self._refuse_if_waiting(subject)  # before there is a descriptor, which nobody would close
        return self.ask(subject, _with_own, Directory(os.dup(root_fd), ""), function, *args)

    def _refuse_if_waiting(self, subject: Hashable) -> None:
        self._waiting = {key: future for key, future in self._waiting.items() if not future.done()}
        if subject in self._waiting or len(self._waiting) >= _MOST_WAITING:
            self.unanswered_at = time.monotonic()
            raise Unanswered(self.seconds)


def _with_own(directory: Directory, function: Callable[..., R], *args: object) -> R:
    with closing(directory):  # a call that never begins closes it too, when it is dropped
        return function(directory.fd, *args)
