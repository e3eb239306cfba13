"""The one table of calls: the router and the OpenAPI document are both made from it."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Annotated, Any

from aiohttp import web
from pydantic import Field, WithJsonSchema

from zwatch.api.a1111 import calls as a1111
from zwatch.api.a1111 import lists
from zwatch.api.a1111.checkpoints import Checkpoint
from zwatch.api.a1111.clients import CLIENTS, Clients
from zwatch.api.a1111.pnginfo import PngInfo, PngInfoRequest
from zwatch.api.a1111.txt2img import SdOptionsRequest, Txt2ImgAnswer, Txt2ImgRequest
from zwatch.api.answers import encoded
from zwatch.api.bodies import BODIES, MAX_IMAGE_BODY, MAX_READERS, READERS, Bodies
from zwatch.api.native import client_jobs, deploy, generate, history, jobs, operations, status
from zwatch.api.openai import answers as openai_answers
from zwatch.api.openai import calls as openai
from zwatch.api.openai.requests import ImagesRequest
from zwatch.api.openapi import document
from zwatch.api.page import add_page
from zwatch.api.results import Accepted, Generated, JobView
from zwatch.api.schema import EVENT_STREAM, Answer, Call, Parameter
from zwatch.api.views import StatusView
from zwatch.generation.history import HistoryPage
from zwatch.generation.image_order import NAME
from zwatch.generation.picture_settings import PictureSettings
from zwatch.generation.request import SEEDS, GenerateRequest, ImageFormat
from zwatch.generation.thumbnails import SIDE

_IMAGES = tuple(image_format.media_type for image_format in ImageFormat)
_IMAGE_HEADERS = {
    "X-Zwatch-Version": "With images: the version that made them.",
    "X-Zwatch-Digest": "With images: the version's digest.",
    "X-Zwatch-Seed": "With images: the seed of the first.",
    "X-Zwatch-Job": "With images: the id of the job.",
}
_FILE_NAME = {"Content-Disposition": "With an image: the name of its file."}
_NAME = Parameter("name", "The name of the picture.", example="20261121_142231_seed42.png")
_TOO_LONG = {413: f"The body is longer than {MAX_IMAGE_BODY // 2**20} MiB."}
_JOB = Parameter("id", "The id of the job.", example="j-0123456789abcdef")
_EVENTS = {200: Answer("Server-sent events.", media_types=(EVENT_STREAM,))}
_JOB_CALLS = {"job": "id", "job_events": "id", "cancel_job": "id"}
_COOKIE = {"Set-Cookie": "The session cookie, if the service has a token."}
_DEPLOYED = Answer("The version serves.", deploy.Deployed)
_Limit = Annotated[int, Field(ge=1, le=history.MAX_LIMIT)]
_Before = Annotated[str, Field(pattern=f"^{NAME}$")]
_Text = Annotated[str, Field(max_length=history.MAX_QUERY)]
_Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
_Document = Annotated[dict[str, Any], WithJsonSchema({"type": "object"})]
_Null = Annotated[None, WithJsonSchema({"type": "null"})]

_GENERATION = (
    Call(
        "POST", "/generate", generate.generate, "images", "generate", "Generate images",
        {
            200: Answer(
                "In the form that `Accept` asks for: the image, JSON, or a stream of events.",
                Generated, (*_IMAGES, EVENT_STREAM), {**_IMAGE_HEADERS, **_FILE_NAME},
            )
        },
        errors=(404, 406, 409, 429, 503, 504), body=GenerateRequest, parameters=(client_jobs.IN_HEADER,),
    ),
    Call(
        "POST", "/jobs", jobs.submit, "images", "submit_job", "Generate images without waiting for them",
        {202: Answer("The job is queued.", Accepted, headers={"Location": "The path of the job."}, links=_JOB_CALLS)},
        errors=(404, 429, 503), body=GenerateRequest, parameters=(client_jobs.IN_HEADER,),
    ),
    Call(
        "GET", "/jobs", client_jobs.list_jobs, "images", "jobs", "List a client's jobs, oldest first",
        {200: Answer("The jobs that are kept: those that wait and run, and those that ended within the last hour.", client_jobs.ClientJobsView)},
        errors=(400,), parameters=(replace(client_jobs.IN_QUERY, required=True),),
    ),
    Call(
        "GET", "/jobs/{id}", jobs.show, "images", "job", "Get a job's state and result", {200: Answer("The job.", JobView)},
        errors=(404,), parameters=(_JOB,),
    ),
    Call(
        "DELETE", "/jobs/{id}", jobs.cancel, "images", "cancel_job", "Cancel a job; a finished one stays as it is",
        {200: Answer("The job.", JobView)}, errors=(404,), parameters=(_JOB,),
    ),
    Call(
        "GET", "/jobs/{id}/events", jobs.events, "images", "job_events",
        "Stream a job's events from its present state on: `queued`, `step`, and `done`, or `failed` and `error`",
        {**_EVENTS, 204: Answer("`Last-Event-ID` is that of the last event: nothing follows.")},
        errors=(404,), parameters=(_JOB,),
    ),
    Call(
        "GET", "/jobs/{id}/images/{number}", jobs.image, "images", "job_image",
        "Get a picture that the job keeps because the history does not", {200: Answer("The image.", media_types=_IMAGES, headers=_FILE_NAME)},
        errors=(404,), parameters=(_JOB, Parameter("number", "The index of the picture, from 0.", example="0")),
    ),
)  # fmt: skip

_HISTORY = (
    Call(
        "GET", "/history", history.page, "history", "history", "List pictures, newest first",
        {200: Answer("A page of pictures.", HistoryPage)}, errors=(400, 404),
        parameters=(
            Parameter("limit", "Most pictures in a page.", _Limit, history.DEFAULT_LIMIT),
            Parameter("before", "The name of a picture: only older ones are listed.", _Before, example=_NAME.example),
            Parameter(
                "q", "Words: only pictures whose prompt contains all of them, as words or parts of words, are listed.", _Text,
            ),
            Parameter("version", "The name of a version: only its pictures are listed.", _Text),
            Parameter("seed", "Only pictures of this seed are listed.", _Seed),
        ),
    ),
    Call(
        "DELETE", "/history", history.clear, "history", "clear_history", "Delete all pictures",
        {200: Answer("The pictures are deleted.", history.Deleted)}, errors=(404,),
    ),
    Call(
        "GET", "/history/{name}", history.picture, "history", "picture", "Get a picture",
        {200: Answer("The file.", media_types=_IMAGES, headers=_FILE_NAME)}, errors=(404,), parameters=(_NAME,),
    ),
    Call(
        "GET", "/history/{name}/thumbnail", history.thumbnail, "history", "thumbnail",
        f"Get a small copy of a picture, of at most {SIDE} pixels on the longer side",
        {200: Answer("The file.", media_types=("image/webp", "image/jpeg"))}, errors=(404,), parameters=(_NAME,),
    ),
    Call(
        "DELETE", "/history/{name}", history.delete, "history", "delete_picture", "Delete a picture",
        {200: Answer("The picture is deleted.", history.Deleted)}, errors=(404,), parameters=(_NAME,),
    ),
)  # fmt: skip

_PICTURE_SETTINGS = Call(
    "POST", "/api/picture_settings", history.picture_settings, "history", "picture_settings",
    "Get the settings in an image file of zwatch, AUTOMATIC1111 or ComfyUI",
    {200: Answer("The settings that were found and are valid.", PictureSettings)}, takes_file=True, error_texts=_TOO_LONG,
)  # fmt: skip

_OPENAI = (
    Call(
        "POST", "/v1/images/generations", openai.generate, "openai", "openai_images",
        f"Generate images; the events of a stream are `{openai_answers.PARTIAL}`, and `{openai_answers.COMPLETED}` or "
        f"`{openai_answers.ERROR}`",
        {200: Answer("The images, or with `stream` a stream of events.", openai_answers.ImagesAnswer, (EVENT_STREAM,), _IMAGE_HEADERS)},
        errors=(404, 409, 429, 503, 504), body=ImagesRequest, parameters=(client_jobs.IN_HEADER,),
    ),
    Call(
        "GET", "/v1/models", openai.models, "openai", "openai_models", "List the valid names for a request's `model`",
        {200: Answer("The aliases, then the resident versions.", openai_answers.Models)},
    ),
    Call(
        "GET", "/v1/models/{model}", openai.model, "openai", "openai_model", "Get one model",
        {200: Answer("The model.", openai_answers.Model)}, errors=(404,),
        parameters=(Parameter("model", "The name of the model.", example="current"),),
    ),
)  # fmt: skip


_A1111 = (
    Call(
        "POST", "/sdapi/v1/txt2img", a1111.txt2img, "automatic1111", "sd_txt2img", "Generate images",
        {200: Answer("The images.", Txt2ImgAnswer, headers=_IMAGE_HEADERS)}, errors=(404, 429, 503, 504), body=Txt2ImgRequest,
    ),
    Call(
        "GET", "/sdapi/v1/progress", a1111.progress, "automatic1111", "sd_progress",
        "Get the progress of the client's own requests",
        {200: Answer("The progress.", a1111.SdProgress)},
        parameters=(
            Parameter("skip_current_image", "Whether to omit the image: `true`, `1`, `yes`…", default="false"),
        ),
    ),
    Call(
        "POST", "/sdapi/v1/interrupt", a1111.interrupt, "automatic1111", "sd_interrupt",
        "Interrupt the running request, if it is the client's own",
        {200: Answer("It is interrupted, or there is nothing to interrupt.", lists.EmptyObject)},
    ),
    Call(
        "GET", "/sdapi/v1/options", a1111.options, "automatic1111", "sd_options", "Get the client's own options",
        {200: Answer("The options.", a1111.SdOptions)},
    ),
    Call(
        "POST", "/sdapi/v1/options", a1111.set_options, "automatic1111", "sd_set_options",
        "Choose a checkpoint for the client's own later requests", {200: Answer("It is chosen.", _Null)},
        errors=(404,), body=SdOptionsRequest,
    ),
    Call(
        "GET", "/sdapi/v1/sd-models", a1111.checkpoints, "automatic1111", "sd_models",
        "List `current` and the other aliases, then the loaded versions", {200: Answer("The list.", list[Checkpoint])},
    ),
    Call(
        "POST", "/sdapi/v1/png-info", a1111.info, "automatic1111", "sd_png_info", "Get the parameters of an image",
        {200: Answer("The image's metadata.", PngInfo)}, body=PngInfoRequest,
        error_texts=_TOO_LONG,
    ),
    Call(
        "GET", "/sdapi/v1/memory", a1111.memory, "automatic1111", "sd_memory", "Get the amounts of memory",
        {200: Answer("The host's and the GPU's memory.", a1111.SdMemory)},
    ),
    Call(
        "GET", "/sdapi/v1/samplers", lists.SAMPLERS, "automatic1111", "sd_samplers", "List the only sampler",
        {200: Answer("The list.", list[lists.Sampler])},
    ),
    Call(
        "GET", "/sdapi/v1/schedulers", lists.SCHEDULERS, "automatic1111", "sd_schedulers", "List the only scheduler",
        {200: Answer("The list.", list[lists.Scheduler])},
    ),
    Call(
        "GET", "/sdapi/v1/upscalers", lists.UPSCALERS, "automatic1111", "sd_upscalers", "List the only upscaler, `None`",
        {200: Answer("The list.", list[lists.Upscaler])},
    ),
    Call(
        "POST", "/sdapi/v1/skip", a1111.skip, "automatic1111", "sd_skip",
        "Interrupt the running request, if it is the client's own and of one image",
        {200: Answer("It is interrupted, or there is nothing to skip.", _Null)},
    ),
    Call(
        "GET", "/sdapi/v1/scripts", lists.SCRIPTS, "automatic1111", "sd_scripts", "List the scripts: there are none",
        {200: Answer("Empty lists.", lists.Scripts)},
    ),
    Call(
        "GET", "/sdapi/v1/embeddings", lists.EMBEDDINGS, "automatic1111", "sd_embeddings", "List the embeddings: there are none",
        {200: Answer("Empty objects.", lists.Embeddings)},
    ),
    Call(
        "GET", "/sdapi/v1/cmd-flags", lists.CMD_FLAGS, "automatic1111", "sd_cmd_flags", "Get the command line flags",
        {200: Answer("The flags that have a meaning here.", lists.CmdFlags)},
    ),
    Call(
        "GET", "/internal/ping", lists.EMPTY, "automatic1111", "sd_ping", "Check that the service answers",
        {200: Answer("It answers.", lists.EmptyObject)},
    ),
    *(
        Call(
            "GET", f"/sdapi/v1/{path}", lists.EMPTY_LIST, "automatic1111", f"sd_{path.replace('-', '_')}",
            f"List the {kind}: there are none", {200: Answer("An empty list.", list[lists.EmptyObject])},
        )
        for path, kind in lists.NONE
    ),
    *(
        Call(
            "POST", f"/sdapi/v1/refresh-{name}", lists.NOTHING, "automatic1111", f"sd_refresh_{name}",
            f"Do nothing: the list of {name} is never old", {200: Answer("Nothing is done.", _Null)},
        )
        for name in lists.REFRESHED
    ),
)  # fmt: skip

_STATUS = (
    Call("GET", "/status", status.status, "status", "status", "Get the whole state of the service", {200: Answer("The status.", StatusView)}),
    Call(
        "GET", "/attempts", status.attempts, "status", "attempts", "List the last attempts, newest first",
        {200: Answer("At most 100 attempts.", status.Attempts)},
    ),
    Call("GET", "/versions", status.versions, "status", "versions", "List the version directories", {200: Answer("The list.", status.Versions)}, errors=(504,)),
    Call(
        "GET", "/events", status.events, "status", "events",
        "Stream changes of the state: `status` first, then `serving`, `attempt`, `alias`, `queue`, `history`; with `client` also its "
        "jobs: `jobs` first, then each that changes as `job`", _EVENTS, errors=(400,), parameters=(client_jobs.IN_QUERY,),
    ),
    Call(
        "GET", "/health", status.health, "status", "health", "Get the health, with reasons",
        {200: Answer("`ok` or `degraded`.", status.Health), 503: Answer("`unavailable`.", status.Health)},
        is_open=True, checks_host=False,
    ),
    Call(
        "GET", "/health/live", status.live, "status", "live", "Check that the process answers",
        {200: Answer("It answers.", status.Probe)}, is_open=True, checks_host=False,
    ),
    Call(
        "GET", "/health/ready", status.ready, "status", "ready", "Check that `current` serves",
        {200: Answer("It serves.", status.Probe), 503: Answer("It serves nothing.", status.Probe)},
        is_open=True, checks_host=False,
    ),
)  # fmt: skip

_DEPLOY = (
    Call(
        "POST", "/api/deploy", deploy.deploy, "deploying", "deploy",
        "Repoint an alias, and wait until the version serves or is rejected",
        {200: _DEPLOYED, 202: Answer("With `wait` false: the alias points to the version.", deploy.Linked)},
        errors=(404, 409, 504), body=deploy.DeployRequest,
    ),
    Call(
        "POST", "/api/rollback", deploy.rollback, "deploying", "rollback",
        "Repoint an alias to the version that it served before", {200: _DEPLOYED},
        errors=(404, 409, 504), body=deploy.AliasRequest, body_required=False,
    ),
    Call(
        "POST", "/api/load_model", deploy.load_model, "deploying", "load_model",
        "Load what an alias points to, also after a rejection or an unload", {200: _DEPLOYED},
        errors=(404, 409), body=deploy.AliasRequest, body_required=False,
    ),
    Call(
        "POST", "/api/unload_model", deploy.unload_model, "deploying", "unload_model",
        "Finish accepted requests, then free all memory", {200: Answer("Nothing is loaded.", deploy.Unloaded)},
        errors=(409,), body=deploy.NoFields, body_required=False,
    ),
    Call(
        "POST", "/api/verify", deploy.verify, "deploying", "verify", "Hash the serving weights in memory",
        {200: Answer("Every byte is as it was sealed.", deploy.Verified)},
        errors=(404, 409, 503), body=deploy.AliasRequest, body_required=False,
    ),
)  # fmt: skip

_OPERATIONS = (
    Call(
        "GET", "/metrics", operations.metrics, "operations", "metrics", "Get metrics for Prometheus",
        {200: Answer("Prometheus text format 0.0.4.", media_types=("text/plain",))},
    ),
    Call(
        "GET", "/openapi.json", operations.openapi, "operations", "openapi", "Get this document",
        {200: Answer("OpenAPI 3.1.", _Document)},
    ),
    Call(
        "POST", "/login", operations.login, "operations", "login", "Exchange the token for a session cookie",
        {200: Answer("The cookie is set.", operations.Success, headers=_COOKIE)}, errors=(401, 429),
        body=operations.LoginRequest, is_open=True, error_texts={429: "Too many wrong tokens came from this address."},
    ),
    Call(
        "DELETE", "/login", operations.logout, "operations", "logout", "Delete the session cookie",
        {200: Answer("The cookie is deleted.", operations.Success, headers=_COOKIE)}, is_open=True,
    ),
)  # fmt: skip

CALLS: tuple[Call, ...] = (
    *_GENERATION, *_HISTORY, _PICTURE_SETTINGS, *_OPENAI, *_A1111, *_STATUS, *_DEPLOY, *_OPERATIONS,
)  # fmt: skip
"""Every call of the API."""


def add_calls(app: web.Application, *, needs_token: bool) -> None:
    """Add the routes of all calls to an application, and the state that their handlers keep in it."""
    add_page(app)
    for call in CALLS:
        if call.method == "GET":
            app.router.add_get(call.path, call.handler, allow_head=not call.streams)
        else:
            app.router.add_route(call.method, call.path, call.handler)
    encode_document: Callable[[], bytes] = cache(partial(_encoded_document, needs_token=needs_token))
    app[operations.DOCUMENT] = encode_document
    app[CLIENTS] = Clients()
    app[BODIES] = Bodies()
    app[READERS] = asyncio.Semaphore(MAX_READERS)


def _encoded_document(*, needs_token: bool) -> bytes:
    return encoded(document(CALLS, needs_token=needs_token))
