"""How often a wrong token may be tried at the login: some times in a row, then now and again, address by address."""

import ipaddress
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable

from zwatch.errors import RequestError

_log = logging.getLogger(__name__)

IN_A_ROW = 10
SECONDS_EACH = 6.0
"""After which one more may be tried."""
MOST_ADDRESSES = 1000
"""That are remembered; the one that was not heard of for longest goes first."""


class Guesses:
    """Counts wrong tokens. Lives on the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paid: OrderedDict[str, float] = OrderedDict()
        """When, by the clock, the time for all wrong tokens of an address has passed."""

    def check(self, address: str) -> None:
        """Let an address try a token, or not yet. Not even a right one: else the answer would tell which one it is.

        Raises:
            RequestError: 429 with `Retry-After`, there were too many wrong ones.
        """
        if (seconds := self._wait(_source(address))) > 0:
            wait = math.ceil(seconds)
            raise RequestError(
                429, "too_many_guesses", f"too many wrong tokens came from your address: try again in {wait} s",
                headers={"Retry-After": str(wait)},
            )  # fmt: skip

    def count(self, address: str) -> None:
        """Note a wrong token."""
        source, now = _source(address), self._clock()
        self._paid[source] = max(now, self._paid.pop(source, now)) + SECONDS_EACH
        if self._wait(source) > 0:
            _log.warning("too many wrong tokens from %s: /login refuses it for a while", source)
        if len(self._paid) > MOST_ADDRESSES:
            self._paid.popitem(last=False)

    def _wait(self, source: str) -> float:
        """Return the seconds until one more may be tried; 0 or less if it may be now."""
        return self._paid.get(source, 0.0) - self._clock() - (IN_A_ROW - 1) * SECONDS_EACH


def _source(address: str) -> str:
    """Return whom an address belongs to: of IPv6, everybody has 2^64."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if found.version == 4:
        return address
    return (
        found.ipv4_mapped.compressed if found.ipv4_mapped else str(ipaddress.ip_network((int(found), 64), strict=False))
    )
