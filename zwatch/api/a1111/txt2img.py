"""The body of a `txt2img`, in our words; and its answer, in theirs."""

import base64
import json
import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from zwatch.api.a1111.checkpoints import FIELD, short_hash
from zwatch.api.answers import encoded
from zwatch.api.results import job_view
from zwatch.errors import RequestError
from zwatch.generation.image_details import details_of
from zwatch.generation.job import Finished, Job
from zwatch.generation.request import (
    MAX_IMAGES,
    MAX_SIDE,
    SEEDS,
    SIDE_STEP,
    GenerateRequest,
    boolean,
    integer,
    invalid,
    parse_generate,
    text,
)

SAMPLER = "Euler"
_CFG_SCALE = 7.0
"""Theirs, where a client sends none."""
_RANDOM_SEEDS = 2**32
"""Clients read seeds as JavaScript's numbers, which are exact to 2^53. AUTOMATIC1111's own random ones have 32 bits."""
_WHOLE = ("steps", "width", "height", "batch_size", "n_iter", "seed")
_DIGITS = re.compile(r"\s*-?[0-9]{1,19}\s*")


@dataclass(frozen=True, slots=True)
class Txt2Img:
    """A checked request. `parameters` is what the answer repeats of it; a side not given is missing there."""

    request: GenerateRequest
    parameters: dict[str, Any]
    batch_size: int
    send_images: bool


def checkpoint_asked(body: Mapping[str, Any]) -> str:
    """Return the checkpoint that a request names, empty if it names none.

    Raises:
        RequestError: 400 with the field's name.
    """
    override = body.get("override_settings") or {}
    if not isinstance(override, dict):
        raise invalid("override_settings", "override_settings must be an object, such as {}")
    return text({name: value for name, value in override.items() if value is not None}, FIELD, "")


def parse_txt2img(body: Mapping[str, Any], model: str) -> Txt2Img:
    """Check the body of a `txt2img`. Fields that we have no use for are ignored.

    Raises:
        RequestError: 400 with the field's name.
    """
    body = _plain(body)
    batch_size = integer(body, "batch_size", 1, 1, MAX_IMAGES)
    batches = integer(body, "n_iter", 1, 1, MAX_IMAGES)
    count = batch_size * batches
    if count > MAX_IMAGES:
        raise invalid("n_iter", f"batch_size x n_iter may be {MAX_IMAGES} at most, got {batch_size} x {batches}")
    seed = integer(body, "seed", -1, -1, SEEDS - count)
    request = parse_generate(
        {
            **{name: body[name] for name in ("prompt", "negative_prompt", "steps", "guidance_scale") if name in body},
            **{name: _rounded(body, name) for name in ("width", "height") if name in body},
            "seed": secrets.randbelow(_RANDOM_SEEDS - count) if seed < 0 else seed,
            "n": count,
            "model": model,
        }
    )
    send_images = boolean(body, "send_images", True)
    parameters = {
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": seed,
        **{name: side for name in ("width", "height") if (side := getattr(request, name)) is not None},
        "steps": request.steps,
        "batch_size": batch_size,
        "n_iter": batches,
        "cfg_scale": _cfg_scale(body),
        "guidance_scale": request.guidance_scale,
        "sampler_name": _echo(body, "sampler_name"),
        "scheduler": _echo(body, "scheduler"),
        "override_settings": {FIELD: named} if (named := checkpoint_asked(body)) else {},
        "send_images": send_images,
    }
    return Txt2Img(request, parameters, batch_size, send_images)


def renamed(error: RequestError) -> RequestError:
    """Return an error about the number of images with the name that it has here."""
    if error.param != "n":
        return error
    return RequestError(error.status, error.code, f"{error.message}; n is batch_size x n_iter", param="n_iter")


def finished_body(asked: Txt2Img, job: Job, finished: Finished) -> bytes:
    """Return the answer of a finished request: megabytes of base64, joined in a thread."""
    seeds = [picture.seed for picture in finished.pictures]
    infotexts = [details_of(asked.request, finished.parameters, finished.key, seed).parameters for seed in seeds]
    size = {"width": finished.parameters.width, "height": finished.parameters.height}
    model = {"sd_model_name": finished.key.version, "sd_model_hash": short_hash(finished.key)}
    files = [picture.file or b"" for picture in finished.pictures] if asked.send_images else []
    return _body(
        asked, job, files, {**asked.parameters, **size}, {**_info(asked, job, seeds, infotexts), **size, **model}
    )


def interrupted_body(asked: Txt2Img, job: Job) -> bytes:
    """Return the answer of a request that was interrupted: there are no images, and that is no error."""
    return _body(asked, job, [], asked.parameters, _info(asked, job, [], []))


def _body(asked: Txt2Img, job: Job, files: list[bytes], parameters: dict[str, Any], info: dict[str, Any]) -> bytes:
    images = b", ".join(b'"%b"' % base64.b64encode(file) for file in files)
    told = {"parameters": parameters, "info": json.dumps(info, ensure_ascii=False), "zwatch": job_view(job)}
    return b'{"images": [%b], %b' % (images, encoded(told)[1:])


def _info(asked: Txt2Img, job: Job, seeds: list[int], infotexts: list[str]) -> dict[str, Any]:
    """Return what is said of the images: what was really done, where that is not what was asked for."""
    request, count = asked.request, len(seeds)
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * count,
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * count,
        "seed": request.seed,
        "all_seeds": seeds,
        "subseed": -1,
        "all_subseeds": [-1] * count,
        "subseed_strength": 0,
        "width": request.width,
        "height": request.height,
        "sampler_name": SAMPLER,
        "cfg_scale": request.guidance_scale,
        "steps": request.steps,
        "batch_size": asked.batch_size,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": None,
        "sd_model_hash": None,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": None,
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": infotexts,
        "styles": [],
        "job_timestamp": f"{job.created:%Y%m%d%H%M%S}",
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": "zwatch",
    }


def _plain(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a body without nulls, which stand for the default, and with whole numbers as such: AUTOMATIC1111 takes
    `20.0` and `"20"` too, and clients send what their forms hold."""
    found = {name: value for name, value in body.items() if value is not None}
    for name in _WHOLE:
        value = found.get(name)
        if isinstance(value, str):
            found[name] = int(value) if _DIGITS.fullmatch(value) else value
        elif isinstance(value, float):
            found[name] = int(value) if value.is_integer() else value
    return found


def _rounded(body: Mapping[str, Any], name: str) -> int:
    """Return a side in pixels, rounded to the nearest multiple that the model can make; halfway goes down."""
    return (integer(body, name, 0, SIDE_STEP, MAX_SIDE) + SIDE_STEP // 2 - 1) // SIDE_STEP * SIDE_STEP


def _cfg_scale(body: Mapping[str, Any]) -> float:
    """Return the guidance that a client asks for, which is repeated to it and has no effect."""
    value = body.get("cfg_scale")
    return value if type(value) is int or (type(value) is float and math.isfinite(value)) else _CFG_SCALE


def _echo(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    return value[:100] if isinstance(value, str) else None
