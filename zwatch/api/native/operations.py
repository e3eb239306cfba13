"""Operations: metrics, the OpenAPI document, and the login of the page."""

from collections.abc import Callable
from typing import Annotated

from aiohttp import web
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from typing_extensions import TypedDict

from zwatch.api.answers import answer, json_answer, scheme_of
from zwatch.api.auth import AUTHENTICATOR, unauthorized
from zwatch.api.bodies import read_request
from zwatch.api.schema import COOKIE, MARK_COOKIE, Request, choice
from zwatch.api.services import SERVICES
from zwatch.api.sessions import SESSION_SECONDS
from zwatch.generation.fields import Text

DOCUMENT: web.AppKey[Callable[[], bytes]] = web.AppKey("document")
"""Returns the OpenAPI document as JSON."""


class LoginRequest(Request):
    """The token to exchange for a session cookie."""

    token: Annotated[str, Text(required=True)]


class Success(TypedDict):
    """The call succeeded."""

    status: Annotated[str, choice("success")]
    message: str


async def metrics(request: web.Request) -> web.Response:
    """Return all metrics in the Prometheus text format."""
    services = request.app[SERVICES]
    services.metrics.device_memory = await services.device_memory()
    # In a thread: a thousand lines of counters take milliseconds, which would block the event loop.
    text = await services.bridge.run("inspect", generate_latest, services.metrics.registry)
    text += generate_latest(services.metrics.present)
    return web.Response(body=text, headers={"Content-Type": CONTENT_TYPE_PLAIN_0_0_4})


async def openapi(request: web.Request) -> web.Response:
    """Return the OpenAPI document."""
    # Made at the first request, in a thread: it takes about 0.1 s, which would delay the start.
    return json_answer(await request.app[SERVICES].bridge.run("inspect", request.app[DOCUMENT]))


async def login(request: web.Request) -> web.Response:
    """Exchange the token for a session cookie."""
    authenticator, address = request.app[AUTHENTICATOR], request.remote or ""
    given = (await read_request(request, LoginRequest)).token
    authenticator.login_attempts.check(address)
    if not authenticator.is_token(given):
        authenticator.login_attempts.count_failure(address)
        raise unauthorized(request, "the token is wrong")
    body: Success = {"status": "success", "message": "logged in"}
    response = answer(body)
    if authenticator.sessions is not None:
        _set_cookie(request, response, authenticator.sessions.begin(), SESSION_SECONDS)
    return response


async def logout(request: web.Request) -> web.Response:
    """End the session and delete its cookie."""
    authenticator = request.app[AUTHENTICATOR]
    if authenticator.sessions is not None and authenticator.sessions.end(request.cookies.get(COOKIE, "")):
        await request.app[SERVICES].bridge.run("inspect", authenticator.sessions.save)
    body: Success = {"status": "success", "message": "logged out"}
    response = answer(body)
    _set_cookie(request, response, "", 0)
    return response


def _set_cookie(request: web.Request, response: web.Response, value: str, seconds: int) -> None:
    secure = request.secure or scheme_of(request) == "https"
    response.set_cookie(COOKIE, value, max_age=seconds, path="/", httponly=True, samesite="Strict", secure=secure)
    response.set_cookie(MARK_COOKIE, value and "1", max_age=seconds, path="/", samesite="Strict", secure=secure)
