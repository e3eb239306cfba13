"""Whether images are usable: one rule for the warm-up image, the first image after a start and the images of requests."""

from typing import TYPE_CHECKING

import numpy as np

from zwatch.engine.parameters import Flaw, Generation

if TYPE_CHECKING:
    from PIL.Image import Image

MIN_DEVIATION = 1.0
"""Least standard deviation of a usable image's grey values, of 255."""
_SAMPLES = 64
"""Per side, of the pixels that are looked at first: reading all takes 20 times as long."""


def flaw_of(generation: Generation) -> Flaw | None:
    """Return why these images are not usable: one has NaN or infinite pixels, or all its pixels have one colour. None if they
    are usable."""
    if not generation.finite:
        return Flaw("not_finite", "has NaN or infinite pixels")
    for image in generation.images:
        if (deviation := deviation_of(image)) < MIN_DEVIATION:
            return Flaw("one_colour", f"is one colour (deviation {deviation:.2f} of 255)")
    return None


def deviation_of(image: "Image") -> float:
    """Return the standard deviation of an image's grey values, of 255. Some of the pixels suffice where they differ enough."""
    if max(image.size) > _SAMPLES:
        from PIL.Image import Resampling

        sampled = _deviation(image.resize((_SAMPLES, _SAMPLES), Resampling.NEAREST))
        if sampled >= MIN_DEVIATION:
            return sampled
    return _deviation(image)


def _deviation(image: "Image") -> float:
    counts = np.asarray(image.convert("L").histogram(), dtype=np.float64)
    levels = np.arange(len(counts))
    mean = counts @ levels / counts.sum()
    return float(np.sqrt(counts @ (levels - mean) ** 2 / counts.sum()))
