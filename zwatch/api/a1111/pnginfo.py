"""`png-info`: the parameters of an image, read from its file and parsed."""

import base64
import json
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from zwatch.api.bodies import fields_of
from zwatch.api.schema import LenientRequest
from zwatch.generation.fields import Rule, invalid, refused, validated
from zwatch.generation.image_details import read_details
from zwatch.generation.infotext import parse_infotext

_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


class File(Rule):
    """A non-empty string of any length."""

    def check(self, value: Any) -> str:
        """Return the string."""
        if not isinstance(value, str) or not value.strip():
            raise refused("must be an image file in base64")
        return value

    def schema(self) -> dict[str, Any]:
        """Return the schema of a non-empty string."""
        return {"type": "string", "minLength": 1, "pattern": r"\S"}


class PngInfoRequest(LenientRequest):
    """The image to read."""

    image: Annotated[
        str,
        File(),
        Field(
            description="A PNG, JPEG or WebP file in base64, with or without the prefix of a data URL.",
            examples=[_PIXEL],
        ),
    ]


class PngInfo(TypedDict):
    """The metadata of an image: AUTOMATIC1111's text (empty if there is none), other entries, and the parsed text."""

    info: str
    items: dict[str, str]
    parameters: dict[str, str]


def png_info(content_type: str, raw: bytes) -> PngInfo:
    """Return the answer to a request's body. To be called in a thread.

    Raises:
        RequestError: 400, the body is neither JSON nor a form, or `image` is not an image.
    """
    body = fields_of(content_type, raw, PngInfoRequest)
    if body.get("image") is None:
        body["image"] = ""  # refused like an empty one: the message says what is expected
    image = validated(PngInfoRequest, body).image
    if image.lstrip()[:8].lower().startswith(("http://", "https://")):
        raise invalid("image", "image is a URL, which is not fetched: send the file itself, in base64")
    try:
        details = read_details(base64.b64decode(image.rpartition(",")[2]))
    except (OSError, ValueError, SyntaxError):
        raise invalid("image", "image is no PNG, JPEG or WebP file in base64") from None
    items = {
        "zwatch_version": details.version, "zwatch_digest": details.digest, "zwatch_signer": details.signer,
        "zwatch_share": details.share, "zwatch_source": details.source, "zwatch_mask": details.mask,
    }  # fmt: skip
    if details.request:
        items["zwatch_request"] = json.dumps(details.request, ensure_ascii=False)
    return {
        "info": details.parameters,
        "items": {name: value for name, value in items.items() if value},
        "parameters": parse_infotext(details.parameters),
    }
