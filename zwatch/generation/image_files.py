"""Image files: pixels to bytes, with the details of the request inside."""

import base64
import io
from typing import Any

from PIL import Image, PngImagePlugin

from zwatch.generation.image_details import Details, exif, png_chunks
from zwatch.generation.request import ImageFormat

_PREVIEW_QUALITY = 75
_PREVIEW_SCALE = 8
"""A preview has one pixel for each 8 x 8 pixels of the image."""


def encode(image: Image.Image, details: Details, image_format: ImageFormat, quality: int) -> bytes:
    """Return a PNG, JPEG or WebP file that contains its details. `quality` (1 to 100) applies to JPEG and WebP."""
    if image_format == ImageFormat.PNG:
        return _png(image, png_chunks(details))
    return saved(image, image_format, quality=quality, exif=exif(details, jpeg=image_format == ImageFormat.JPEG))


def preview_file(image: Image.Image) -> bytes:
    """Return a preview as a small JPEG file."""
    return saved(image, ImageFormat.JPEG, quality=_PREVIEW_QUALITY)


def enlarged_preview(jpeg: bytes, image_format: ImageFormat) -> tuple[bytes, tuple[int, int]]:
    """Return a preview as a file of the requested size and format, and its (width, height)."""
    with Image.open(io.BytesIO(jpeg)) as preview:
        large = preview.resize(
            (preview.width * _PREVIEW_SCALE, preview.height * _PREVIEW_SCALE), Image.Resampling.BICUBIC
        )
    file = _png(large) if image_format == ImageFormat.PNG else saved(large, image_format, quality=_PREVIEW_QUALITY)
    return file, large.size


def data_url(jpeg: bytes) -> str:
    """Return a JPEG file as a `data:` URL."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"


def _png(image: Image.Image, text: PngImagePlugin.PngInfo | None = None) -> bytes:
    # Late: this imports numpy, which the start of the service does not need.
    from zwatch.generation.png import write_png

    return write_png(image, text)


def saved(image: Image.Image, image_format: ImageFormat, **options: Any) -> bytes:
    """Return an image as a file that Pillow writes, with Pillow's options for that format."""
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()
