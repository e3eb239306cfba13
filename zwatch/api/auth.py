"""Who may call: the token, the page's cookie, the Host header, and the Origin of what changes something.

Wrong tokens are counted at the login, address by address.
"""

import base64
import hashlib
import hmac
import ipaddress
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from zwatch.api.answers import Handler, route_of
from zwatch.api.schema import COOKIE
from zwatch.config import is_loopback
from zwatch.errors import RequestError

_log = logging.getLogger(__name__)

HEALTH = frozenset({"/health", "/health/live", "/health/ready"})
"""Routes that are open to all, under whatever name they are reached: a load balancer has no token and no name for us."""
OPEN = HEALTH | {"/", "/page", "/login"}
"""Routes that need no token: also the page, its files below `/page/`, and the way to get its cookie."""
_SAFE = ("GET", "HEAD", "OPTIONS")
SESSION_SECONDS = 30 * 86400
_ROUNDS = 200_000  # each guess at a short token costs a stolen cookie's thief this many hashes
IN_A_ROW = 10
SECONDS_EACH = 6.0
"""After which one more may be tried."""
MOST_ADDRESSES = 1000
"""That are remembered; the one that was not heard of for longest goes first."""


class Sessions:
    """Gives out cookie values and knows them again. A value says when it ends, signed with a key derived from the token:
    it outlives a restart, a new token ends it, and the token cannot be read from it."""

    def __init__(self, token: str, clock: Callable[[], float] = time.time) -> None:
        self._key = hashlib.pbkdf2_hmac("sha256", token.encode(), b"zwatch: the page's cookie", _ROUNDS)
        self._clock = clock

    def begin(self) -> str:
        """Return a value that is good for 30 days."""
        return self._signed(str(int(self._clock()) + SESSION_SECONDS))

    def knows(self, value: str) -> bool:
        """Say whether a value is one of ours and has not ended."""
        end = value.partition(".")[0]
        if not (end.isascii() and end.isdecimal() and len(end) < 16):
            return False
        ours = hmac.compare_digest(value.encode("utf-8", "surrogateescape"), self._signed(end).encode())
        return ours and int(end) > self._clock()

    def _signed(self, end: str) -> str:
        return f"{end}.{hmac.new(self._key, end.encode(), 'sha256').hexdigest()}"


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
        if (seconds := self._wait(_network(address))) > 0:
            wait = math.ceil(seconds)
            raise RequestError(
                "too_many_guesses", f"too many wrong tokens came from your address: try again in {wait} s",
                headers={"Retry-After": str(wait)},
            )  # fmt: skip

    def count(self, address: str) -> None:
        """Note a wrong token."""
        network, now = _network(address), self._clock()
        self._paid[network] = max(now, self._paid.pop(network, now)) + SECONDS_EACH
        if self._wait(network) > 0:
            _log.warning("too many wrong tokens from %s: /login refuses it for a while", network)
        if len(self._paid) > MOST_ADDRESSES:
            self._paid.popitem(last=False)

    def _wait(self, network: str) -> float:
        """Return the seconds until one more may be tried; 0 or less if it may be now."""
        return self._paid.get(network, 0.0) - self._clock() - (IN_A_ROW - 1) * SECONDS_EACH


def _network(address: str) -> str:
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


class Authenticator:
    """Knows the token, and the cookies that stand for it. Without a token every request is allowed."""

    def __init__(self, token: str | None) -> None:
        self._token = token
        self.sessions = None if token is None else Sessions(token)
        """None where no token is needed, so no cookie either."""
        self.guesses = Guesses()

    def is_token(self, given: str) -> bool:
        """Say whether this is the token; how long that takes tells nothing about it."""
        if self._token is None:
            return True
        return hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token.encode())

    def admits(self, request: web.Request) -> bool:
        """Say whether a request brings the token in a header, or a cookie of ours."""
        if self.sessions is None or self.is_token(_given(request)):
            return True
        return self.sessions.knows(request.cookies.get(COOKIE, ""))


AUTHENTICATOR = web.AppKey("authenticator", Authenticator)


def authorizing(authenticator: Authenticator, host: str, allowed_hosts: Iterable[str]) -> Middleware:
    """Return the middleware that refuses what may not call."""
    allowed = frozenset(name.lower() for name in allowed_hosts)
    hosts = allowed | {host.lower()}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = route_of(request)
        if route not in HEALTH:
            _check_host(request, hosts)
            _check_origin(request, allowed)
        if route not in OPEN and not authenticator.admits(request):
            raise unauthorized(request, "the token is missing or wrong; send Authorization: Bearer TOKEN")
        return await handler(request)

    return check


def unauthorized(request: web.Request, message: str) -> RequestError:
    """Return the error for a wrong token. A page's own calls are not told of Basic: the browser would open a dialog."""
    is_call = request.headers.get("Sec-Fetch-Mode", "navigate") != "navigate"
    schemes = 'Bearer realm="zwatch"' if is_call else 'Bearer realm="zwatch", Basic realm="zwatch"'
    return RequestError("unauthorized", message, headers={"WWW-Authenticate": schemes})


def _check_host(request: web.Request, hosts: frozenset[str]) -> None:
    """A page of another site may make a browser call us by a name of its own (DNS rebinding); names we don't go by are
    refused."""
    name = _host_name(request.headers.get("Host", ""))
    if name is None or not (is_loopback(name) or name in hosts):
        raise RequestError("forbidden_host", f"the Host {name!r} is not one of ours; allow it with --allowed-host")


def _check_origin(request: web.Request, allowed: frozenset[str]) -> None:
    """A page of another site must not change anything through somebody's browser."""
    origin = request.headers.get("Origin")
    if origin is None or request.method in _SAFE:
        return
    try:
        host = urlsplit(origin).netloc.lower()
    except ValueError:
        host = ""
    if host != request.headers.get("Host", "").lower() and _host_name(host) not in allowed:
        raise RequestError("forbidden_origin", f"a page from {origin[:200]!r} may not change anything here")


def _host_name(host: str) -> str | None:
    """Return the name in a Host header, without its port; None if it is malformed."""
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _given(request: web.Request) -> str:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(given, validate=True).decode().partition(":")[2]
        except ValueError:  # not base64, not ASCII, not UTF-8
            return ""
    return given if scheme.lower() == "bearer" else ""
