"""The body of OpenAI's edits call: a form with a picture and a mask, and its conversion to what is drawn."""

from dataclasses import dataclass, replace
from typing import Annotated, Any

from PIL import Image, ImageChops
from pydantic import Field
from pydantic.json_schema import JsonSchemaValue

from zwatch.api.bodies import fields_of
from zwatch.api.openai.requests import Images, ImagesRequest, images_of
from zwatch.generation.fields import OneFile, Text, Untaken, invalid, kind_of, refused, validated
from zwatch.generation.inpainting import Canvas, Fit, blurred, fitted_picture
from zwatch.generation.request import DEFAULT_STRENGTH, Blur, Strength
from zwatch.generation.sources import Source, file_of, open_picture, read_source

FAITHFUL_STRENGTH = 0.4
"""With `input_fidelity` `high`."""
MASKED_STRENGTH = 1.0
"""With a mask: what it shows is replaced."""
_ALIKE = 0.02
"""By how much the shapes of a picture and its mask may differ: one of the two may have been reduced and rounded."""
_FIDELITIES = ("", "low", "high")
_MASK_OF_ITS_OWN = "dall-e-2"
"""The model whose clients send a picture that is transparent where it is to be edited, and no mask."""


@dataclass(frozen=True, slots=True)
class Referenced(OneFile):
    """OpenAI's reference to a picture in JSON, `{"image_url": "data:..."}`."""

    def check(self, value: Any) -> str | bytes | None:
        """Return the URL."""
        if not isinstance(value, dict):
            raise refused(f'must be {{"image_url": "data:image/png;base64,..."}}, got {_kind(value)}')
        if value.get("file_id") is not None:
            raise refused("has a file_id, but no files are kept here: send the picture as a data URL in image_url")
        url = value.get("image_url")
        if not isinstance(url, str) or not url.strip():
            raise refused(f"needs a data URL as the text of image_url, got {kind_of(url)}")
        return url

    def schema(self) -> JsonSchemaValue:
        """Describe the object."""
        url = {"type": "string", "minLength": 1, "pattern": r"\S"}
        return {"type": "object", "properties": {"image_url": url}, "required": ["image_url"]}


@dataclass(frozen=True, slots=True)
class OneReferenced(Referenced):
    """A list with one such reference; an empty one is none."""

    def check(self, value: Any) -> str | bytes | None:
        """Return the URL of the picture."""
        if value is None or value in ("", b"", []):
            return None
        if not isinstance(value, list):
            raise refused(
                f'must be [{{"image_url": "data:..."}}] in JSON, got {_kind(value)}: in a form send one picture as image'
            )
        if len(value) != 1:
            raise refused(
                f"has {len(value)} pictures: one is edited at a time; send a request for each, "
                "or put them together into one picture"
            )
        return Referenced.check(self, value[0])

    def schema(self) -> JsonSchemaValue:
        """Describe the list."""
        return {"anyOf": [{"type": "array", "maxItems": 1, "items": Referenced.schema(self)}, {"type": "null"}]}


@dataclass(frozen=True, slots=True)
class FileOrReferenced(OneFile):
    """A file, or such a reference."""

    def check(self, value: Any) -> str | bytes | None:
        """Return the file, or the URL."""
        return Referenced().check(value) if isinstance(value, dict) else OneFile.check(self, value)

    def schema(self) -> JsonSchemaValue:
        """Describe both."""
        return {"anyOf": [*OneFile.schema(self)["anyOf"], Referenced().schema()]}


class EditsRequest(ImagesRequest):
    """The body of `/v1/images/edits`."""

    image: Annotated[
        str | bytes | None,
        OneFile(),
        Field(description="The picture: a PNG, JPEG, WebP or GIF file; in JSON in base64, also as a data URL. One."),
    ] = None
    mask: Annotated[
        str | bytes | None,
        FileOrReferenced(),
        Field(description="A picture of the same size: what is transparent in it is edited, everything else stays."),
    ] = None
    input_fidelity: Annotated[
        str,
        Text(),
        Field(
            description=f"`high` keeps more of the picture: `strength` is {FAITHFUL_STRENGTH:g} if it is left out.",
            json_schema_extra={"enum": list(_FIDELITIES)},
        ),
    ] = ""
    strength: Annotated[
        Strength | None,
        Field(
            description="An extension of zwatch: how much the picture is changed. If left out, "
            f"{DEFAULT_STRENGTH:g}, with a mask {MASKED_STRENGTH:g}."
        ),
    ] = None
    mask_blur: Annotated[
        Blur, Field(description="An extension of zwatch: pixels by which the mask's edge is soft.")
    ] = 0
    markup: Annotated[
        None,
        Untaken("cannot be followed: say in mask where the picture is edited, and in prompt what is to be there"),
        Field(description="Not supported."),
    ] = None
    images: Annotated[
        str | bytes | None,
        OneReferenced(),
        Field(description="In JSON, instead of `image`: a list with one `image_url`, a data URL. No `file_id`."),
    ] = None


