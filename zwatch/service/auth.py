"""Who may call: the token, the Host header, and the Origin of what changes something."""

import base64
import hmac
from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware

from zwatch.config import is_loopback
from zwatch.errors import RequestError
from zwatch.service.answers import Handler

_OPEN_PREFIX = "/health"
_SAFE = ("GET", "HEAD", "OPTIONS")


def guard(token: str | None, host: str, allowed_hosts: Iterable[str]) -> Middleware:
    """Return the middleware that lets only rightful requests through. `/health` and below is open to all."""
    allowed = frozenset(name.lower() for name in allowed_hosts)
    hosts = allowed | {host.lower()}

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path != _OPEN_PREFIX and not request.path.startswith(f"{_OPEN_PREFIX}/"):
            _check_host(request, hosts)
            _check_origin(request, allowed)
            if token is not None:
                _check_token(request, token)
        return await handler(request)

    return check


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


def _check_token(request: web.Request, token: str) -> None:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except ValueError:  # not base64, not ASCII, not UTF-8
            given = ""
    elif scheme.lower() != "bearer":
        given = ""
    if not hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token.encode()):
        raise RequestError(
            401, "unauthorized", "the token is missing or wrong; send Authorization: Bearer TOKEN",
            headers={"WWW-Authenticate": 'Bearer realm="zwatch", Basic realm="zwatch"'},
        )  # fmt: skip
