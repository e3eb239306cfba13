"""OpenAI's images call on its way in: which of its fields mean what here."""

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from zwatch.api.schema import LenientRequest
from zwatch.errors import RequestError
from zwatch.generation.fields import Flag, Text, Whole, invalid, validated
from zwatch.generation.request import (
    DEFAULT_QUALITY,
    DEFAULT_STEPS,
    PRIMARY,
    SIDE_STEP,
    Count,
    Format,
    GenerateRequest,
    Guidance,
    ImageFormat,
    OptionalText,
    RequiredText,
    Seed,
    Steps,
)

MAX_PARTIAL_IMAGES = 3
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_NAMES = {
    "steps": "num_inference_steps",
    "width": "size",
    "height": "size",
    "format": "output_format",
}
"""What our fields are called by OpenAI's clients, where the names differ."""


class ImagesRequest(LenientRequest):
    """The body of a `/v1/images/generations`. Null stands for a default."""

    prompt: RequiredText
    model: Annotated[
        OptionalText,
        Field(
            description="An alias, or a resident version; a name that is no version's means `current`.",
            examples=[PRIMARY],
        ),
    ] = ""
    n: Annotated[Count, Field(description="1 with `stream`.")] = 1
    size: Annotated[
        str,
        Text(),
        Field(
            description=f"Pixels: multiples of {SIDE_STEP}, up to what the version can do; `auto` is its own.",
            examples=["1024x1024"],
            json_schema_extra={"pattern": "^(auto|[0-9]{1,5}x[0-9]{1,5})$"},
        ),
    ] = "auto"
    output_format: Format = ImageFormat.PNG
    output_compression: Annotated[
        int, Whole(0, 100), Field(description="Of a JPEG or WebP; 100 is the best quality.")
    ] = DEFAULT_QUALITY
    response_format: Annotated[
        str,
        Text(),
        Field(
            description="`b64_json` if left out; for a model `dall-e-…` both.",
            json_schema_extra={"enum": ["b64_json", "url", ""]},
        ),
    ] = ""
    stream: Annotated[bool, Flag()] = False
    partial_images: Annotated[
        int, Whole(0, MAX_PARTIAL_IMAGES), Field(description="Previews on the way, with `stream`.")
    ] = 0
    negative_prompt: Annotated[OptionalText, Field(description="An addition of zwatch.")] = ""
    num_inference_steps: Annotated[Steps, Field(description="An addition of zwatch.")] = DEFAULT_STEPS
    guidance_scale: Annotated[Guidance, Field(description="An addition of zwatch.")] = 0.0
    seed: Annotated[
        Seed | None,
        Field(description="An addition of zwatch. Random if left out; image i of n uses seed + i."),
    ] = None


@dataclass(frozen=True, slots=True)
class Images:
    """A checked request: what to make, and how to answer it: with URLs of the pictures, with the pictures, or both."""

    generate: GenerateRequest
    urls: bool
    files: bool
    stream: bool
    partial_images: int


def images_of(asked: ImagesRequest, model: str) -> Images:
    """Return what a request asks for, with `model` to serve it. Fields that mean nothing here are ignored, whatever they
    say: clients send them to every service.

    Raises:
        RequestError: 400 with the name of our field or theirs; `in_their_words` makes it theirs.
    """
    ours: dict[str, Any] = {
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        **_sides(asked.size),
        "steps": asked.num_inference_steps,
        "guidance_scale": asked.guidance_scale,
        "seed": asked.seed,
        "n": asked.n,
        "format": asked.output_format,
        # OpenAI's best "compression" is 100 as well, so it is a quality. A PNG has none; clients send it all the same.
        "quality": max(1, asked.output_compression),
        "model": model,
    }
    urls, files = _response_format(asked)
    if asked.stream and asked.n > 1:
        raise invalid("n", f"n is {asked.n}, a stream is of one image: leave out stream, or send {asked.n} requests")
    return Images(
        validated(GenerateRequest, ours), urls and not asked.stream, files or asked.stream, asked.stream,
        asked.partial_images,
    )  # fmt: skip


def in_their_words(error: RequestError) -> RequestError:
    """Return an error with the name by which OpenAI's clients know the field."""
    theirs = _NAMES.get(error.param or "", error.param)
    if theirs == error.param:
        return error
    return RequestError(
        error.code, f"{theirs}: {error.message}", param=theirs, headers=error.headers, extra=error.extra
    )


def _sides(size: str) -> dict[str, int]:
    if size == "auto":
        return {}
    found = _SIZE.fullmatch(size)
    if found is None:
        raise invalid("size", f"size must be auto, or WIDTHxHEIGHT like 1024x1024, got {size[:60]!r}")
    return {"width": int(found[1]), "height": int(found[2])}


def _response_format(asked: ImagesRequest) -> tuple[bool, bool]:
    """Return whether the answer has URLs, and whether it has files."""
    value = asked.response_format
    if value not in ("", "b64_json", "url"):
        raise invalid("response_format", f"response_format must be b64_json or url, got {value[:60]!r}")
    # Where OpenAI's own default was a URL, clients that say nothing may want one. Others would fetch it for nothing.
    by_default = not value and asked.model.startswith("dall-e-")
    return value == "url" or by_default, value != "url"
