"""Describes `/generate` and the jobs."""

from zwatch.api.openapi.parts import (
    DIGEST,
    FLAG,
    MADE,
    SECONDS,
    VERSION,
    Json,
    array,
    body_obj,
    in_path,
    nullable,
    number,
    obj,
    ok,
    operation,
    other,
    ref,
    text,
    whole,
)
from zwatch.generation import request as limits
from zwatch.generation.job import JobState

_TAG = "images"
_SIDE = whole(
    minimum=limits.SIDE_STEP, maximum=limits.MAX_SIDE, multipleOf=limits.SIDE_STEP,
    description="Pixels. The version's own size if left out; a version may have a lower maximum.",
)  # fmt: skip
_REQUEST = body_obj(
    {
        "prompt": text(minLength=1, maxLength=limits.MAX_PROMPT, pattern=r"\S"),
        "negative_prompt": text(maxLength=limits.MAX_PROMPT, default=""),
        "width": _SIDE,
        "height": _SIDE,
        "steps": whole(minimum=1, maximum=limits.MAX_STEPS, default=limits.DEFAULT_STEPS),
        "guidance_scale": number(minimum=0, maximum=limits.MAX_GUIDANCE, default=0.0),
        "seed": nullable(
            whole(minimum=0, maximum=limits.SEEDS - 1, description="Random if null; image i of n uses seed + i.")
        ),
        "n": whole(minimum=1, maximum=limits.MAX_IMAGES, default=1, description="More than 1 needs an answer of JSON."),
        "format": text(enum=list(limits.ImageFormat), default="png"),
        "quality": whole(minimum=1, maximum=100, default=limits.DEFAULT_QUALITY, description="Of a JPEG or WebP."),
        "model": text(
            maxLength=limits.MAX_PROMPT, default="current", description="An alias, or a resident version.",
            examples=["current"],
        ),
    },
    required=("prompt",),
)  # fmt: skip
_TIMINGS = obj(dict.fromkeys(("queue", "encode", "denoise", "decode", "write", "total"), SECONDS))
_PICTURE = {
    "seed": whole(minimum=0),
    "name": nullable(text(description="In the history; null where it is not kept there.")),
    "url": nullable(text()),
}
_RESULT = {
    "id": text(),
    "version": VERSION,
    "digest": DIGEST,
    "model": text(description="As the request had it."),
    "truncated": {**FLAG, "description": "Whether the prompt was longer than the text encoder takes, and cut."},
    "timings": ref("Timings"),
}
_PROGRESS = {
    "id": text(),
    "state": text(enum=[state.value for state in JobState]),
    "step": whole(minimum=0),
    "steps": whole(minimum=1),
    "position": whole(minimum=0, description="How many wait before it; while it is queued."),
    "preview": nullable(text(description="A data: URL of a JPEG; while it runs.")),
    "error": {"$ref": "#/components/schemas/Error/properties/error"},
}
_WHEN_DONE = tuple(name for name in (*_RESULT, "images") if name != "id")

SCHEMAS: Json = {
    "GenerateRequest": {**_REQUEST, "examples": [{"prompt": "a cat wearing sunglasses", "seed": 42}]},
    "Timings": _TIMINGS,
    "Generated": obj({**_RESULT, "images": array(obj({**_PICTURE, "b64_json": text(contentEncoding="base64")}))}),
    "Accepted": obj({"id": text(), "state": _PROGRESS["state"], "position": whole(minimum=0)}),
    "Job": obj(
        {**_PROGRESS, **_RESULT, "images": array(obj(_PICTURE))},
        optional=("position", "preview", "error", *_WHEN_DONE),
    ),
}

_IMAGES = tuple(one.media_type for one in limits.ImageFormat)
_ID = in_path("id", "The job's id.", examples=["j-0123456789abcdef"])
_generated = other(
    "What `Accept` asks for: the image, JSON, or a stream of events.", *_IMAGES, "text/event-stream", headers=MADE
)
_generated["content"]["application/json"] = {"schema": ref("Generated")}
_about_the_job = {
    name: {"operationId": name, "parameters": {"id": "$response.body#/id"}}
    for name in ("job", "job_events", "cancel_job")
}

PATHS: Json = {
    "/generate": {
        "post": operation(
            _TAG, "generate", "Make images", {"200": _generated}, 404, 406, 409, 429, 503, 504, body=ref("GenerateRequest"),
        ),
    },
    "/jobs": {
        "post": operation(
            _TAG, "submit_job", "Make images without waiting for them",
            {"202": ok("It waits.", ref("Accepted"), headers={"Location": {"schema": text()}}, links=_about_the_job)},
            404, 429, 503, body=ref("GenerateRequest"),
        ),
    },
    "/jobs/{id}": {
        "get": operation(_TAG, "job", "Where a job stands", {"200": ok("The job.", ref("Job"))}, 404, parameters=(_ID,)),
        "delete": operation(
            _TAG, "cancel_job", "Cancel a job; one that has ended stays as it is",
            {"200": ok("The job.", ref("Job"))}, 404, parameters=(_ID,),
        ),
    },
    "/jobs/{id}/events": {
        "get": operation(
            _TAG, "job_events", "Follow a job from its present state on: `queued`, `step`, and `done` or `error`",
            {"200": other("Server-sent events.", "text/event-stream")}, 404, parameters=(_ID,),
        ),
    },
    "/jobs/{id}/images/{number}": {
        "get": operation(
            _TAG, "job_image", "A picture that the job keeps because the history does not",
            {"200": other("The image.", *_IMAGES)}, 404, parameters=(_ID, in_path("number", "From 0.", examples=["0"])),
        ),
    },
}  # fmt: skip
