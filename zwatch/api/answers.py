"""What all answers have in common: request ids, JSON, and the shape of errors."""

import json
import logging
import re
import uuid
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import web
from aiohttp.web_protocol import RequestPayloadError

from zwatch.api.schema import DetailedError, Error, ErrorObject, has_detail
from zwatch.bridge import NoAnswer
from zwatch.errors import REQUEST_ERRORS, Fault, RequestError, retry_after
from zwatch.lanes import NoThread
from zwatch.logs import request_id

_log = logging.getLogger(__name__)

ID_HEADER = "X-Request-Id"
TOO_MANY_CONNECTIONS = RequestError("too_many_connections", "too many connections are open", headers=retry_after(5))
_VALID_ID = re.compile(r"[\x21-\x7e]{1,128}")
_SURROGATES = re.compile("[\ud800-\udfff]")
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""OpenAI's types of errors, by status."""
_RETRY_SECONDS = 5.0
"""In `Retry-After` where the error itself says nothing."""
_BUSY_SECONDS = 10.0
_FAULTS = {Fault.CLIENT: "invalid_request_error", Fault.SERVICE: "server_error"}
"""The types of all other errors."""
_CODES = {404: "not_found", 405: "method_not_allowed", 411: "length_required", 413: "payload_too_large"}
"""Codes for the errors that aiohttp raises, by status."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def route_of(request: web.Request) -> str | None:
    """Return the template of a request's route, such as `/jobs/{id}`; None if no route matches."""
    resource = request.match_info.route.resource
    return None if resource is None else resource.canonical


def scheme_of(request: web.Request) -> str:
    """Return the scheme that the client used: what a proxy says in `X-Forwarded-Proto`, else the connection's own.

    The header is not authenticated. Only the client's own cookie and links depend on it.
    """
    forwarded = request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip().lower()
    return forwarded if forwarded in ("http", "https") else request.scheme


def answer(body: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """Return a JSON answer."""
    return web.Response(
        body=encoded(body), status=status, headers=headers, content_type="application/json", charset="utf-8"
    )


def json_answer(body: bytes, headers: dict[str, str] | None = None) -> web.Response:
    """Return an answer whose body is JSON bytes."""
    return web.Response(body=body, headers=headers, content_type="application/json", charset="utf-8")


def encoded(body: object) -> bytes:
    """Return a value as JSON, in UTF-8. Lone surrogates, as in file names that are not UTF-8, become visible escapes."""
    text = json.dumps(body, ensure_ascii=False)
    return _SURROGATES.sub(lambda found: f"\\\\u{ord(found.group()):04x}", text).encode()


def error_answer(error: RequestError, path: str = "") -> web.Response:
    """Return the answer for an error; below some paths it repeats the message in `detail`, see `has_detail`."""
    body: Error | DetailedError = {"error": error_object(error)}
    if has_detail(path):
        body = {**body, "detail": error.message}
    waiting = retry_after(_RETRY_SECONDS) if error.status in (429, 503) else {}
    return answer({**body, **error.extra}, error.status, {**waiting, **error.headers})


def raw_answer(error: RequestError) -> bytes:
    """Return a whole HTTP answer for a connection that never reaches aiohttp's parser."""
    body = encoded({"error": error_object(error)})
    headers = {
        **error.headers,
        ID_HEADER: uuid.uuid4().hex,
        "Content-Type": "application/json; charset=utf-8",
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n{head}\r\n".encode() + body


def error_object(error: RequestError) -> ErrorObject:
    """Return the error object of answers and event streams."""
    kind = _TYPES.get(error.status) or _FAULTS[REQUEST_ERRORS[error.code].fault]
    return {"message": error.message, "type": kind, "param": error.param, "code": error.code}


@web.middleware
async def identify(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Set the id of the request: the client's own, if it is valid, else a random one."""
    given = request.headers.get(ID_HEADER, "")
    request_id.set(given if _VALID_ID.fullmatch(given) else uuid.uuid4().hex)
    return await handler(request)


async def add_id(request: web.Request, response: web.StreamResponse) -> None:
    """Add the request's id to an answer's headers; a signal handler, so that it also covers streams."""
    response.headers[ID_HEADER] = request_id.get() or uuid.uuid4().hex


@web.middleware
async def shape_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn exceptions into error answers."""
    try:
        return await handler(request)
    except RequestError as error:
        return error_answer(error, request.path)
    except NoAnswer as error:
        _log.warning("%s %s: %s", request.method, route_of(request), error.strerror)
        message = f"{error.strerror}; a disk, a file server or the device may be gone"
        return error_answer(RequestError("timeout", message), request.path)
    except NoThread as error:
        _log.warning("%s %s: %s", request.method, route_of(request), error.strerror)
        busy = RequestError(
            "internal_error", f"{error.strerror}; try again", status=503, headers=retry_after(_BUSY_SECONDS)
        )
        return error_answer(busy, request.path)
    except web.HTTPException as error:
        if request.method == "OPTIONS" and (error.status == 405 or request.path in ("*", "/*")):
            return web.Response(status=204, headers={"Allow": _allowed(error)})
        code = _CODES.get(error.status)
        if code is None:
            raise
        allowed = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return error_answer(RequestError(code, _sentence(request, error), headers=allowed), request.path)
    except RequestPayloadError:
        message = "the body ended early, or is not what Content-Encoding or Transfer-Encoding says"
        return error_answer(RequestError("invalid_json", message), request.path)
    except Exception:
        _log.exception("%s %s failed", request.method, route_of(request))
        message = "unexpected error; see the log entry with this answer's X-Request-Id"
        return error_answer(RequestError("internal_error", message), request.path)


def _allowed(error: web.HTTPException) -> str:
    """Return the methods of a known path, or of the whole service."""
    methods = error.headers["Allow"].split(",") if "Allow" in error.headers else ["GET", "HEAD", "POST", "DELETE"]
    return ", ".join(sorted({*methods, "OPTIONS"}))


def _sentence(request: web.Request, error: web.HTTPException) -> str:
    if error.status == 404:
        return f"there is nothing at {request.path[:200]}; the README has the table of calls"
    if error.status == 405:
        return f"{request.path[:200]} does not take {request.method}, but {error.headers.get('Allow')}"
    return error.text or error.reason
