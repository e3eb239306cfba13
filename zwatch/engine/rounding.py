"""How much rounding changes a picture: the same engine draws it once more the other way, fast instead of exactly or the reverse."""

from collections.abc import Callable

import numpy as np

from zwatch.deploy.golden import Picture
from zwatch.engine.comparing import parameters
from zwatch.engine.golden import decoded
from zwatch.engine.likeness import psnr, ssim
from zwatch.engine.pipeline import Engine

_LOOK_SECONDS = 0.2


def make_ready(engine: Engine, check: Callable[[], None]) -> None:
    """Wait until an engine can draw both ways: a GPU's kernels are compiled first. `check` is called meanwhile and may raise.

    Raises:
        Whatever `check` raises.
    """
    engine.prepare()
    with engine.other_way():
        engine.prepare()
    for thread in engine.device.preparing:
        while thread.is_alive():
            check()
            thread.join(_LOOK_SECONDS)


def measured(engine: Engine, picture: Picture, data: bytes, check: Callable[[], None]) -> tuple[float, float]:
    """Return PSNR, in decibels, and SSIM of a picture's file and what the engine draws the other way; infinite and 1 if there is none.
    `check` is called at each step and may raise.

    Raises:
        RuntimeError: the device failed.
        Whatever `check` raises.
    """
    expected = decoded(picture, data)
    with engine.device.beside(), engine.other_way():
        generation = engine.generate(parameters(picture), on_step=lambda done: check())
    if not generation.finite:
        # The way that was asked for is right, and this one is not: nothing can be learned from it.
        return float("inf"), 1.0
    found = np.asarray(generation.images[0].convert("RGB"), dtype=np.uint8)
    return psnr(expected, found), ssim(expected, found)
