"""The connection between the process that serves and the one that takes over: JSON lines, some with file descriptors.

It is a Unix socket in the state directory. Only processes of the same user, or of root, are answered.
"""

import array
import asyncio
import json
import logging
import os
import socket
import stat
import struct
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from zwatch.deploy.durable import put_aside

_log = logging.getLogger(__name__)

PROTOCOL = 1
"""Processes with another number do not understand each other: the new one waits for the old one's end."""
NAME = "handover"
"""The socket in the state directory."""
_PIECE = 256 * 1024
_MOST_FDS_SPACE = socket.CMSG_LEN(64 * array.array("i").itemsize)
"""For the descriptors that one call receives; a message has fewer than ten."""
_MOST_BYTES = 256 * 2**20
"""Longest message: a picture in base64."""
_BEAT, _BEAT_SECONDS = "beat", 1.0
_MUCH = 4 * 2**20
"""Bytes that wait to be sent, from which on a sender waits."""


@dataclass(frozen=True, slots=True)
class Message:
    """One line, and the descriptors that came with it, which the receiver owns."""

    body: dict[str, Any]
    fds: list[int] = field(default_factory=list)

    def close(self) -> None:
        """Close descriptors that nobody took."""
        while self.fds:
            os.close(self.fds.pop())


class Channel:
    """One end of the connection, used on the event loop. It takes ownership of the socket."""

    def __init__(self, connected: socket.socket) -> None:
        connected.setblocking(False)
        self._socket = connected
        self._loop = asyncio.get_running_loop()
        self._received = bytearray()
        self._fds: deque[int] = deque()
        self._messages: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._sending: deque[tuple[memoryview, list[int]]] = deque()
        self._waiting = 0
        self._sent = asyncio.Event()
        self._heard = time.monotonic()
        self._beating: asyncio.TimerHandle | None = None
        self.is_closed = False
        """Whether the other process ended, or closed its end, or this end was closed."""
        self._loop.add_reader(connected, self._read)

    @property
    def peer(self) -> tuple[int, int]:
        """The process id and the user id of the other process when it connected."""
        found = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, user, _ = struct.unpack("3i", found)
        return pid, user

    def send(self, body: dict[str, Any], fds: Sequence[int] = ()) -> None:
        """Send a message soon; nothing if the connection has ended. The descriptors are duplicated: they stay the caller's."""
        if self.is_closed:
            return
        kept = [os.dup(fd) for fd in fds]  # sent perhaps later
        data = memoryview(json.dumps({**body, "fds": len(kept)} if kept else body).encode() + b"\n")
        self._waiting += len(data)
        self._sending.append((data, kept))
        if len(self._sending) == 1:
            self._write()

    def beat(self) -> None:
        """Send a sign of life now and every second, which the other end receives as no message. Processes of older releases do not
        understand it: only to one that has said `beats`."""
        if self.is_closed:
            return
        if not self._sending:  # else it reads nothing, or something is on its way that is a sign of life too
            self.send({_BEAT: True})
        self._beating = self._loop.call_later(_BEAT_SECONDS, self.beat)

    async def drained(self, limit: float) -> None:
        """Return once less than a few megabytes wait to be sent, the connection has ended, or `limit` seconds have passed."""
        await self._until_sent(_MUCH, limit)

    async def flushed(self, limit: float) -> None:
        """Return once everything is sent, the connection has ended, or `limit` seconds have passed."""
        await self._until_sent(0, limit)

    async def _until_sent(self, most: int, limit: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(limit):
                while self._waiting > most and not self.is_closed:
                    self._sent.clear()
                    await self._sent.wait()

    async def receive(self, limit: float | None = None) -> Message | None:
        """Return the next message; None once the connection has ended.

        Raises:
            TimeoutError: nothing came for `limit` seconds.
        """
        async with asyncio.timeout(limit):
            while not self._messages:
                if self.is_closed:
                    return None
                self._arrived.clear()
                await self._arrived.wait()
        return self._messages.popleft()

    async def receive_of_living(self, silence: float) -> Message | None:
        """Return the next message of a process that beats; None once the connection has ended.

        Raises:
            TimeoutError: nothing was heard of it for `silence` seconds.
        """
        while True:
            left = self._heard + silence - time.monotonic()
            with suppress(TimeoutError):
                return await self.receive(max(0.0, left))
            if not self.is_closed:
                self._read()  # this process may itself have stood still: what came meanwhile is still to be read
            if self._heard + silence <= time.monotonic() and not self._messages and not self.is_closed:
                raise TimeoutError

    def close(self) -> None:
        """End the connection. What has arrived can still be received."""
        if self.is_closed:
            return
        self.is_closed = True
        if self._beating is not None:
            self._beating.cancel()
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        for _, fds in self._sending:
            _close(fds)
        self._sending.clear()
        _close(self._fds)
        self._arrived.set()
        self._sent.set()

    def _read(self) -> None:
        try:
            # Not `socket.recv_fds`: it ignores flags (Python 3.11), and the descriptors would go to every child process.
            data, others, _, _ = self._socket.recvmsg(_PIECE, _MOST_FDS_SPACE, socket.MSG_CMSG_CLOEXEC)
            fds = [fd for _, _, packed in others for fd in array.array("i", packed)]
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data, fds = b"", []
        self._fds.extend(fds)
        if not data:
            self.close()
            return
        self._heard = time.monotonic()
        self._received += data
        if b"\n" in data:
            *lines, rest = self._received.split(b"\n")
            self._received = rest
            try:
                for line in lines:
                    if _BEAT not in (message := self._parsed(line)).body:
                        self._messages.append(message)
            except (ValueError, TypeError, IndexError):  # no process of ours sends that
                self.close()
        elif len(self._received) > _MOST_BYTES:
            self.close()
        self._arrived.set()

    def _parsed(self, line: bytearray) -> Message:
        """Return a message with its descriptors, which arrived with its first bytes.

        Raises:
            ValueError, TypeError, IndexError: it is not one.
        """
        body = json.loads(line)
        if not isinstance(body, dict):
            raise TypeError("not an object")
        return Message(body, [self._fds.popleft() for _ in range(int(body.pop("fds", 0)))])

    def _write(self) -> None:
        while self._sending:
            data, fds = self._sending[0]
            try:
                if fds:
                    count = self._socket.sendmsg([data[:_PIECE]], _rights(fds), socket.MSG_NOSIGNAL)
                else:
                    count = self._socket.send(data[:_PIECE], socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                self._loop.add_writer(self._socket, self._write)
                return
            except OSError:
                self.close()
                return
            _close(fds)  # they went with the first byte
            self._waiting -= count
            if count < len(data):
                self._sending[0] = data[count:], fds
            else:
                self._sending.popleft()
            self._sent.set()
        self._loop.remove_writer(self._socket)


def _rights(fds: Iterable[int]) -> list[tuple[int, int, "array.array[int]"]]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]


def _close(fds: "list[int] | deque[int]") -> None:
    while fds:
        os.close(fds.pop())


def connect(directory: Path) -> socket.socket | None:
    """Return a socket that is connected to the process that serves with a state directory; None if none listens there."""
    connected = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        with _Directory(directory) as opened:
            connected.setblocking(False)  # a process that accepts nothing has room for some; then EAGAIN
            connected.connect(opened.path)
    except OSError:
        connected.close()
        return None
    return connected


class Door:
    """The listening socket in a state directory."""

    def __init__(self, directory: Path) -> None:
        """Listen there. What an earlier process left is replaced. It blocks.

        Raises:
            OSError: no socket can be made there.
        """
        self._directory = directory
        self.listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            with _Directory(directory) as opened:
                with suppress(FileNotFoundError):
                    if stat.S_ISSOCK(os.lstat(opened.path).st_mode):
                        os.unlink(opened.path)
                    elif (aside := put_aside(Path(opened.path))) is not None:
                        _log.warning("%s is not a socket; it is renamed to %s", directory / NAME, aside)
                os.fchmod(self.listening.fileno(), 0o600)  # Linux gives the file this mode, whatever the umask
                self.listening.bind(opened.path)
                self._identity = _identity(opened.path)
            self.listening.listen(8)
        except OSError:
            self.listening.close()
            raise

    async def accept(self) -> Channel:
        """Return the next connection of a process that may take over; others are closed.

        Raises:
            OSError: no connection can be accepted any more.
        """
        while True:
            accepted, _ = await asyncio.get_running_loop().sock_accept(self.listening)
            channel = Channel(accepted)
            if channel.peer[1] in (0, os.geteuid()):
                return channel
            channel.close()

    def is_there(self) -> bool:
        """Return whether the socket still has its name. It blocks."""
        try:
            with _Directory(self._directory) as opened:
                return _identity(opened.path) == self._identity
        except OSError:
            return False

    def close(self) -> None:
        """Listen no more, and remove the socket unless another process has put its own there. It blocks."""
        self.listening.close()
        with suppress(OSError), _Directory(self._directory) as opened:
            if _identity(opened.path) == self._identity:
                os.unlink(opened.path)


class _Directory:
    """A directory that is opened for a moment: by its descriptor the path of a socket is short, as it has to be (107 bytes)."""

    def __init__(self, directory: Path) -> None:
        self._fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.path = f"/proc/self/fd/{self._fd}/{NAME}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._fd)


def _identity(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino
