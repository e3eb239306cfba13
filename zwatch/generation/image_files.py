"""Image files: pixels to bytes, with what they were made from inside."""

import base64
import io
from typing import Any

from PIL import Image, PngImagePlugin

from zwatch.generation.image_details import Details, exif, png_chunks
from zwatch.generation.request import ImageFormat

_PREVIEW_QUALITY = 75
_PREVIEW_SCALE = 8
"""A preview has one pixel for 8 x 8 of the image."""


def encode(image: Image.Image, details: Details, image_format: ImageFormat, quality: int) -> bytes:
    """Return a PNG, JPEG or WebP file that says what it was made from. `quality` of 100 is for the latter two."""
    if image_format == ImageFormat.PNG:
        return _png(image, png_chunks(details))
    return _saved(image, image_format, quality=quality, exif=exif(details, jpeg=image_format == ImageFormat.JPEG))


def preview_file(image: Image.Image) -> bytes:
    """Return a preview as a small JPEG file."""
    return _saved(image, ImageFormat.JPEG, quality=_PREVIEW_QUALITY)


def enlarged_preview(jpeg: bytes, image_format: ImageFormat) -> tuple[bytes, tuple[int, int]]:
    """Return a preview as an image of the size and format that was asked for, and its width and height."""
    with Image.open(io.BytesIO(jpeg)) as preview:
        large = preview.resize(
            (preview.width * _PREVIEW_SCALE, preview.height * _PREVIEW_SCALE), Image.Resampling.BICUBIC
        )
    file = _png(large) if image_format == ImageFormat.PNG else _saved(large, image_format, quality=_PREVIEW_QUALITY)
    return file, large.size


def data_url(jpeg: bytes) -> str:
    """Return a JPEG file as a URL that holds it."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _png(image: Image.Image, text: PngImagePlugin.PngInfo | None = None) -> bytes:
    from zwatch.generation.png import (
        write_png,  # with numpy, which whoever makes images has, and the start does not need
    )

    return write_png(image, text)


def _saved(image: Image.Image, image_format: ImageFormat, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()
