"""What systemd is told: ready, what serves, stopping, and that the event loop is alive."""

import asyncio
import os
import socket


def notify(*lines: str) -> None:
    """Send lines to systemd's notification socket; nothing happens where there is none. See sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = f"\0{address[1:]}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.connect(address)
            channel.sendall("\n".join(lines).encode())
        except OSError:
            pass  # a missing listener must not stop a service


async def keep_alive() -> None:
    """Reset systemd's watchdog from the event loop, twice as often as it asks, for as long as the loop runs."""
    interval = int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6
    while interval:
        notify("WATCHDOG=1")
        await asyncio.sleep(interval / 2)
