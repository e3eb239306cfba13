"""The log of a service: lines are written by a thread, so that a standard error that nobody reads holds up nothing.

A full pipe, a stopped log driver, a terminal that was halted with Ctrl-S, a full disk or a closed descriptor: lines wait
in a bounded buffer, what does not fit is dropped and counted, and the count is logged once lines are written again. A place
in the code that logs very often is limited to some lines a second. Everything else that Python writes to standard error or
output (`print`, progress bars, uncaught exceptions of threads) becomes log records on the same way.
"""

import contextlib
import io
import logging
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator

from zwatch import logs

_log = logging.getLogger(__name__)

MOST_BYTES = 2**20
"""Bytes of lines that may wait to be written: minutes of a busy service's log."""
LONGEST = 2**16
"""Characters of one line beyond which it is cut: a traceback has fewer."""
PER_SECOND = 50
"""Lines a second of one place in the code: a client can cause some lines per request, and should not fill a disk."""
EXIT_SECONDS = 1.0
"""How long the end of the process waits for lines that are not yet written."""


class LineWriter:
    """Writes lines to a descriptor from a thread. Any thread may call `put`, which never waits for the descriptor."""

    def __init__(self, descriptor: int, most_bytes: int = MOST_BYTES) -> None:
        self.dropped = 0
        """Lines that were never written, since the start."""
        self._descriptor = descriptor
        self._most_bytes = most_bytes
        self._lines: deque[bytes] = deque()
        self._bytes = 0
        self._reported = 0
        self._changed = threading.Condition()  # reentrant: a destructor may log at any allocation
        self._is_writing = False
        self._is_torn = False
        """Whether the last line was written in part only."""
        threading.Thread(target=self._run, name="zwatch-log", daemon=True).start()

    def put(self, line: str) -> None:
        """Write a line soon, or drop it if too many bytes wait already."""
        if len(line) > LONGEST:
            line = f"{line[:LONGEST]}… ({len(line) - LONGEST} more characters)"
        data = line.encode("utf-8", "backslashreplace") + b"\n"
        with self._changed:
            if self._bytes + len(data) > self._most_bytes:
                self.dropped += 1
                return
            self._lines.append(data)
            self._bytes += len(data)
            self._changed.notify_all()

    def flush(self, seconds: float) -> bool:
        """Wait at most so long until every line was written or has failed; return whether that is so."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._lines and not self._is_writing, seconds)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._is_writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines)
                line = self._lines.popleft()
                self._is_writing = True
            written = self._write(line)
            with self._changed:
                self._bytes -= len(line)
                self.dropped += not written
                count = self.dropped - self._reported
                is_due = written and count > 0 and self._bytes < self._most_bytes / 2  # there is room to say it
                self._reported += count * is_due
            if is_due:
                _log.warning("%d log lines were dropped: standard error did not take them", count)

    def _write(self, data: bytes) -> bool:
        """Write all bytes; return whether it worked. It waits for the reader for as long as it takes."""
        view = memoryview(b"\n" + data if self._is_torn else data)
        whole = len(view)
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:  # another process that shares the descriptor has made it non-blocking
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll(1000)
            except OSError:  # no reader, a full disk, a closed descriptor: the next line may work
                self._is_torn = self._is_torn or len(view) < whole
                return False
        self._is_torn = False
        return True


class PlaceLimit:
    """Says which records exceed the lines a second that one place in the code may log."""

    def __init__(self, per_second: int = PER_SECOND) -> None:
        self._per_second = per_second
        self._lock = threading.RLock()
        self._second = 0
        self._counts: dict[tuple[str, int], int] = {}

    def admits(self, record: logging.LogRecord) -> tuple[bool, int]:
        """Return whether a record is written, and how many were left out in an earlier second and not told of yet."""
        place = (record.name, record.lineno)
        with self._lock:
            left_out = 0
            if (second := int(time.monotonic())) != self._second:
                left_out = sum(max(0, count - self._per_second) for count in self._counts.values())
                self._second, self._counts = second, {}
            self._counts[place] = self._counts.get(place, 0) + 1
            return self._counts[place] <= self._per_second, left_out


class QueuedHandler(logging.Handler):
    """Formats records where they are made, with the request's id, and hands the lines to a writer."""

    def __init__(self, writer: LineWriter) -> None:
        super().__init__()
        self.writer = writer
        self._limit = PlaceLimit()
        self.left_out = 0
        """Lines that exceeded the limit of their place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand on a record's line."""
        admitted, left_out = self._limit.admits(record)
        if left_out:
            text = "%d log lines were left out: more than %d in a second came from one place"
            note = logging.LogRecord(__name__, logging.WARNING, "", 0, text, (left_out, PER_SECOND), None)
            self.writer.put(self._line(note))
        if admitted:
            self.writer.put(self._line(record))
        else:
            self.left_out += 1

    def _line(self, record: logging.LogRecord) -> str:
        try:
            return self.format(record)
        except Exception as error:  # logging's own way is to print a traceback to standard error
            return f"a log record of {record.name}:{record.lineno} cannot be formatted: {type(error).__name__}"


