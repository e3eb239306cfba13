"""Threads that may be left: a call that does not return holds up no other call, and not the end of the process.

A `ThreadPoolExecutor` waits for its threads, also when the interpreter ends; a read from a file server that is gone, or
a loop that never ends, would hold up everything behind it.
"""

import ctypes
import errno
import os
import sys
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

R = TypeVar("R")


class NoThread(OSError):
    """The system has no room for another thread; that may pass."""

    def __init__(self) -> None:
        code = errno.EAGAIN
        why = "no thread can be started; see the limits of tasks (TasksMax, ulimit -u) and memory"
        super().__init__(code, f"{os.strerror(code)}: {why}")


class Interrupted(BaseException):
    """Raised by `Lane.leave` in a thread that was left, to end a loop of Python code. Libraries catch every `Exception`."""


def start_thread(thread: threading.Thread) -> None:
    """Start a thread.

    Raises:
        NoThread: the system has no room for another one.
    """
    try:
        thread.start()
    except RuntimeError:  # all that Python says of the system's error
        raise NoThread from None


class Lane:
    """Runs functions in up to `width` threads of its own, in the order in which they were submitted.

    With `is_exclusive` no two of them ever run at the same time: the thread of a call that was left is not replaced. With a
    `nice` value, as of nice(1), other threads go first where cores are scarce.
    """

    def __init__(self, name: str, width: int = 1, *, is_exclusive: bool = False, nice: int = 0) -> None:
        self._name = name
        self._nice = nice
        self._width = width
        self._is_exclusive = is_exclusive
        self._calls: SimpleQueue[_Call[Any] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._running: dict[Future[Any], int] = {}
        self._left: dict[Future[Any], int] = {}
        self._closed = False

    @property
    def left(self) -> int:
        """How many calls were left and have not ended yet."""
        with self._lock:
            return len(self._left)

    @property
    def running(self) -> int:
        """How many calls have begun and not ended, those that were left not counted."""
        with self._lock:
            return len(self._running)

    def submit(self, function: Callable[[], R]) -> Future[R]:
        """Run a function in a thread; the future gets its result.

        Raises:
            RuntimeError: the lane is closed.
            NoThread: it has no thread, and none can be started.
        """
        future: Future[R] = Future()
        call = _Call(function, future)
        with self._lock:
            if self._closed:
                raise RuntimeError(f"the lane {self._name} is closed")
            self._calls.put(call)
            if self._threads < self._width:
                try:
                    self._start()
                except OSError:
                    if not self._threads:
                        future.cancel()
                        raise
        return future

    def leave(self, future: Future[Any]) -> None:
        """Wait no longer for this call. One that has not begun is cancelled. The thread of one that runs ends with it, and
        another takes its place, unless the lane is exclusive."""
        if future.cancel():
            return
        with self._lock:
            if (thread := self._running.pop(future, None)) is None:
                return
            self._left[future] = thread
            if not self._is_exclusive:
                self._threads -= 1
                if not self._closed:
                    with suppress(OSError):  # the next `submit` tries again
                        self._start()

    def interrupt(self, future: Future[Any]) -> None:
        """Raise `Interrupted` in the thread of a call that runs, at its next step of Python code."""
        with self._lock:  # the thread is in the call for as long as this is held
            thread = self._running.get(future) or self._left.get(future)
            if thread is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Interrupted))

    def stack(self, future: Future[Any]) -> str:
        """Return where the thread of a call that runs is, as in a traceback; empty if it does not run."""
        with self._lock:
            thread = self._running.get(future) or self._left.get(future)
            frame = None if thread is None else sys._current_frames().get(thread)  # noqa: SLF001 (documented, and the only way)
        return "" if frame is None else "".join(traceback.format_stack(frame))

    def close(self) -> None:
        """Accept no more calls; those that wait are cancelled, and the threads end after their calls."""
        with self._lock:
            self._closed = True
            while not self._calls.empty():
                if (call := self._calls.get()) is not None and call.future is not None:
                    call.future.cancel()
            for _ in range(self._threads):
                self._calls.put(None)

    def _start(self) -> None:
        start_thread(threading.Thread(target=self._work, name=f"zwatch-{self._name}", daemon=True))
        self._threads += 1

    def _work(self) -> None:
        if self._nice:
            with suppress(OSError):  # on Linux, the priority is the thread's own
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._nice)
        while (call := self._calls.get()) is not None:
            _until_done(partial(self._carry_out, call))
            is_left = call.is_left
            del call  # a result may be large, and an error's frames hold everything that the function had
            if is_left:
                return

    def _carry_out(self, call: "_Call[Any]") -> None:
        """Run a call; to be called again after an `Interrupted`, which may arrive when the function has just ended."""
        if call.future is None:
            return
        if not call.has_begun:
            call.has_begun = True
            with self._lock:  # `leave` finds it either not begun or here
                if not call.future.set_running_or_notify_cancel():
                    call.future = None
                    return
                self._running[call.future] = threading.get_ident()
            call.run()
        with self._lock:
            call.is_left = call.is_left or (call.future in self._left and not self._is_exclusive)
            self._running.pop(call.future, None)
            self._left.pop(call.future, None)
        call.end()


class _Call(Generic[R]):
    """A function, and the future of its result until that has it: the frames of the function's error hold this object, and
    they and the future would be a cycle that keeps all memory of a failed load."""

    def __init__(self, function: Callable[[], R], future: Future[R]) -> None:
        self.future: Future[R] | None = future
        self.has_begun = self.is_left = False
        self._function: Callable[[], R] | None = function
        self._result: R | None = None
        self._error: BaseException | None = Interrupted()

    def run(self) -> None:
        """Run the function."""
        function, self._function = self._function, None
        assert function is not None  # called once
        try:
            self._result = function()
            self._error = None
        except (Exception, Interrupted) as error:
            self._error = error
        except (
            BaseException
        ) as error:  # a panic of a library in Rust, or sys.exit(): what waits for it catches every Exception
            self._error = RuntimeError(f"{type(error).__name__}: {error}").with_traceback(error.__traceback__)

    def end(self) -> None:
        """Hand over the outcome."""
        if self.future is not None and not self.future.done():
            if self._error is None:
                self.future.set_result(self._result)  # type: ignore[arg-type]
            else:
                self.future.set_exception(self._error)
        self.future = self._result = self._error = None


def _until_done(function: Callable[[], object]) -> None:
    while True:
        try:
            function()
        except Interrupted:
            continue
        return
