"""Jobs: requests that run independently of the client's connection."""

from aiohttp import web

from zwatch.api.answers import answer, encoded
from zwatch.api.client_key import native_client
from zwatch.api.compared import ComparisonView, comparison_view
from zwatch.api.native.asked import read_asked
from zwatch.api.native.client_jobs import note_client
from zwatch.api.results import Accepted, JobView, disposition, job_view, picture_name
from zwatch.api.services import SERVICES
from zwatch.api.streams import LAST_EVENT, stream_job
from zwatch.errors import RequestError
from zwatch.generation.comparison import Comparison, found, submit_comparison
from zwatch.generation.job import Job
from zwatch.generation.job_events import Finished


async def submit(request: web.Request) -> web.Response:
    """Accept a job, and answer with its URL."""
    queue = request.app[SERVICES].queue
    queue.refuse_if_full()
    note_client(request)
    wanted, source = await read_asked(request)
    loras = await queue.loras.opened(wanted.loras)
    job: Job | Comparison
    if wanted.is_comparison:
        job = submit_comparison(queue, wanted.by_model(), attended=False, keeps_files=True, source=source, loras=loras)
    else:
        [asked] = wanted.by_model()
        client = native_client(request, asked)
        job = queue.submit(asked, attended=False, keeps_files=True, client=client, source=source, loras=loras)
    body: Accepted = {"id": job.id, "state": job.state.value, "position": job.position}
    if isinstance(job, Comparison):
        body["jobs"] = [one.id for one in job.jobs]
    if source is not None:
        body["control" if source.guides else "source"] = source.digest
    return answer(body, 202, {"Location": f"/jobs/{job.id}"})


async def show(request: web.Request) -> web.Response:
    """Return a job's state, or that of a comparison."""
    job = _found(request)
    job.note_poll()
    return answer(_view(job))


async def events(request: web.Request) -> web.StreamResponse:
    """Stream a job's events, from its present state on. A client that disconnects does not cancel the job. One that connects
    again after the last event gets 204, which tells `EventSource` to stop."""
    job = _found(request)
    if request.headers.get("Last-Event-ID") == LAST_EVENT:
        return web.Response(status=204)

    async def body(finished: Finished) -> bytes:
        return encoded(_view(job))

    return await stream_job(request, job, body, None)


async def cancel(request: web.Request) -> web.Response:
    """Cancel a job; one that has ended stays as it is."""
    job = _found(request)
    for one in job.jobs if isinstance(job, Comparison) else (job,):
        request.app[SERVICES].queue.cancel(one)
    return answer(_view(job))


async def image(request: web.Request) -> web.Response:
    """Return a picture that the job keeps, because the history is off or could not store it."""
    job = request.app[SERVICES].queue.jobs.find(request.match_info["id"])
    text = request.match_info["number"]
    pictures = job.pictures
    file = pictures[int(text)].file if text.isdecimal() and len(text) < 4 and int(text) < len(pictures) else None
    if file is None or not job.keeps_files:
        raise RequestError("not_found", f"job {job.id} keeps no picture {text[:20]!r}, or not any more")
    headers = disposition(picture_name(job, int(text)))
    return web.Response(body=file, content_type=job.request.format.media_type, headers=headers)


def _found(request: web.Request) -> Job | Comparison:
    return found(request.app[SERVICES].queue.jobs, request.match_info["id"])


def _view(job: Job | Comparison) -> JobView | ComparisonView:
    return comparison_view(job) if isinstance(job, Comparison) else job_view(job)
