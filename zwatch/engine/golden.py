"""The golden images of an engine's version: what it must draw, and how much of that was checked."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from zwatch.deploy import golden
from zwatch.deploy.golden import CODE, Picture
from zwatch.engine.likeness import Pixels
from zwatch.errors import Rejection


class GoldenImages:
    """What a version must draw, and how much of it was checked, in the order of golden.json. One thread at a time uses it."""

    def __init__(self, pictures: Sequence[Picture] = (), small: Mapping[str, bytes] | None = None) -> None:
        """`small` has the images' verified bytes by path; each is kept until it is checked."""
        self.pictures = tuple(pictures)
        self.checked = 0
        """How many were compared, now or at an earlier start."""
        self.missed = 0
        """How many of these were not drawn as they should be."""
        self._files = {picture.image: (small or {})[picture.image] for picture in self.pictures}

    @property
    def next(self) -> Picture | None:
        """The next one to check; None if all were."""
        return self.pictures[self.checked] if self.checked < len(self.pictures) else None

    def expected(self, picture: Picture) -> Pixels:
        """Return the pixels of the image that a picture names.

        Raises:
            Rejection: `golden_invalid`: it cannot be decoded.
        """
        return decoded(picture, self._files[picture.image])

    def note(self, fault: str | None) -> None:
        """Note that the next one was checked, and what is wrong with it, if anything is."""
        assert self.next is not None
        del self._files[self.next.image]
        self.checked += 1
        self.missed += fault is not None

    def skip(self, count: int) -> None:
        """Take the first ones as checked: they were, at an earlier start."""
        while self.next is not None and self.checked < count:
            self.note(None)


def decoded(picture: Picture, data: bytes) -> Pixels:
    """Return the pixels of a golden image: shape (height, width, 3), RGB. No other format is tried, and nothing larger is unpacked.

    Raises:
        Rejection: `golden_invalid`: the bytes are no such PNG.
    """
    golden.check_image(picture, data[: golden.HEADER_BYTES], len(data))
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            if image.size != (picture.width, picture.height) or image.mode != "RGB":
                raise ValueError(f"found {image.mode} of {image.size[0]} x {image.size[1]} pixels")
            return np.asarray(image, dtype=np.uint8)
    except Exception as error:  # whatever Pillow raises for bytes that it does not understand
        what = str(error) or type(error).__name__
        raise Rejection(CODE, f"{picture.image}: it cannot be decoded: {what}; make it again") from None
