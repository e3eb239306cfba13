"""The body of OpenAI's images call, and its conversion to a native request."""

import re
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from zwatch.api.schema import LenientRequest
from zwatch.errors import RequestError
from zwatch.generation.fields import Flag, Text, Whole, invalid, validated
from zwatch.generation.lora_fields import LoraList, LoraWish
from zwatch.generation.request import (
    DEFAULT_QUALITY,
    DEFAULT_STEPS,
    PRIMARY,
    Count,
    Format,
    GenerateRequest,
    Guidance,
    ImageFormat,
    OptionalText,
    RequiredText,
    Seed,
    Steps,
    UserName,
)
from zwatch.generation.sides import SIDE_STEP

MAX_PARTIAL_IMAGES = 3
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")
_NAMES = {
    "steps": "num_inference_steps",
    "width": "size",
    "height": "size",
    "format": "output_format",
}
"""OpenAI's names of native fields, where they differ."""


class ImagesRequest(LenientRequest):
    """The body of `/v1/images/generations`."""

    prompt: RequiredText
    model: Annotated[
        OptionalText,
        Field(
            description="An alias or a resident version; an unknown name stands for `current`.",
            examples=[PRIMARY],
        ),
    ] = ""
    n: Annotated[Count, Field(description="1 with `stream`.")] = 1
    size: Annotated[
        str,
        Text(),
        Field(
            description=f"In pixels: multiples of {SIDE_STEP}, up to the version's maximum; `auto` is the version's default size.",
            examples=["1024x1024"],
            json_schema_extra={"pattern": "^(auto|[0-9]{1,5}x[0-9]{1,5})?$"},
        ),
    ] = "auto"
    output_format: Format = ImageFormat.PNG
    output_compression: Annotated[
        int, Whole(0, 100), Field(description="For JPEG and WebP; 100 is the best quality.")
    ] = DEFAULT_QUALITY
    response_format: Annotated[
        str,
        Text(),
        Field(
            description="If left out, `b64_json`; for models `dall-e-…` both.",
            json_schema_extra={"enum": ["b64_json", "url", ""]},
        ),
    ] = ""
    stream: Annotated[bool, Flag()] = False
    partial_images: Annotated[
        int, Whole(0, MAX_PARTIAL_IMAGES), Field(description="Previews to send, with `stream`.")
    ] = 0
    negative_prompt: Annotated[OptionalText, Field(description="An extension of zwatch.")] = ""
    num_inference_steps: Annotated[Steps, Field(description="An extension of zwatch.")] = DEFAULT_STEPS
    guidance_scale: Annotated[Guidance, Field(description="An extension of zwatch.")] = 0.0
    loras: Annotated[
        tuple[LoraWish, ...],
        LoraList(),
        Field(description="An extension of zwatch: LoRAs that it is drawn with, by name."),
    ] = ()
    user: UserName = ""
    seed: Annotated[
        Seed | None,
        Field(description="An extension of zwatch. Random if left out; image i of n uses seed + i."),
    ] = None


@dataclass(frozen=True, slots=True)
class Images:
    """A validated request: what to generate, and whether the answer has the pictures' URLs, their files, or both."""

    generate: GenerateRequest
    urls: bool
    files: bool
    stream: bool
    partial_images: int


def images_of(asked: ImagesRequest, model: str) -> Images:
    """Return the native request for an OpenAI request, to be served by `model`.

    Raises:
        RequestError: 400 with the name of an OpenAI field or a native one; see `with_client_names`.
    """
    native: dict[str, Any] = {
        "prompt": asked.prompt,
        "negative_prompt": asked.negative_prompt,
        **_sides(asked.size),
        "steps": asked.num_inference_steps,
        "guidance_scale": asked.guidance_scale,
        "loras": asked.loras,
        "seed": asked.seed,
        "n": asked.n,
        "format": asked.output_format,
        # OpenAI's compression is a quality: 100 is the best. Clients send it with PNG too, which has none.
        "quality": max(1, asked.output_compression),
        "model": model,
    }
    urls, files = _response_format(asked)
    if asked.stream and asked.n > 1:
        raise invalid("n", f"n is {asked.n}, a stream is of one image: leave out stream, or send {asked.n} requests")
    return Images(
        validated(GenerateRequest, native), urls and not asked.stream, files or asked.stream, asked.stream,
        asked.partial_images,
    )  # fmt: skip


def with_client_names(error: RequestError) -> RequestError:
    """Return an error about a native field with the name that OpenAI's clients use."""
    name = _NAMES.get(error.param or "", error.param)
    if name == error.param:
        return error
    return RequestError(error.code, f"{name}: {error.message}", param=name, headers=error.headers, extra=error.extra)


def _sides(size: str) -> dict[str, int]:
    if size in ("", "auto"):
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
    # OpenAI's default for DALL-E was a URL, so its clients may need one. Other clients would fetch it needlessly.
    by_default = not value and asked.model.startswith("dall-e-")
    return value == "url" or by_default, value != "url"
