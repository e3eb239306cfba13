"""The log of a replica: the controller takes its lines, and logs them with the replica's name."""

import logging
from collections import deque

from zwatch.fleet.messages import Record

_KEPT_RECORDS = 200


class Log(logging.Handler):
    """Keeps the last lines of the log until the controller takes them."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.records: deque[Record] = deque(maxlen=_KEPT_RECORDS)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a line."""
        self.records.append(Record(record.name, record.levelno, record.getMessage()))

    def take(self) -> tuple[Record, ...]:
        """Return those that were not taken yet."""
        taken = []
        while self.records:
            taken.append(self.records.popleft())
        return tuple(taken)
