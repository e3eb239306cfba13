"""The body of a request for pictures: JSON, or a form where files are sent with it."""

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zwatch.errors import UsageError

HISTORY = "history:"
"""Before the name of a picture that the service keeps."""
_MOST = 64 * 2**20
"""Bytes of a file that are read: what the service refuses unread is twice as much as it takes."""

Picture = str | bytes
"""A picture that is sent: a file's bytes, or text that the service understands, such as `history:NAME`."""


def body_of(fields: Mapping[str, Any], pictures: Mapping[str, Picture]) -> tuple[bytes, str]:
    """Return a body and its `Content-Type`: JSON, or `multipart/form-data` if one of the `pictures` is a file. Fields that are
    None are left out."""
    given = {name: value for name, value in fields.items() if value is not None}
    texts = {name: picture for name, picture in pictures.items() if isinstance(picture, str)}
    files = {name: picture for name, picture in pictures.items() if isinstance(picture, bytes)}
    if not files:
        return json.dumps({**given, **texts}).encode(), "application/json"
    shown = {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
    return _form({**shown, **texts}, files)


def _form(texts: Mapping[str, str], files: Mapping[str, bytes]) -> tuple[bytes, str]:
    boundary = f"zwatch-{secrets.token_hex(16)}"  # 128 random bits are in no picture
    parts = [(f'form-data; name="{name}"', text.encode("utf-8", "surrogatepass")) for name, text in texts.items()] + [
        (f'form-data; name="{name}"; filename="{name}"', file) for name, file in files.items()
    ]
    pieces = [
        b"--%b\r\nContent-Disposition: %b\r\n\r\n%b\r\n" % (boundary.encode(), head.encode(), content)
        for head, content in parts
    ]
    return b"".join([*pieces, b"--%b--\r\n" % boundary.encode()]), f"multipart/form-data; boundary={boundary}"


def read_file(path: Path) -> bytes:
    """Return the bytes of a picture's file.

    Raises:
        UsageError: it cannot be read, or is longer than any picture that the service takes.
    """
    try:
        with path.open("rb") as file:
            found = file.read(_MOST + 1)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if len(found) > _MOST:
        raise UsageError(f"{path} is longer than {_MOST // 2**20} MiB, expected a picture")
    return found
