"""AUTOMATIC1111's calls: the part of its web API that its clients need to generate images."""

import base64
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

from aiohttp import web
from pydantic import Field
from typing_extensions import TypedDict

from zwatch.api.a1111.changing import read_img2img, wanted_changes
from zwatch.api.a1111.checkpoints import checkpoint_views, choice_of, model_of, short_hash, title
from zwatch.api.a1111.clients import CLIENTS, client_of
from zwatch.api.a1111.pnginfo import png_info
from zwatch.api.a1111.txt2img import (
    SdOptionsRequest,
    Txt2Img,
    Txt2ImgRequest,
    checkpoint_asked,
    finished_body,
    interrupted_body,
    renamed,
    wanted_images,
)
from zwatch.api.answers import answer, json_answer
from zwatch.api.bodies import fields_of, read_body, read_request, received_image
from zwatch.api.client_key import client_key
from zwatch.api.pictured import read_pictured
from zwatch.api.results import served_headers
from zwatch.api.schema import Base64, ByteCount, Fraction, Number, Seconds
from zwatch.api.services import SERVICES, Services
from zwatch.api.streams import outcome
from zwatch.errors import RequestError
from zwatch.generation.fields import validated
from zwatch.generation.job import Job
from zwatch.generation.request import MAX_IMAGES, USUAL_SIDE
from zwatch.generation.sources import Source

_STATM = Path("/proc/self/statm")
_MIN_PROGRESS = 0.01
"""Progress of a job that has not begun: 0 means idle to AUTOMATIC1111's clients."""
_TRUE = ("1", "true", "t", "yes", "y", "on")


class SdState(TypedDict):
    """The state of a client's job: `job` is its id (empty if there is none), `job_count` how many jobs of the client run or
    wait."""

    skipped: bool
    interrupted: bool
    stopping_generation: bool
    job: str
    job_count: Number
    job_timestamp: Annotated[str, Field(pattern="^[0-9]+$")]
    job_no: Number
    sampling_step: Number
    sampling_steps: Number


class SdProgress(TypedDict):
    """The progress of a job; `current_image` is the latest preview, a JPEG file."""

    progress: Fraction
    eta_relative: Seconds
    state: SdState
    current_image: Base64 | None
    textinfo: str | None


class SdOptions(TypedDict):
    """The client's own options; the checkpoint's hash is empty while nothing serves."""

    samples_format: str
    sd_model_checkpoint: str
    sd_checkpoint_hash: str
    sd_vae: str
    CLIP_stop_at_last_layers: int


class MemoryView(TypedDict):
    """Memory in bytes."""

    free: ByteCount
    used: ByteCount
    total: ByteCount


class HostMemory(TypedDict, total=False):
    """The host's memory in bytes, or why it is unknown."""

    free: ByteCount
    used: ByteCount
    total: ByteCount
    error: str


class CudaMemory(TypedDict, total=False):
    """The GPU's memory, or why it is unknown."""

    system: MemoryView
    error: str


class SdMemory(TypedDict):
    """The host's and the GPU's memory."""

    ram: HostMemory
    cuda: CudaMemory


async def txt2img(request: web.Request) -> web.Response:
    """Generate images. A request that is interrupted, or cancelled as a job, is answered without images."""
    services = request.app[SERVICES]
    services.queue.refuse_if_full()
    asked = await read_request(request, Txt2ImgRequest)
    return await _draw(request, services, asked, partial(wanted_images, asked))


async def img2img(request: web.Request) -> web.Response:
    """Change a picture, or what a mask shows of it; answered as `txt2img`."""
    services = request.app[SERVICES]
    services.queue.refuse_if_full()
    found = await read_pictured(request, read_img2img, "init_images")
    return await _draw(request, services, found.asked, partial(wanted_changes, found), found.source)


async def _draw(
    request: web.Request,
    services: Services,
    asked: Txt2ImgRequest,
    wanted_of: Callable[[str], Txt2Img],
    source: Source | None = None,
) -> web.Response:
    """Answer with the images of a request; `wanted_of` returns the native one for the name of a model."""
    clients, client, engines = request.app[CLIENTS], client_of(request), services.engines
    traffic = services.supervisor.traffic
    named = checkpoint_asked(asked)
    choice = choice_of(named, engines, traffic) if named else clients.model(client, engines, services.supervisor.names)
    wanted = wanted_of(model_of(choice))
    key = client_key(request, wanted.request.model, is_named=bool(named))
    try:
        loras = await services.queue.loras.opened(wanted.request.loras)
        job = services.queue.submit(
            wanted.request, attended=True, keeps_files=not wanted.send_images, client=key, source=source, loras=loras
        )
    except RequestError as error:
        raise renamed(error) from None
    clients.own(client, job)
    expected = traffic.find(wanted.request.model, key)  # None while it is loaded
    version, size = (None, USUAL_SIDE) if expected is None else (expected.key, expected.engine.default_size)
    del expected  # its memory may be freed while this waits
    with services.queue.attending(job):
        try:
            finished = await outcome(job, services.timeout)
        except RequestError as error:
            if error.code != "cancelled":
                raise renamed(error) from None
            version = version if job.lease is None else job.lease.key
            return json_answer(interrupted_body(wanted, job, version, size), {"X-Zwatch-Job": job.id})
        sent = await services.bridge.run("encode", finished_body, wanted, job, finished)
        return json_answer(sent, served_headers(job, finished))


