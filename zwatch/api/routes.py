"""The one table of calls: the router and the OpenAPI document are both made from it."""

import asyncio
from collections.abc import Callable
from functools import cache, partial
from typing import Annotated, Any

from aiohttp import web
from pydantic import Field, WithJsonSchema

from zwatch.api.a1111 import calls as a1111
from zwatch.api.a1111.checkpoints import Checkpoint
from zwatch.api.a1111.clients import CLIENTS, Clients
from zwatch.api.a1111.pnginfo import MAX_BODY, PngInfo, PngInfoRequest
from zwatch.api.a1111.txt2img import SdOptionsRequest, Txt2ImgAnswer, Txt2ImgRequest
from zwatch.api.answers import encoded
from zwatch.api.native import deploy, generate, history, jobs, operations, status
from zwatch.api.openai import answers as openai_answers
from zwatch.api.openai import calls as openai
from zwatch.api.openai.requests import ImagesRequest
from zwatch.api.results import Accepted, Generated, JobView
from zwatch.api.schema import EVENT_STREAM, Answer, Call, DetailedError, Parameter, document
from zwatch.api.views import StatusView
from zwatch.generation.history import HistoryPage
from zwatch.generation.image_index import NAME
from zwatch.generation.request import GenerateRequest, ImageFormat

_IMAGES = tuple(image_format.media_type for image_format in ImageFormat)
_MADE = {f"X-Zwatch-{name}": f"With an image: its {name.lower()}." for name in ("Version", "Digest", "Seed", "Job")}
_NAME = Parameter("name", "The picture's name.", example="20261121_142231_seed42.png")
_JOB = Parameter("id", "The job's id.", example="j-0123456789abcdef")
_EVENTS = {200: Answer("Server-sent events.", media_types=(EVENT_STREAM,))}
_JOB_CALLS = {"job": "id", "job_events": "id", "cancel_job": "id"}
_COOKIE = {"Set-Cookie": "Where a token is set."}
_DEPLOYED = Answer("It serves.", deploy.Deployed)
_Limit = Annotated[int, Field(ge=1, le=history.MAX_LIMIT)]
_Before = Annotated[str, Field(pattern=f"^{NAME}$")]
_Document = Annotated[dict[str, Any], WithJsonSchema({"type": "object"})]
_Null = Annotated[None, WithJsonSchema({"type": "null"})]

_GENERATION = (
    Call(
        "POST", "/generate", generate.generate, "images", "generate", "Make images",
        {
            200: Answer(
                "What `Accept` asks for: the image, JSON, or a stream of events.",
                Generated, (*_IMAGES, EVENT_STREAM), _MADE,
            )
        },
        errors=(404, 406, 409, 429, 503, 504), body=GenerateRequest,
    ),
    Call(
        "POST", "/jobs", jobs.submit, "images", "submit_job", "Make images without waiting for them",
        {202: Answer("It waits.", Accepted, headers={"Location": "Where the job can be asked about."}, links=_JOB_CALLS)},
        errors=(404, 429, 503), body=GenerateRequest,
    ),
    Call(
        "GET", "/jobs/{id}", jobs.show, "images", "job", "Where a job stands", {200: Answer("The job.", JobView)},
        errors=(404,), parameters=(_JOB,),
    ),
    Call(
        "DELETE", "/jobs/{id}", jobs.cancel, "images", "cancel_job", "Cancel a job; one that has ended stays as it is",
        {200: Answer("The job.", JobView)}, errors=(404,), parameters=(_JOB,),
    ),
    Call(
        "GET", "/jobs/{id}/events", jobs.events, "images", "job_events",
        "Follow a job from its present state on: `queued`, `step`, and `done` or `error`", _EVENTS,
        errors=(404,), parameters=(_JOB,),
    ),
    Call(
        "GET", "/jobs/{id}/images/{number}", jobs.image, "images", "job_image",
        "A picture that the job keeps because the history does not", {200: Answer("The image.", media_types=_IMAGES)},
        errors=(404,), parameters=(_JOB, Parameter("number", "From 0.", example="0")),
    ),
)  # fmt: skip

