"""What OpenAI's image clients call: `/v1/images/generations` and `/v1/models`."""

from pathlib import Path
from typing import Any

from aiohttp import web

from zwatch.api.answers import answer, read_body
from zwatch.api.attending import outcome, relay
from zwatch.api.openai.answers import (
    COMPLETED,
    ERROR,
    PARTIAL,
    completed_event,
    error_event,
    images_body,
    is_due,
    model_views,
    partial_event,
)
from zwatch.api.openai.requests import in_their_words, parse_images
from zwatch.api.results import picture_url, served_headers
from zwatch.api.services import SERVICES, Services
from zwatch.api.streams import send
from zwatch.api.views import PRIMARY
from zwatch.deploy.versions import is_version_directory, opened
from zwatch.errors import RequestError
from zwatch.generation.job import Done, Failed, Finished, Job, JobEvent, Stepped
from zwatch.generation.request import parse_json, text


async def generate(request: web.Request) -> web.StreamResponse:
    """Make images, as OpenAI's images API does."""
    try:
        return await _generate(request, request.app[SERVICES])
    except RequestError as error:
        raise in_their_words(error) from None


async def models(request: web.Request) -> web.Response:
    """List the names that a request's `model` may give."""
    return answer({"object": "list", "data": list(_models(request).values())})


async def model(request: web.Request) -> web.Response:
    """Return one of those names."""
    name = request.match_info["model"]
    found = _models(request).get(name)
    if found is None:
        raise RequestError(
            404, "model_not_found", f"there is no model {name[:100]!r}, see GET /v1/models", param="model"
        )
    return answer(found)


async def _generate(request: web.Request, services: Services) -> web.StreamResponse:
    services.queue.refuse_if_full()
    body = parse_json(await read_body(request))
    wanted = parse_images(body, await _serving_name(services, body))
    job = services.queue.submit(wanted.generate, attended=True, keeps_files=wanted.urls)
    with services.queue.attending(job):
        if wanted.stream:
            return await _stream(request, services, job, wanted.partial_images)
        finished = await outcome(job, services.timeout)
        urls = _urls(request, job, finished) if wanted.urls else None
        answered = await services.bridge.run("encode", images_body, job, finished, urls, files=wanted.files)
        headers = served_headers(job, finished)
        return web.Response(body=answered, content_type="application/json", charset="utf-8", headers=headers)


async def _stream(request: web.Request, services: Services, job: Job, wanted: int) -> web.StreamResponse:
    sent = 0

    async def tell(response: web.StreamResponse, event: JobEvent) -> None:
        nonlocal sent
        match event:
            case Stepped(step, steps, bytes() as preview) if is_due(step, steps, sent, wanted):
                data = await services.bridge.run("encode", partial_event, job, sent, preview)
                sent += 1
                await send(response, PARTIAL, data)
            case Done(finished):
                await send(response, COMPLETED, await services.bridge.run("encode", completed_event, job, finished))
            case Failed(error):
                await send(response, ERROR, error_event(error))
            case _:
                pass  # their clients know no event for it

    return await relay(request, job, tell, services.timeout)


async def _serving_name(services: Services, body: dict[str, Any]) -> str:
    """Return the alias or version that a request asks for. A name that is none of ours means the model that we have:
    many clients can't be told another than `gpt-image-1`.

    Raises:
        RequestError: 400 no name, 404 a version that is there but not loaded: another one would not do instead.
    """
    if body.get("model") is None:
        return PRIMARY
    name = text(body, "model", PRIMARY)
    if name in services.supervisor.aliases or services.engines.find(name) is not None:
        return name
    if await services.bridge.run("inspect", _is_version, services.models, name):
        message = f"version {name} is not loaded; GET /v1/models lists what is, an alias that points to it loads it"
        raise RequestError(404, "model_not_found", message, param="model")
    return PRIMARY


def _is_version(models_root: Path, name: str) -> bool:
    try:
        with opened(models_root) as root:
            return is_version_directory(root, name)
    except OSError:
        return False


def _urls(request: web.Request, job: Job, finished: Finished) -> list[str]:
    """Return where the pictures can be fetched, by the name that the client itself calls us by. What a proxy says of the
    scheme can do no harm: only who asked gets to see it."""
    forwarded = request.headers.get("X-Forwarded-Proto", "").partition(",")[0].strip().lower()
    scheme = forwarded if forwarded in ("http", "https") else request.scheme
    return [
        f"{scheme}://{request.host}{picture_url(job, number, picture)}"
        for number, picture in enumerate(finished.pictures)
    ]


def _models(request: web.Request) -> dict[str, dict[str, Any]]:
    services = request.app[SERVICES]
    return model_views(services.engines, services.supervisor.aliases)


ROUTES = [
    web.post("/v1/images/generations", generate),
    web.get("/v1/models", models),
    web.get("/v1/models/{model}", model),
]