class _Stream(io.TextIOBase):
    """A text stream whose lines become log records."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self._level = level
        self._rest = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute in typeshed
        """The encoding that programs may assume."""
        return "utf-8"

    def writable(self) -> bool:
        """Return True."""
        return True

    def write(self, text: str) -> int:
        """Log every complete line."""
        *lines, rest = f"{self._rest}{text}".replace("\r", "\n").split("\n")
        self._rest = rest[-LONGEST:]
        for line in lines:
            if line.strip():
                _log.log(self._level, "%s", line.rstrip())
        return len(text)


def unwritten() -> int:
    """Return how many log lines of this process were dropped or left out."""
    handlers = [one for one in logging.getLogger().handlers if isinstance(one, QueuedHandler)]
    return sum(one.writer.dropped + one.left_out for one in handlers)


def flush(seconds: float = EXIT_SECONDS) -> bool:
    """Wait at most so long for the lines that are not yet written; return whether none is left."""
    handlers = [one for one in logging.getLogger().handlers if isinstance(one, QueuedHandler)]
    return all(one.writer.flush(seconds) for one in handlers)


@contextlib.contextmanager
def queued(style: str) -> Iterator[None]:
    """Log from a thread inside the block, for a service. Its end waits `EXIT_SECONDS` at most for lines that are not written;
    if standard error takes none, what the process prints later goes nowhere, because it would block."""
    for descriptor in (0, 1, 2):
        _occupy(descriptor)
    before, hook = (sys.stdout, sys.stderr), threading.excepthook
    logs.set_up(style, QueuedHandler(LineWriter(2)))
    sys.stdout, sys.stderr = _Stream(logging.INFO), _Stream(logging.WARNING)
    threading.excepthook, sys.unraisablehook = _log_thread_error, _log_unraisable
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = hook, sys.__unraisablehook__
        # A terminal's standard output is usually the terminal of standard error too.
        sys.stdout, sys.stderr = before if flush() else (_nowhere(), _nowhere())


def _occupy(descriptor: int) -> None:
    """Open /dev/null where a standard descriptor is closed: else the next file or connection would get its number, and what is
    written to standard error would go into it."""
    try:
        os.fstat(descriptor)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != descriptor:
            os.dup2(null, descriptor)
            os.close(null)


def _nowhere() -> io.TextIOWrapper:
    return open(os.devnull, "w", encoding="utf-8")


def _log_thread_error(arguments: threading.ExceptHookArgs) -> None:
    name = "a thread" if arguments.thread is None else arguments.thread.name
    error = arguments.exc_value
    _log.error("uncaught exception in %s", name, exc_info=error)


def _log_unraisable(found: "sys.UnraisableHookArgs") -> None:
    _log.error("%s: %s", found.err_msg or "exception ignored in", type(found.object).__name__, exc_info=found.exc_value)
