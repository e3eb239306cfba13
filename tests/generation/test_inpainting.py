"""Fitting pictures and masks, and putting what was drawn back."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from zwatch.generation.inpainting import (
    Canvas,
    Content,
    Fit,
    blurred,
    fitted_picture,
    part_of_mask,
    with_content,
)

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


def halves(width, height):
    """Return a picture whose left half is red and whose right half is blue."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(BLUE, (width // 2, 0, width, height))
    return picture


def masked(size, box):
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


def test_stretching_shows_all_of_a_picture_in_another_shape():
    found = fitted_picture(halves(100, 50), 64, 64, Fit.STRETCH)
    assert (found.size, found.getpixel((2, 2)), found.getpixel((61, 61))) == ((64, 64), RED, BLUE)


def test_cropping_keeps_the_shape_and_loses_what_is_beyond():
    picture = halves(192, 64)
    ImageDraw.Draw(picture).ellipse((64, 0, 127, 63), fill=GREEN)
    found = np.asarray(fitted_picture(picture, 64, 64, Fit.CROP))
    assert found.shape == (64, 64, 3)
    assert np.array_equal(found, np.asarray(picture.crop((64, 0, 128, 64)))), "the middle, unscaled"


@pytest.mark.parametrize(("size", "at_the_edge"), [((64, 32), ((32, 1), (32, 62))), ((32, 64), ((1, 32), (62, 32)))])
def test_filling_shows_all_of_a_picture_and_continues_its_edges(size, at_the_edge):
    picture = Image.new("RGB", size, GREEN)
    picture.paste(RED, (0, 0, size[0], 1) if size[0] > size[1] else (0, 0, 1, size[1]))
    found = fitted_picture(picture, 64, 64, Fit.FILL)
    first, last = at_the_edge
    assert (found.size, found.getpixel(first), found.getpixel(last)) == ((64, 64), RED, GREEN)


@pytest.mark.parametrize("fit", Fit)
@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (37, 53), (64, 64), (63, 64), (65, 64)])
def test_every_shape_is_fitted_to_every_other(fit, size):
    for mode in ("RGB", "L"):
        assert fitted_picture(Image.new(mode, size, "white"), 64, 48, fit).getextrema() in (
            ((255, 255),) * 3,
            (255, 255),
        )


def test_cropping_undoes_filling():
    picture = Image.effect_noise((40, 100), 50).convert("RGB").filter(ImageFilter.GaussianBlur(2))
    again = fitted_picture(fitted_picture(picture, 400, 500, Fit.FILL), 40, 100, Fit.CROP)
    assert np.abs(np.asarray(again, int) - picture).max() < 5


@pytest.mark.parametrize(
    ("box", "padding", "shape", "part"),
    [
        ((40, 40, 60, 60), 0, (64, 64), (40, 40, 60, 60)),
        ((40, 40, 60, 60), 10, (64, 64), (30, 30, 70, 70)),
        ((40, 40, 60, 60), 0, (64, 32), (30, 40, 70, 60)),
        ((40, 40, 60, 60), 0, (32, 64), (40, 30, 60, 70)),
        ((0, 0, 20, 20), 0, (64, 32), (0, 0, 40, 20)),
        ((90, 90, 100, 100), 5, (64, 32), (70, 85, 100, 100)),
        ((0, 45, 100, 55), 0, (64, 64), (0, 0, 100, 100)),
        ((0, 0, 100, 100), 50, (64, 32), (0, 0, 100, 100)),
        ((99, 99, 100, 100), 0, (16, 2048), (99, 0, 100, 100)),
    ],
)
def test_the_part_around_a_mask_has_the_shape_of_what_is_drawn(box, padding, shape, part):
    assert part_of_mask(masked((100, 100), box), padding, *shape) == part


def test_a_black_mask_has_no_part():
    assert part_of_mask(Image.new("L", (64, 64)), 32, 64, 64) is None


def test_what_a_mask_keeps_are_the_pixels_of_the_picture():
    picture, drawn = Image.effect_noise((64, 64), 90).convert("RGB"), Image.new("RGB", (64, 64), GREEN)
    found = np.asarray(Canvas(picture, masked((64, 64), (16, 16, 48, 48))).with_drawn(drawn))
    expected = np.asarray(picture).copy()
    expected[16:48, 16:48] = GREEN
    assert np.array_equal(found, expected)


def test_a_picture_takes_the_size_of_what_is_drawn():
    found = Canvas(halves(100, 50), masked((100, 50), (50, 0, 100, 50))).with_drawn(Image.new("RGB", (64, 64), GREEN))
    assert (found.size, found.getpixel((5, 5)), found.getpixel((60, 60))) == ((64, 64), RED, GREEN)


def test_a_part_is_put_where_it_was_taken_and_the_picture_keeps_its_size():
    picture, box = halves(200, 100), (20, 20, 60, 60)
    found = Canvas(picture, masked((200, 100), (30, 30, 50, 50)), box).with_drawn(Image.new("RGB", (64, 64), GREEN))
    assert found.size == (200, 100)
    changed = np.argwhere((np.asarray(found) != np.asarray(picture)).any(axis=2))
    assert (changed.min(axis=0).tolist(), changed.max(axis=0).tolist()) == ([30, 30], [49, 49])


def test_the_edge_of_a_blurred_mask_is_soft_outside_of_it_only():
    soft = blurred(masked((128, 64), (64, 0, 128, 64)), 6, 6)
    found = Canvas(Image.new("RGB", (128, 64)), soft).with_drawn(Image.new("RGB", (128, 64), "white"))
    row = np.asarray(found)[32, :, 0].astype(int)
    assert (row[66:] == 255).all()
    assert (row[:40] == 0).all()
    assert 5 < ((row > 0) & (row < 255)).sum() < 25


def test_a_mask_may_be_blurred_in_one_direction():
    soft = np.asarray(blurred(masked((64, 64), (16, 16, 48, 48)), 4, 0))
    assert (soft[15] == 0).all()
    assert 0 < soft[32, 14] < 255
    assert blurred(masked((64, 64), (0, 0, 1, 1)), 0, 0).getpixel((0, 0)) == 255


def test_under_a_mask_are_the_colours_around_it():
    picture, mask = halves(128, 64), masked((128, 64), (8, 8, 120, 56))
    picture.paste(GREEN, (8, 8, 120, 56))
    found = np.asarray(with_content(picture, mask, Content.FILL)).astype(int)
    assert np.array_equal(found[:8], np.asarray(picture)[:8]), "what is kept"
    assert (found[8:56, 8:120, 1] < 20).all(), "nothing of what was under the mask"
    assert (found[32, 14], found[32, 113])[0][0] > 200
    assert found[32, 113][2] > 200


@pytest.mark.parametrize("content", Content)
def test_a_mask_may_hide_everything_or_nothing(content):
    picture = halves(64, 64)
    assert np.array_equal(np.asarray(with_content(picture, Image.new("L", (64, 64)), content)), np.asarray(picture))
    whole = with_content(picture, Image.new("L", (64, 64), 255), content)
    assert (whole.tobytes() == picture.tobytes()) == (content is Content.ORIGINAL)


def test_noise_is_the_same_every_time():
    mask = Image.new("L", (64, 64), 255)
    first, second = (with_content(halves(64, 64), mask, Content.NOISE).tobytes() for _ in range(2))
    assert first == second
    assert with_content(halves(64, 64), mask, Content.NOTHING).getextrema() == ((128, 128),) * 3
