"""Notifications to systemd: ready, what serves, stopping, and that the event loop is alive."""

import asyncio
import os
import socket


def notify(*lines: str) -> None:
    """Send lines to systemd's notification socket, if there is one and it takes them now. See sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = f"\0{address[1:]}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        channel.setblocking(False)  # the event loop must not wait for a listener that does not read
        try:
            channel.connect(address)
            channel.sendall("\n".join(lines).encode())
        except OSError:
            pass  # without a listener the service goes on


async def keep_alive() -> None:
    """Reset systemd's watchdog from the event loop, at half its interval, until cancelled."""
    interval = int(os.environ.get("WATCHDOG_USEC") or 0) / 1e6
    while interval:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval / 2)
