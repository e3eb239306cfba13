"""Logging to standard error, as text or as JSON. How a service's lines get there is in `logwriter`."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that is being handled; every line that is logged meanwhile carries it."""


_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))
"""Levels, and the priorities of syslog(3) for them."""


_private: ContextVar[tuple[str, ...]] = ContextVar("private", default=())


@contextmanager
def hiding(*texts: str) -> Iterator[None]:
    """Leave texts of a client, which errors of libraries may repeat, out of the tracebacks that are logged inside the block."""
    token = _private.set(texts)
    try:
        yield
    finally:
        _private.reset(token)


def without_private(text: str) -> str:
    """Return a text without what is hidden in this block."""
    for word in sorted(filter(str.strip, _private.get()), key=len, reverse=True):
        for form in {word, repr(word)[1:-1], json.dumps(word)[1:-1]}:
            text = text.replace(form, "[…]")
    return text


class _Formatter(logging.Formatter):
    def formatException(self, ei: Any) -> str:  # noqa: N802 (logging's name)
        return without_private(super().formatException(ei))


class _Text(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        mark = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        identity = request_id.get()
        line = f"{time} {mark}{record.getMessage()}{'' if identity is None else f'  [{identity}]'}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Json(_Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (identity := request_id.get()) is not None:
            entry["request_id"] = identity
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        # ASCII: one line and valid JSON whatever is in a name, and whatever the stream's encoding is.
        return json.dumps({**getattr(record, "fields", {}), **entry})


class _Prioritised(logging.Formatter):
    """Puts the priority before each line that another formatter makes."""

    def __init__(self, inner: logging.Formatter) -> None:
        super().__init__()
        self._inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return with_priority(self._inner.format(record), record.levelno)


def goes_to_journal() -> bool:
    """Return whether standard error is the journal's: `JOURNAL_STREAM` has its device and inode; see systemd.exec(5)."""
    device, _, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))


def with_priority(text: str, level: int) -> str:
    """Return lines for standard error; if that is the journal, each one begins with its priority, as `<4>`; see
    sd-daemon(3). The journal takes every line for an entry of its own."""
    if not goes_to_journal():
        return text
    priority = next((number for least, number in _PRIORITIES if level >= least), 7)
    return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))


def with_fields(**fields: object) -> dict[str, dict[str, object]]:
    """Return the `extra` of a log call that adds fields to a JSON line; what is None is left out."""
    return {"fields": {name: value for name, value in fields.items() if value is not None}}


def formatter(style: str) -> logging.Formatter:
    """Return what makes a line of a log record, `text` or `json`."""
    made = _Json() if style == "json" else _Text()
    return _Prioritised(made) if goes_to_journal() else made


def set_up(style: str, handler: logging.Handler | None = None) -> None:
    """Send all log records of INFO and above to standard error or to a handler, as `text` or `json`. Python's warnings become
    records too; otherwise they would be plain text among lines of JSON."""
    handler = handler or logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(style))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    # What these libraries log below ERROR is about their own internals, or repeats a client's text.
    for name in ("diffusers", "transformers", "torch", "httpx", "watchdog", "opentelemetry.baggage"):
        logging.getLogger(name).setLevel(logging.ERROR)
