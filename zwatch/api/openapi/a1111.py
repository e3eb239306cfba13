"""Describes the calls that are compatible with AUTOMATIC1111's API, `/sdapi/v1/…`."""

from typing import Any

from zwatch.api.a1111.checkpoints import FIELD
from zwatch.api.a1111.pnginfo import MAX_BODY
from zwatch.api.a1111.txt2img import SAMPLER
from zwatch.api.openapi.parts import (
    BYTES,
    FLAG,
    MADE,
    SECONDS,
    Json,
    array,
    error_answer,
    in_query,
    lenient_obj,
    nullable,
    number,
    obj,
    ok,
    operation,
    ref,
    text,
    whole,
)
from zwatch.generation import request as limits

_TAG = "automatic1111"
_CHECKPOINT = text(description="A title of `/sdapi/v1/sd-models`, a version's name, or an alias.", examples=["current"])
_NOTHING = nullable(text())
_TEXTS: Json = {"type": "object", "additionalProperties": text()}
_IMAGE = text(contentEncoding="base64")
_PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
_MEMORY = obj({"free": BYTES, "used": BYTES, "total": BYTES})


def _whole(minimum: int, maximum: int, **more: Any) -> Json:
    """Describe a whole number that may be a text, as clients send what their forms hold."""
    found = [whole(minimum=minimum, maximum=maximum), text(pattern=r"^\s*-?[0-9]{1,19}\s*$"), {"type": "null"}]
    return {"anyOf": found, **more}


def _operation(name: str, summary: str, good: Json, *errors: int, **more: Any) -> Json:
    return operation(_TAG, f"sd_{name}", summary, good, *errors, has_detail=True, **more)


def _listing(name: str, summary: str, entry: Json) -> Json:
    return {"get": _operation(name, summary, {"200": ok("The list.", array(entry))})}


_SIDE = _whole(
    limits.SIDE_STEP, limits.MAX_SIDE,
    description=f"Pixels, rounded to a multiple of {limits.SIDE_STEP}. The version's own size if left out.",
)  # fmt: skip
_COUNT = _whole(1, limits.MAX_IMAGES, default=1, description=f"batch_size x n_iter is {limits.MAX_IMAGES} at most.")
_REQUEST = lenient_obj(
    {
        "prompt": text(minLength=1, maxLength=limits.MAX_PROMPT, pattern=r"\S"),
        "negative_prompt": nullable(text(maxLength=limits.MAX_PROMPT, default="")),
        "width": _SIDE,
        "height": _SIDE,
        "steps": _whole(1, limits.MAX_STEPS, default=limits.DEFAULT_STEPS),
        "batch_size": _COUNT,
        "n_iter": _COUNT,
        "seed": _whole(-1, limits.SEEDS - 1, default=-1, description="Random if -1; image i uses seed + i."),
        "guidance_scale": nullable(number(minimum=0, maximum=limits.MAX_GUIDANCE, default=0.0, description="Our own.")),
        "cfg_scale": {"description": "Repeated in the answer, and without effect."},
        "sampler_name": {"description": "Repeated in the answer, and without effect."},
        "scheduler": {"description": "Repeated in the answer, and without effect."},
        "send_images": nullable({**FLAG, "default": True}),
        "override_settings": {
            "anyOf": [
                lenient_obj({FIELD: nullable({**_CHECKPOINT, "maxLength": limits.MAX_PROMPT})}),
                {"enum": [None, False, 0, "", []], "description": "No settings."},
            ]
        },
    },
    required=("prompt",),
)
_ASKED = obj(
    {
        "prompt": text(),
        "negative_prompt": text(),
        "seed": whole(minimum=-1),
        "width": whole(minimum=1),
        "height": whole(minimum=1),
        "steps": whole(minimum=1),
        "batch_size": whole(minimum=1),
        "n_iter": whole(minimum=1),
        "cfg_scale": number(),
        "guidance_scale": number(minimum=0),
        "sampler_name": _NOTHING,
        "scheduler": _NOTHING,
        "override_settings": _TEXTS,
        "send_images": FLAG,
    },
    optional=("width", "height"),
)
_STATE = obj(
    {
        "skipped": FLAG,
        "interrupted": FLAG,
        "stopping_generation": FLAG,
        "job": text(description="The job's id; empty without one."),
        "job_count": whole(minimum=0, description="How many run or wait."),
        "job_timestamp": text(pattern="^[0-9]+$"),
        "job_no": whole(minimum=0),
        "sampling_step": whole(minimum=0),
        "sampling_steps": whole(minimum=0),
    }
)

