"""The one table of calls: the router and the OpenAPI document are both made from it."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import Annotated, Any

from aiohttp import web
from pydantic import Field, WithJsonSchema

from zwatch.api.a1111 import table as a1111
from zwatch.api.a1111.clients import CLIENTS, Clients
from zwatch.api.answers import encoded
from zwatch.api.bodies import BODIES, IMAGE_TOO_LONG, MAX_READERS, READERS, Bodies
from zwatch.api.compared import Compared, ComparisonView
from zwatch.api.lora_views import LorasView
from zwatch.api.native import client_jobs, deploy, generate, history, jobs, loras, operations, share, status, trial
from zwatch.api.openai import answers as openai_answers
from zwatch.api.openai import calls as openai
from zwatch.api.openai.edits import EditsRequest
from zwatch.api.openai.requests import ImagesRequest
from zwatch.api.openapi import document
from zwatch.api.page import add_page
from zwatch.api.pieces import SHARED, SharedBytes
from zwatch.api.results import Accepted, Generated, JobView
from zwatch.api.schema import EVENT_STREAM, IMAGE_HEADERS, Answer, Call, Parameter
from zwatch.api.views import StatusView
from zwatch.generation.image_order import NAME
from zwatch.generation.kept_image import HistoryPage
from zwatch.generation.picture_settings import PictureSettings
from zwatch.generation.request import PRIMARY, SEEDS, ComparableRequest, ImageFormat
from zwatch.generation.thumbnails import SIDE

_IMAGES = tuple(image_format.media_type for image_format in ImageFormat)
_FILE_NAME = {"Content-Disposition": "With an image: the name of its file."}
_NAME = Parameter("name", "The name of the picture.", example="20261121_142231_seed42.png")
_JOB = Parameter("id", "The id of the job.", example="j-0123456789abcdef")
_EVENTS = {200: Answer("Server-sent events.", media_types=(EVENT_STREAM,))}
_JOB_ANSWER = Answer("The job, or the comparison.", JobView | ComparisonView)
_JOB_CALLS = {"job": "id", "job_events": "id", "cancel_job": "id"}
_COOKIE = {"Set-Cookie": "The session cookie, if the service has a token."}
_DEPLOYED = Answer("The version serves.", deploy.Deployed)
_Limit = Annotated[int, Field(ge=1, le=history.MAX_LIMIT)]
_Offset = Annotated[int, Field(ge=0, le=history.MAX_OFFSET)]
_Before = Annotated[str, Field(pattern=f"^{NAME}$")]
_Text = Annotated[str, Field(max_length=history.MAX_QUERY)]
_Seed = Annotated[int, Field(ge=0, lt=SEEDS)]
_Document = Annotated[dict[str, Any], WithJsonSchema({"type": "object"})]

_GENERATION = (
    Call(
        "POST", "/generate", generate.generate, "images", "generate", "Generate images",
        {
            200: Answer(
                "In the form that `Accept` asks for: the image, JSON, or a stream of events.",
                Generated | Compared, (*_IMAGES, EVENT_STREAM), {**IMAGE_HEADERS, **_FILE_NAME},
            )
        },
        errors=(404, 406, 409, 429, 503, 504), body=ComparableRequest, parameters=(client_jobs.IN_HEADER,),
    ),
    Call(
        "POST", "/jobs", jobs.submit, "images", "submit_job", "Generate images without waiting for them",
        {202: Answer("The job is queued.", Accepted, headers={"Location": "The path of the job."}, links=_JOB_CALLS)},
        errors=(404, 429, 503), body=ComparableRequest, parameters=(client_jobs.IN_HEADER,),
    ),
    Call(
        "GET", "/jobs", client_jobs.list_jobs, "images", "jobs", "List a client's jobs, oldest first",
        {200: Answer("The jobs that are kept: those that wait and run, and those that ended within the last hour.", client_jobs.ClientJobsView)},
        errors=(400,), parameters=(replace(client_jobs.IN_QUERY, required=True),),
    ),
    Call(
        "GET", "/jobs/{id}", jobs.show, "images", "job", "Get a job's state and result", {200: _JOB_ANSWER},
        errors=(404,), parameters=(_JOB,),
    ),
    Call(
        "DELETE", "/jobs/{id}", jobs.cancel, "images", "cancel_job", "Cancel a job; a finished one stays as it is",
        {200: _JOB_ANSWER}, errors=(404,), parameters=(_JOB,),
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
            Parameter("offset", "How many of the newest of these are left out.", _Offset, 0),
            Parameter(
                "q", "Words: only pictures whose prompt contains all of them, as words or parts of words, are listed.", _Text,
            ),
            Parameter("version", "The name of a version: only its pictures are listed.", _Text),
            Parameter("seed", "Only pictures of this seed are listed.", _Seed),
            replace(client_jobs.IN_HEADER, rule=str, description="The client's name: `mine` of the votes is its own."),
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
        "POST", "/history/{name}/vote", history.vote, "history", "vote", "Vote for or against a picture, or take a vote back",
        {200: Answer("The votes on the picture.", history.Voted)}, errors=(404,), body=history.VoteRequest,
        parameters=(_NAME, client_jobs.IN_HEADER),
    ),
    Call(
        "DELETE", "/history/{name}", history.delete, "history", "delete_picture", "Delete a picture",
        {200: Answer("The picture is deleted.", history.Deleted)}, errors=(404,), parameters=(_NAME,),
    ),
)  # fmt: skip

_PICTURE_SETTINGS = Call(
    "POST", "/api/picture_settings", history.picture_settings, "history", "picture_settings",
    "Get the settings in an image file of zwatch, AUTOMATIC1111 or ComfyUI",
    {200: Answer("The settings that were found and are valid.", PictureSettings)}, takes_file=True, error_texts=IMAGE_TOO_LONG,
)  # fmt: skip

_OPENAI = (
    Call(
        "POST", "/v1/images/generations", openai.generate, "openai", "openai_images",
        f"Generate images; the events of a stream are `{openai_answers.OF_GENERATION.partial}`, and "
        f"`{openai_answers.OF_GENERATION.completed}` or "
        f"`{openai_answers.ERROR}`",
        {200: Answer("The images, or with `stream` a stream of events.", openai_answers.ImagesAnswer, (EVENT_STREAM,), IMAGE_HEADERS)},
        errors=(404, 409, 429, 503, 504), body=ImagesRequest, parameters=(client_jobs.IN_HEADER,),
    ),
    Call(
        "POST", "/v1/images/edits", openai.edit, "openai", "openai_edits",
        f"Edit a picture; the events of a stream are `{openai_answers.OF_EDIT.partial}`, and "
        f"`{openai_answers.OF_EDIT.completed}` or `{openai_answers.ERROR}`",
        {200: Answer("The images, or with `stream` a stream of events.", openai_answers.ImagesAnswer, (EVENT_STREAM,), IMAGE_HEADERS)},
        errors=(404, 409, 429, 503, 504), body=EditsRequest, parameters=(client_jobs.IN_HEADER,), error_texts=IMAGE_TOO_LONG,
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

_STATUS = (
    Call("GET", "/status", status.status, "status", "status", "Get the whole state of the service", {200: Answer("The status.", StatusView)}),
    Call(
        "GET", "/attempts", status.attempts, "status", "attempts", "List the last attempts, newest first",
        {200: Answer("At most 100 attempts.", status.Attempts)},
    ),
    Call("GET", "/versions", status.versions, "status", "versions", "List the version directories", {200: Answer("The list.", status.Versions)}, errors=(504,)),
    Call(
        "GET", "/loras", loras.list_loras, "status", "loras", "List the LoRAs that requests can name",
        {200: Answer("The LoRAs, and what else lies in the LoRA root and seems to be meant as one.", LorasView)},
    ),
    Call(
        "GET", "/events", status.events, "status", "events",
        "Stream changes of the state: `status` first, then `serving`, `attempt`, `alias`, `queue`, `loras`, `history`; with `client` also its "
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
        "POST", "/api/share", share.share, "deploying", "share",
        "Try a version on a part of an alias's requests, and wait until it is ready or is rejected; or end the trial",
        {
            200: Answer("The version is ready, or the trial has ended.", share.Shared),
            202: Answer("With `wait` false: the share points to the version.", share.ShareLinked),
        },
        errors=(404, 409, 504), body=share.ShareRequest,
    ),
    Call(
        "POST", "/api/promote", share.promote, "deploying", "promote",
        "Make the version of an alias's share the alias's, by one rename, and wait until it serves",
        {200: _DEPLOYED, 202: Answer("With `wait` false: the alias points to the version.", share.Promoting)},
        errors=(404, 409, 504), body=share.PromoteRequest, body_required=False,
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

_TRIAL = Call(
    "GET", "/api/trial", trial.trial, "deploying", "trial", "Get what a trial has shown so far: requests, failures, latency and votes of both sides",
    {200: Answer("The trial that goes on, else the last one.", trial.TrialView)}, errors=(404,),
    parameters=(Parameter("alias", "The alias.", default=PRIMARY),),
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
    *_GENERATION,
    *_HISTORY,
    _PICTURE_SETTINGS,
    *_OPENAI,
    *a1111.CALLS,
    *_STATUS,
    *_DEPLOY,
    _TRIAL,
    *_OPERATIONS,
)
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
    app[SHARED] = SharedBytes()
    app[READERS] = asyncio.Semaphore(MAX_READERS)


def _encoded_document(*, needs_token: bool) -> bytes:
    return encoded(document(CALLS, needs_token=needs_token))
