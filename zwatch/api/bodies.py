"""Bodies of requests: how they arrive, how much of them is held at a time, and what they may be: JSON or a form."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from email.message import Message
from email.parser import BytesHeaderParser
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from aiohttp import web
from pydantic import BaseModel

from zwatch.api.services import TIME_LIMITS
from zwatch.errors import RequestError
from zwatch.generation.fields import Rule, invalid, validated
from zwatch.generation.request import parse_json

MOST_HELD = 256 * 2**20
"""Bytes of unfinished bodies that are held at a time, over all connections."""
_LARGE = 2**20
"""An unfinished body of so many bytes is the first to go."""
_ENCODINGS = ("", "identity", "gzip", "deflate", "br", "zstd")
"""What aiohttp decodes; of `br` and `zstd` it says itself if it cannot."""
_MOST_PARTS = 100
_FORM, _MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"

MAX_IMAGE_BODY = 32 * 2**20
"""Longest body with an image file, bytes: enough for the base64 of the largest image that can be generated."""
READERS = web.AppKey("readers", asyncio.Semaphore)
MAX_READERS = 4
"""Images that are decoded at a time: each may take nearly as much memory as its body."""

M = TypeVar("M", bound=BaseModel)


class _Held:
    """A body that is being received or used."""

    def __init__(self) -> None:
        self.size = 0
        self.is_evicted = False
        self.timeout: asyncio.Timeout | None = None
        """None once the whole body is there."""


class Bodies:
    """Bounds the bytes of bodies that are held: beyond them, the one that has been arriving for longest is given up. So clients
    that send half a body hold up nobody."""

    def __init__(self, most: int = MOST_HELD) -> None:
        self._most = most
        self._held: dict[_Held, None] = {}
        self._bytes = 0

    def begin(self) -> _Held:
        """Begin a body."""
        held = _Held()
        self._held[held] = None
        return held

    def grow(self, held: _Held, count: int) -> None:
        """Add bytes that have arrived."""
        held.size += count
        self._bytes += count
        while self._bytes > self._most and (slowest := self._slowest()) is not None:
            slowest.is_evicted = True
            assert slowest.timeout is not None  # see _slowest
            slowest.timeout.reschedule(asyncio.get_running_loop().time())
            self.end(slowest)

    def end(self, held: _Held) -> None:
        """Forget a body."""
        if held in self._held:
            del self._held[held]
            self._bytes -= held.size
            held.size = 0

    def _slowest(self) -> _Held | None:
        arriving = [held for held in self._held if held.timeout is not None and held.size]
        return next((held for held in arriving if held.size >= _LARGE), next(iter(arriving), None))


BODIES = web.AppKey("bodies", Bodies)


async def read_request(request: web.Request, model: type[M], *, may_be_empty: bool = False) -> M:
    """Return a request's validated body: JSON, or a form whose fields are text. With `may_be_empty`, an empty body stands for
    `{}`.

    Raises:
        RequestError: 400 with the field's name; 408, the body took too long; 415.
    """
    raw = await read_body(request)
    if may_be_empty and not raw.strip():
        return validated(model, {})
    return validated(model, _fields(request, raw, model))


async def read_body(request: web.Request) -> bytes:
    """Return a request's body, which must arrive within `TimeLimits.body`.

    Raises:
        RequestError: 408, it took longer; 415, its encoding is not known.
    """
    async with received(request, request.client_max_size) as raw:
        return raw


@asynccontextmanager
async def received_image(request: web.Request) -> AsyncIterator[bytes]:
    """Yield a request's body that has an image file, of at most `MAX_IMAGE_BODY` bytes; `MAX_READERS` are used at a time.

    Raises:
        RequestError: as `read_body`.
    """
    # A compressed body is decompressed on the event loop, so it keeps the usual limit; images gain nothing from it.
    is_compressed = "Content-Encoding" in request.headers
    limit = request.client_max_size if is_compressed else MAX_IMAGE_BODY
    async with received(request, limit) as raw, request.app[READERS]:
        yield raw


@asynccontextmanager
async def received(request: web.Request, limit: int) -> AsyncIterator[bytes]:
    """Yield a request's body of at most `limit` bytes, which counts as held inside the block.

    Raises:
        RequestError: as `read_body`.
    """
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if encoding not in _ENCODINGS:
        raise unsupported(encoding)
    if not encoding and (length := request.content_length or 0) > limit:
        raise web.HTTPRequestEntityTooLarge(limit, length)
    bodies, seconds = request.app[BODIES], request.app[TIME_LIMITS].body
    held, parts, size = bodies.begin(), [], 0
    try:
        try:
            async with asyncio.timeout(seconds) as held.timeout:
                while part := await request.content.readany():
                    size += len(part)
                    if size > limit:
                        raise web.HTTPRequestEntityTooLarge(limit, size)
                    parts.append(part)
                    bodies.grow(held, len(part))
        except TimeoutError:
            parts.clear()
            why = "before its memory was needed for others" if held.is_evicted else f"within {seconds:g} s"
            raise RequestError("request_timeout", f"the body did not arrive {why}") from None
        held.timeout = None
        yield b"".join(parts)
    finally:
        bodies.end(held)


def unsupported(encoding: str) -> RequestError:
    """Return the error for a `Content-Encoding` that is not decoded."""
    message = f"Content-Encoding {encoding[:60]!r} is not supported: send the body as it is, or with gzip or deflate"
    return RequestError("unsupported_encoding", message, headers={"Accept-Encoding": "gzip, deflate"})


def _fields(request: web.Request, raw: bytes, model: type[BaseModel]) -> dict[str, Any]:
    kind = request.content_type
    if kind == _MULTIPART:
        return _typed(_parts(raw, request.headers["Content-Type"]), model)
    # `curl -d` calls JSON a form.
    if kind == _FORM and b"=" in raw and raw.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] not in b'{["':
        try:
            pairs = parse_qsl(
                raw.decode(), keep_blank_values=True, strict_parsing=True, max_num_fields=_MOST_PARTS, errors="strict"
            )
        except ValueError as error:
            raise RequestError("invalid_json", f"the body is not a form: {error}; {_advice(model)}") from None
        return _typed(pairs, model)
    try:
        return parse_json(raw)
    except RequestError as error:
        raise RequestError(error.code, f"{error.message}; {_advice(model)}") from None


def _advice(model: type[BaseModel]) -> str:
    example = """, such as {"prompt": "a cat"}""" if "prompt" in model.model_fields else ""
    return f"send a JSON object{example}, or its fields as a form (curl -F name=value)"


def _parts(raw: bytes, content_type: str) -> list[tuple[str, str]]:
    """Return the fields of a multipart body as text.

    Raises:
        RequestError: 400, it is not valid, or a part is a file.
    """
    head = Message()
    head["Content-Type"] = content_type
    boundary = head.get_boundary()
    if not boundary:
        raise RequestError("invalid_json", "Content-Type multipart/form-data has no boundary: let the client set it")
    _, *pieces = (b"\r\n" + raw).split(b"\r\n--" + boundary.encode("utf-8", "surrogateescape"))
    if not pieces or not pieces[-1].startswith(b"--") or len(pieces) > _MOST_PARTS:
        raise RequestError("invalid_json", "the body is not complete multipart/form-data, or has too many parts")
    found = []
    for piece in pieces[:-1]:
        lines, _, content = piece.partition(b"\r\n\r\n")
        part = BytesHeaderParser().parsebytes(lines.lstrip(b"\r\n")[:8192])
        name, is_file = part.get_param("name", None, "content-disposition"), part.get_filename() is not None
        if not isinstance(name, str):
            raise RequestError("invalid_json", "a part of multipart/form-data has no name in its Content-Disposition")
        try:
            found.append((name, "" if is_file else content.decode()))
        except UnicodeDecodeError:
            raise invalid(name[:100], f"{name[:100]} is not UTF-8") from None
        if is_file:
            raise invalid(name[:100], f"{name[:100]} is a file: no field takes a file, send text")
    return found


def _typed(pairs: Iterable[tuple[str, str]], model: type[BaseModel]) -> dict[str, Any]:
    """Return the fields of a form as JSON would have them: a number for a field that takes no text. Such a field is left out if
    it is empty."""
    found: dict[str, Any] = {}
    for name, text in pairs:
        if name in found:
            raise invalid(name[:100], f"{name[:100]} is in the form twice")
        field = model.model_fields.get(name)
        rules = [] if field is None else [rule for rule in field.metadata if isinstance(rule, Rule)]
        if field is None or field.annotation is str or any(rule.schema().get("type") == "string" for rule in rules):
            found[name] = text
        elif text.strip():
            try:
                found[name] = json.loads(text)
            except (ValueError, RecursionError):
                found[name] = text
    return found
