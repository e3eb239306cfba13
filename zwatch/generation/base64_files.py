"""Files in base64, as JSON carries them."""

import base64
import binascii

from zwatch.generation.fields import invalid

_URLS = ("http://", "https://")


def file_of_text(value: str | bytes, param: str) -> bytes:
    """Return the bytes of a file: those of a form as they are, a text as base64, with or without the prefix of a data URL.

    Raises:
        RequestError: 400 with `param`, it is a URL, or not base64.
    """
    if isinstance(value, bytes):
        return value
    if value.lstrip()[:8].lower().startswith(_URLS):
        raise invalid(param, f"{param} is a URL, which is not fetched: send the file itself, in base64")
    try:
        return base64.b64decode(value.rpartition(",")[2])
    except (binascii.Error, ValueError):
        raise invalid(param, f"{param} is not a file in base64, or is incomplete") from None
