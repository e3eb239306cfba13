"""Reading a body with pictures in a thread: it is parsed, and they are decoded, few at a time."""

from collections.abc import Callable
from typing import TypeVar

from aiohttp import web

from zwatch.api.bodies import READERS, image_limit, received
from zwatch.api.services import SERVICES
from zwatch.bridge import NoAnswer
from zwatch.errors import RequestError, retry_after
from zwatch.generation.fields import invalid

R = TypeVar("R")
_RETRY_SECONDS = 10.0


async def read_pictured(request: web.Request, read: Callable[[str, bytes], R], param: str) -> R:
    """Return what `read` makes of a request's content type and body, of at most `MAX_IMAGE_BODY` bytes. `param` is the field that has the
    picture.

    Raises:
        RequestError: what `read` raises; as `in_decoder`; 408, 413, 415 as `received`.
    """
    async with received(request, image_limit(request)) as raw:
        content_type = request.headers.get("Content-Type", "")
        return await in_decoder(request, lambda: read(content_type, raw), param)


async def in_decoder(request: web.Request, function: Callable[[], R], param: str) -> R:
    """Return a function's result from a thread for pictures, `MAX_READERS` at a time. `param` is the field that has the picture.

    Raises:
        RequestError: 400 with `param`, the function itself takes too long; 503, it did not begin, since those of others do.
    """
    async with request.app[READERS]:
        try:
            return await request.app[SERVICES].bridge.run("decode", function)
        except NoAnswer as error:
            if error.has_begun:
                message = f"{param} takes too long to decode ({error.strerror}): send a smaller one"
                raise invalid(param, message) from None
            message = "pictures of other requests take all that there is to decode yours: try again later"
            raise RequestError("decoder_busy", message, headers=retry_after(_RETRY_SECONDS)) from None
