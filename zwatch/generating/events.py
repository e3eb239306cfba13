"""The events of one request for pictures, as `POST /generate` streams them."""

import contextlib
import http.client
import os
import socket
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Self

from zwatch.client import Service, message
from zwatch.errors import UsageError, ZwatchError

BEAT = ""
"""The name of a comment, which says that the service is there still."""
_SILENCE = 60.0
"""Seconds without a byte after which the service is given up: it sends a comment every ten."""
_STREAM = "text/event-stream"
_ENDS = ("done", "error")

Event = tuple[str, dict[str, Any]]
"""Its name and its data."""


class Refused(ZwatchError):
    """The service decided against a request, or could not fulfil it. `body` is its answer; as text, the sentence in it."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(message(body))
        self.body = body


class Drawing:
    """A request for pictures that is being fulfilled. Iterate over its events; the last one is `done`, with the pictures.

    The service cancels the request if the connection ends before: after the block, or by `abort`, which other threads may call.
    """

    def __init__(self, service: Service, body: bytes, content_type: str) -> None:
        self._service = service
        self._sent = body, {"Content-Type": content_type, "Accept": _STREAM}
        self._answer: Any = None
        self._line: socket.socket | None = None
        """The connection, with a descriptor of its own: the answer closes its one at an end that another thread may not know of."""
        self._is_aborted = self._has_ended = False

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        """Wait for the next event. Comments are events too, with the name `BEAT`.

        Raises:
            Refused: the service decided against it, or it failed.
            UsageError: no zwatch answers there, or it went away.
        """
        if self._has_ended:
            raise StopIteration
        if self._answer is None:
            self._open()
        name, data = self._read()
        self._has_ended = name in _ENDS
        if name == "error":
            raise Refused(data)
        return name, data

    def abort(self) -> None:
        """End the connection, also while another thread waits for an event: it then gets an error."""
        self._is_aborted = True
        if self._line is not None:  # else the thread that opens it looks at the flag afterwards
            with contextlib.suppress(OSError):  # it has ended
                self._line.shutdown(socket.SHUT_RDWR)  # closing alone would leave a thread in `recv`

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()
        for one in (self._line, self._answer):
            if one is not None:
                with contextlib.suppress(OSError, http.client.HTTPException):
                    one.close()

    def _open(self) -> None:
        answer = self._service.open("/generate", *self._sent, patience=_SILENCE)
        self._answer = answer
        with contextlib.suppress(OSError, ValueError, AttributeError):  # an answer without a body is closed already
            self._line = socket.socket(fileno=os.dup(answer.fileno()))
        if self._is_aborted:
            self.abort()
        if answer.headers.get_content_type() == _STREAM:
            return
        self._has_ended = True
        body = self._service.parsed(self._guarded(answer.read))
        if answer.status < 400:
            raise UsageError(f"what answers at {self._service.url} is not zwatch")
        raise Refused(body)

    def _read(self) -> Event:
        name, data = BEAT, b""
        while line := self._guarded(self._answer.readline).rstrip(b"\r\n"):
            field, _, value = line.partition(b":")
            if field == b"event":
                name = value.removeprefix(b" ").decode("utf-8", "replace")
            elif field == b"data":
                data += value.removeprefix(b" ")
        return name, self._service.parsed(data) if data else {}

    def _guarded(self, read: Callable[[], bytes]) -> bytes:
        """Read from the connection.

        Raises:
            UsageError: it ended.
        """
        try:
            found = read()
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise self._gone(str(error) or type(error).__name__) from None
        if not found:
            raise self._gone("it ended the connection")
        return found

    def _gone(self, reason: str) -> UsageError:
        return UsageError(f"the service at {self._service.url} went away before its answer was complete: {reason}")
