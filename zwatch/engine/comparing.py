"""Comparing: an engine draws its golden images again, from their prompts and seeds, and each must be like the one that the version
brought."""

import logging
import math
import time
from collections.abc import Callable

import numpy as np

from zwatch.deploy import golden
from zwatch.deploy.golden import CODE, Picture
from zwatch.engine.likeness import Pixels, psnr, ssim
from zwatch.engine.parameters import Generation, GenerationParameters
from zwatch.engine.pipeline import Engine
from zwatch.errors import Rejection
from zwatch.shadow.device import WORKING_ROOM

_log = logging.getLogger(__name__)

SECONDS = 10.0
"""How long the warm-up may compare golden images, by the pace of those before; the first one is always compared."""
HELD_SECONDS = 2.0
"""The same while requests are held for an exchange on a card too small for two versions."""
_USUAL_PIXELS = 1024 * 1024
"""Of the image for which `WORKING_ROOM` is kept."""
_SHOWN = 60


def parameters(picture: Picture) -> GenerationParameters:
    """Return what a picture is drawn from. Its noise is drawn on the processor, so that it is the same for every device."""
    return GenerationParameters(
        picture.prompt, "", picture.width, picture.height, picture.steps, 0.0, (picture.seed,), has_host_noise=True
    )


def check_next(
    engine: Engine,
    *,
    cancelled: Callable[[], bool] = lambda: False,
    on_step: Callable[[int], None] = lambda done: None,
) -> str | None:
    """Draw an engine's next golden image and compare it; return what is wrong with it, None if it is as it should be. It stays the
    next one until `GoldenImages.note` is called.

    Raises:
        Rejection: `golden_invalid`: the image that it shall be compared with cannot be decoded.
        GenerationCancelled: `cancelled` returned true.
        RuntimeError: the device failed.
    """
    picture = engine.golden.next
    assert picture is not None
    expected = engine.golden.expected(picture)
    found = engine.generate(parameters(picture), cancelled=cancelled, on_step=on_step)
    return fault_of(found, expected, picture, quantized_to(engine))


def fault_of(found: Generation, expected: Pixels, picture: Picture, quantized: str | None) -> str | None:
    """Return why an image is not like the golden one, as a sentence with the figures and the floors; None if it is. `quantized` is
    what the weights were quantized to when they were loaded."""
    where = f'{picture.image} ("{_shown(picture.prompt)}", seed {picture.seed})'
    if not found.finite:
        return f"{where}: the image has NaN or infinite pixels"
    floors = picture if quantized is None else golden.for_quantized(picture, quantized)
    pixels = np.asarray(found.images[0].convert("RGB"), dtype=np.uint8)
    ratio, similarity = psnr(expected, pixels), ssim(expected, pixels)
    if ratio >= floors.min_psnr and similarity >= floors.min_ssim:
        return None
    shown = "infinite" if math.isinf(ratio) else f"{ratio:.1f} dB"
    note = (
        "" if floors == picture else f", the floors for weights that are quantized to {quantized} when they are loaded"
    )
    return f"{where}: PSNR is {shown} and SSIM {similarity:.4f}, expected at least {floors.min_psnr:g} dB and {floors.min_ssim:g}{note}"


def compare_first(engine: Engine, seconds: float, *, is_held: bool, check: Callable[[], None]) -> None:
    """Compare the first golden images of a candidate: as many as fit into `seconds`, at least one. Only where another image beside
    those of requests would not fit into memory, all are left until nothing else is drawn; `is_held` says that no requests run.
    `check` is called at every step and may raise.

    Raises:
        Rejection: `golden_mismatch`, with the figures and the floors, or `golden_invalid`.
        GenerationCancelled, RuntimeError: as `check_next`.
        Whatever `check` raises.
    """
    begun, work = time.monotonic(), 0.0
    _check_sides(engine)
    while (picture := engine.golden.next) is not None:
        if work and not fits(time.monotonic() - begun, work, picture.work, seconds):
            return
        if not has_room(engine, picture, is_held=is_held):
            _log.warning(
                "%s: %s is compared after the promotion: memory is short for it beside a request",
                engine.version,
                picture.image,
            )
            return
        fault = check_next(engine, on_step=lambda done: check())
        engine.golden.note(fault)
        if fault is not None:
            raise Rejection(
                "golden_mismatch", f"{fault}; this version does not draw what it drew when the image was made"
            )
        work += picture.work


def fits(spent: float, done: float, following: float, seconds: float) -> bool:
    """Say whether another image fits into a time, by the pace so far: `spent` seconds for `done` megapixels x steps."""
    return spent + spent / done * following <= seconds


def has_room(engine: Engine, picture: Picture, *, is_held: bool) -> bool:
    """Say whether the device has memory for an image in addition to what requests need."""
    device = engine.device
    free = device.unused - (0 if is_held else device.request_peak + device.peak_elsewhere)
    return free >= WORKING_ROOM * picture.width * picture.height / _USUAL_PIXELS


def quantized_to(engine: Engine) -> str | None:
    """Return what an engine's weights were quantized to when they were loaded; None if they are computed as they are stored."""
    is_stored = any(
        tensor.dtype in golden.QUANTIZED_DTYPES
        for header in engine.plan.headers.values()
        for tensor in header.tensors.values()
    )
    return None if is_stored else next((kind for kind in golden.QUANTIZED_FLOORS if kind in engine.precision), None)


def _check_sides(engine: Engine) -> None:
    for number, picture in enumerate(engine.golden.pictures):
        for field in ("width", "height"):
            if (side := getattr(picture, field)) > engine.max_side:
                raise Rejection(
                    CODE,
                    f"{golden.NAME}: images[{number}].{field}: found {side}, expected at most {engine.max_side}, the longest side that "
                    "this version draws",
                )


def _shown(prompt: str) -> str:
    line = " ".join(prompt.split())
    return line if len(line) <= _SHOWN else f"{line[: _SHOWN - 1]}…"
