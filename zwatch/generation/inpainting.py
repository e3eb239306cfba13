"""Fitting a picture that is to be changed to the size that is drawn, and putting what was drawn back into it.

The diffusers pipelines decode the whole image from latents, also what a mask keeps, and stretch a picture of another shape. Clients of the
compatible APIs expect that what a mask keeps stays as it is, and choose how a picture is fitted.
"""

from dataclasses import dataclass
from enum import IntEnum

from PIL import Image, ImageChops, ImageFilter, ImageStat

Box = tuple[int, int, int, int]
"""The left, upper, right and lower edge of a part of a picture, pixels."""

_FILLED_SIDE = 512
"""Longest side at which the colours around a mask are spread, pixels: they are blurred anyway."""
_SPREADS = (1 / 4, 1 / 16, 1 / 64)
"""Radii by which colours are spread, as parts of the longest side. The nearest colours come last, over those from further away."""
_GREY = 128


class Fit(IntEnum):
    """How a picture gets another shape, by AUTOMATIC1111's numbers of the `resize_mode`."""

    STRETCH = 0
    CROP = 1
    FILL = 2
    """All of it is there, and its edges are continued."""


class Content(IntEnum):
    """What is where a mask is white before it is drawn, by AUTOMATIC1111's numbers of `inpainting_fill`."""

    FILL = 0
    """The colours around it."""
    ORIGINAL = 1
    NOISE = 2
    NOTHING = 3
    """Grey."""


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """A picture (RGB) that gets what is drawn where its mask (L, of the same size) is white. What is drawn stands for the part in
    `box`, or for all of it, in which case the picture takes the size of what is drawn."""

    picture: Image.Image
    mask: Image.Image
    box: Box | None = None

    def with_drawn(self, drawn: Image.Image) -> Image.Image:
        """Return the picture with an image that was drawn for it. Where the mask is black, its pixels are the picture's own; where
        it is grey, up to the middle, the two are mixed. To be called in a thread."""
        if self.box is None:
            picture, mask = stretched(self.picture, drawn.size), stretched(self.mask, drawn.size)
        else:
            left, upper, right, lower = self.box
            picture, mask = self.picture, self.mask
            part = fitted_picture(drawn, right - left, lower - upper, Fit.CROP)
            drawn = picture.copy()
            drawn.paste(part, (left, upper))
        # A blurred mask is grey on both sides of its edge. What is within the edge was drawn, so it is taken whole.
        return Image.composite(drawn, picture, mask.point(lambda level: min(255, 2 * level)))


def fitted_picture(picture: Image.Image, width: int, height: int, fit: Fit) -> Image.Image:
    """Return a picture, or a mask, of this size in pixels."""
    if fit is Fit.STRETCH or picture.width * height == picture.height * width:
        return stretched(picture, (width, height))
    scales = (width / picture.width, height / picture.height)
    scale = max(scales) if fit is Fit.CROP else min(scales)
    inner = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    scaled = stretched(picture, inner)
    left, upper = (width - inner[0]) // 2, (height - inner[1]) // 2
    if fit is Fit.CROP:
        return scaled.crop((-left, -upper, width - left, height - upper))
    return _continued(scaled, width, height, left, upper)


def _continued(inner: Image.Image, width: int, height: int, left: int, upper: int) -> Image.Image:
    """Return a picture with its edges continued to this size."""
    # Of a picture that is one row or column short of its place nothing is continued on one side.
    found = Image.new(inner.mode, (width, height))
    right, lower = left + inner.width, upper + inner.height
    edges: tuple[tuple[Box, Box], ...] = (
        ((0, 0, inner.width, 1), (left, 0, right, upper)),
        ((0, inner.height - 1, inner.width, inner.height), (left, lower, right, height)),
        ((0, 0, 1, inner.height), (0, upper, left, lower)),
        ((inner.width - 1, 0, inner.width, inner.height), (right, upper, width, lower)),
    )
    for source, place in edges:
        size = (place[2] - place[0], place[3] - place[1])
        if min(size) > 0:
            found.paste(inner.crop(source).resize(size, Image.Resampling.NEAREST), place)
    found.paste(inner, (left, upper))
    return found


def stretched(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return a picture of this size, the same if it has it."""
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def blurred(mask: Image.Image, horizontal: int, vertical: int) -> Image.Image:
    """Return a mask, blurred by these standard deviations in pixels."""
    return mask.filter(ImageFilter.GaussianBlur((horizontal, vertical))) if horizontal or vertical else mask


def part_of_mask(mask: Image.Image, padding: int, width: int, height: int) -> Box | None:
    """Return the smallest part that has all that is not black in a mask, with so many pixels around it, and, as far as the mask has
    room, of the shape of `width` x `height`. None if all is black."""
    found = mask.getbbox()
    if found is None:
        return None
    left, right = max(0, found[0] - padding), min(mask.width, found[2] + padding)
    upper, lower = max(0, found[1] - padding), min(mask.height, found[3] + padding)
    across, down = right - left, lower - upper
    if across * height < down * width:
        across = round(down * width / height)
    else:
        down = round(across * height / width)
    left, right = _around(left, right, across, mask.width)
    upper, lower = _around(upper, lower, down, mask.height)
    return left, upper, right, lower


def _around(begin: int, end: int, length: int, most: int) -> tuple[int, int]:
    """Return a range of this length around another, within 0 to `most`."""
    length = min(max(length, end - begin), most)
    begin = min(max(begin - (length - (end - begin)) // 2, 0), most - length)
    return begin, begin + length


def with_content(picture: Image.Image, mask: Image.Image, content: Content) -> Image.Image:
    """Return a picture (RGB) with something else where its mask is white."""
    if content is Content.ORIGINAL:
        return picture
    if content is Content.NOTHING:
        other = Image.new("RGB", picture.size, (_GREY,) * 3)
    elif content is Content.NOISE:
        other = _noise(picture.size)
    else:
        other = _surroundings(picture, mask)
    return Image.composite(other, picture, mask)


def _noise(size: tuple[int, int]) -> Image.Image:
    import numpy as np

    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def _surroundings(picture: Image.Image, mask: Image.Image) -> Image.Image:
    """Return the colours that a picture has where its mask is black, spread over all of it."""
    scale = min(1.0, _FILLED_SIDE / max(picture.size))
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    small = stretched(picture, size)
    known = ImageChops.invert(stretched(mask, size)).point(lambda level: 255 if level == 255 else 0)
    if known.getbbox() is None:
        return Image.new("RGB", picture.size, (_GREY,) * 3)
    found = Image.new("RGB", size, tuple(round(mean) for mean in ImageStat.Stat(small, known).mean))
    layer = small.convert("RGBA")
    layer.putalpha(known)
    premultiplied = layer.convert("RGBa")
    for spread in _SPREADS:
        near = premultiplied.filter(ImageFilter.GaussianBlur(max(1.0, spread * max(size)))).convert("RGBA")
        found = Image.composite(
            near.convert("RGB"), found, near.getchannel("A").point(lambda level: min(255, 8 * level))
        )
    return stretched(found, picture.size)
