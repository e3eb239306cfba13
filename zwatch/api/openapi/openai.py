"""Describes the calls that are compatible with the OpenAI API, `/v1/…`."""

from zwatch.api.openai.answers import COMPLETED, ERROR, PARTIAL
from zwatch.api.openai.requests import MAX_PARTIAL_IMAGES
from zwatch.api.openapi.parts import (
    DIGEST,
    FLAG,
    MADE,
    VERSION,
    Json,
    array,
    in_path,
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

_TAG = "openai"
_NONE = whole(const=0)
_REQUEST = lenient_obj(
    {
        "prompt": text(minLength=1, maxLength=limits.MAX_PROMPT, pattern=r"\S"),
        "model": nullable(
            text(
                maxLength=limits.MAX_PROMPT,
                description="An alias, or a resident version; a name that is no version's means `current`.",
                examples=["current"],
            )
        ),
        "n": nullable(whole(minimum=1, maximum=limits.MAX_IMAGES, default=1, description="1 with `stream`.")),
        "size": nullable(
            text(
                pattern="^(auto|[0-9]{1,5}x[0-9]{1,5})$", default="auto", examples=["1024x1024"],
                description=f"Pixels: multiples of {limits.SIDE_STEP}, up to what the version can do; `auto` is its own.",
            )
        ),
        "output_format": nullable(text(enum=list(limits.ImageFormat), default="png")),
        "output_compression": nullable(
            whole(
                minimum=0, maximum=100, default=limits.DEFAULT_QUALITY,
                description="Of a JPEG or WebP; 100 is the best quality.",
            )
        ),
        "response_format": nullable(
            text(enum=["b64_json", "url", ""], description="`b64_json` if left out; for a model `dall-e-…` both.")
        ),
        "stream": nullable({**FLAG, "default": False}),
        "partial_images": nullable(
            whole(minimum=0, maximum=MAX_PARTIAL_IMAGES, default=0, description="Previews on the way, with `stream`.")
        ),
        "negative_prompt": nullable(text(maxLength=limits.MAX_PROMPT, default="", description="Our own.")),
        "num_inference_steps": nullable(
            whole(minimum=1, maximum=limits.MAX_STEPS, default=limits.DEFAULT_STEPS, description="Our own.")
        ),
        "guidance_scale": nullable(number(minimum=0, maximum=limits.MAX_GUIDANCE, default=0.0, description="Our own.")),
        "seed": nullable(
            whole(minimum=0, maximum=limits.SEEDS - 1, description="Our own. Random if left out; image i of n uses seed + i.")
        ),
    },
    required=("prompt",),
)  # fmt: skip

SCHEMAS: Json = {
    "ImagesRequest": {**_REQUEST, "examples": [{"prompt": "a cat wearing sunglasses", "size": "256x256", "seed": 42}]},
    "Images": obj(
        {
            "created": whole(minimum=0, description="Seconds since 1970."),
            "background": text(const="opaque"),
            "quality": text(const="high"),
            "output_format": text(enum=list(limits.ImageFormat)),
            "size": text(pattern="^[0-9]+x[0-9]+$"),
            "usage": obj(
                {
                    "input_tokens": _NONE,
                    "input_tokens_details": obj({"text_tokens": _NONE, "image_tokens": _NONE}),
                    "output_tokens": _NONE,
                    "total_tokens": _NONE,
                },
                description="Nothing is counted.",
            ),
            "id": text(description="The job's."),
            "version": VERSION,
            "digest": DIGEST,
            "model": text(description="The alias or version that the request came to."),
            "truncated": {**FLAG, "description": "Whether the prompt was longer than the text encoder takes, and cut."},
            "data": array(
                obj(
                    {"seed": whole(minimum=0), "url": text(format="uri"), "b64_json": text(contentEncoding="base64")},
                    optional=("url", "b64_json"),
                )
            ),
        }
    ),
    "Model": obj(
        {
            "id": text(description="What a request's `model` may be: an alias, or a resident version."),
            "object": text(const="model"),
            "created": whole(minimum=0, description="Seconds since 1970; 0 while an alias serves nothing."),
            "owned_by": text(const="zwatch"),
            "version": nullable(VERSION),
            "digest": DIGEST,
        }
    ),
}

_images = ok("The images; with `stream` a stream of events.", ref("Images"), headers=MADE)
_images["content"]["text/event-stream"] = {}

PATHS: Json = {
    "/v1/images/generations": {
        "post": operation(
            _TAG, "openai_images", f"Make images; the events of a stream are `{PARTIAL}`, and `{COMPLETED}` or `{ERROR}`",
            {"200": _images}, 404, 409, 429, 503, 504, body=ref("ImagesRequest"),
        ),
    },
    "/v1/models": {
        "get": operation(
            _TAG, "openai_models", "The names that a request's `model` may be",
            {"200": ok("Aliases, then versions.", obj({"object": text(const="list"), "data": array(ref("Model"))}))},
        ),
    },
    "/v1/models/{model}": {
        "get": operation(
            _TAG, "openai_model", "One of those names", {"200": ok("It.", ref("Model"))}, 404,
            parameters=(in_path("model", "The name.", examples=["current"]),),
        ),
    },
}  # fmt: skip
