"""The picture and the mask of an `img2img` request: decoded, and fitted to what is drawn."""

from dataclasses import dataclass, replace

from PIL import Image, ImageChops

from zwatch.api.a1111.img2img import Img2ImgParameters, Img2ImgRequest
from zwatch.api.a1111.txt2img import Txt2Img, renamed, wanted_images
from zwatch.api.bodies import fields_of
from zwatch.errors import RequestError
from zwatch.generation.fields import validated
from zwatch.generation.inpainting import Canvas, Content, Fit, blurred, fitted_picture, part_of_mask, with_content
from zwatch.generation.request import MAX_SIDE
from zwatch.generation.sides import SIDE_STEP
from zwatch.generation.sources import Source, file_of, open_picture, read_source

_CONTENTS = {Content.FILL: "fill", Content.NOISE: "latent noise", Content.NOTHING: "latent nothing"}
"""AUTOMATIC1111's names in the text of an image."""


@dataclass(frozen=True, slots=True)
class Img2Img:
    """A validated request with its picture, fitted to what is to be drawn."""

    asked: Img2ImgRequest
    source: Source
    width: int | None
    height: int | None


def read_img2img(content_type: str, raw: bytes) -> Img2Img:
    """Return what a request's body asks for. To be called in a thread.

    Raises:
        RequestError: 400 with the field's name.
    """
    return fitted_img2img(validated(Img2ImgRequest, fields_of(content_type, raw, Img2ImgRequest)))


def fitted_img2img(asked: Img2ImgRequest) -> Img2Img:
    """Return a request with its picture, fitted to what is to be drawn. To be called in a thread.

    Raises:
        RequestError: as `read_img2img`.
    """
    wanted_images(asked, "")  # before anything is decoded
    try:
        source = read_source(file_of(asked.init_images, "image"), None)
        mask = _mask(asked, source.picture.size) if asked.mask else None
    except RequestError as error:
        raise renamed(error) from None
    if asked.include_init_images:
        source = replace(source, kept=len(asked.init_images) + len(asked.mask or ""))
    else:  # what stays with the request until it is drawn has no files
        asked = asked.model_copy(update={"init_images": "", "mask": ""})
    return _fitted(asked, source, mask)


def wanted_changes(found: Img2Img, model: str) -> Txt2Img:
    """Return the native request for an `img2img` request, to be served by `model`.

    Raises:
        RequestError: 400 with the field's name.
    """
    asked, source = found.asked, found.source
    wanted = wanted_images(asked.model_copy(update={"width": found.width, "height": found.height}), model)
    blur = _blurs(asked)
    request = wanted.request.model_copy(
        update={"strength": asked.denoising_strength, "mask_blur": 0 if source.mask is None else max(blur)}
    )
    parameters: Img2ImgParameters = {
        **wanted.parameters,
        "init_images": [asked.init_images] if asked.include_init_images else None,
        "mask": (asked.mask or None) if asked.include_init_images else None,
        "denoising_strength": asked.denoising_strength,
        "resize_mode": asked.resize_mode,
        "mask_blur": asked.mask_blur,
        "inpainting_fill": asked.inpainting_fill,
        "inpaint_full_res": asked.inpaint_full_res,
        "inpaint_full_res_padding": asked.inpaint_full_res_padding,
        "inpainting_mask_invert": int(asked.inpainting_mask_invert),
        "include_init_images": asked.include_init_images,
    }
    changes = {"Denoising strength": asked.denoising_strength}
    if request.mask_blur:
        changes["Mask blur"] = request.mask_blur
    return replace(wanted, request=request, parameters=parameters, changes=changes, notes=source.notes)


def _mask(asked: Img2ImgRequest, size: tuple[int, int]) -> Image.Image:
    """Return the mask, L, of the picture's size: white is painted anew.

    Raises:
        RequestError: 400, it is not an image.
    """
    found = open_picture(file_of(asked.mask, "mask"), "mask")
    # Drawn on a transparent layer, or black and white: both are usual.
    if found.has_transparency_data and (layer := found.convert("RGBA").getchannel("A")).getextrema() != (255, 255):
        mask = layer
    else:
        mask = found.convert("L")
    mask = mask.point(lambda level: 255 if level >= 128 else 0)
    if asked.inpainting_mask_invert:
        mask = ImageChops.invert(mask)
    return mask if mask.size == size else mask.resize(size, Image.Resampling.NEAREST)


