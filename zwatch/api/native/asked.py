"""Reading a request for images: its fields, and the image that it changes, or that guides it, if there is one."""

from functools import partial

from aiohttp import web

from zwatch.api.bodies import fields_of, image_limit, received
from zwatch.api.pictured import in_decoder
from zwatch.api.services import SERVICES
from zwatch.errors import RequestError
from zwatch.generation.fields import invalid, validated
from zwatch.generation.request import ComparableRequest
from zwatch.generation.sources import Source, file_of, read_control, read_source

IN_HISTORY = "history:"
"""Begins the name of an image in the history, where an image can be given."""
_LARGE = 2**16
"""Bytes of a body from which on it is parsed in a thread: that takes milliseconds."""


async def read_asked(request: web.Request) -> tuple[ComparableRequest, Source | None]:
    """Return a request's checked fields, without its files, and the image that it changes, or that guides it.

    Raises:
        RequestError: 400 with the field's name; 404, the history has no such image; 408, 413, 415 as `received`.
    """
    async with received(request, image_limit(request)) as raw:
        parse = partial(_parsed, request.headers.get("Content-Type", ""), raw)
        wanted = parse() if len(raw) < _LARGE else await in_decoder(request, parse, "image")
        if (given := wanted.control_image) is not None:
            if (
                beside := "image" if wanted.image is not None else "mask" if wanted.mask is not None else None
            ) is not None:
                raise invalid(
                    "control_image",
                    f"control_image cannot be given beside {beside}: it guides what is drawn from noise; send one request without the other",
                )
            file = await _file(request, given, "control_image")
            source = await in_decoder(request, partial(read_control, file), "control_image")
        elif wanted.image is not None:
            image = await _file(request, wanted.image, "image")
            mask = None if wanted.mask is None else await _file(request, wanted.mask, "mask")
            source = await decoded(request, image, mask)
        elif wanted.mask is not None:
            raise invalid("image", "image is missing: a mask says which part of an image is painted anew")
        else:
            return wanted, None
    # What stays with the request until it is drawn has no files.
    return wanted.model_copy(update={"image": None, "mask": None, "control_image": None}), source


async def decoded(request: web.Request, image: bytes, mask: bytes | None) -> Source:
    """Decode an image file and its mask's in a thread, few at a time.

    Raises:
        RequestError: 400 with `image` or `mask`; 503 as `in_decoder`.
    """
    return await in_decoder(request, partial(read_source, image, mask), "image")


def _parsed(content_type: str, raw: bytes) -> ComparableRequest:
    return validated(ComparableRequest, fields_of(content_type, raw, ComparableRequest))


async def _file(request: web.Request, given: str | bytes, param: str) -> bytes:
    """Return the file that a field has or names."""
    if isinstance(given, bytes):
        return given
    if not given[:64].lstrip().startswith(IN_HISTORY):
        return await in_decoder(
            request, partial(file_of, given, param, others=", or history:NAME for one in the history"), param
        )
    history = request.app[SERVICES].history
    if history is None:
        raise invalid(param, f"{param} names a picture in the history, which is off: send the file itself")
    name = given.strip().removeprefix(IN_HISTORY)
    try:
        return await history.read(name)
    except RequestError as error:
        raise RequestError(error.code, f"{param}: {error.message}", param=param) from None