@dataclass(frozen=True, slots=True)
class Edit:
    """A validated request with its picture, fitted to the size that is drawn."""

    asked: EditsRequest
    source: Source


def read_edit(content_type: str, raw: bytes) -> Edit:
    """Return what a request's body asks for. To be called in a thread.

    Raises:
        RequestError: 400 with the name of an OpenAI field or a native one; see `with_client_names`.
    """
    return fitted_edit(validated(EditsRequest, fields_of(content_type, raw, EditsRequest)))


def fitted_edit(asked: EditsRequest) -> Edit:
    """Return a request with its picture, fitted to what is to be drawn. To be called in a thread.

    Raises:
        RequestError: as `read_edit`.
    """
    images_of(asked, "")  # before anything is decoded
    if asked.input_fidelity not in _FIDELITIES:
        raise invalid("input_fidelity", f"input_fidelity must be low or high, got {asked.input_fidelity[:60]!r}")
    image = _picture(asked)
    source = read_source(image, None)
    mask = _mask(asked, image, source.picture.size)
    # What stays with the request until it is drawn has no files.
    return Edit(asked.model_copy(update={"image": None, "images": None, "mask": None}), _fitted(asked, source, mask))


def edit_of(found: Edit, model: str) -> Images:
    """Return the native request for an edit, to be served by `model`.

    Raises:
        RequestError: as `images_of`.
    """
    asked = found.asked
    wanted = images_of(asked, model)
    strength = asked.strength
    if strength is None:
        unmasked = FAITHFUL_STRENGTH if asked.input_fidelity == "high" else DEFAULT_STRENGTH
        strength = unmasked if found.source.mask is None else MASKED_STRENGTH
    changes = {"strength": strength, "mask_blur": asked.mask_blur}
    return replace(wanted, generate=wanted.generate.model_copy(update=changes))


def _kind(value: object) -> str:
    return "a file" if isinstance(value, bytes) else kind_of(value)


def _picture(asked: EditsRequest) -> bytes:
    if asked.images is not None:
        if asked.image is not None:
            raise invalid(
                "images", "images is there beside image: one picture is edited at a time; send one of the two"
            )
        return _file(asked.images, "images")
    if asked.image is None:
        raise invalid("image", 'image is required: a file in a form, as curl -F "image=@cat.png" sends it')
    return _file(asked.image, "image")


def _file(given: str | bytes, param: str) -> bytes:
    return given if isinstance(given, bytes) else file_of(given, param)


def _mask(asked: EditsRequest, image: bytes, size: tuple[int, int]) -> Image.Image | None:
    """Return the mask, L, of the picture's size: white is painted anew. None if there is none.

    Raises:
        RequestError: 400, it is not an image, has no transparent pixel, or another shape.
    """
    if asked.mask is None:
        if asked.model != _MASK_OF_ITS_OWN:
            return None
        alpha = _alpha(open_picture(image, "image"), size)
        return None if alpha is None else ImageChops.invert(alpha)
    found = open_picture(_file(asked.mask, "mask"), "mask")
    width, height = found.size
    if abs(width * size[1] / (height * size[0]) - 1) > _ALIKE:
        raise invalid("mask", f"mask has {width} x {height} pixels, image {size[0]} x {size[1]}: they must be equal")
    alpha = _alpha(found, size)
    if alpha is None:
        raise invalid(
            "mask", "mask has no transparent pixel: what is transparent in it is edited, everything else stays"
        )
    return ImageChops.invert(alpha)


def _alpha(picture: Image.Image, size: tuple[int, int]) -> Image.Image | None:
    """Return the alpha channel, in this size, of a picture that has any transparent pixel."""
    if not picture.has_transparency_data:
        return None
    alpha = (picture if picture.mode in ("LA", "RGBA") else picture.convert("RGBA")).getchannel("A")
    if alpha.getextrema()[0] == 255:
        return None
    return alpha if alpha.size == size else alpha.resize(size, Image.Resampling.BOX)


def _fitted(asked: EditsRequest, source: Source, mask: Image.Image | None) -> Source:
    """Return a picture, cropped to the shape of the size that was asked for. What a mask keeps stays as it is."""
    sides = images_of(asked, "").generate

    def shaped(picture: Image.Image) -> Image.Image:
        if sides.width is None or sides.height is None:
            return picture
        return fitted_picture(picture, sides.width, sides.height, Fit.CROP)

    picture = shaped(source.picture)
    if mask is None:
        return replace(source, picture=picture)
    mask = shaped(mask)
    return replace(
        source, picture=picture, mask=mask, canvas=Canvas(picture, blurred(mask, asked.mask_blur, asked.mask_blur))
    )
