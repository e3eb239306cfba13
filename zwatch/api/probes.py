"""Whether a client that sends nothing more is there: what its socket says, and probes, the first bytes of the next answer."""

import asyncio
import select
from collections.abc import Iterable
from typing import Any, Protocol

PREFIX = b"HTTP/1."
"""The first bytes of every answer."""
LEFT = select.POLLERR | select.POLLHUP
"""What the state of a client's socket has when the client is gone."""


class Writing(Protocol):
    """A connection."""

    transport: Any


class BegunTransport:
    """A transport on which the first bytes of the next answer were sent already."""

    def __init__(self, connection: "Writing", transport: asyncio.Transport) -> None:
        self._connection = connection
        self._transport = transport
        self._sent = 0

    def send_next(self) -> None:
        """Send the next byte of the prefix, if there is one."""
        self._transport.write(PREFIX[self._sent : self._sent + 1])
        self._sent = min(self._sent + 1, len(PREFIX))

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Write the rest of an answer's first bytes. What follows goes to the transport itself."""
        self._connection.transport = self._transport
        self._transport.write(memoryview(data)[self._sent :])

    def writelines(self, parts: Iterable[bytes]) -> None:
        """Write as `write` does."""
        self.write(b"".join(parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def state_of(transport: asyncio.Transport) -> int:
    """Return the events of `poll` that a connection's socket has now."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLRDHUP)
    return next((events for _, events in poll.poll(0)), 0)
