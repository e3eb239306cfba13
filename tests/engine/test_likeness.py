"""PSNR and SSIM are what their definitions say."""

import math

import numpy as np
import pytest

from zwatch.engine.likeness import psnr, ssim

NOISE = np.random.default_rng(7)


def image(height=48, width=64):
    return NOISE.integers(0, 256, (height, width, 3), dtype=np.uint8)


def changed(one, by):
    return np.clip(one.astype(int) + NOISE.integers(-by, by + 1, one.shape), 0, 255).astype(np.uint8)


def plain_ssim(one, other):
    """Compute it window by window, as the paper has it."""
    offsets = np.arange(11) - 5
    weights = np.exp(-(offsets[:, None] ** 2 + offsets[None, :] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    x, y = (value.astype(float) @ [0.299, 0.587, 0.114] for value in (one, other))
    found = []
    for top in range(x.shape[0] - 10):
        for left in range(x.shape[1] - 10):
            a, b = (plane[top : top + 11, left : left + 11] for plane in (x, y))
            mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
            var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
            covariance = (weights * (a - mean_a) * (b - mean_b)).sum()
            c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
            found.append(
                (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
                / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
            )  # fmt: skip
    return float(np.mean(found))


def test_equal_images_are_infinitely_alike():
    one = image()
    assert (psnr(one, one.copy()), ssim(one, one.copy())) == (math.inf, 1.0)


@pytest.mark.parametrize("difference", [1, 2, 17, 255])
def test_psnr_of_a_constant_difference(difference):
    one = np.zeros((32, 48, 3), dtype=np.uint8)
    assert psnr(one, one + np.uint8(difference)) == pytest.approx(20 * math.log10(255 / difference))


def test_psnr_counts_exactly_in_the_largest_image():
    one = np.zeros((2048, 2048, 3), dtype=np.uint8)
    assert psnr(one, np.full_like(one, 255)) == 0.0
    other = one.copy()
    other[2047, 2047, 2] = 1
    assert psnr(one, other) == pytest.approx(10 * math.log10(255**2 * one.size))


@pytest.mark.parametrize(("height", "width"), [(11, 11), (16, 16), (48, 64), (75, 209)])
@pytest.mark.parametrize("by", [1, 20, 255])
def test_ssim_is_that_of_the_paper(height, width, by):
    one = image(height, width)
    other = changed(one, by)
    assert ssim(one, other) == pytest.approx(plain_ssim(one, other), abs=1e-4)
    assert ssim(one, other) == pytest.approx(ssim(other, one), abs=1e-6)


def test_ssim_of_smooth_images_has_digits_left():
    rows, columns = np.mgrid[0:64, 0:64]
    one = np.repeat((240 + rows // 16)[..., None], 3, axis=2).astype(np.uint8)
    other = np.repeat((240 + columns // 16)[..., None], 3, axis=2).astype(np.uint8)
    assert ssim(one, other) == pytest.approx(plain_ssim(one, other), abs=1e-4)


def test_an_inverted_image_is_less_alike_than_noise():
    one = image()
    assert ssim(one, 255 - one) < 0 < ssim(one, changed(one, 30)) < 1


def test_other_shapes_are_refused():
    for function in (psnr, ssim):
        with pytest.raises(ValueError, match="expected one shape"):
            function(image(32, 32), image(32, 48))
    with pytest.raises(ValueError, match="at least 11 x 11"):
        ssim(image(8, 64), image(8, 64))