def _fitted(asked: Img2ImgRequest, source: Source, mask: Image.Image | None) -> Img2Img:
    """Return a request with its picture, fitted as it asks for."""
    if mask is None:
        return _whole(asked, source, None)
    soft = blurred(mask, *_blurs(asked))
    if not asked.inpaint_full_res:
        return _whole(asked, source, (mask, soft))
    width, height = _sides(asked, source.picture) or source.picture.size
    box = part_of_mask(soft, asked.inpaint_full_res_padding, width, height)
    if box is None:
        return _whole(asked, source, None)  # as AUTOMATIC1111: the picture is changed as if there was no mask
    width, height = _sides(asked, source.picture) or _drawable(*source.picture.size)
    part, part_of = (fitted_picture(one.crop(box), width, height, Fit.FILL) for one in (source.picture, mask))
    notes: dict[str, int | str] = {"Inpaint area": "Only masked", "Masked area padding": asked.inpaint_full_res_padding}
    return Img2Img(
        asked,
        replace(
            source, picture=with_content(part, part_of, Content(asked.inpainting_fill)), mask=part_of,
            canvas=Canvas(source.picture, soft, box), notes={**_notes(asked), **notes},
        ),
        width, height,
    )  # fmt: skip


def _whole(asked: Img2ImgRequest, source: Source, masks: tuple[Image.Image, Image.Image] | None) -> Img2Img:
    """Return a request whose picture is drawn as a whole; `masks` are a mask, and the same blurred."""
    sides = _sides(asked, source.picture)
    fit = Fit(asked.resize_mode) if asked.resize_mode in tuple(Fit) else Fit.STRETCH

    def shaped(picture: Image.Image) -> Image.Image:
        return picture if sides is None else fitted_picture(picture, *sides, fit)

    width, height = sides or (None, None)
    picture = shaped(source.picture)
    if masks is None:
        return Img2Img(asked, replace(source, picture=picture), width, height)
    mask, soft = (shaped(one) for one in masks)
    return Img2Img(
        asked,
        replace(
            source, picture=with_content(picture, mask, Content(asked.inpainting_fill)), mask=mask,
            canvas=Canvas(picture, soft), notes=_notes(asked),
        ),
        width, height,
    )  # fmt: skip


def _notes(asked: Img2ImgRequest) -> dict[str, int | str]:
    """Return what AUTOMATIC1111's text says of a mask, beside its blur."""
    mode = {"Mask mode": "Inpaint not masked"} if asked.inpainting_mask_invert else {}
    content = _CONTENTS.get(Content(asked.inpainting_fill))
    return {**mode, **({} if content is None else {"Masked content": content})}


def _blurs(asked: Img2ImgRequest) -> tuple[int, int]:
    """Return by how many pixels a mask is blurred across and down."""
    across, down = asked.mask_blur_x, asked.mask_blur_y
    return asked.mask_blur if across is None else across, asked.mask_blur if down is None else down


def _sides(asked: Img2ImgRequest, picture: Image.Image) -> tuple[int, int] | None:
    """Return the sides of what is drawn as far as the request says them: one follows the other in the picture's shape."""
    width, height = asked.width, asked.height
    if width is None and height is None:
        return None
    return _drawable(
        width if width is not None else round((height or 0) * picture.width / picture.height),
        height if height is not None else round((width or 0) * picture.height / picture.width),
    )


def _drawable(width: int, height: int) -> tuple[int, int]:
    """Return the nearest sides that can be drawn, pixels."""
    scale = min(1.0, MAX_SIDE / max(width, height))
    return _step(round(width * scale)), _step(round(height * scale))


def _step(side: int) -> int:
    return max(SIDE_STEP, (side + SIDE_STEP // 2 - 1) // SIDE_STEP * SIDE_STEP)
