"""Reading a request for images: its fields, and the image that it changes, if there is one."""

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from aiohttp import web

from zwatch.api.bodies import READERS, fields_of, image_limit, received
from zwatch.api.services import SERVICES, Services
from zwatch.bridge import NoAnswer
from zwatch.errors import RequestError
from zwatch.generation.fields import invalid, validated
from zwatch.generation.request import ComparableRequest
from zwatch.generation.sources import Source, file_of, read_source

IN_HISTORY = "history:"
"""Begins the name of an image in the history, where an image can be given."""
R = TypeVar("R")
_LARGE = 2**16
"""Bytes of a body from which on it is parsed in a thread: that takes milliseconds."""


async def read_asked(request: web.Request) -> tuple[ComparableRequest, Source | None]:
    """Return a request's checked fields, without its files, and the image that it changes.

    Raises:
        RequestError: 400 with the field's name; 404, the history has no such image; 408, 413, 415 as `received`.
    """
    services = request.app[SERVICES]
    async with received(request, image_limit(request)) as raw:
        parse = partial(_parsed, request.headers.get("Content-Type", ""), raw)
        wanted = parse() if len(raw) < _LARGE else await _in_thread(services, parse)
        if wanted.image is None and wanted.mask is None:
            return wanted, None
        if wanted.image is None:
            raise invalid("image", "image is missing: a mask says which part of an image is painted anew")
        image = await _file(services, wanted.image, "image")
        mask = None if wanted.mask is None else await _file(services, wanted.mask, "mask")
        source = await decoded(request, image, mask)
    # What stays with the request until it is drawn has no files.
    return wanted.model_copy(update={"image": None, "mask": None}), source


async def decoded(request: web.Request, image: bytes, mask: bytes | None) -> Source:
    """Decode an image file and its mask's in a thread, few at a time.

    Raises:
        RequestError: 400 with `image` or `mask`.
    """
    async with request.app[READERS]:
        return await _in_thread(request.app[SERVICES], partial(read_source, image, mask))


async def _in_thread(services: Services, function: Callable[[], R]) -> R:
    """Return a function's result from a thread for images.

    Raises:
        RequestError: 400, it takes too long, or earlier ones do.
    """
    try:
        return await services.bridge.run("decode", function)
    except NoAnswer as error:
        raise invalid("image", f"image takes too long to decode ({error.strerror}): send a smaller one") from None


def _parsed(content_type: str, raw: bytes) -> ComparableRequest:
    return validated(ComparableRequest, fields_of(content_type, raw, ComparableRequest))


async def _file(services: Services, given: str | bytes, param: str) -> bytes:
    """Return the file that a field has or names."""
    if isinstance(given, bytes):
        return given
    if not given[:64].lstrip().startswith(IN_HISTORY):
        return await _in_thread(services, partial(file_of, given, param))
    if services.history is None:
        raise invalid(param, f"{param} names a picture in the history, which is off: send the file itself")
    name = given.strip().removeprefix(IN_HISTORY)
    try:
        return await services.history.read(name)
    except RequestError as error:
        raise RequestError(error.code, f"{param}: {error.message}", param=param) from None