SCHEMAS: Json = {
    "Txt2ImgRequest": {**_REQUEST, "examples": [{"prompt": "a cat wearing sunglasses", "steps": "8", "seed": -1}]},
    "Txt2Img": obj(
        {
            "images": {**array(_IMAGE), "description": "PNG files; none after an interruption."},
            "parameters": {**_ASKED, "description": "What was asked for."},
            "info": text(contentMediaType="application/json", description="What was done."),
            "zwatch": ref("Job"),
        }
    ),
    "SdProgress": obj(
        {
            "progress": number(minimum=0, maximum=1),
            "eta_relative": SECONDS,
            "state": _STATE,
            "current_image": {**nullable(_IMAGE), "description": "The newest preview, a JPEG file."},
            "textinfo": _NOTHING,
        }
    ),
    "SdOptions": obj(
        {
            "samples_format": text(),
            FIELD: text(description="The title of what the client's own requests get; empty if nothing serves."),
            "sd_checkpoint_hash": text(),
            "sd_vae": text(),
            "CLIP_stop_at_last_layers": whole(),
        }
    ),
    "SdOptionsRequest": lenient_obj(
        {
            FIELD: nullable(
                {**_CHECKPOINT, "maxLength": limits.MAX_PROMPT, "description": "As in a request; empty for `current`."}
            )
        }
    ),
    "Checkpoint": obj(
        {
            "title": text(),
            "model_name": text(description="The version's name."),
            "hash": text(description="The beginning of the digest."),
            "sha256": _NOTHING,
            "filename": text(),
            "config": _NOTHING,
            "digest": text(pattern="^[0-9a-f]{64}$", description="blake3 of the version's seal."),
        }
    ),
    "PngInfoRequest": lenient_obj(
        {
            "image": text(
                minLength=1,
                pattern=r"\S",
                description="A PNG, JPEG or WebP file in base64, with or without the beginning of a data: URL.",
                examples=[_PIXEL],
            )
        },
        required=("image",),
    ),
    "PngInfo": obj(
        {
            "info": text(description="AUTOMATIC1111's text; empty if the image has none."),
            "items": {**_TEXTS, "description": "What else stands there."},
            "parameters": {**_TEXTS, "description": "The text taken apart."},
        }
    ),
    "SdMemory": obj(
        {"ram": _MEMORY, "cuda": {"anyOf": [obj({"system": _MEMORY}), obj({"error": text()})]}},
    ),
}

PATHS: Json = {
    "/sdapi/v1/txt2img": {
        "post": _operation(
            "txt2img", "Make images", {"200": ok("The images.", ref("Txt2Img"), headers=MADE)},
            404, 429, 503, 504, body=ref("Txt2ImgRequest"),
        ),
    },
    "/sdapi/v1/progress": {
        "get": _operation(
            "progress", "How far the client's own request is, else what runs", {"200": ok("How far.", ref("SdProgress"))},
            parameters=(in_query("skip_current_image", "Whether to leave the image out: `true`, `1`, `yes`…", text(default="false")),),
        ),
    },
    "/sdapi/v1/interrupt": {
        "post": _operation("interrupt", "Interrupt what runs, if it is the client's own", {"200": ok("Done, or nothing to do.", obj({}))}),
    },
    "/sdapi/v1/options": {
        "get": _operation("options", "What the client's own requests get", {"200": ok("The options.", ref("SdOptions"))}),
        "post": _operation(
            "set_options", "Choose a checkpoint for the client's own later requests", {"200": ok("Done.", {"type": "null"})},
            404, body=ref("SdOptionsRequest"),
        ),
    },
    "/sdapi/v1/sd-models": _listing("models", "The loaded versions, that which serves first", ref("Checkpoint")),
    "/sdapi/v1/png-info": {
        "post": _operation(
            "png_info", "What an image was made from",
            {
                "200": ok("What stands in it.", ref("PngInfo")),
                "413": error_answer(413, f"The body is longer than {MAX_BODY // 2**20} MiB.", has_detail=True),
            },
            body=ref("PngInfoRequest"),
        ),
    },
    "/sdapi/v1/memory": {"get": _operation("memory", "How much memory there is", {"200": ok("Memory.", ref("SdMemory"))})},
    "/sdapi/v1/samplers": _listing(
        "samplers", "The sampler", obj({"name": text(const=SAMPLER), "aliases": array(text()), "options": _TEXTS})
    ),
    "/sdapi/v1/schedulers": _listing(
        "schedulers", "The scheduler",
        obj({"name": text(), "label": text(), "aliases": nullable(array(text())), "default_rho": number(), "need_inner_model": FLAG}),
    ),
    "/sdapi/v1/upscalers": _listing(
        "upscalers", "The upscaler, which is none",
        obj({"name": text(), "model_name": _NOTHING, "model_path": _NOTHING, "model_url": _NOTHING, "scale": number()}),
    ),
    "/sdapi/v1/latent-upscale-modes": _listing("latent_upscale_modes", "There are none", obj({})),
    "/sdapi/v1/sd-vae": _listing("vaes", "There are none", obj({})),
    "/sdapi/v1/loras": _listing("loras", "There are none", obj({})),
}  # fmt: skip
