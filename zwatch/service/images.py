"""Image files: pixels to bytes, with what they were made from inside."""

import base64
import io

from PIL import Image

from zwatch.service.infotext import Details, exif, png_chunks

MEDIA_TYPES = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp"}
"""By the suffix of a file's name."""
_PNG_COMPRESSION = 1
"""Of 9: on a 1024 x 1024 image the slower levels cost 0.1 s and more, and save little on such pictures."""
_PREVIEW_QUALITY = 75
_PREVIEW_SCALE = 8
"""A preview has one pixel for 8 x 8 of the image."""


def encode(image: Image.Image, details: Details, image_format: str, quality: int) -> bytes:
    """Return a PNG, JPEG or WebP file that says what it was made from. `quality` of 100 is for the latter two."""
    file = io.BytesIO()
    if image_format == "png":
        image.save(file, "png", pnginfo=png_chunks(details), compress_level=_PNG_COMPRESSION)
    else:
        image.save(file, image_format, quality=quality, exif=exif(details, jpeg=image_format == "jpeg"))
    return file.getvalue()


def preview_file(image: Image.Image) -> bytes:
    """Return a preview as a small JPEG file."""
    file = io.BytesIO()
    image.save(file, "jpeg", quality=_PREVIEW_QUALITY)
    return file.getvalue()


def enlarged_preview(jpeg: bytes, image_format: str) -> tuple[bytes, tuple[int, int]]:
    """Return a preview as an image of the size and format that was asked for, and its width and height."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(jpeg)) as preview:
        large = preview.resize(
            (preview.width * _PREVIEW_SCALE, preview.height * _PREVIEW_SCALE), Image.Resampling.BICUBIC
        )
    options = {"compress_level": _PNG_COMPRESSION} if image_format == "png" else {"quality": _PREVIEW_QUALITY}
    large.save(file, image_format, **options)
    return file.getvalue(), large.size


def data_url(jpeg: bytes) -> str:
    """Return a JPEG file as a URL that holds it."""
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
