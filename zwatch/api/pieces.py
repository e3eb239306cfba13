"""Long answers in pieces: what a client does not read yet is not copied for it, and clients that read the same bytes share them."""

import asyncio
import socket
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any
from weakref import WeakValueDictionary

from aiohttp import hdrs, payload, web
from aiohttp.abc import AbstractStreamWriter

PIECE = 2**15
"""Bytes. At most two of them wait in a connection's buffer, beside what its socket holds."""
_UNSENT = 2**17
"""Bytes that a socket takes beyond those that are on their way: with fewer, a fast reader would wait for the next piece."""
_LONG = 2**17
"""Bytes; a socket takes shorter answers at once."""


class Shared:
    """Bytes that several answers may have."""

    __slots__ = ("__weakref__", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data


class SharedBytes:
    """Reads files for answers. Those who ask for the same one at the same time get one copy, and so do those who ask while an answer
    still has it, if it is the same then."""

    def __init__(self) -> None:
        self._found: WeakValueDictionary[str, Shared] = WeakValueDictionary()
        self._reading: dict[str, asyncio.Task[bytes]] = {}

    async def body(self, name: str, read: Callable[[str], Coroutine[Any, Any, bytes]]) -> "Pieces":
        """Return the body of an answer with what `read` returns for this name."""
        reading = self._reading.get(name)
        if reading is None:
            reading = self._reading[name] = asyncio.create_task(read(name))
            reading.add_done_callback(lambda done: self._reading.pop(name, None))
        data = await asyncio.shield(reading)  # one who leaves does not end it for the others
        found = self._found.get(name)
        if found is None or found.data != data:
            found = self._found[name] = Shared(data)
        return Pieces(found)


class Pieces(payload.Payload):
    """A body that is written piece by piece, each when the client has read most of those before."""

    _value: Shared

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self._value.data)

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return it as text."""
        return self._value.data.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write all of it."""
        await write_pieces(writer, self._value.data)


SHARED = web.AppKey("shared", SharedBytes)


async def write_pieces(writer: AbstractStreamWriter, data: bytes) -> None:
    """Write bytes as slowly as the client reads."""
    view = memoryview(data)
    for begin in range(0, len(view), PIECE):
        await writer.write(view[begin : begin + PIECE])
        await writer.drain()


def in_pieces(response: web.Response) -> None:
    """Let a long answer be written in pieces."""
    body: Any = response.body
    if isinstance(body, bytes) and len(body) > _LONG and hdrs.CONTENT_LENGTH not in response.headers:
        response.body = Pieces(Shared(body))


def bound_buffers(transport: asyncio.Transport) -> None:
    """Bound what waits for a client that reads slowly: here, and in its socket, which would take megabytes."""
    transport.set_write_buffer_limits(high=PIECE)
    connected = transport.get_extra_info("socket")
    if connected is not None and connected.family in (socket.AF_INET, socket.AF_INET6):
        with suppress(OSError):  # the client has left
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
