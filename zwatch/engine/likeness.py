"""How alike two images are: PSNR and SSIM, the standard ones.

PSNR is 10 log10(255^2 / MSE) over all values of all channels (ITU-T J.340). SSIM is the mean of the structural similarity over all
positions of a window that lies inside the image, of the luma, as in Z. Wang, A. C. Bovik, H. R. Sheikh, E. P. Simoncelli: "Image
Quality Assessment: From Error Visibility to Structural Similarity", IEEE Transactions on Image Processing 13 (4), 2004: a window of
11 x 11 that is a circular Gaussian of deviation 1.5 with the sum 1, K1 = 0.01, K2 = 0.03, L = 255. It is not downsampled first.
"""

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

WINDOW = 11
"""Side of SSIM's window, pixels."""
DEVIATION = 1.5
"""Of the Gaussian that weighs it, pixels."""
RANGE = 255
_C1, _C2 = (0.01 * RANGE) ** 2, (0.03 * RANGE) ** 2
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""ITU-R BT.601, as the authors' own program converts colours."""
_ROWS, _COLUMNS = 32, 192
"""Of what is weighed by one product of matrices: few rows, so that much of the matrix is not zero, and so few numbers that the library
computes the product in this thread (OpenBLAS up to 2^18 multiplications). Its threads wait busily for cores that draw images."""

Pixels = NDArray[np.uint8]
"""An image of shape (height, width, 3), RGB."""
_Plane = NDArray[np.float32]


def psnr(one: Pixels, other: Pixels) -> float:
    """Return the peak signal-to-noise ratio of two images of one shape in decibels; infinite if they are equal.

    Raises:
        ValueError: their shapes differ.
    """
    _check_shapes(one, other)
    difference = np.subtract(one, other, dtype=np.int32).reshape(len(one), -1)
    squares = int(np.einsum("ij,ij->i", difference, difference).sum(dtype=np.int64))
    return math.inf if squares == 0 else 10 * math.log10(RANGE**2 * difference.size / squares)


def ssim(one: Pixels, other: Pixels) -> float:
    """Return the structural similarity of two images of one shape, of at least 11 x 11 pixels: 1 if they are equal.

    Raises:
        ValueError: their shapes differ, or they are smaller than the window.
    """
    _check_shapes(one, other)
    if min(one.shape[:2]) < WINDOW:
        raise ValueError(f"found {one.shape[1]} x {one.shape[0]} pixels, expected at least {WINDOW} x {WINDOW}")
    # Sum and difference need two means and two squares instead of two, two and a product. Around 0, so that float32 has digits left.
    x, y = (image @ _LUMA - np.float32(RANGE / 2) for image in (one, other))
    total, difference = x + y, x - y
    mean_total, mean_difference = _weighed(total), _weighed(difference)
    # With X and Y the two windows: var(X + Y) and var(X - Y), then 2 cov(X, Y) and var(X) + var(Y).
    spread_total = _weighed(total * total) - mean_total * mean_total
    spread_difference = _weighed(difference * difference) - mean_difference * mean_difference
    covariance, spread = (spread_total - spread_difference) / 2, (spread_total + spread_difference) / 2
    mean_total += RANGE
    squared_total, squared_difference = mean_total * mean_total, mean_difference * mean_difference
    product, squares = (squared_total - squared_difference) / 2, (squared_total + squared_difference) / 2
    similarity = (product + _C1) * (covariance + _C2) / ((squares + _C1) * (spread + _C2))
    return float(similarity.mean(dtype=np.float64))


def _check_shapes(one: Pixels, other: Pixels) -> None:
    if one.shape != other.shape:
        raise ValueError(f"the images have the shapes {one.shape} and {other.shape}, expected one shape")


def _weighed(plane: _Plane) -> _Plane:
    """Return the weighed mean of each window inside a plane of shape (h, w): shape (h - 10, w - 10)."""
    return _weighed_down(_weighed_down(plane).T).T


def _weighed_down(plane: _Plane) -> _Plane:
    """Return the weighed mean of each 11 values below one another."""
    height = len(plane) - WINDOW + 1
    found = np.empty((height, plane.shape[1]), dtype=np.float32)
    for begin in range(0, height, _ROWS):
        rows = min(_ROWS, height - begin)
        for left in range(0, plane.shape[1], _COLUMNS):
            columns = slice(left, left + _COLUMNS)
            found[begin : begin + rows, columns] = _weights(rows) @ plane[begin : begin + rows + WINDOW - 1, columns]
    return found


@cache
def _weights(rows: int) -> _Plane:
    """Return the matrix of shape (rows, rows + 10) whose row i weighs the values i to i + 10."""
    offsets = np.arange(WINDOW) - WINDOW // 2
    gaussian = np.exp(-(offsets**2) / (2 * DEVIATION**2))
    gaussian /= gaussian.sum()
    found = np.zeros((rows, rows + WINDOW - 1), dtype=np.float32)
    for row in range(rows):
        found[row, row : row + WINDOW] = gaussian
    return found
