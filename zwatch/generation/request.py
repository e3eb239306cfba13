"""A request for images: what a client may ask for, whichever version serves it."""

import encodings.utf_8_sig  # noqa: F401 (else `decode` imports it, for which there may be no file descriptor)
import json
import secrets
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from zwatch.errors import RequestError
from zwatch.generation.fields import (
    Converted,
    Number,
    OneFile,
    OneOf,
    Text,
    TextOrTexts,
    Whole,
    invalid,
    kind_of,
    validated,
)
from zwatch.generation.lora_fields import LoraList, LoraWish
from zwatch.generation.sides import SIDE_STEP

PRIMARY = "current"
"""The alias that serves a request which names no model."""
MAX_SIDE = 2048
MAX_STEPS = 100
DEFAULT_STEPS = 8
USUAL_SIDE = 1024
"""Of an image by Z-Image-Turbo, pixels: what is taken for the default of a version that is not loaded yet."""
MAX_GUIDANCE = 20.0
MAX_IMAGES = 16
MAX_MODELS = 4
"""Of a comparison."""
SEEDS = 2**63
"""Seeds are from 0 to this, exclusive."""
RANDOM_SEEDS = 2**32
"""Seeds that are chosen here are below this: JavaScript and jq round whole numbers beyond 2^53."""
DEFAULT_STRENGTH = 0.6
"""diffusers' own, of image to image."""
DEFAULT_CONTROL_SCALE = 0.75
"""diffusers' own, of `controlnet_conditioning_scale`."""
MAX_CONTROL_SCALE = 2.0
MAX_BLUR = 64
DEFAULT_QUALITY = 92
"""Of a JPEG or WebP, of 100."""


class ImageFormat(StrEnum):
    """The formats that an image can be encoded in, by the names that requests use."""

    PNG = "png"
    JPEG = "jpeg"
    WEBP = "webp"

    @property
    def media_type(self) -> str:
        """The format's media type, as in `Content-Type`."""
        return f"image/{self.value}"

    @property
    def suffix(self) -> str:
        """The suffix of a file's name, without the dot."""
        return "jpg" if self is ImageFormat.JPEG else self.value

    @classmethod
    def of_name(cls, name: str) -> "ImageFormat":
        """Return the format of a file by its name's suffix.

        Raises:
            ValueError: no format has this suffix.
        """
        suffix = name.rpartition(".")[2]
        return cls("jpeg" if suffix == "jpg" else suffix)


def random_seed() -> int:
    """Return a seed that leaves room for every image of a request."""
    return secrets.randbelow(RANDOM_SEEDS - MAX_IMAGES)


RequiredText = Annotated[str, Text(required=True)]
OptionalText = Annotated[str, Text()]
UserName = Annotated[
    str, Text(most=256), Field(description="Whom the request is for: one user stays on one side of a share.")
]
Side = Annotated[int, Whole(SIDE_STEP, MAX_SIDE, SIDE_STEP)]
Steps = Annotated[int, Whole(1, MAX_STEPS)]
Guidance = Annotated[float, Number(0.0, MAX_GUIDANCE)]
Seed = Annotated[int, Whole(0, SEEDS - 1)]
Count = Annotated[int, Whole(1, MAX_IMAGES)]
Strength = Annotated[float, Number(0.0, 1.0)]
ControlScale = Annotated[float, Number(0.0, MAX_CONTROL_SCALE)]
Blur = Annotated[int, Whole(0, MAX_BLUR)]
Quality = Annotated[int, Whole(1, 100)]
Format = Annotated[ImageFormat, OneOf(ImageFormat)]

_SIDE = "Pixels. The version's own size if left out; a version may have a lower maximum."


