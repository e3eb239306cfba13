"""A request meets the version that serves it: its defaults, and how much of it one request may ask for."""

from typing import TYPE_CHECKING

from zwatch.errors import RequestError
from zwatch.generation.request import GenerateRequest, invalid

if TYPE_CHECKING:
    from zwatch.engine.pipeline import Engine, GenerationParameters


def fitted(request: GenerateRequest, engine: "Engine", max_work: float) -> "GenerationParameters":
    """Complete a request with the defaults of the version that serves it, and check it against that version's limits
    and against `max_work`, in megapixels x steps x images.

    Raises:
        RequestError: 400, a side is longer than the version's positions reach, or all of it is too much.
    """
    from zwatch.engine.pipeline import GenerationParameters

    sides = {"width": request.width or engine.default_size, "height": request.height or engine.default_size}
    for name, side in sides.items():
        if side > engine.max_side:
            raise invalid(name, f"{name} may be {engine.max_side} at most with version {engine.version}, got {side}")
    if (error := _too_much(**sides, steps=request.steps, count=request.n, max_work=max_work)) is not None:
        raise error
    return GenerationParameters(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        seeds=tuple(request.seed + number for number in range(request.n)),
        **sides,
    )


def _too_much(width: int, height: int, steps: int, count: int, max_work: float) -> RequestError | None:
    """Return the error for what is too much, which names the first of n, steps and width that could make it fit."""
    a_step = width * height / 1e6
    work = a_step * steps * count
    if work <= max_work:
        return None
    if (most := int(max_work / (a_step * steps))) >= 1:
        param, advice = "n", f"n may be {most} at most with these"
    elif (most := int(max_work / a_step)) >= 1:
        param, advice = "steps", f"steps may be {most} at most with n = 1"
    else:
        param, advice = "width", "width and height are too large even for one step"
    return invalid(
        param,
        f"{width} x {height} pixels x {steps} steps x n = {count} is {work:.4g} megapixel-steps, more than the "
        f"{max_work:.4g} that --max-work allows: {advice}",
    )
