"""OpenAI's images call on its way in: which of its fields mean what here."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zwatch.errors import RequestError
from zwatch.generation.request import (
    DEFAULT_QUALITY,
    GenerateRequest,
    boolean,
    integer,
    invalid,
    parse_generate,
    text,
)

MAX_PARTIAL_IMAGES = 3
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_OURS = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance_scale",
    "seed": "seed",
    "n": "n",
    "output_format": "format",
}
"""What fields of OpenAI's clients, and those that they can add, are called here."""
_THEIRS = {"width": "size", "height": "size", **{ours: theirs for theirs, ours in _OURS.items()}}


@dataclass(frozen=True, slots=True)
class ImagesRequest:
    """A checked request: what to make, and how to answer it: with where the pictures are, with the pictures, or both."""

    generate: GenerateRequest
    urls: bool
    files: bool
    stream: bool
    partial_images: int


def parse_images(body: Mapping[str, Any], model: str) -> ImagesRequest:
    """Check the body of a `/v1/images/generations` that `model` is to serve. Null stands for a default, and fields that
    mean nothing here are ignored, whatever they say: clients send them to everybody.

    Raises:
        RequestError: 400 with the name of our field or theirs; `in_their_words` makes it theirs.
    """
    given = {name: value for name, value in body.items() if value is not None}
    ours: dict[str, Any] = {_OURS[name]: value for name, value in given.items() if name in _OURS}
    ours |= _sides(text(given, "size", "auto"))
    # OpenAI's best "compression" is 100 as well, so it is a quality. A PNG has none; clients send it all the same.
    ours["quality"] = max(1, integer(given, "output_compression", DEFAULT_QUALITY, 0, 100))
    wanted = parse_generate({**ours, "model": model})
    urls, files = _response_format(given)
    stream = boolean(given, "stream", False)
    partial_images = integer(given, "partial_images", 0, 0, MAX_PARTIAL_IMAGES)
    if stream and wanted.n > 1:
        raise invalid("n", f"n is {wanted.n}, a stream is of one image: leave out stream, or send {wanted.n} requests")
    return ImagesRequest(wanted, urls and not stream, files or stream, stream, partial_images)


def in_their_words(error: RequestError) -> RequestError:
    """Return an error with the name by which OpenAI's clients know the field."""
    theirs = _THEIRS.get(error.param or "", error.param)
    if theirs == error.param:
        return error
    return RequestError(
        error.status, error.code, f"{theirs}: {error.message}", param=theirs, headers=error.headers, extra=error.extra
    )


def _sides(size: str) -> dict[str, int]:
    if size == "auto":
        return {}
    found = _SIZE.fullmatch(size)
    if found is None:
        raise invalid("size", f"size must be auto, or WIDTHxHEIGHT like 1024x1024, got {size[:60]!r}")
    return {"width": int(found[1]), "height": int(found[2])}


def _response_format(given: Mapping[str, Any]) -> tuple[bool, bool]:
    """Return whether the answer has URLs, and whether it has files."""
    value = text(given, "response_format", "")
    if value not in ("", "b64_json", "url"):
        raise invalid("response_format", f"response_format must be b64_json or url, got {value[:60]!r}")
    # Where OpenAI's own default was a URL, clients that say nothing may want one. Elsewhere they would fetch it in vain.
    by_default = not value and str(given.get("model", "")).startswith("dall-e-")
    return value == "url" or by_default, value != "url"
