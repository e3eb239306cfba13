"""`txt2img`: the request's body, its conversion to a native request, and the answer."""

import base64
import json
import math
import re
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import ConfigDict, Field
from typing_extensions import TypedDict

from zwatch.api.a1111.checkpoints import FIELD, short_hash
from zwatch.api.answers import encoded
from zwatch.api.results import JobView, job_view
from zwatch.api.schema import Base64, LenientRequest, Number
from zwatch.errors import RequestError
from zwatch.generation.fields import Converted, Flag, Rule, Text, Whole, invalid, refused, validated
from zwatch.generation.image_details import Pairs, details_of
from zwatch.generation.job import Job
from zwatch.generation.job_events import Finished
from zwatch.generation.lora_fields import LoraWish, without_tags
from zwatch.generation.request import (
    DEFAULT_STEPS,
    MAX_IMAGES,
    MAX_SIDE,
    MAX_STEPS,
    PRIMARY,
    SEEDS,
    GenerateRequest,
    Guidance,
    OptionalText,
    RequiredText,
)
from zwatch.generation.sides import SIDE_STEP
from zwatch.rollout.lifecycle import VersionKey

SAMPLER = "Euler"
_CFG_SCALE = 7.0
"""AUTOMATIC1111's default."""
_NAMES = {"n": "n_iter", "image": "init_images", "strength": "denoising_strength"}
"""AUTOMATIC1111's names of native fields, where they differ."""
_DIGITS = re.compile(r"\s*-?[0-9]{1,19}\s*")


def _form_number(value: Any) -> Any:
    """Return a whole number that was sent as `20.0` or `"20"`, which AUTOMATIC1111 accepts, as an int."""
    if isinstance(value, str):
        return int(value) if _DIGITS.fullmatch(value) else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _form_steps(value: Any) -> Any:
    """Return a number of steps, at most `MAX_STEPS`: the sliders of some clients end at 150."""
    number = _form_number(value)
    return min(number, MAX_STEPS) if type(number) is int else number


FORM = Converted(_form_number, ({"type": "string", "pattern": r"^\s*-?[0-9]{1,19}\s*$"},))
_STEPS = Converted(_form_steps, (*FORM.schemas, {"type": "integer", "minimum": MAX_STEPS}))
_SIDE = Field(description=f"In pixels, rounded to a multiple of {SIDE_STEP}. The version's default size if left out.")
_COUNT = Field(description=f"batch_size x n_iter may be {MAX_IMAGES} at most.")
_ECHO = Field(description="Has no effect; repeated in the answer.")


class SdOptionsRequest(LenientRequest):
    """Options, for all of a client's requests or for one."""

    sd_model_checkpoint: Annotated[
        str | None,
        Text(),
        Field(
            description="A title of `/sdapi/v1/sd-models`, a version's name, or an alias; empty for `current`.",
            examples=[PRIMARY],
        ),
    ] = None


class Settings(Rule):
    """An object of options; any empty value stands for no options."""

    def check(self, value: Any) -> dict[str, Any]:
        """Return the options, unchecked."""
        if not value:
            return {}
        if not isinstance(value, dict):
            raise refused("must be an object, such as {}")
        return value

    def schema(self) -> dict[str, Any]:
        """Return the schema of an object, or of the empty values."""
        checkpoint = {"anyOf": [Text().schema(), {"type": "null"}]}
        return {
            "anyOf": [
                {"type": "object", "properties": {FIELD: checkpoint}},
                {"type": "boolean", "const": False, "description": "No settings."},
                {"type": "integer", "const": 0, "description": "No settings."},
                {"type": "string", "maxLength": 0, "description": "No settings."},
                {"type": "array", "items": {}, "maxItems": 0, "description": "No settings."},
            ]
        }


