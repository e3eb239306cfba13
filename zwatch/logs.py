"""Logging to standard error, as text or as JSON. How a service's lines get there is in `logwriter`."""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""The id of the request that is being handled; every line that is logged meanwhile carries it."""


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).astimezone().strftime("%H:%M:%S")
        mark = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        identity = request_id.get()
        line = f"{time} {mark}{record.getMessage()}{'' if identity is None else f'  [{identity}]'}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _Json(logging.Formatter):
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


def with_fields(**fields: object) -> dict[str, dict[str, object]]:
    """Return the `extra` of a log call that adds fields to a JSON line; what is None is left out."""
    return {"fields": {name: value for name, value in fields.items() if value is not None}}


def formatter(style: str) -> logging.Formatter:
    """Return what makes a line of a log record, `text` or `json`."""
    return _Json() if style == "json" else _Text()


def set_up(style: str, handler: logging.Handler | None = None) -> None:
    """Send all log records of INFO and above to standard error or to a handler, as `text` or `json`. Python's warnings become
    records too; otherwise they would be plain text among lines of JSON."""
    handler = handler or logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(style))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.captureWarnings(True)
    # What these libraries log below ERROR is about their own internals.
    for name in ("diffusers", "transformers", "torch", "httpx", "watchdog"):
        logging.getLogger(name).setLevel(logging.ERROR)