_HISTORY = (
    Call(
        "GET", "/history", history.page, "history", "history", "What was made, newest first",
        {200: Answer("A page.", HistoryPage)}, errors=(400, 404),
        parameters=(
            Parameter("limit", "Pictures a page.", _Limit, history.DEFAULT_LIMIT),
            Parameter("before", "A picture's name: what is older than it.", _Before, example=_NAME.example),
        ),
    ),
    Call(
        "DELETE", "/history", history.clear, "history", "clear_history", "Delete all pictures",
        {200: Answer("Done.", history.Deleted)}, errors=(404,),
    ),
    Call(
        "GET", "/history/{name}", history.picture, "history", "picture", "A picture",
        {200: Answer("The file.", media_types=_IMAGES)}, errors=(404,), parameters=(_NAME,),
    ),
    Call(
        "DELETE", "/history/{name}", history.delete, "history", "delete_picture", "Delete a picture",
        {200: Answer("Done.", history.Deleted)}, errors=(404,), parameters=(_NAME,),
    ),
)  # fmt: skip

_OPENAI = (
    Call(
        "POST", "/v1/images/generations", openai.generate, "openai", "openai_images",
        f"Make images; the events of a stream are `{openai_answers.PARTIAL}`, and `{openai_answers.COMPLETED}` or "
        f"`{openai_answers.ERROR}`",
        {200: Answer("The images; with `stream` a stream of events.", openai_answers.ImagesAnswer, (EVENT_STREAM,), _MADE)},
        errors=(404, 409, 429, 503, 504), body=ImagesRequest,
    ),
    Call(
        "GET", "/v1/models", openai.models, "openai", "openai_models", "The names that a request's `model` may be",
        {200: Answer("Aliases, then versions.", openai_answers.Models)},
    ),
    Call(
        "GET", "/v1/models/{model}", openai.model, "openai", "openai_model", "One of those names",
        {200: Answer("The model.", openai_answers.Model)}, errors=(404,),
        parameters=(Parameter("model", "The name.", example="current"),),
    ),
)  # fmt: skip


def _a1111(method: Any, path: str, handler: Any, name: str, summary: str, answer: Answer, **more: Any) -> Call:
    """Return a call of AUTOMATIC1111's: its errors have their message in `detail` too."""
    path, name = f"/sdapi/v1/{path}", f"sd_{name}"
    return Call(method, path, handler, "automatic1111", name, summary, {200: answer}, error_body=DetailedError, **more)


_A1111 = (
    _a1111(
        "POST", "txt2img", a1111.txt2img, "txt2img", "Make images", Answer("The images.", Txt2ImgAnswer, headers=_MADE),
        errors=(404, 429, 503, 504), body=Txt2ImgRequest,
    ),
    _a1111(
        "GET", "progress", a1111.progress, "progress", "How far the client's own request is, else what runs",
        Answer("How far.", a1111.SdProgress),
        parameters=(
            Parameter("skip_current_image", "Whether to leave the image out: `true`, `1`, `yes`…", default="false"),
        ),
    ),
    _a1111(
        "POST", "interrupt", a1111.interrupt, "interrupt", "Interrupt what runs, if it is the client's own",
        Answer("Done, or nothing to do.", a1111.Nothing),
    ),
    _a1111("GET", "options", a1111.options, "options", "What the client's own requests get", Answer("The options.", a1111.SdOptions)),
    _a1111(
        "POST", "options", a1111.set_options, "set_options", "Choose a checkpoint for the client's own later requests",
        Answer("Done.", _Null), errors=(404,), body=SdOptionsRequest,
    ),
    _a1111(
        "GET", "sd-models", a1111.checkpoints, "models", "The loaded versions; the one that `current` serves is the first",
        Answer("The list.", list[Checkpoint]),
    ),
    _a1111(
        "POST", "png-info", a1111.info, "png_info", "What an image was made from", Answer("What stands in it.", PngInfo),
        body=PngInfoRequest, error_texts={413: f"The body is longer than {MAX_BODY // 2**20} MiB."},
    ),
    _a1111("GET", "memory", a1111.memory, "memory", "How much memory there is", Answer("Memory.", a1111.SdMemory)),
    _a1111("GET", "samplers", a1111.SAMPLERS, "samplers", "The sampler", Answer("The list.", list[a1111.Sampler])),
    _a1111("GET", "schedulers", a1111.SCHEDULERS, "schedulers", "The scheduler", Answer("The list.", list[a1111.Scheduler])),
    _a1111("GET", "upscalers", a1111.UPSCALERS, "upscalers", "The upscaler, which is none", Answer("The list.", list[a1111.Upscaler])),
    *(
        _a1111("GET", path, a1111.NONE, name, "There are none", Answer("The list.", list[a1111.Nothing]))
        for path, name in (("latent-upscale-modes", "latent_upscale_modes"), ("sd-vae", "vaes"), ("loras", "loras"))
    ),
)  # fmt: skip

