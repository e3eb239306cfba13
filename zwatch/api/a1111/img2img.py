"""`img2img`: the request's body, and the answer."""

import re
from typing import Annotated, Any

from pydantic import ConfigDict, Field

from zwatch.api.a1111.txt2img import (
    FORM,
    Txt2ImgAnswer,
    Txt2ImgParameters,
    Txt2ImgRequest,
)
from zwatch.api.schema import Base64
from zwatch.generation.fields import Converted, Flag, Number, Rule, Whole, kind_of, refused
from zwatch.generation.request import MAX_BLUR

DEFAULT_STRENGTH = 0.75
"""AUTOMATIC1111's, as all defaults here."""
_DEFAULT_BLUR = 4
_MAX_PADDING = 4096
_DECIMAL = re.compile(r"\s*[0-9]{0,3}\.?[0-9]{1,20}\s*")
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


def _form_decimal(value: Any) -> Any:
    """Return a number that was sent as text as a float."""
    return float(value) if isinstance(value, str) and _DECIMAL.fullmatch(value) else value


def _form_flag(value: Any) -> Any:
    """Return a flag that was sent as 0 or 1, or as text, as AUTOMATIC1111 accepts it."""
    if type(value) in (int, float) and value in (0, 1):
        return bool(value)
    return (
        {"0": False, "1": True, "false": False, "true": True}.get(value.lower(), value)
        if isinstance(value, str)
        else value
    )


def _at_most(most: int) -> Converted:
    """Return the conversion of a whole number beyond `most` to that."""

    def convert(value: Any) -> Any:
        number = FORM.convert(value)
        return min(number, most) if type(number) is int else number

    return Converted(convert, (*FORM.schemas, {"type": "integer", "minimum": most}))


_FLAG = Converted(
    _form_flag, ({"type": "integer", "enum": [0, 1]}, {"type": "string", "enum": ["0", "1", "false", "true"]})
)
_DECIMALS = Converted(_form_decimal, ({"type": "string", "pattern": r"^\s*(0?\.[0-9]{1,20}|0|1|1\.0)\s*$"},))


class Files(Rule):
    """A list with one file in base64."""

    def check(self, value: Any) -> str:
        """Return the file's text."""
        if not isinstance(value, list):
            raise refused(f"must be a list with an image in base64, got {kind_of(value)}")
        if len(value) != 1:
            raise refused(f"must have one image, got {len(value)}: send a request for each")
        if not isinstance(value[0], str) or not value[0].strip():
            found = "an empty string" if isinstance(value[0], str) else kind_of(value[0])
            raise refused(f"must be a list with an image in base64, got {found} in it")
        return value[0]

    def schema(self) -> dict[str, Any]:
        """Return the schema of the list."""
        return {
            "type": "array",
            "items": {"type": "string", "minLength": 1, "pattern": r"\S"},
            "minItems": 1,
            "maxItems": 1,
        }


class MaskFile(Rule):
    """A file in base64; an empty string is none."""

    def check(self, value: Any) -> str:
        """Return the file's text."""
        if not isinstance(value, str):
            raise refused(f"must be an image in base64, got {kind_of(value)}")
        return value.strip()

    def schema(self) -> dict[str, Any]:
        """Return the schema of the text."""
        return {"type": "string"}


class Img2ImgRequest(Txt2ImgRequest):
    """The body of `img2img`. Whole numbers may be sent as strings."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"prompt": "a cat", "init_images": [_PIXEL], "denoising_strength": 0.5, "seed": 7}]
        }
    )

    init_images: Annotated[
        str,
        Files(),
        Field(description="The picture to change: a PNG, JPEG, WebP or GIF file in base64, also as a data URL."),
    ]
    mask: Annotated[
        str,
        MaskFile(),
        Field(
            description="What is white in it is painted anew; of one with transparent parts, what is not transparent."
        ),
    ] = ""
    denoising_strength: Annotated[float, Number(0.0, 1.0), _DECIMALS] = DEFAULT_STRENGTH
    resize_mode: Annotated[
        int,
        Whole(0, 3),
        FORM,
        Field(description="0 stretches the picture, 1 crops it, 2 continues its edges; 3 is as 0."),
    ] = 0
    mask_blur: Annotated[int, Whole(0, MAX_BLUR), _at_most(MAX_BLUR), Field(description="Pixels of the picture.")] = (
        _DEFAULT_BLUR
    )
    mask_blur_x: Annotated[int | None, Whole(0, MAX_BLUR), _at_most(MAX_BLUR)] = None
    mask_blur_y: Annotated[int | None, Whole(0, MAX_BLUR), _at_most(MAX_BLUR)] = None
    inpainting_fill: Annotated[
        int, Whole(0, 3), FORM,
        Field(description="What is under the mask at first: 0 the colours around it, 1 the picture, 2 noise, 3 grey."),
    ] = 0  # fmt: skip
    inpaint_full_res: Annotated[
        bool, Flag(), _FLAG, Field(description="Whether only the part around the mask is drawn, in the full size.")
    ] = True
    inpaint_full_res_padding: Annotated[int, Whole(0, _MAX_PADDING), _at_most(_MAX_PADDING)] = 0
    inpainting_mask_invert: Annotated[
        bool, Flag(), _FLAG, Field(description="Whether what is black in the mask is painted anew.")
    ] = False
    include_init_images: Annotated[bool, Flag(), _FLAG, Field(description="Whether the answer repeats them.")] = False


class Img2ImgParameters(Txt2ImgParameters):
    """What was requested, as the answer repeats it; the pictures only if that was asked for."""

    init_images: list[Base64] | None
    mask: Base64 | None
    denoising_strength: float
    resize_mode: int
    mask_blur: int
    inpainting_fill: int
    inpaint_full_res: bool
    inpaint_full_res_padding: int
    inpainting_mask_invert: int
    include_init_images: bool


class Img2ImgAnswer(Txt2ImgAnswer):
    """The images as PNG files, none after an interruption; `info` is JSON with the effective parameters."""

    parameters: Img2ImgParameters  # type: ignore[misc]
