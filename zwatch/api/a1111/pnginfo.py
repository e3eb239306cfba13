"""What an image was made from, read out of its file and taken apart."""

import base64
import json
import re
from typing import Annotated, Any

from PIL import Image
from pydantic import Field
from typing_extensions import TypedDict

from zwatch.api.schema import LenientRequest
from zwatch.generation.fields import Rule, invalid, refused, validated
from zwatch.generation.image_details import read_details
from zwatch.generation.request import parse_json

MAX_BODY = 32 * 2**20
"""Bytes of a request: base64 of an image of the largest size that we make fits."""
_LAST_LINE = re.compile(r"Steps: [0-9]+, ")
_PAIR = re.compile(r'\s*+([\w/-][\w /-]*+):\s*+("(?:\\.|[^\\"])*+"|[^,]*+)(?:,|$)')
"""Matched one after the other, and without a way back: a file may hold a megabyte that is almost a pair."""
_SIZE = re.compile(r"([0-9]+)x([0-9]+)")
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
_NEGATIVE = "Negative prompt:"


class File(Rule):
    """A text that is not empty, however long."""

    def check(self, value: Any) -> str:
        """Return the text."""
        if not isinstance(value, str) or not value.strip():
            raise refused("must be an image file in base64")
        return value

    def schema(self) -> dict[str, Any]:
        """Describe it."""
        return {"type": "string", "minLength": 1, "pattern": r"\S"}


class PngInfoRequest(LenientRequest):
    """An image whose details are asked for."""

    image: Annotated[
        str,
        File(),
        Field(
            description="A PNG, JPEG or WebP file in base64, with or without the beginning of a data: URL.",
            examples=[_PIXEL],
        ),
    ]


class PngInfo(TypedDict):
    """What stands in an image: AUTOMATIC1111's text, empty if there is none; what else; and the text taken apart."""

    info: str
    items: dict[str, str]
    parameters: dict[str, str]


def png_info(raw: bytes) -> PngInfo:
    """Answer a request that holds an image in base64, with or without the beginning of a data URL.

    Raises:
        RequestError: 400, the body is not JSON or `image` is no image.
    """
    image = validated(PngInfoRequest, parse_json(raw)).image
    if image.lstrip()[:8].lower().startswith(("http://", "https://")):
        raise invalid("image", "image is a URL, which is not fetched: send the file itself, in base64")
    try:
        details = read_details(base64.b64decode(image.rpartition(",")[2]))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise invalid("image", "image is no PNG, JPEG or WebP file in base64") from None
    items = {"zwatch_version": details.version, "zwatch_digest": details.digest}
    if details.request:
        items["zwatch_request"] = json.dumps(details.request, ensure_ascii=False)
    return {
        "info": details.parameters,
        "items": {name: value for name, value in items.items() if value},
        "parameters": parse_infotext(details.parameters),
    }


def parse_infotext(infotext: str) -> dict[str, str]:
    """Take AUTOMATIC1111's text apart: the prompts, then what stands in its last line, all of it as text."""
    if not infotext.strip():
        return {}
    lines = infotext.strip().split("\n")
    last = lines.pop() if _LAST_LINE.match(lines[-1]) else ""
    begin = next((number for number, line in enumerate(lines) if line.startswith(_NEGATIVE)), len(lines))
    negative = "\n".join(lines[begin:]).removeprefix(_NEGATIVE)
    found = {"Prompt": "\n".join(lines[:begin]).strip(), "Negative prompt": negative.strip()}
    position = 0
    while (pair := _PAIR.match(last, position)) is not None:
        name, value, position = pair[1].strip(), pair[2].strip(), pair.end()
        found[name] = _unquoted(value)
        if (size := _SIZE.fullmatch(value)) is not None:
            found[f"{name}-1"], found[f"{name}-2"] = size.groups()
    return found


def _unquoted(value: str) -> str:
    try:
        return str(json.loads(value)) if value.startswith('"') else value
    except ValueError:
        return value
