"""Who may call: the token, the Host header, and the Origin of what changes something."""

import base64
import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from zwatch.api.answers import Handler, route_of
from zwatch.api.guesses import Guesses
from zwatch.api.session import COOKIE, Sessions
from zwatch.config import is_loopback
from zwatch.errors import RequestError

HEALTH = frozenset({"/health", "/health/live", "/health/ready"})
"""Routes that are open to all, under whatever name they are reached: a load balancer has no token and no name for us."""
OPEN = HEALTH | {"/", "/page", "/login"}
"""Routes that need no token: also the page, its files below `/page/`, and the way to get its cookie."""
_SAFE = ("GET", "HEAD", "OPTIONS")


class Door:
    """Knows the token, and the cookies that stand for it. Without a token everybody may come in."""

    def __init__(self, token: str | None) -> None:
        self._token = token
        self.sessions = None if token is None else Sessions(token)
        """None where no token is needed, so no cookie either."""
        self.guesses = Guesses()

    def opens_for(self, given: str) -> bool:
        """Say whether this is the token; how long that takes tells nothing about it."""
        if self._token is None:
            return True
        return hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), self._token.encode())

    def admits(self, request: web.Request) -> bool:
        """Say whether a request brings the token in a header, or a cookie of ours."""
        if self.sessions is None or self.opens_for(_given(request)):
            return True
        return self.sessions.knows(request.cookies.get(COOKIE, ""))


DOOR = web.AppKey("door", Door)


def guard(door: Door, host: str, allowed_hosts: Iterable[str]) -> Middleware:
    """Return the middleware that lets only rightful requests through."""
    allowed = frozenset(name.lower() for name in allowed_hosts)
    hosts = allowed | {host.lower()}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = route_of(request)
        if route not in HEALTH:
            _check_host(request, hosts)
            _check_origin(request, allowed)
        if route not in OPEN and not door.admits(request):
            raise unauthorized(request, "the token is missing or wrong; send Authorization: Bearer TOKEN")
        return await handler(request)

    return check


def unauthorized(request: web.Request, message: str) -> RequestError:
    """Return the error for a wrong token. A page's own calls are not told of Basic: the browser would open a dialog."""
    is_call = request.headers.get("Sec-Fetch-Mode", "navigate") != "navigate"
    schemes = 'Bearer realm="zwatch"' if is_call else 'Bearer realm="zwatch", Basic realm="zwatch"'
    return RequestError(401, "unauthorized", message, headers={"WWW-Authenticate": schemes})


def _check_host(request: web.Request, hosts: frozenset[str]) -> None:
    """A page of another site may make a browser call us by a name of its own (DNS rebinding); names we don't go by are
    refused."""
    name = _host_name(request.headers.get("Host", ""))
    if name is None or not (is_loopback(name) or name in hosts):
        raise RequestError(403, "forbidden_host", f"the Host {name!r} is not one of ours; allow it with --allowed-host")


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
        raise RequestError(403, "forbidden_origin", f"a page from {origin[:200]!r} may not change anything here")


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