class Txt2ImgRequest(LenientRequest):
    """The body of `txt2img`. Whole numbers may be sent as strings."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"prompt": "a cat wearing sunglasses", "steps": "8", "seed": -1}]}
    )

    prompt: RequiredText
    negative_prompt: OptionalText = ""
    width: Annotated[int | None, Whole(SIDE_STEP, MAX_SIDE), FORM, _SIDE] = None
    height: Annotated[int | None, Whole(SIDE_STEP, MAX_SIDE), FORM, _SIDE] = None
    steps: Annotated[
        int, Whole(1, MAX_STEPS), _STEPS, Field(description=f"More than {MAX_STEPS} stand for {MAX_STEPS}.")
    ] = DEFAULT_STEPS
    batch_size: Annotated[int, Whole(1, MAX_IMAGES), FORM, _COUNT] = 1
    n_iter: Annotated[int, Whole(1, MAX_IMAGES), FORM, _COUNT] = 1
    seed: Annotated[int, Whole(-1, SEEDS - 1), FORM, Field(description="Random if -1; image i uses seed + i.")] = -1
    guidance_scale: Annotated[Guidance, Field(description="An extension of zwatch.")] = 0.0
    cfg_scale: Annotated[Any, _ECHO] = None
    sampler_name: Annotated[Any, _ECHO] = None
    scheduler: Annotated[Any, _ECHO] = None
    send_images: Annotated[bool, Flag()] = True
    override_settings: Annotated[dict[str, Any], Settings()] = Field(default_factory=dict)


class Sides(TypedDict, total=False):
    """The sides of an image in pixels; the version's default size where one is missing."""

    width: Number
    height: Number


class Txt2ImgParameters(Sides):
    """What was requested, as the answer repeats it."""

    prompt: str
    negative_prompt: str
    seed: Annotated[int, Field(ge=-1)]
    steps: Number
    batch_size: Number
    n_iter: Number
    cfg_scale: float
    guidance_scale: float
    sampler_name: str | None
    scheduler: str | None
    override_settings: dict[str, str]
    send_images: bool


class Txt2ImgAnswer(TypedDict):
    """The images as PNG files, none after an interruption; `info` is JSON with the effective parameters."""

    images: list[Base64]
    parameters: Txt2ImgParameters
    info: Annotated[str, Field(json_schema_extra={"contentMediaType": "application/json"})]
    zwatch: JobView


@dataclass(frozen=True, slots=True)
class Txt2Img:
    """A validated request. The answer repeats `parameters`, in which sides that were not given are missing."""

    request: GenerateRequest
    parameters: Txt2ImgParameters
    batch_size: int
    send_images: bool
    changes: Pairs = field(default_factory=dict)
    """How a picture is changed, by AUTOMATIC1111's names in the text of an image."""
    notes: Pairs = field(default_factory=dict)
    """What else that text says of it."""


def checkpoint_asked(asked: Txt2ImgRequest) -> str:
    """Return the checkpoint that a request names; empty if it names none.

    Raises:
        RequestError: 400 with the field's name.
    """
    return validated(SdOptionsRequest, asked.override_settings).sd_model_checkpoint or ""


def wanted_images(asked: Txt2ImgRequest, model: str) -> Txt2Img:
    """Return the native request for a `txt2img` request, to be served by `model`.

    Raises:
        RequestError: 400 with the field's name.
    """
    count = asked.batch_size * asked.n_iter
    if count > MAX_IMAGES:
        raise invalid(
            "n_iter", f"batch_size x n_iter may be {MAX_IMAGES} at most, got {asked.batch_size} x {asked.n_iter}"
        )
    if asked.seed > SEEDS - count:
        raise invalid("seed", f"seed must be from -1 to {SEEDS - count}, got {asked.seed}")
    sides: Sides = {}
    if asked.width is not None:
        sides["width"] = _rounded(asked.width)
    if asked.height is not None:
        sides["height"] = _rounded(asked.height)
    prompt, loras = wanted_loras(asked.prompt)
    request = validated(
        GenerateRequest,
        {
            "prompt": prompt,
            "loras": loras,
            "negative_prompt": asked.negative_prompt,
            **sides,
            "steps": asked.steps,
            "guidance_scale": asked.guidance_scale,
            "seed": None if asked.seed < 0 else asked.seed,
            "n": count,
            "model": model,
        },
    )
    parameters: Txt2ImgParameters = {
        "prompt": asked.prompt,
        "negative_prompt": request.negative_prompt,
        "seed": asked.seed,
        **sides,
        "steps": request.steps,
        "batch_size": asked.batch_size,
        "n_iter": asked.n_iter,
        "cfg_scale": _cfg_scale(asked.cfg_scale),
        "guidance_scale": request.guidance_scale,
        "sampler_name": _echo(asked.sampler_name),
        "scheduler": _echo(asked.scheduler),
        "override_settings": {FIELD: named} if (named := checkpoint_asked(asked)) else {},
        "send_images": asked.send_images,
    }
    return Txt2Img(request, parameters, asked.batch_size, asked.send_images)


