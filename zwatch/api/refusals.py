"""Refusals in numbers: clients that are refused many times a second are answered slower, and the log has one line a second.

A refusal is an answer that a client can cause as often as it likes: 4xx, 503 and a client that left.
"""

import asyncio
import contextvars
import ipaddress
import logging
import time
from collections import Counter, OrderedDict
from typing import Protocol

from zwatch.logs import request_id, with_fields

_log = logging.getLogger("zwatch.api.observe")
"""The logger of all lines about requests."""

HEALTH = frozenset({"/health", "/health/live", "/health/ready"})
"""Routes whose 503 is an answer and no refusal. They need no token and accept any Host: a load balancer has no token and may
connect by IP address."""
LINE_SECONDS = 1.0
"""Least time between two log lines about refusals."""
MOST_KINDS = 5
"""Kinds of refusals that a log line names; the rest is one number."""
MOST_ADDRESSES = 1000
"""Addresses that are remembered."""
_WEIGHTS = {401: 1.0, 403: 1.0, 429: 1.0, 503: 1.0}
_OTHER_WEIGHT = 1 / 50
"""Of the other 4xx: a page or a test may well meet many of them in a second."""
_UNHURRIED = frozenset({408, 409})
"""Who gets these has waited already."""
_PRESSED_WEIGHT = 1.0
"""Of the other 4xx while all clients together are refused too often."""
_PRESSED_FACTOR = 8.0
"""How much more a refusal counts for an address meanwhile: each of many addresses is refused at a rate that is harmless alone."""


def network_of(address: str) -> str:
    """Return what is limited together: an IPv4 address, or an IPv6 /64 network, all of which one client usually has."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if found.version == 4:
        return address
    return (
        found.ipv4_mapped.compressed if found.ipv4_mapped else str(ipaddress.ip_network((int(found), 64), strict=False))
    )


class Bucket:
    """How often somebody was refused lately. It leaks `rate` a second; beyond `free` the delay doubles at each refusal, up to
    `most` seconds. Who asks again at once is so slowed down to about `rate` refusals a second."""

    def __init__(self, rate: float, free: float, most: float) -> None:
        self._rate, self._free, self._most = rate, free, most
        self._level, self._at = 0.0, 0.0

    def delay(self, weight: float, now: float) -> float:
        """Count a refusal at the time `now`; return the seconds by which its answer is delayed."""
        self._level = max(0.0, self._level - (now - self._at) * self._rate) + weight
        self._level = min(self._level, 2 * self._free + 10.0)
        self._at = now
        beyond = self._level - self._free
        return 0.0 if beyond <= 0 else min(self._most, 0.05 * 2.0**beyond)


class Refused(Protocol):
    """A connection; `bucket` is None until it is refused for the first time."""

    bucket: Bucket | None


class Slowdown:
    """Delays the refusals of connections, and of addresses that make new connections, which are refused again and again; sooner
    while everybody together is refused too often. `most` answers are delayed at a time; the connections beyond are answered
    at once."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._delayed = 0
        self._all = Bucket(rate=64.0, free=64.0, most=1.0)
        self._addresses: OrderedDict[str, Bucket] = OrderedDict()

    async def wait(self, connection: Refused, address: str, route: str | None, status: int) -> None:
        """Wait for as long as the answer of this status is delayed."""
        weight = _WEIGHTS.get(status) or (_OTHER_WEIGHT if 400 <= status < 500 and status not in _UNHURRIED else 0.0)
        if not weight or route in HEALTH:
            return
        seconds = self.delay(connection, address, weight, time.monotonic())
        if seconds <= 0 or self._delayed >= self._most:
            return
        self._delayed += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._delayed -= 1

    def delay(self, connection: Refused, address: str, weight: float, now: float) -> float:
        """Count a refusal; return by how many seconds its answer is delayed. The first one of a connection counts for the
        address, because other clients behind the same proxy have their own connections."""
        is_pressed = self._all.delay(1.0, now) > 0
        if is_pressed:
            weight = max(weight, _PRESSED_WEIGHT)
        if connection.bucket is not None:
            return connection.bucket.delay(weight, now)
        connection.bucket = Bucket(rate=1.0, free=4.0, most=1.0)
        connection.bucket.delay(weight, now)
        network = network_of(address)
        shared = self._addresses.pop(network, None) or Bucket(rate=8.0, free=32.0, most=1.0)
        self._addresses[network] = shared
        if len(self._addresses) > MOST_ADDRESSES:
            self._addresses.popitem(last=False)
        return shared.delay(weight * _PRESSED_FACTOR if is_pressed else weight, now)


class Refusals:
    """Logs refusals: the first one after a quiet second as it is, then one line a second with their number."""

    def __init__(self) -> None:
        self.connections = 0
        """How many were of a connection itself, before a request was known."""
        self._kinds: Counter[str] = Counter()
        self._level = logging.INFO
        self._only: tuple[int, str, dict[str, object], str | None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def count(self, kind: str, text: str | None = None, level: int = logging.INFO, **fields: object) -> None:
        """Count a refusal. `text` (or else the kind) and `fields` are its own log line, if it gets one; without them it is a connection that
        was refused or closed."""
        self.connections += text is None
        if not _log.isEnabledFor(level):
            return
        line = (level, text or kind, fields, request_id.get())
        if self._timer is None:
            self._write(*line)
            self._wait()
            return
        self._only = None if self._kinds else line
        self._kinds[kind] += 1
        self._level = max(self._level, level)

    def flush(self) -> None:
        """Log what was counted since the last line."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._kinds:
            return
        if self._only is not None:
            self._write(*self._only)
        else:
            total, kinds = self._kinds.total(), self._kinds.most_common(MOST_KINDS)
            named = [f"{number} x {kind}" for kind, number in kinds]
            if (rest := total - sum(number for _, number in kinds)) > 0:
                named.append(f"{rest} others")
            text = f"{total} requests were refused within {LINE_SECONDS:g} s: {', '.join(named)}"
            self._write(self._level, text, {"refused": total}, None)
        self._kinds, self._level, self._only = Counter(), logging.INFO, None
        self._wait()

    def _wait(self) -> None:
        # In an empty context: the later lines are not about this request.
        loop, context = asyncio.get_running_loop(), contextvars.Context()
        self._timer = loop.call_later(LINE_SECONDS, self.flush, context=context)

    @staticmethod
    def _write(level: int, text: str, fields: dict[str, object], identity: str | None) -> None:
        token = request_id.set(identity)
        try:
            _log.log(level, "%s", text, extra=with_fields(**fields))
        finally:
            request_id.reset(token)
