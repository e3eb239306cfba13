"""Which images are usable."""

import numpy as np
import pytest
from PIL import Image

from zwatch.engine.parameters import Generation
from zwatch.engine.usable import MIN_DEVIATION, deviation_of, flaw_of


def noise(size):
    return Image.fromarray(np.random.default_rng(1).integers(0, 255, (size, size, 3), dtype=np.uint8))


def with_text(size):
    """A white page with a thin line, which few of its pixels show."""
    page = Image.new("RGB", (size, size), "white")
    page.paste("black", (1, size // 2 + 1, size, size // 2 + 3))
    return page


@pytest.mark.parametrize("size", [16, 64, 256, 1024])
def test_the_deviation_of_noise_is_large_and_of_one_colour_zero(size):
    assert deviation_of(noise(size)) > 20
    assert deviation_of(Image.new("RGB", (size, size), (3, 200, 7))) == 0


@pytest.mark.parametrize("size", [64, 256, 1024])
def test_what_no_sample_shows_is_found_by_all_pixels(size):
    assert deviation_of(with_text(size)) >= MIN_DEVIATION


def test_the_deviation_of_all_pixels_is_that_of_numpy():
    image = noise(48)
    assert deviation_of(image) == pytest.approx(np.asarray(image.convert("L"), dtype=np.float64).std())


def test_every_image_of_a_generation_counts():
    good, plain = noise(64), Image.new("RGB", (64, 64))
    assert flaw_of(Generation([good, good], False, True, {})) is None
    assert flaw_of(Generation([good, plain], False, True, {})).kind == "one_colour"
    assert flaw_of(Generation([good], False, False, {})).kind == "not_finite"
    assert flaw_of(Generation([], False, False, {})).kind == "not_finite"