def wanted_loras(prompt: str) -> tuple[str, tuple[LoraWish, ...]]:
    """Return a prompt without `<lora:NAME:SCALE>`, and the LoRAs that it names; of img2img too.

    Raises:
        RequestError: 400, a tag is wrong, or nothing else is in the prompt.
    """
    try:
        rest, loras = without_tags(prompt)
    except ValueError as error:
        raise invalid("prompt", f"prompt: {error}") from None
    if not rest.strip():
        raise invalid("prompt", "prompt names LoRAs and nothing else: say what is to be drawn")
    return rest, loras


def renamed(error: RequestError) -> RequestError:
    """Return an error about a native field with the name of this API's field."""
    if error.param == "loras":
        message = error.message.replace("loras:", "prompt:", 1)
        return RequestError(error.code, message, status=error.status, param="prompt", headers=error.headers)
    name = _NAMES.get(error.param or "")
    if name is None:
        return error
    message = f"{error.message}; n is batch_size x n_iter" if error.param == "n" else f"{name}: {error.message}"
    return RequestError(error.code, message, param=name, headers=error.headers, extra=error.extra)


def finished_body(asked: Txt2Img, job: Job, finished: Finished) -> bytes:
    """Return the answer of a finished request. To be called in a thread: it is megabytes of base64."""
    seeds = [picture.seed for picture in finished.pictures]
    infotexts = [
        details_of(
            asked.request, finished.parameters, finished.key, seed, share=job.by_share, notes=asked.notes
        ).parameters
        for seed in seeds
    ]
    width, height = finished.parameters.width, finished.parameters.height
    model = _model(finished.key)
    files = [picture.file or b"" for picture in finished.pictures] if asked.send_images else []
    parameters: Txt2ImgParameters = {**asked.parameters, "width": width, "height": height}
    info = {**_info(asked, job, seeds, infotexts), "width": width, "height": height, **model}
    return _body(asked, job, files, parameters, info)


def interrupted_body(asked: Txt2Img, job: Job, key: VersionKey | None, size: int) -> bytes:
    """Return the answer of an interrupted request: it has no images, and is not an error. `key` is the version that was
    drawing, or would have been, if that is known; `size` is its default side length in pixels."""
    known = job.parameters
    width, height = (size, size) if known is None else (known.width, known.height)
    sides: Sides = {"width": asked.request.width or width, "height": asked.request.height or height}
    info = {**_info(asked, job, [], []), **sides, **({} if key is None else _model(key))}
    return _body(asked, job, [], {**asked.parameters, **sides}, info)


def _model(key: VersionKey) -> dict[str, str]:
    return {"sd_model_name": key.version, "sd_model_hash": short_hash(key)}


def _body(asked: Txt2Img, job: Job, files: list[bytes], parameters: Txt2ImgParameters, info: dict[str, Any]) -> bytes:
    images = b", ".join(b'"%b"' % base64.b64encode(file) for file in files)
    rest = {"parameters": parameters, "info": json.dumps(info, ensure_ascii=False), "zwatch": job_view(job)}
    return b'{"images": [%b], %b' % (images, encoded(rest)[1:])


def _info(asked: Txt2Img, job: Job, seeds: list[int], infotexts: list[str]) -> dict[str, Any]:
    """Return the effective parameters of the images, which may differ from the requested ones."""
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
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": asked.changes.get("Denoising strength"),
        "extra_generation_params": {**asked.changes, **asked.notes},
        "index_of_first_image": 0,
        "infotexts": infotexts,
        "styles": [],
        "job_timestamp": f"{job.created:%Y%m%d%H%M%S}",
        "clip_skip": 1,
        "is_using_inpainting_conditioning": False,
        "version": "zwatch",
    }


def _rounded(side: int) -> int:
    """Return a side in pixels, rounded to the nearest multiple of `SIDE_STEP`; halfway rounds down."""
    return (side + SIDE_STEP // 2 - 1) // SIDE_STEP * SIDE_STEP


def _cfg_scale(value: Any) -> float:
    """Return the requested guidance, which has no effect, as the answer repeats it."""
    return value if type(value) is int or (type(value) is float and math.isfinite(value)) else _CFG_SCALE


def _echo(value: Any) -> str | None:
    return value[:100] if isinstance(value, str) else None
