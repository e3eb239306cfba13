"""The calls of OpenAI's image clients: `/v1/images/generations`, `/v1/images/edits` and `/v1/models`."""

from collections.abc import Callable
from functools import partial

from aiohttp import web

from zwatch.api.answers import answer, json_answer, scheme_of
from zwatch.api.bodies import read_request
from zwatch.api.client_key import client_key
from zwatch.api.native.client_jobs import note_client
from zwatch.api.openai.answers import (
    ERROR,
    OF_EDIT,
    OF_GENERATION,
    EventNames,
    Model,
    Models,
    completed_event,
    error_event,
    images_body,
    is_due,
    model_views,
    partial_event,
)
from zwatch.api.openai.edits import edit_of, read_edit
from zwatch.api.openai.requests import Images, ImagesRequest, images_of, with_client_names
from zwatch.api.pictured import read_pictured
from zwatch.api.results import picture_url, served_headers
from zwatch.api.services import SERVICES, Services
from zwatch.api.streams import outcome, relay, send
from zwatch.deploy.look import has_version, without_root
from zwatch.deploy.shares import alias_meant
from zwatch.errors import RequestError
from zwatch.generation.job import Job
from zwatch.generation.job_events import Done, Failed, Finished, JobEvent, Stepped
from zwatch.generation.request import PRIMARY
from zwatch.generation.sources import Source


async def generate(request: web.Request) -> web.StreamResponse:
    """Generate images, as OpenAI's images API does."""
    try:
        return await _generate(request, request.app[SERVICES])
    except RequestError as error:
        raise with_client_names(error) from None


async def edit(request: web.Request) -> web.StreamResponse:
    """Edit a picture, or what a mask shows of it, as OpenAI's images API does."""
    try:
        return await _edit(request, request.app[SERVICES])
    except RequestError as error:
        raise with_client_names(error) from None


async def models(request: web.Request) -> web.Response:
    """List the valid names for a request's `model`."""
    body: Models = {"object": "list", "data": list(_models(request).values())}
    return answer(body)


async def model(request: web.Request) -> web.Response:
    """Return one model."""
    name = request.match_info["model"]
    found = _models(request).get(name)
    if found is None:
        raise RequestError("model_not_found", f"there is no model {name[:100]!r}, see GET /v1/models", param="model")
    return answer(found)


async def _generate(request: web.Request, services: Services) -> web.StreamResponse:
    services.queue.refuse_if_full()
    note_client(request)
    asked = await read_request(request, ImagesRequest)
    return await _answer(request, services, asked, partial(images_of, asked), OF_GENERATION)


async def _edit(request: web.Request, services: Services) -> web.StreamResponse:
    services.queue.refuse_if_full()
    note_client(request)
    found = await read_pictured(request, read_edit, "image")
    return await _answer(request, services, found.asked, partial(edit_of, found), OF_EDIT, found.source)


async def _answer(
    request: web.Request,
    services: Services,
    asked: ImagesRequest,
    wanted_of: Callable[[str], Images],
    names: EventNames,
    source: Source | None = None,
) -> web.StreamResponse:
    """Answer with the images of a request; `wanted_of` returns the native one for the name of a model."""
    model = await _serving_name(services, asked.model)
    client = client_key(request, model, user=asked.user, is_named=asked.model == model)
    wanted = wanted_of(model)
    loras = await services.queue.loras.opened(wanted.generate.loras)
    job = services.queue.submit(
        wanted.generate, attended=True, keeps_files=wanted.urls, client=client, source=source, loras=loras
    )
    with services.queue.attending(job):
        if wanted.stream:
            return await _stream(request, services, job, wanted.partial_images, names)
        finished = await outcome(job, services.timeout)
        urls = _urls(request, job, finished) if wanted.urls else None
        answered = await services.bridge.run("encode", images_body, job, finished, urls, files=wanted.files)
        return json_answer(answered, served_headers(job, finished))


async def _stream(
    request: web.Request, services: Services, job: Job, wanted: int, names: EventNames
) -> web.StreamResponse:
    sent = 0

    async def send_event(response: web.StreamResponse, event: JobEvent) -> None:
        nonlocal sent
        match event:
            case Stepped(step, steps, bytes() as preview) if is_due(step, steps, sent, wanted):
                data = await services.bridge.run("encode", partial_event, job, sent, preview, names)
                sent += 1
                await send(response, names.partial, data)
            case Done(finished):
                data = await services.bridge.run("encode", completed_event, job, finished, names)
                await send(response, names.completed, data)
            case Failed(error):
                await send(response, ERROR, error_event(error))
            case _:
                pass  # OpenAI's API has no such event

    return await relay(request, job, send_event, services.timeout)


async def _serving_name(services: Services, name: str) -> str:
    """Return the alias, share or version that serves a request for `name`. A share that is not there has its own name: it is
    refused. Any other unknown name stands for `current`: many clients have
    a fixed one, such as `gpt-image-1`.

    Raises:
        RequestError: 404, the version exists but is not loaded; no other version is served in its place.
    """
    if name in services.supervisor.traffic or services.engines.find(name) is not None:
        return name
    if alias_meant(name) in services.supervisor.aliases:
        return name
    try:
        is_there = await services.bridge.run("inspect", has_version, services.models, name)
    except OSError as error:
        if without_root(services.models, error):
            return PRIMARY  # what serves keeps serving
        raise RequestError(
            "model_not_found", f"{name} could not be looked at: {error.strerror}", param="model"
        ) from None
    if is_there:
        message = f"version {name} is not loaded; GET /v1/models lists what is, an alias that points to it loads it"
        raise RequestError("model_not_found", message, param="model")
    return PRIMARY


def _urls(request: web.Request, job: Job, finished: Finished) -> list[str]:
    """Return the pictures' absolute URLs, with the scheme and host that the client used."""
    scheme = scheme_of(request)
    return [
        f"{scheme}://{request.host}{picture_url(job, number, picture)}"
        for number, picture in enumerate(finished.pictures)
    ]


def _models(request: web.Request) -> dict[str, Model]:
    services = request.app[SERVICES]
    return model_views(services.supervisor, services.engines)
