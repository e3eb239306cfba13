"""The addresses on which the service listens: bound anew, passed by systemd, or taken over from another process."""

import logging
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field

from aiohttp import web

from zwatch import systemd
from zwatch.api.entrance import SockSite, TCPSite
from zwatch.config import Config, is_loopback
from zwatch.errors import UsageError

_log = logging.getLogger(__name__)

FIRST_FD = 3
"""The first descriptor that systemd passes; see sd_listen_fds(3)."""
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


@dataclass(frozen=True, slots=True)
class Listening:
    """The service's URL, and whether its sockets are another process' own."""

    url: str
    is_inherited: bool


@dataclass(frozen=True, slots=True)
class Passed:
    """What systemd passed to this process: sockets that listen, and clients' connections that the process before it had."""

    sockets: tuple[socket.socket, ...] = ()
    connections: list[socket.socket] = field(default_factory=list)

    @property
    def addresses(self) -> tuple[str, ...]:
        """The hosts of the listening sockets; `localhost` for a Unix socket, which only this machine's programs reach."""
        return tuple(_host_port(one)[0] for one in self.sockets)

    def address(self, host: str | None, port: int | None) -> tuple[str, int]:
        """Return the host and the port of the first socket that has an address of the network, else of the first one. `host` and
        `port` are those that the user asked for, None where he did not.

        Raises:
            UsageError: no socket has what was asked for.
        """
        found = [_host_port(one) for one in self.sockets]
        for asked_host, asked_port in found:
            if (host in (None, asked_host) or _are_local(host, asked_host)) and port in (None, 0, asked_port):
                break
        else:
            asked = ", ".join(
                f"{flag} {value}" for flag, value in (("--host", host), ("--port", port)) if value is not None
            )
            names = ", ".join(_name(one) for one in self.sockets)
            raise UsageError(
                f"{asked}: systemd passed the socket {names}; change ListenStream= of its socket unit, or leave the option "
                "(or its variable) out"
            )
        of_network = [address for address, one in zip(found, self.sockets, strict=True) if one.family != socket.AF_UNIX]
        return (of_network or found)[0]


def passed() -> Passed:
    """Return what systemd passed to this process by `LISTEN_PID` and `LISTEN_FDS`, and remove these variables. What is meant for
    another process is ignored, as sd_listen_fds(3) says.

    Raises:
        UsageError: the variables or a descriptor are not what systemd passes.
    """
    process, count, names, _ = (os.environ.pop(name, "") for name in _VARIABLES)
    if not process:
        return Passed()
    if not process.isdecimal():
        raise UsageError(f"LISTEN_PID is {process!r}: expected a process id, as systemd sets it; remove the variable")
    if int(process) != os.getpid() or not count:
        return Passed()
    if not count.isdecimal() or not 0 < int(count) < 2**20:
        raise UsageError(f"LISTEN_FDS is {count!r}: expected how many sockets systemd passed; remove the variable")
    named = names.split(":") if names else []
    opened: list[tuple[socket.socket, str]] = []
    try:
        for fd in range(FIRST_FD, FIRST_FD + int(count)):
            name = named[fd - FIRST_FD] if fd - FIRST_FD < len(named) else ""
            if (found := _opened(fd, name)) is not None:
                opened.append((found, name))
                _check(found, name)
    except UsageError:
        for found, _ in opened:
            found.close()
        raise
    sockets = tuple(found for found, name in opened if name != systemd.CONNECTION)
    return Passed(sockets, [found for found, name in opened if name == systemd.CONNECTION])


def _opened(fd: int, name: str) -> socket.socket | None:
    """Return the socket of a descriptor; None if it is none and was kept for a client's connection, who has left.

    Raises:
        UsageError: it is no socket.
    """
    try:
        os.set_inheritable(fd, False)
        return socket.socket(fileno=fd)
    except OSError as error:
        if name == systemd.CONNECTION:
            return None
        raise UsageError(
            f"LISTEN_FDS: descriptor {fd} {name and f'({name}) '}is no socket ({error.strerror}); see ListenStream= "
            "in systemd.socket(5)"
        ) from None


def _check(found: socket.socket, name: str) -> None:
    """Check that the service can listen on a socket.

    Raises:
        UsageError: it is of another kind.
    """
    if name == systemd.CONNECTION:
        return
    which = f"LISTEN_FDS: descriptor {found.fileno()} {name and f'({name}) '}"
    if found.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX) or found.type != socket.SOCK_STREAM:
        raise UsageError(f"{which}is a {found.family.name} socket of type {found.type.name}; expected ListenStream=")
    if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise UsageError(f"{which}does not listen; expected a socket unit with Accept=no")
    found.setblocking(False)


def _host_port(one: socket.socket) -> tuple[str, int]:
    address = one.getsockname()
    return ("localhost", 0) if one.family == socket.AF_UNIX else (address[0], address[1])


def _name(one: socket.socket) -> str:
    """Return a socket's address as a user writes it."""
    if one.family == socket.AF_UNIX:
        path = one.getsockname()
        return f"unix:@{path[1:].decode(errors='replace')}" if isinstance(path, bytes) else f"unix:{path}"
    host, port = _host_port(one)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _are_local(host: str | None, other: str) -> bool:
    return "localhost" in (host, other) and host is not None and is_loopback(host) and is_loopback(other)


async def listen(
    runner: web.AppRunner,
    config: Config,
    backlog: int,
    sockets: Sequence[socket.socket] = (),
    address: tuple[str, int] | None = None,
    own: Sequence[socket.socket] = (),
) -> Listening:
    """Listen on the sockets that systemd passed (`own`), else on those of another process if they have the configured address, else on
    new ones. `address` is the host and the port that the other one was configured with.

    Raises:
        UsageError: the address cannot be bound.
    """
    is_inherited = bool(sockets) and address is not None and _is_same(config, address, sockets)
    if own:  # the other process may have the very same ones
        inodes = {os.fstat(one.fileno()).st_ino for one in sockets}
        is_inherited = bool(inodes & {os.fstat(one.fileno()).st_ino for one in own})
    used = list(own) or (list(sockets) if is_inherited else [])
    for one in sockets:
        if one not in used:
            one.close()
    for one in used:
        await SockSite(runner, one, backlog=backlog).start()
    if not used:
        await _bind(runner, config, backlog)
        host, port = runner.addresses[0][:2]
        return Listening(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}", is_inherited=False)
    urls = [_name(one) for one in used]
    return Listening(" and ".join(urls), is_inherited)


def _is_same(config: Config, address: tuple[str, int], sockets: Sequence[socket.socket]) -> bool:
    """Return whether another process' address is the configured one; port 0 is any."""
    host, port = address
    ports = {0, port, *(_host_port(one)[1] for one in sockets)}
    return config.host == host and config.port in ports


async def _bind(runner: web.AppRunner, config: Config, backlog: int) -> None:
    site = TCPSite(runner, config.host, config.port, reuse_address=True, backlog=backlog)
    try:
        await site.start()
    except OSError as error:
        if error.errno is None or isinstance(error, socket.gaierror):  # the resolver has numbers of its own
            reason = error.strerror or str(error)
        else:
            reason = os.strerror(error.errno)  # asyncio's own text is a long sentence
        raise UsageError(f"{config.host}:{config.port} cannot be bound: {reason}; see --host and --port") from None
