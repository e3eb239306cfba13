"""Notifications to systemd: ready, what serves, stopping, and that the event loop is alive."""

import asyncio
import os
import socket

_RETRY_SECONDS = 0.1
"""Pause before what systemd could not take yet is sent again."""


def notify(*lines: str) -> bool:
    """Send lines to systemd's notification socket, if there is one; see sd_notify(3). It never waits: return False if the
    socket is full, so that the caller may try again."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return True
    if address.startswith("@"):  # an abstract socket
        address = f"\0{address[1:]}"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as channel:
            channel.connect(address)
            channel.send("\n".join(lines).encode())
    except BlockingIOError:
        return False
    except OSError:
        pass  # without a listener the service goes on
    return True


async def tell(*lines: str) -> None:
    """Send lines to systemd, again and again while its socket is full."""
    while not notify(*lines):  # noqa: ASYNC110 (a socket of another process)
        await asyncio.sleep(_RETRY_SECONDS)


async def keep_alive() -> None:
    """Reset systemd's watchdog from the event loop, at half its interval, until cancelled."""
    interval = int(os.environ.get("WATCHDOG_USEC") or 0) / 1e6
    while interval:
        await tell("WATCHDOG=1")
        await asyncio.sleep(interval / 2)
