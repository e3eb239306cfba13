"""Image files: pixels to bytes, with what they were made from inside."""

import io
import json
from dataclasses import asdict

from PIL import Image, PngImagePlugin

from zwatch.service.queue import Result

_PNG_COMPRESSION = 1
"""Of 9: on a 1024 x 1024 image the slower levels cost 0.1 s and more, and save little on such pictures."""
_QUALITY = 92
_EXIF_USER_COMMENT = 0x9286
_MAX_COMMENT = 65_000
"""Longest EXIF comment, bytes: a JPEG segment has 65,533 for all of the EXIF."""


def encode(result: Result, number: int, image_format: str) -> bytes:
    """Return image `number` of a result as a PNG, JPEG or WebP file.

    The file says what it was made from: PNG in text chunks, the others in the EXIF user comment.
    """
    image = result.generation.images[number]
    details = describe(result, number)
    file = io.BytesIO()
    if image_format == "png":
        chunks = PngImagePlugin.PngInfo()
        for name, value in details.items():
            chunks.add_itxt(name, value)
        image.save(file, "png", pnginfo=chunks, compress_level=_PNG_COMPRESSION)
    else:
        exif = Image.Exif()
        # The standard's prefix for a comment in Unicode.
        exif[_EXIF_USER_COMMENT] = _comment(details)
        image.save(file, image_format, quality=_QUALITY, exif=exif)
    return file.getvalue()


def _comment(details: dict[str, str]) -> bytes:
    """Return the EXIF comment. JPEG has room for 64 KiB: of what is longer, the parts that repeat the prompt go."""
    while True:
        comment = b"UNICODE\0" + json.dumps(details, ensure_ascii=False).encode("utf-16-be")
        if len(comment) <= _MAX_COMMENT:
            return comment
        longest = max(details, key=lambda name: len(details[name]))
        details = {name: value for name, value in details.items() if name != longest}


def describe(result: Result, number: int) -> dict[str, str]:
    """Return what is written into image `number`: A1111's `parameters` text, the version, its digest and the request."""
    parameters, key = result.parameters, result.key
    seed = parameters.seeds[number]
    return {
        "parameters": _a1111_text(result, seed),
        "zwatch_version": key.version,
        "zwatch_digest": str(key.digest),
        "zwatch_request": json.dumps({**asdict(parameters), "seeds": [seed]}, ensure_ascii=False),
    }


def _a1111_text(result: Result, seed: int) -> str:
    parameters, key = result.parameters, result.key
    negative = f"\nNegative prompt: {parameters.negative_prompt}" if parameters.negative_prompt else ""
    return (
        f"{parameters.prompt}{negative}\nSteps: {parameters.steps}, Sampler: Euler, CFG scale: {parameters.guidance_scale}, "
        f"Seed: {seed}, Size: {parameters.width}x{parameters.height}, Model hash: {str(key.digest)[:10]}, Model: {key.version}"
    )
