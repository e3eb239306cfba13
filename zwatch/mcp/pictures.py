"""Pictures as a client takes them: smaller copies of what was drawn."""

import base64
import io

from mcp.types import ImageContent

_SIDE = 1024
"""Longest side of a copy, pixels: models see no more of a picture, and pay for it by its pixels."""
_CHARACTERS = 700_000
"""Most characters of base64 in one result. Claude Desktop refuses results of more than 1,048,576 characters, others cut them."""
_TRIALS = ((_SIDE, 85), (_SIDE, 70), (768, 70), (512, 70), (384, 60), (256, 50))
"""Sides and qualities of JPEG, the best first."""


def contents(files: list[bytes]) -> list[ImageContent]:
    """Return copies of pictures as JPEG, which all clients show, at the best quality that lets all of them fit into one result."""
    room = _CHARACTERS // max(1, len(files))
    return [ImageContent(type="image", data=_copy(file, room), mime_type="image/jpeg") for file in files]


def _copy(file: bytes, room: int) -> str:
    """Return a copy in base64 of at most `room` characters, if there is one."""
    from PIL import Image

    text = ""
    with Image.open(io.BytesIO(file)) as image:
        picture = image.convert("RGB")
    for side, quality in _TRIALS:
        small, out = picture.copy(), io.BytesIO()
        small.thumbnail((side, side))
        small.save(out, "JPEG", quality=quality)
        text = base64.b64encode(out.getvalue()).decode()
        if len(text) <= room:
            break
    return text
