"""Reading a body with pictures in a thread: it is parsed, and they are decoded, few at a time."""

from collections.abc import Callable
from typing import TypeVar

from aiohttp import web

from zwatch.api.bodies import received_image
from zwatch.api.services import SERVICES
from zwatch.bridge import NoAnswer
from zwatch.generation.fields import invalid

R = TypeVar("R")


async def read_pictured(request: web.Request, read: Callable[[str, bytes], R], param: str) -> R:
    """Return what `read` makes of a request's content type and body, of at most `MAX_IMAGE_BODY` bytes. `param` is the field that has the
    picture.

    Raises:
        RequestError: what `read` raises; 400 with `param`, it takes too long; 408, 413, 415 as `received`.
    """
    async with received_image(request) as raw:
        content_type = request.headers.get("Content-Type", "")
        try:
            return await request.app[SERVICES].bridge.run("decode", read, content_type, raw)
        except NoAnswer as error:
            raise invalid(param, f"{param} takes too long to decode ({error.strerror}): send a smaller one") from None