class ImageRequest(BaseModel):
    """What is asked for, whoever draws it. A side of None is the version's own default, in pixels; image i of n uses seed + i."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        defer_build=True,
        json_schema_extra={"examples": [{"prompt": "a cat wearing sunglasses", "seed": 42}]},
    )

    prompt: RequiredText
    negative_prompt: OptionalText = ""
    width: Annotated[int | None, Whole(SIDE_STEP, MAX_SIDE, SIDE_STEP), Field(description=_SIDE)] = None
    height: Annotated[int | None, Whole(SIDE_STEP, MAX_SIDE, SIDE_STEP), Field(description=_SIDE)] = None
    steps: Steps = DEFAULT_STEPS
    guidance_scale: Guidance = 0.0
    seed: Annotated[
        Seed,
        Converted(lambda value: random_seed() if value is None else value, ({"type": "null"},)),
        Field(description="Random if null; image i of n uses seed + i."),
    ] = Field(default_factory=random_seed)
    n: Annotated[Count, Field(description="More than 1 needs an answer of JSON.")] = 1
    strength: Annotated[
        Strength, Field(description="How much an image is changed: 0 not at all, 1 wholly. Ignored without one.")
    ] = DEFAULT_STRENGTH
    mask_blur: Annotated[Blur, Field(description="Pixels of the mask by which it is blurred.")] = 0
    control_scale: Annotated[
        ControlScale, Field(description="How strongly a control image guides what is drawn. Ignored without one.")
    ] = DEFAULT_CONTROL_SCALE
    loras: Annotated[
        tuple[LoraWish, ...],
        LoraList(),
        Field(
            description="LoRAs that it is drawn with, by name; `GET /loras` lists them.",
            examples=[[{"name": "ink", "scale": 0.8}]],
        ),
    ] = ()
    format: Format = ImageFormat.PNG
    quality: Annotated[Quality, Field(description="Of a JPEG or WebP.")] = DEFAULT_QUALITY
    user: UserName = ""

    @model_validator(mode="after")
    def _check_last_seed(self) -> Self:
        if self.seed + self.n > SEEDS:
            raise invalid("seed", f"seed + n - 1 must stay below 2^63, got {self.seed} with n = {self.n}")
        return self


class GenerateRequest(ImageRequest):
    """A checked request to one model."""

    model: Annotated[
        OptionalText, Field(description="An alias, a share, or a resident version.", examples=[PRIMARY])
    ] = PRIMARY


class ComparableRequest(ImageRequest):
    """A checked request to one model, or to several: the same prompt and seed by each."""

    model: Annotated[
        str | tuple[str, ...],
        TextOrTexts(MAX_MODELS),
        Field(
            description="An alias, a share, or a resident version. Of several each draws the same, and the answer has all images: they need an "
            "answer of JSON.",
            examples=[PRIMARY, ["v1", "v3"]],
        ),
    ] = PRIMARY
    image: Annotated[
        str | bytes | None,
        OneFile(),
        Field(description="The image to change: base64, a data URL, or `history:NAME`; in multipart/form-data a file."),
    ] = None
    mask: Annotated[
        str | bytes | None,
        OneFile(),
        Field(description="As `image`: what is white in it is painted anew, what is black stays."),
    ] = None
    control_image: Annotated[
        str | bytes | None,
        OneFile(),
        Field(
            description="As `image`: edges, a pose, depth or the like, which what is drawn follows. Not beside `image`; the version needs a "
            "controlnet."
        ),
    ] = None

    @property
    def is_comparison(self) -> bool:
        """Whether it has a list of models."""
        return not isinstance(self.model, str)

    def by_model(self) -> tuple[GenerateRequest, ...]:
        """Return the request to each model."""
        models = (self.model,) if isinstance(self.model, str) else self.model
        fields = {name: getattr(self, name) for name in ImageRequest.model_fields}
        return tuple(
            GenerateRequest.model_construct(_fields_set=self.model_fields_set, **fields, model=model)
            for model in models
        )


def unloaded(alias: str) -> str:
    """Return the sentence about an alias that an operator unloaded. The call loads `current` if it names no other."""
    body = "" if alias == PRIMARY else f' with {{"alias": "{alias}"}}'
    return f"{alias} is unloaded; POST /api/load_model{body} loads it"


def parse_json(body: bytes) -> dict[str, Any]:
    """Parse a request body, whatever its content type says.

    Raises:
        RequestError: 400 `invalid_json`.
    """
    try:
        parsed = json.loads(body.decode("utf-8-sig"), parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        if not (encoding := json.detect_encoding(body)).startswith("utf-8"):
            raise RequestError("invalid_json", f"the body seems to be {encoding.upper()}, expected UTF-8") from None
        raise RequestError("invalid_json", f"the body is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise RequestError("invalid_json", f"the body must be a JSON object, got {kind_of(parsed)}")
    return parsed


def parse_generate(body: Mapping[str, Any]) -> GenerateRequest:
    """Check the body of a `/generate`.

    Raises:
        RequestError: 400 with the field's name.
    """
    return validated(GenerateRequest, body)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
