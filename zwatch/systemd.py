"""Notifications to systemd: ready, what serves, stopping, and that the service makes progress; and descriptors that it keeps."""

import array
import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

_log = logging.getLogger(__name__)

CONNECTION = "connection"
"""The name under which systemd keeps clients' connections from one process to the next (`FileDescriptorStoreMax=`)."""
_RETRY_SECONDS = 0.1
"""Pause before what systemd could not take yet is sent again."""


def notify(*lines: str, fds: Sequence[int] = ()) -> bool:
    """Send lines, and descriptors, to systemd's notification socket, if there is one; see sd_notify(3). It never waits: return
    False if the socket is full, so that the caller may try again."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return True
    if address.startswith("@"):  # an abstract socket
        address = f"\0{address[1:]}"
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as channel:
            channel.connect(address)
            channel.sendmsg(["\n".join(lines).encode()], rights)
    except BlockingIOError:
        return False
    except OSError:
        pass  # without a listener the service goes on
    return True


def is_told() -> bool:
    """Return whether there is a notification socket."""
    return bool(os.environ.get("NOTIFY_SOCKET"))


async def tell(*lines: str) -> None:
    """Send lines to systemd, again and again while its socket is full."""
    while not notify(*lines):  # noqa: ASYNC110 (a socket of another process)
        await asyncio.sleep(_RETRY_SECONDS)


def store_connection(connected: socket.socket) -> bool:
    """Give a client's connection to systemd, which keeps it for the next process, or closes it if there is none or no room; return
    False if it could not take it yet. See `FDSTORE` in sd_notify(3)."""
    return notify("FDSTORE=1", f"FDNAME={CONNECTION}", fds=[connected.fileno()])


async def forget_connections() -> None:
    """Let systemd close its copies of the connections that it kept, which are served here now: else a client would not notice
    that one is closed. See `FDSTOREREMOVE` in sd_notify(3)."""
    await tell("FDSTOREREMOVE=1", f"FDNAME={CONNECTION}")


def is_of_this_unit(process: int) -> bool:
    """Return whether a process is in this one's control group, which is its unit's. All units have the same notification socket."""
    try:
        return Path(f"/proc/{process}/cgroup").read_bytes() == Path("/proc/self/cgroup").read_bytes()
    except OSError:  # it has ended, or may not be seen
        return False


def watchdog_seconds() -> float:
    """Return the interval of systemd's watchdog for this process, in seconds; 0 if there is none. See sd_watchdog_enabled(3)."""
    if os.environ.get("WATCHDOG_PID") not in (None, "", str(os.getpid())):
        return 0.0
    return int(os.environ.get("WATCHDOG_USEC") or 0) / 1e6


async def keep_alive(stuck_since: Callable[[], float | None] = lambda: None) -> None:
    """Reset systemd's watchdog from the event loop, at half its interval, until cancelled. `stuck_since` returns the time of the
    monotonic clock since which the device's worker makes no progress beyond its limit, or None: while it is stuck, the watchdog
    is not reset, and systemd ends and restarts the service after the interval."""
    interval = watchdog_seconds()
    is_stuck = False
    while interval:
        since = stuck_since()
        if since is None:
            await tell("WATCHDOG=1")
        elif not is_stuck:
            _log.error(
                "a generation has made no progress for %.0f s; systemd restarts the service unless it goes on within %.0f s",
                time.monotonic() - since,
                interval,
            )
        is_stuck = since is not None
        await asyncio.sleep(interval / 2)
