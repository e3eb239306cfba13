"""Warm: a candidate has to make a small image before it gets requests."""

from collections.abc import Callable
from dataclasses import replace

from PIL import Image

from zwatch.engine.config_fields import WARM_SIZE
from zwatch.engine.parameters import ControlImage, Generation, GenerationParameters
from zwatch.engine.pipeline import Engine
from zwatch.engine.usable import flaw_of
from zwatch.errors import Rejection

PROMPT = "a cat wearing sunglasses"
SEED = 42
STEPS = 2
"""Fewer than the model is made for: NaN shows at once, and requests are served at the same time."""
_ADVICE = {"not_finite": "; the weights are not usable", "one_colour": ""}


def warm(engine: Engine, cancelled: Callable[[], bool] = lambda: False) -> None:
    """Make an image with a fixed prompt and seed, and check it.

    Raises:
        Rejection: `bad_image`, it has NaN or infinite pixels or is constant.
        GenerationCancelled: `cancelled` returned true.
        RuntimeError: the device failed.
    """
    size = min(WARM_SIZE, engine.default_size)
    parameters = GenerationParameters(PROMPT, "", size, size, STEPS, 0.0, (SEED,))
    asked = [parameters]
    if engine.has_control:  # the image itself has to be right without it, too
        asked.append(replace(parameters, control=ControlImage(Image.linear_gradient("L").convert("RGB"), 1.0, "")))
    for one in asked:
        if (fault := fault_of(engine.generate(one, cancelled=cancelled))) is not None:
            raise fault


def fault_of(generation: Generation) -> Rejection | None:
    """Return why the first of these images shows that the weights are not usable; None if it does not."""
    flaw = flaw_of(replace(generation, images=generation.images[:1]))
    return None if flaw is None else Rejection("bad_image", f"the warm-up image {flaw.text}{_ADVICE[flaw.kind]}")
