"""`POST /generate`: answers with the image, with JSON, or with a stream of events."""

import re
from operator import itemgetter

from aiohttp import web

from zwatch.api.answers import json_answer
from zwatch.api.client_key import native_client
from zwatch.api.compared import compared_body
from zwatch.api.native.asked import read_asked
from zwatch.api.native.client_jobs import note_client
from zwatch.api.results import disposition, finished_body, picture_name, served_headers
from zwatch.api.schema import EVENT_STREAM, JSON
from zwatch.api.services import SERVICES, Services
from zwatch.api.streams import outcome, stream_job
from zwatch.errors import RequestError
from zwatch.generation.comparison import Comparison, attending, submit_comparison
from zwatch.generation.job import Job
from zwatch.generation.job_events import Finished
from zwatch.generation.request import ImageFormat

_QUALITY = re.compile(r"(?:^|;)\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*(?:;|$)")
"""The quality in the parameters of a media type in `Accept`."""


async def generate(request: web.Request) -> web.StreamResponse:
    """Generate images, and answer in the form that `Accept` asks for."""
    services = request.app[SERVICES]
    services.queue.refuse_if_full()
    note_client(request)
    wanted, source = await read_asked(request)
    accepted = _accepted(request)
    if accepted == "image" and "format" not in wanted.model_fields_set:
        wanted = wanted.model_copy(update={"format": _image_format(request.headers.get("Accept", ""))})
    if wanted.n > 1 and accepted == "image":
        raise RequestError(
            "invalid_value", f"n is {wanted.n}, one answer is one image: send Accept: application/json", param="n"
        )
    loras = await services.queue.loras.opened(wanted.loras)
    if wanted.is_comparison:
        if accepted == "image":
            message = "model is a list, one answer is one image: send Accept: application/json"
            raise RequestError("invalid_value", message, param="model")
        comparison = submit_comparison(services.queue, wanted.by_model(), attended=True, source=source, loras=loras)
        del source  # its jobs have it as long as they need it
        return await _compare(request, services, comparison, accepted)
    [asked] = wanted.by_model()
    client = native_client(request, asked)
    job = services.queue.submit(asked, attended=True, client=client, source=source, loras=loras)
    del source  # the job has it as long as it needs it
    with services.queue.attending(job):
        if accepted == EVENT_STREAM:
            return await stream_job(request, job, lambda finished: _body(services, job, finished), services.timeout)
        finished = await outcome(job, services.timeout)
        if accepted == JSON:
            return json_answer(await _body(services, job, finished))
        headers = {**served_headers(job, finished), **disposition(picture_name(job, 0))}
        return web.Response(body=finished.pictures[0].file, content_type=wanted.format.media_type, headers=headers)


async def _compare(
    request: web.Request, services: Services, comparison: Comparison, accepted: str
) -> web.StreamResponse:
    """Answer with the images of several models."""

    async def body(finished: object) -> bytes:
        return await services.bridge.run("encode", compared_body, comparison)

    with attending(services.queue, comparison):
        if accepted == EVENT_STREAM:
            return await stream_job(request, comparison, body, services.timeout)
        return json_answer(await body(await outcome(comparison, services.timeout)))


async def _body(services: Services, job: Job, finished: Finished) -> bytes:
    return await services.bridge.run("encode", finished_body, job, finished)


def _image_format(accept: str) -> ImageFormat:
    """Return the format that an `Accept` prefers: the one with the highest quality, of several the first; PNG if it names
    none that there is."""
    formats = {image_format.media_type: image_format for image_format in ImageFormat} | {"image/jpg": ImageFormat.JPEG}
    ranked = []
    for part in accept.lower().split(","):
        media_type, _, parameters = part.partition(";")
        found = _QUALITY.search(parameters)
        quality = float(found[1]) if found is not None else 1.0
        if quality > 0 and media_type.strip() in formats:
            ranked.append((quality, formats[media_type.strip()]))
    return max(ranked, key=itemgetter(0), default=(1.0, ImageFormat.PNG))[1]


def _accepted(request: web.Request) -> str:
    """Return the form of the answer: `image` or a media type. What is named precedes a wildcard; an image precedes a stream,
    which precedes JSON.

    Raises:
        RequestError: 406, none of them is accepted.
    """
    accepted = [part.partition(";")[0].strip().lower() for part in request.headers.get("Accept", "*/*").split(",")]
    if any(part.startswith("image/") for part in accepted):
        return "image"
    if EVENT_STREAM in accepted:
        return EVENT_STREAM
    if any(part in (JSON, "application/*") for part in accepted):
        return JSON
    if any(part in ("*/*", "") for part in accepted):
        return "image"
    raise RequestError(
        "not_acceptable", f"Accept is {', '.join(accepted)[:200]!r}; there are image/*, {JSON} and {EVENT_STREAM}"
    )