_STATUS = (
    Call("GET", "/status", status.status, "status", "status", "Everything about the present", {200: Answer("The status.", StatusView)}),
    Call(
        "GET", "/attempts", status.attempts, "status", "attempts", "The last attempts, newest first",
        {200: Answer("100 at most.", status.Attempts)},
    ),
    Call("GET", "/versions", status.versions, "status", "versions", "The version directories", {200: Answer("All.", status.Versions)}),
    Call(
        "GET", "/events", status.events, "status", "events",
        "Follow what changes: `status` first, then `serving`, `attempt`, `alias`, `queue`", _EVENTS,
    ),
    Call(
        "GET", "/health", status.health, "status", "health", "How the service is, for people",
        {200: Answer("It serves.", status.Health), 503: Answer("Nothing serves.", status.Health)},
        is_open=True, checks_host=False,
    ),
    Call(
        "GET", "/health/live", status.live, "status", "live", "Whether the process answers",
        {200: Answer("It does.", status.Probe)}, is_open=True, checks_host=False,
    ),
    Call(
        "GET", "/health/ready", status.ready, "status", "ready", "Whether something serves",
        {200: Answer("It does.", status.Probe), 503: Answer("It does not.", status.Probe)},
        is_open=True, checks_host=False,
    ),
)  # fmt: skip

_DEPLOY = (
    Call(
        "POST", "/api/deploy", deploy.deploy, "deploying", "deploy",
        "Repoint an alias, and wait until the version serves or is rejected",
        {200: _DEPLOYED, 202: Answer("With `wait` false: it is linked.", deploy.Linked)},
        errors=(404, 409), body=deploy.DeployRequest,
    ),
    Call(
        "POST", "/api/rollback", deploy.rollback, "deploying", "rollback",
        "Repoint an alias to the version that it served before", {200: _DEPLOYED},
        errors=(404, 409), body=deploy.AliasRequest, body_required=False,
    ),
    Call(
        "POST", "/api/load_model", deploy.load_model, "deploying", "load_model",
        "Look at an alias now, also after a rejection or an unload", {200: _DEPLOYED},
        errors=(404, 409), body=deploy.AliasRequest, body_required=False,
    ),
    Call(
        "POST", "/api/unload_model", deploy.unload_model, "deploying", "unload_model",
        "Finish accepted requests, then free everything", {200: Answer("It is free.", deploy.Unloaded)},
        errors=(409,), body=deploy.NoFields, body_required=False,
    ),
    Call(
        "POST", "/api/verify", deploy.verify, "deploying", "verify", "Hash the serving weights where they lie",
        {200: Answer("Every byte is as it was sealed.", deploy.Verified)},
        errors=(404, 409, 503), body=deploy.AliasRequest, body_required=False,
    ),
)  # fmt: skip

_OPERATIONS = (
    Call(
        "GET", "/metrics", operations.metrics, "operations", "metrics", "Metrics for Prometheus",
        {200: Answer("Text format 0.0.4.", media_types=("text/plain",))},
    ),
    Call(
        "GET", "/openapi.json", operations.openapi, "operations", "openapi", "This document",
        {200: Answer("OpenAPI 3.1.", _Document)},
    ),
    Call(
        "POST", "/login", operations.login, "operations", "login", "Exchange the token for the page's cookie",
        {200: Answer("The cookie is set.", operations.Said, headers=_COOKIE)}, errors=(401, 429),
        body=operations.LoginRequest, is_open=True, error_texts={429: "Too many wrong tokens came from this address."},
    ),
    Call(
        "DELETE", "/login", operations.logout, "operations", "logout", "Take the cookie back",
        {200: Answer("The cookie is gone.", operations.Said, headers=_COOKIE)}, is_open=True,
    ),
)  # fmt: skip

CALLS: tuple[Call, ...] = (*_GENERATION, *_HISTORY, *_OPENAI, *_A1111, *_STATUS, *_DEPLOY, *_OPERATIONS)
"""Every call of the service."""


def add_calls(app: web.Application, *, needs_token: bool) -> None:
    """Add all calls to an application, and what their handlers keep there."""
    for call in CALLS:
        if call.method == "GET":
            app.router.add_get(call.path, call.handler, allow_head=not call.streams)
        else:
            app.router.add_route(call.method, call.path, call.handler)
    described: Callable[[], bytes] = cache(partial(_described, needs_token=needs_token))
    app[operations.DOCUMENT] = described
    app[CLIENTS] = Clients()
    app[a1111.READERS] = asyncio.Semaphore(a1111.MOST_READERS)


def _described(*, needs_token: bool) -> bytes:
    return encoded(document(CALLS, needs_token=needs_token))
