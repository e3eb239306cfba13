"""AUTOMATIC1111's calls: as much of its web API as its clients need to make images here."""

import asyncio
import os
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from zwatch.api.a1111.checkpoints import FIELD, checkpoint_view, choice_of, loaded, model_of, short_hash, title
from zwatch.api.a1111.clients import CLIENTS, client_of
from zwatch.api.a1111.pnginfo import MAX_BODY, png_info
from zwatch.api.a1111.progress import progress_view
from zwatch.api.a1111.txt2img import (
    SAMPLER,
    checkpoint_asked,
    finished_body,
    interrupted_body,
    parse_txt2img,
    renamed,
)
from zwatch.api.answers import answer, read_body
from zwatch.api.attending import outcome
from zwatch.api.results import served_headers
from zwatch.api.services import SERVICES, Services
from zwatch.errors import RequestError
from zwatch.generation.request import parse_json, text

READERS = web.AppKey("readers", asyncio.Semaphore)
MOST_READERS = 4
"""Images that are read at a time: each may take 32 MiB, and as much again without its base64."""
_TRUE = ("1", "true", "t", "yes", "y", "on")


async def txt2img(request: web.Request) -> web.Response:
    """Make images. One that is interrupted, or cancelled as a job, is answered without images."""
    services, clients, client = request.app[SERVICES], request.app[CLIENTS], client_of(request)
    services.queue.refuse_if_full()
    body = parse_json(await read_body(request))
    named, engines = checkpoint_asked(body), services.engines
    choice = choice_of(named, engines, services.supervisor.aliases) if named else clients.model(client, engines)
    asked = parse_txt2img(body, model_of(choice))
    try:
        job = services.queue.submit(asked.request, attended=True, keeps_files=not asked.send_images)
    except RequestError as error:
        raise renamed(error) from None
    clients.own(client, job)
    with services.queue.attending(job):
        try:
            finished = await outcome(job, services.timeout)
        except RequestError as error:
            if error.code != "cancelled":
                raise
            return _json(interrupted_body(asked, job), {"X-Zwatch-Job": job.id})
        sent = await services.bridge.run("encode", finished_body, asked, job, finished)
        return _json(sent, served_headers(job, finished))


async def progress(request: web.Request) -> web.Response:
    """Say how far the client's own request is; a client that has none is told of what runs."""
    queue = request.app[SERVICES].queue
    job = request.app[CLIENTS].oldest(client_of(request)) or queue.running
    with_image = request.query.get("skip_current_image", "").lower() not in _TRUE
    if job is not None and with_image:
        job.glance()
    return answer(progress_view(job, queue.waiting + (queue.running is not None), with_image=with_image))


async def interrupt(request: web.Request) -> web.Response:
    """Interrupt what runs, if it is the client's own."""
    queue = request.app[SERVICES].queue
    if queue.running is not None and request.app[CLIENTS].owns(client_of(request), queue.running):
        queue.cancel(queue.running)
    return answer({})


async def options(request: web.Request) -> web.Response:
    """Say what the client's requests get that name no checkpoint."""
    services = request.app[SERVICES]
    resident = services.engines.find(request.app[CLIENTS].model(client_of(request), services.engines))
    return answer(
        {
            "samples_format": "png",
            FIELD: "" if resident is None else title(resident.key),
            "sd_checkpoint_hash": "" if resident is None else short_hash(resident.key),
            "sd_vae": "Automatic",
            "CLIP_stop_at_last_layers": 1,
        }
    )


async def set_options(request: web.Request) -> web.Response:
    """Remember the client's checkpoint, for its own later requests. There are no other options to set."""
    services = request.app[SERVICES]
    body = parse_json(await read_body(request))
    if body.get(FIELD) is not None:
        name = text(body, FIELD, "")
        request.app[CLIENTS].choose(client_of(request), name, services.engines, services.supervisor.aliases)
    return answer(None)


async def checkpoints(request: web.Request) -> web.Response:
    """List the loaded versions, that which serves first."""
    return answer([checkpoint_view(resident) for resident in loaded(request.app[SERVICES].engines)])


async def info(request: web.Request) -> web.Response:
    """Say what an image was made from."""
    services = request.app[SERVICES]
    # What is compressed unfolds on the event loop: no more of it than elsewhere. Images are compressed in themselves.
    is_plain = "Content-Encoding" not in request.headers
    async with request.app[READERS]:
        raw = await read_body(request.clone(client_max_size=MAX_BODY) if is_plain else request)
        return answer(await services.bridge.run("encode", png_info, raw))


async def memory(request: web.Request) -> web.Response:
    """Say how much memory there is, in bytes."""
    return answer(await request.app[SERVICES].bridge.run("inspect", _memory, request.app[SERVICES]))


def _memory(services: Services) -> dict[str, Any]:
    page = os.sysconf("SC_PAGE_SIZE")
    total, used = os.sysconf("SC_PHYS_PAGES") * page, int(Path("/proc/self/statm").read_text().split()[1]) * page
    device = None if services.supervisor.factory is None else services.supervisor.factory.device
    cuda: dict[str, Any] = {"error": "unavailable"}
    if device is not None and device.torch_device.type == "cuda":
        free, all_of_it = device.memory()
        cuda = {"system": {"free": free, "used": all_of_it - free, "total": all_of_it}}
    return {"ram": {"free": total - used, "used": used, "total": total}, "cuda": cuda}


def _json(body: bytes, headers: dict[str, str]) -> web.Response:
    return web.Response(body=body, headers=headers, content_type="application/json", charset="utf-8")


def _fixed(*entries: dict[str, Any]) -> Handler:
    """Return the handler of a list that never changes."""

    async def listing(request: web.Request) -> web.Response:
        return answer(list(entries))

    return listing


_SAMPLERS = _fixed({"name": SAMPLER, "aliases": ["k_euler"], "options": {}})
_SCHEDULERS = _fixed(
    {"name": "automatic", "label": "Automatic", "aliases": None, "default_rho": -1.0, "need_inner_model": False}
)
_UPSCALERS = _fixed({"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 4.0})
_NONE = _fixed()

ROUTES = [
    web.post("/sdapi/v1/txt2img", txt2img),
    web.get("/sdapi/v1/progress", progress),
    web.post("/sdapi/v1/interrupt", interrupt),
    web.get("/sdapi/v1/options", options),
    web.post("/sdapi/v1/options", set_options),
    web.get("/sdapi/v1/sd-models", checkpoints),
    web.post("/sdapi/v1/png-info", info),
    web.get("/sdapi/v1/memory", memory),
    web.get("/sdapi/v1/samplers", _SAMPLERS),
    web.get("/sdapi/v1/schedulers", _SCHEDULERS),
    web.get("/sdapi/v1/upscalers", _UPSCALERS),
    web.get("/sdapi/v1/latent-upscale-modes", _NONE),
    web.get("/sdapi/v1/sd-vae", _NONE),
    web.get("/sdapi/v1/loras", _NONE),
]
