"""Authorization: the token, the session cookie, the Host header, and the Origin of requests that change state.

Failed logins are limited per client address.
"""

import base64
import hmac
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from zwatch.api.answers import Handler, route_of
from zwatch.api.refusals import HEALTH, network_of
from zwatch.api.schema import COOKIE
from zwatch.api.sessions import Sessions
from zwatch.config import is_loopback
from zwatch.errors import RequestError, retry_after

_log = logging.getLogger(__name__)

OPEN = HEALTH | {"/", "/page/{name}", "/page/{digest}/{name}", "/login"}
"""Routes that need no token: the health checks, the page, its files, and the login."""
_SAFE = ("GET", "HEAD", "OPTIONS")
MAX_FAILURES = 10
"""Failed logins in a row that an address may make before it has to wait."""
FAILURE_SECONDS = 6.0
"""Time after which one failed login no longer counts."""
MAX_ADDRESSES = 1000
"""Addresses that are remembered; the one with the oldest failure is dropped first."""


class LoginAttempts:
    """Limits failed logins per address. Used on the event loop only."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._free_at: OrderedDict[str, float] = OrderedDict()
        """By address, the time at which none of its failures counts any more."""

    def check(self, address: str) -> None:
        """Check that an address may log in now. While it may not, the correct token is refused too: otherwise the answer
        would reveal which token is correct.

        Raises:
            RequestError: 429 with `Retry-After`, the address made too many failed logins.
        """
        if (seconds := self._wait(network_of(address))) > 0:
            wait = math.ceil(seconds)
            raise RequestError(
                "too_many_guesses", f"too many wrong tokens came from your address: try again in {wait} s",
                headers=retry_after(wait),
            )  # fmt: skip

    def count_failure(self, address: str) -> None:
        """Record a failed login."""
        network, now = network_of(address), self._clock()
        self._free_at[network] = max(now, self._free_at.pop(network, now)) + FAILURE_SECONDS
        if self._wait(network) > 0:
            _log.warning("too many wrong tokens from %s: /login rejects this address temporarily", network)
        if len(self._free_at) > MAX_ADDRESSES:
            self._free_at.popitem(last=False)

    def _wait(self, network: str) -> float:
        """Return the seconds until the next login may be tried; 0 or less if it may be now."""
        return self._free_at.get(network, 0.0) - self._clock() - (MAX_FAILURES - 1) * FAILURE_SECONDS


class Authenticator:
    """Checks the token, or the session cookie in its place. Without a configured token every request is allowed."""

    def __init__(self, token: str | None, state_dir: Path) -> None:
        self._token = token
        self.sessions = None if token is None else Sessions(token, state_dir=state_dir)
        """None without a token: then no cookie is needed."""
        self.login_attempts = LoginAttempts()

    def renew(self, token: str, sessions: Sessions) -> None:
        """Accept another token from now on; `sessions` is made with it, which ends all earlier ones."""
        self._token, self.sessions = token, sessions

    def is_token(self, given: str) -> bool:
        """Return whether this is the token; compared in constant time."""
        if self._token is None:
            return True
        return hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token.encode())

    def admits(self, request: web.Request) -> bool:
        """Return whether a request has the token in its Authorization header, or a valid session cookie."""
        if self.sessions is None or self.is_token(_token_of(request)):
            return True
        return self.sessions.is_valid(request.cookies.get(COOKIE, ""))


AUTHENTICATOR = web.AppKey("authenticator", Authenticator)


def authorizing(authenticator: Authenticator, own_hosts: Iterable[str], allowed_hosts: Iterable[str]) -> Middleware:
    """Return the middleware that refuses requests without authorization."""
    allowed = frozenset(name.lower() for name in allowed_hosts)
    hosts = allowed | {name.lower() for name in own_hosts}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        # OPTIONS has no routes of its own.
        route = request.path if request.method == "OPTIONS" else route_of(request)
        if route not in HEALTH:
            _check_host(request, hosts)
            _check_origin(request, allowed)
        if route not in OPEN and not authenticator.admits(request):
            raise unauthorized(request, "the token is missing or wrong; send Authorization: Bearer TOKEN")
        return await handler(request)

    return check


def unauthorized(request: web.Request, message: str) -> RequestError:
    """Return the error for a wrong token. The page's own calls are not offered Basic: the browser would open a dialog."""
    is_call = request.headers.get("Sec-Fetch-Mode", "navigate") != "navigate"
    schemes = 'Bearer realm="zwatch"' if is_call else 'Bearer realm="zwatch", Basic realm="zwatch"'
    return RequestError("unauthorized", message, headers={"WWW-Authenticate": schemes})


def _check_host(request: web.Request, hosts: frozenset[str]) -> None:
    """Refuse unknown host names: a page of another site may reach this service by a name that the page's owner controls (DNS rebinding).

    Raises:
        RequestError: 403, the name is not one of this service.
    """
    name = _host_name(request.headers.get("Host", ""))
    if name is None or not (is_loopback(name) or name in hosts):
        raise RequestError("forbidden_host", f"the Host {name!r} is not allowed; allow it with --allowed-host")


def _check_origin(request: web.Request, allowed: frozenset[str]) -> None:
    """Refuse state changes by pages of other sites (cross-site request forgery).

    Raises:
        RequestError: 403, the origin is foreign.
    """
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


def _token_of(request: web.Request) -> str:
    """Return the token in the Authorization header: a Bearer token or a Basic password; empty if there is none."""
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(given, validate=True).decode().partition(":")[2]
        except ValueError:  # not base64, not ASCII, not UTF-8
            return ""
    return given if scheme.lower() == "bearer" else ""
