"""The page's way in: the token once, then a cookie."""

from aiohttp import web

from zwatch.api.answers import answer, read_body
from zwatch.api.auth import DOOR, unauthorized
from zwatch.api.session import COOKIE, SESSION_SECONDS
from zwatch.generation.request import parse_json, refuse_unknown, text


async def login(request: web.Request) -> web.Response:
    """Exchange the token for the cookie."""
    door, address = request.app[DOOR], request.remote or ""
    body = parse_json(await read_body(request))
    refuse_unknown(body, ("token",))
    given = text(body, "token", None)
    door.guesses.check(address)
    if not door.opens_for(given):
        door.guesses.count(address)
        raise unauthorized(request, "the token is wrong")
    response = answer({"status": "success", "message": "logged in"})
    if door.sessions is not None:
        _set_cookie(request, response, door.sessions.begin(), SESSION_SECONDS)
    return response


async def logout(request: web.Request) -> web.Response:
    """Take the cookie back."""
    response = answer({"status": "success", "message": "logged out"})
    _set_cookie(request, response, "", 0)
    return response


def _set_cookie(request: web.Request, response: web.Response, value: str, seconds: int) -> None:
    # What a proxy says of the way before it decides only what this client's browser does with its own cookie.
    secure = request.secure or request.headers.get("X-Forwarded-Proto", "").lower() == "https"
    response.set_cookie(COOKIE, value, max_age=seconds, path="/", httponly=True, samesite="Strict", secure=secure)


ROUTES = [web.post("/login", login), web.delete("/login", logout)]
