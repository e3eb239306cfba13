"""How a request is completed and limited by the version that serves it."""

import math
from typing import TYPE_CHECKING

from zwatch.errors import RequestError
from zwatch.generation.fields import invalid
from zwatch.generation.request import MAX_SIDE, MAX_STEPS, GenerateRequest, ImageRequest
from zwatch.generation.sides import sides_of

if TYPE_CHECKING:
    from zwatch.engine.parameters import ControlImage, GenerationParameters, InitialImage
    from zwatch.engine.pipeline import Engine
    from zwatch.generation.loras import JobLoras
    from zwatch.generation.sources import Source


def steps_of(request: ImageRequest, source: "Source | None") -> int:
    """Return how many steps an image of a request counts as: those that are made, which are fewer where an image is changed; at least
    one, since it is encoded and decoded in any case."""
    from zwatch.engine.parameters import first_step

    return (
        request.steps
        if source is None or source.guides
        else max(1, request.steps - first_step(request.steps, request.strength))
    )


def work_of(request: GenerateRequest, default_size: int, source: "Source | None" = None, max_work: float = math.inf) -> float:  # fmt: skip
    """Return the megapixels x steps x images of a request; `default_size` is the side of an image in pixels."""
    steps = steps_of(request, source) * request.n
    width, height = sides_of(
        (request.width, request.height),
        None if source is None else source.picture.size,
        default_size,
        MAX_SIDE,
        max_work / steps,
    )
    return width * height / 1e6 * steps


def fitted(
    request: GenerateRequest,
    engine: "Engine",
    max_work: float,
    source: "Source | None" = None,
    loras: "JobLoras | None" = None,
) -> "GenerationParameters":
    """Complete a request, whose LoRAs are open, with the defaults of the version that serves it, and check it against that version's limits
    and against `max_work`, in megapixels x steps x images.

    Raises:
        RequestError: 400, a side is longer than the version's positions reach, all of it is too much, or a LoRA does not fit.
    """
    from zwatch.engine.parameters import GenerationParameters

    steps = steps_of(request, source)
    most = min(engine.max_side, MAX_SIDE)
    width, height = sides_of(
        (request.width, request.height),
        None if source is None else source.picture.size,
        engine.default_size,
        most,
        max_work / (steps * request.n),
    )
    sides = {"width": width, "height": height}
    for name, side in sides.items():
        if side > engine.max_side:
            raise invalid(name, f"{name} may be {engine.max_side} at most with version {engine.version}, got {side}")
    share = 1.0 if source is None or source.guides else max(request.strength, 1 / MAX_STEPS)
    if (error := _too_much(**sides, steps=steps, count=request.n, max_work=max_work, share=share)) is not None:
        raise error
    _check_control(engine, source)
    if loras is not None:
        loras.check(engine)
    return GenerationParameters(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        steps=request.steps,
        guidance_scale=request.guidance_scale,
        seeds=tuple(request.seed + number for number in range(request.n)),
        width=sides["width"],
        height=sides["height"],
        loras=() if loras is None else loras.used,
        source=None if source is None or source.guides else _initial(request, source),
        control=_control(request, source) if source is not None and source.guides else None,
    )


def _check_control(engine: "Engine", source: "Source | None") -> None:
    if source is not None and source.guides and not engine.has_control:
        raise invalid(
            "control_image",
            f"version {engine.version} has no controlnet, so no control image can guide it: name a version that has one; GET /status says "
            "which do",
        )


def _control(request: GenerateRequest, source: "Source") -> "ControlImage":
    from zwatch.engine.parameters import ControlImage

    return ControlImage(source.picture, request.control_scale, source.digest)


def _initial(request: GenerateRequest, source: "Source") -> "InitialImage":
    from zwatch.engine.parameters import InitialImage

    whole = None if source.canvas is None or source.canvas.box is None else source.canvas.picture.size
    return InitialImage(
        source.picture, source.mask, request.strength, request.mask_blur, source.digest, source.mask is not None, whole
    )


def _too_much(width: int, height: int, steps: int, count: int, max_work: float, share: float) -> RequestError | None:
    """Return the error for what is too much, which names the first of n, steps and width that could make it fit. `share` of the steps
    that are asked for are made."""
    a_step = width * height / 1e6
    work = a_step * steps * count
    if work <= max_work:
        return None
    if (most := int(max_work / (a_step * steps))) >= 1:
        param, advice = "n", f"n may be {most} at most with these"
    elif (most := int(max_work / a_step)) >= 1:
        param, advice = "steps", f"steps may be {int(most / share)} at most with n = 1"
    else:
        param, advice = "width", "width and height are too large even for one step"
    return invalid(
        param,
        f"{width} x {height} pixels x {steps} steps x n = {count} is {work:.4g} megapixel-steps, more than the "
        f"{max_work:.4g} that --max-work allows: {advice}",
    )
