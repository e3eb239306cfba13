"""Bodies of requests: how they arrive, how much of them is held at a time, and what they may be: JSON or a form."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from email.message import Message
from email.parser import BytesHeaderParser
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from aiohttp import web
from pydantic import BaseModel

from zwatch.api.form_lists import with_lists
from zwatch.api.services import TIME_LIMITS
from zwatch.bridge import LANES
from zwatch.errors import RequestError
from zwatch.generation.fields import File, OneOf, Rule, TextOrTexts, file_fields, invalid, validated
from zwatch.generation.request import parse_json

MOST_HELD = 256 * 2**20
"""Bytes of unfinished bodies that are held at a time, over all connections."""
LEAST = 10 * 2**10
"""Bytes of a body that arrive within `TimeLimits.body`, as they are sent: about a hundredth of what the slowest lines carry, on which a
picture of 32 MiB takes many minutes."""
_LARGE = 2**20
"""An unfinished body of so many bytes is the first to go."""
_ENCODINGS = ("", "identity", "gzip", "deflate", "br", "zstd")
"""What aiohttp decodes; of `br` and `zstd` it says itself if it cannot."""
_MOST_PARTS = 100
_MOST_ESCAPES = 100_000
"""Most percent escapes of a form: the longest prompts need fewer, and each takes some 230 bytes while it is decoded."""
_FORM, _MULTIPART = "application/x-www-form-urlencoded", "multipart/form-data"
_MARK = b"\xef\xbb\xbf"
"""A byte order mark in UTF-8, with which some programs begin every text."""

_EXAMPLES = {"prompt": "a cat", "image": "the file in base64", "sd_model_checkpoint": "current"}
"""What an error shows as an example of a field."""

MAX_IMAGE_BODY = 32 * 2**20
"""Longest body with an image file, bytes: enough for the base64 of the largest image that can be generated."""
IMAGE_TOO_LONG = {413: f"The body is longer than {MAX_IMAGE_BODY // 2**20} MiB."}
"""What the document says of the error."""
READERS = web.AppKey("readers", asyncio.Semaphore)
MAX_READERS = LANES["decode"].width
"""Bodies with images that are parsed and decoded at a time: as many as there are threads for it, so that the others wait without a clock."""

M = TypeVar("M", bound=BaseModel)


class _Held:
    """A body that is being received or used."""

    def __init__(self) -> None:
        self.size = 0
        self.is_evicted = False
        self.timeout: asyncio.Timeout | None = None
        """None once the whole body is there."""


class Bodies:
    """Bounds the bytes of bodies that are held: beyond them, the one of which nothing has arrived for longest is given up. So clients
    that send half a body hold up nobody, and a slow line is not taken for one of them."""

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
        if held not in self._held:
            return  # given up
        del self._held[held]  # it is now the last to be given up
        self._held[held] = None
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
        arriving = [
            held for held in self._held if held.timeout is not None and not held.timeout.expired() and held.size
        ]
        return next((held for held in arriving if held.size >= _LARGE), next(iter(arriving), None))


class _Progress:
    """Moves a time limit as long as enough arrives. A fixed limit would be too short for a slow line and too long for half a body."""

    def __init__(self, request: web.Request, timeout: asyncio.Timeout, seconds: float) -> None:
        self._connection = request.protocol
        self._timeout = timeout
        self._seconds = seconds
        self._size = 0
        self._marked = self._arrived

    @property
    def _arrived(self) -> int:
        # As sent: some bytes that are decompressed to many would keep a connection open.
        return getattr(self._connection, "arrived", self._size)

    def note(self, count: int) -> None:
        """Note that bytes have arrived."""
        self._size += count
        if self._arrived - self._marked >= LEAST:
            self._marked = self._arrived
            self._timeout.reschedule(asyncio.get_running_loop().time() + self._seconds)


BODIES = web.AppKey("bodies", Bodies)


async def read_request(request: web.Request, model: type[M], *, may_be_empty: bool = False) -> M:
    """Return a request's validated body: JSON, or a form whose fields are text. With `may_be_empty`, an empty body stands for
    `{}`.

    Raises:
        RequestError: 400 with the field's name; 408, the body took too long; 415.
    """
    raw = await read_body(request)
    if may_be_empty and not raw.removeprefix(_MARK).strip():
        return validated(model, {})
    return validated(model, fields_of(request.headers.get("Content-Type", ""), raw, model))


async def read_body(request: web.Request) -> bytes:
    """Return a request's body. At least `LEAST` bytes of it, or the rest, must arrive within each `TimeLimits.body`.

    Raises:
        RequestError: 408, it took longer; 415, its encoding is not known.
    """
    async with received(request, request.client_max_size) as raw:
        return raw


def image_limit(request: web.Request) -> int:
    """Return how many bytes a body may have that may have image files. A compressed one keeps the usual limit: it is decompressed on the
    event loop, and images gain nothing from it."""
    return request.client_max_size if "Content-Encoding" in request.headers else MAX_IMAGE_BODY


@asynccontextmanager
async def received_image(request: web.Request) -> AsyncIterator[bytes]:
    """Yield a request's body that has an image file, of at most `MAX_IMAGE_BODY` bytes; `MAX_READERS` are used at a time.

    Raises:
        RequestError: as `read_body`.
    """
    async with received(request, image_limit(request)) as raw, request.app[READERS]:
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
                progress = _Progress(request, held.timeout, seconds)
                while part := await request.content.readany():
                    if held.is_evicted:
                        raise TimeoutError
                    progress.note(len(part))
                    size += len(part)
                    if size > limit:
                        raise web.HTTPRequestEntityTooLarge(limit, size)
                    parts.append(part)
                    bodies.grow(held, len(part))
        except TimeoutError:
            parts.clear()
            why = "did not arrive before its memory was needed for others"
            if not held.is_evicted:
                why = f"arrives too slowly: {LEAST // 2**10} KiB, or the rest of it, must arrive within {seconds:g} s"
            raise RequestError("request_timeout", f"the body {why}") from None
        held.timeout = None
        yield b"".join(parts)
    finally:
        bodies.end(held)


def unsupported(encoding: str) -> RequestError:
    """Return the error for a `Content-Encoding` that is not decoded."""
    message = f"Content-Encoding {encoding[:60]!r} is not supported: send the body as it is, or with gzip or deflate"
    return RequestError("unsupported_encoding", message, headers={"Accept-Encoding": "gzip, deflate"})


def fields_of(content_type: str, raw: bytes, model: type[BaseModel]) -> dict[str, Any]:
    """Return the fields in a body, unchecked: JSON, or a form if the content type says so. `model` says which fields are text.

    Raises:
        RequestError: 400, it is neither; the message has an example.
    """
    head = Message()
    head["Content-Type"] = content_type.encode("ascii", "replace").decode()  # else the library raises for some of it
    kind, raw = head.get_content_type(), raw.removeprefix(_MARK)
    if kind == _MULTIPART:
        try:
            parts = _parts(raw, head, file_fields(model))
        except RequestError as error:
            raise RequestError(error.code, f"{error.message}; {_advice(model)}", param=error.param) from None
        return _typed(parts, model)
    # `curl -d` calls JSON a form.
    if kind == _FORM and b"=" in raw and raw.lstrip()[:1] not in b'{["':
        if (count := raw.count(b"%")) > _MOST_ESCAPES:
            message = f"the form has {count} percent escapes, expected at most {_MOST_ESCAPES}: send JSON or multipart/form-data"
            raise RequestError("invalid_json", message)
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
    name = next((name for name in _EXAMPLES if name in model.model_fields), None)
    example = "" if name is None else f""", such as {{"{name}": "{_EXAMPLES[name]}"}}"""
    return f"send a JSON object{example}, or its fields as a form (curl -F name=value)"


def _parts(raw: bytes, head: Message, files: Mapping[str, bool]) -> list[tuple[str, str | bytes]]:
    """Return the fields of a multipart body as text, and those that may be `files` and are as bytes. A file without a name and without
    content, which browsers send where none was chosen, is left out.

    Raises:
        RequestError: 400, it is not valid, or another part is a file.
    """
    try:
        boundary = head.get_boundary()
    except (TypeError, ValueError):  # the library raises them for broken RFC 2231 parameters
        boundary = None
    if not boundary:
        raise RequestError("invalid_json", "Content-Type multipart/form-data has no boundary: let the client set it")
    _, *pieces = (b"\r\n" + raw).split(b"\r\n--" + boundary.encode("utf-8", "surrogateescape"))
    if not pieces or not pieces[-1].startswith(b"--") or len(pieces) > _MOST_PARTS:
        raise RequestError("invalid_json", "the body is not complete multipart/form-data, or has too many parts")
    found: list[tuple[str, str | bytes]] = []
    for piece in pieces[:-1]:
        lines, _, content = piece.partition(b"\r\n\r\n")
        part = BytesHeaderParser().parsebytes(lines.lstrip(b"\r\n")[:8192])
        try:
            name, is_file = part.get_param("name", None, "content-disposition"), part.get_filename() is not None
        except (TypeError, ValueError):
            name, is_file = None, False
        if not isinstance(name, str):
            raise RequestError("invalid_json", "a part of multipart/form-data has no name in its Content-Disposition")
        if is_file and name.removesuffix("[]") in files:
            if content or part.get_filename():
                found.append((name, content))
            continue
        try:
            found.append((name, "" if is_file else content.decode()))
        except UnicodeDecodeError:
            raise invalid(name[:100], f"{name[:100]} is not UTF-8") from None
        if is_file:
            taken = ", ".join(file for file, is_taken in files.items() if is_taken)
            allowed = f"only {taken} may be one" if taken else "no field takes a file"
            raise invalid(name[:100], f"{name[:100]} is a file: {allowed}")
    return found


def _typed(pairs: Iterable[tuple[str, str | bytes]], model: type[BaseModel]) -> dict[str, Any]:
    """Return the fields of a form as JSON would have them: a number for a field that takes no text, a list for those whose names end
    with `[]`. A field that takes no text, or one of some words, is left out if it is empty."""
    found: dict[str, Any] = {}
    for sent, value in with_lists(pairs, model.model_fields):
        name = sent.removesuffix("[]") if sent not in model.model_fields else sent
        is_listed = name != sent and name in model.model_fields
        name = name if is_listed else sent
        if name in found and not (is_listed and isinstance(found[name], list)):
            raise invalid(name[:100], f"{name[:100]} is in the form twice")
        if not _is_left_out(name, value, model):
            known = _typed_field(name, value, model)
            found[name] = [*found.get(name, ()), known] if is_listed else known
    return found


def _rules(name: str, model: type[BaseModel]) -> list[Rule]:
    field = model.model_fields.get(name)
    return [] if field is None else [rule for rule in field.metadata if isinstance(rule, Rule)]


def _is_left_out(name: str, value: str | bytes, model: type[BaseModel]) -> bool:
    """Return whether a field of a form stands for one that is not there: it is empty, and takes no text."""
    if isinstance(value, bytes) or value.strip():
        return False
    return not _is_text(name, model) or any(isinstance(rule, File | OneOf) for rule in _rules(name, model))


def _is_text(name: str, model: type[BaseModel]) -> bool:
    field = model.model_fields.get(name)
    if field is None or field.annotation is str:
        return True
    return any(isinstance(rule, File) or rule.schema().get("type") == "string" for rule in _rules(name, model))


def _typed_field(name: str, value: str | bytes, model: type[BaseModel]) -> Any:
    """Return the value of a form's field as JSON would have it."""
    if isinstance(value, bytes) or _is_text(name, model):
        return value
    if value[:1] != "[" and any(isinstance(rule, TextOrTexts) for rule in _rules(name, model)):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value