async def progress(request: web.Request) -> web.Response:
    """Return the progress of the client's own requests.

    Not of other clients': programs wait until nothing runs before they choose a checkpoint or send a request.
    """
    own = request.app[CLIENTS].active(client_of(request))
    job = own[0] if own else None
    with_image = request.query.get("skip_current_image", "").lower() not in _TRUE
    if job is not None and with_image:
        job.note_poll()
    return answer(progress_view(job, len(own), with_image=with_image))


async def interrupt(request: web.Request) -> web.Response:
    """Interrupt the running request, if it is the client's own."""
    _interrupt(request)
    return answer({})


async def skip(request: web.Request) -> web.Response:
    """Skip the running request, if it is the client's own and of one image: a part of a batch cannot be skipped."""
    _interrupt(request, most=1)
    return answer(None)


def _interrupt(request: web.Request, most: int = MAX_IMAGES) -> None:
    queue = request.app[SERVICES].queue
    for job in queue.turns.jobs:
        if job.request.n <= most and request.app[CLIENTS].owns(client_of(request), job):
            queue.cancel(job)


async def options(request: web.Request) -> web.Response:
    """Return the client's own options, with the checkpoint for its requests that name none: `current` if it follows that."""
    services = request.app[SERVICES]
    traffic = services.supervisor.traffic
    model = request.app[CLIENTS].model(client_of(request), services.engines, services.supervisor.names)
    resident, is_alias = traffic.find(model), model in traffic
    body: SdOptions = {
        "samples_format": "png",
        "sd_model_checkpoint": model if is_alias or resident is None else title(resident.key),
        "sd_checkpoint_hash": "" if resident is None else short_hash(resident.key),
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
    }
    return answer(body)


async def set_options(request: web.Request) -> web.Response:
    """Set the checkpoint for the client's own later requests. Other options are ignored."""
    services = request.app[SERVICES]
    body = fields_of(request.headers.get("Content-Type", ""), await read_body(request), SdOptionsRequest)
    name = validated(SdOptionsRequest, body).sd_model_checkpoint
    if name is not None:
        clients, aliases = request.app[CLIENTS], services.supervisor.traffic
        clients.choose(client_of(request), name, services.engines, aliases, among_others=len(body) > 1)
    return answer(None)


async def checkpoints(request: web.Request) -> web.Response:
    """List `current` and the other aliases, then the loaded versions, of which the one that `current` serves is first."""
    services = request.app[SERVICES]
    return answer(checkpoint_views(services.supervisor, services.engines))


async def info(request: web.Request) -> web.Response:
    """Return the parameters of an image."""
    services = request.app[SERVICES]
    async with received_image(request) as raw:
        return answer(await services.bridge.run("encode", png_info, request.headers.get("Content-Type", ""), raw))


async def memory(request: web.Request) -> web.Response:
    """Return the amounts of memory, in bytes."""
    services = request.app[SERVICES]
    factory = services.supervisor.factory
    is_gpu = factory is not None and factory.device.torch_device.type == "cuda"
    cuda: CudaMemory = {"error": "unavailable"}
    if is_gpu and (found := await services.device_memory()) is not None:
        free, total = found
        cuda = {"system": {"free": free, "used": total - free, "total": total}}
    try:
        ram = await services.bridge.run("memory", _host_memory)
    except (OSError, ValueError, LookupError) as error:  # no descriptors, or no such /proc; as AUTOMATIC1111 answers
        ram = {"error": f"unavailable: {error}"}
    body: SdMemory = {"ram": ram, "cuda": cuda}
    return answer(body)


def progress_view(job: Job | None, count: int, *, with_image: bool) -> SdProgress:
    """Return the progress of a job, while `count` jobs run or wait; without a job, AUTOMATIC1111's idle state."""
    image = job.preview if job is not None and with_image else None
    return {
        "progress": 0.0 if job is None else max(_MIN_PROGRESS, job.step / job.steps),
        "eta_relative": 0.0 if job is None else round(job.remaining or 0.0, 3),
        "state": {
            "skipped": False,
            "interrupted": job is not None and job.is_cancelled,
            "stopping_generation": False,
            "job": "" if job is None else job.id,
            "job_count": 0 if job is None else max(1, count),
            "job_timestamp": "0" if job is None else f"{job.created:%Y%m%d%H%M%S}",
            "job_no": 0,
            "sampling_step": 0 if job is None else job.step,
            "sampling_steps": 0 if job is None else job.steps,
        },
        "current_image": None if image is None else base64.b64encode(image).decode(),
        "textinfo": None,
    }


def _host_memory() -> HostMemory:
    """Read how much memory the host has, and how much of it this process uses. To be called in a thread.

    Raises:
        OSError, ValueError, LookupError: it cannot be read, or is not as Linux writes it.
    """
    page = os.sysconf("SC_PAGE_SIZE")
    total, used = os.sysconf("SC_PHYS_PAGES") * page, int(_STATM.read_text().split()[1]) * page
    return {"free": total - used, "used": used, "total": total}
