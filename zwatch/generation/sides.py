"""The sides of images: which a request has, and which follow from an image that it changes."""

import math

from zwatch.generation.fields import invalid

SIDE_STEP = 16
"""The VAE shrinks 8 times, the transformer takes patches of 2 x 2 latents."""


def sides_of(
    asked: tuple[int | None, int | None],
    image: tuple[int, int] | None,
    default_size: int,
    most: int,
    megapixels: float,
) -> tuple[int, int]:
    """Return the width and the height of a request's images, pixels, of which `asked` has what it names. Where it changes an `image`
    of this width and height and names none, they follow that: the nearest multiples of 16, no longer than `most` and with no more
    than so many megapixels. If it names one, the other follows by the image's shape.

    Raises:
        RequestError: 400, the other would be longer than `most`.
    """
    asked_width, asked_height = asked
    if image is None or (asked_width is not None and asked_height is not None):
        return asked_width or default_size, asked_height or default_size
    width, height = image
    if asked_width is not None:
        return asked_width, _other("width", asked_width, "height", height / width, most)
    if asked_height is not None:
        return _other("height", asked_height, "width", width / height, most), asked_height
    scale = min(1.0, most / max(width, height))
    sides = _side(width * scale, most), _side(height * scale, most)
    if sides[0] * sides[1] > megapixels * 1e6:
        scale = math.sqrt(megapixels * 1e6 / (width * height))
        sides = _side(width * scale - SIDE_STEP / 2, most), _side(height * scale - SIDE_STEP / 2, most)
    return sides


def _other(name: str, given: int, other: str, shape: float, most: int) -> int:
    """Return the side that follows by an image's shape, which is other / given.

    Raises:
        RequestError: 400, it is longer than `most`.
    """
    if (length := math.floor(given * shape / SIDE_STEP + 0.5) * SIDE_STEP) <= most:
        return max(SIDE_STEP, length)
    largest = math.floor(most / shape / SIDE_STEP) * SIDE_STEP
    advice = f"{name} may be {largest} at most, or" if largest else "no side keeps its shape:"
    raise invalid(
        name,
        f"with {name} {given} and the shape of the image, {other} would be {length}, more than {most}: {advice} give both",
    )


def _side(length: float, most: int) -> int:
    """Return the nearest multiple of 16 that a side may have."""
    return min(max(SIDE_STEP, math.floor(length / SIDE_STEP + 0.5) * SIDE_STEP), most)
