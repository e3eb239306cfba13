"""Counting and logging of HTTP requests, and of jobs that no request waits for."""

import logging
import time

from aiohttp import web
from aiohttp.typedefs import Middleware

from zwatch.api.answers import Handler, route_of
from zwatch.api.metrics import NO_ROUTE, Metrics, method_name
from zwatch.api.refusals import HEALTH, Refusals
from zwatch.api.traces import Traces
from zwatch.generation.job import Job, jobs_of_request
from zwatch.generation.job_events import JobState
from zwatch.logs import request_id, with_fields

_log = logging.getLogger(__name__)

CLIENT_LEFT = 499
"""The status that is counted and logged for a client that disconnected before its answer, as nginx does."""
_UNLOGGED = HEALTH | {"/metrics"}
_READING = ("GET", "HEAD", "OPTIONS")


def observer(metrics: Metrics, refusals: Refusals, traces: Traces | None = None) -> Middleware:
    """Return the middleware that counts and logs each request, refusals in numbers, and traces those that generate or change
    something. It must be outside of `shape_errors`, to see statuses."""

    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        jobs: list[Job] = []
        jobs_of_request.set(jobs)
        begun = time.monotonic()
        status, streamed = CLIENT_LEFT, False
        with metrics.http_open.track_inprogress():
            try:
                response = await handler(request)
                status, streamed = response.status, response.content_type == "text/event-stream"
                return response
            except web.HTTPException as error:
                status = error.status
                raise
            finally:
                seconds = time.monotonic() - begun
                measured = not streamed and status != CLIENT_LEFT
                metrics.http_ended(route_of(request), request.method, status, seconds if measured else None)
                _log_request(request, status, seconds, jobs, refusals)
                if traces is not None and request.method not in _READING:
                    traces.request_ended(request, route_of(request) or NO_ROUTE, status, begun, jobs)

    return observe


def log_job(job: Job) -> None:
    """Log the end of a job that no client waits for; other jobs are in the log line of their request."""
    if job.attended:
        return
    token = request_id.set(job.request_id)  # another request may have ended it
    try:
        level = logging.WARNING if job.state is JobState.FAILED else logging.INFO
        _log.log(level, "%s after %.3f s", _summary(job), job.seconds or 0.0, extra=with_fields(**_facts(job)))
    finally:
        request_id.reset(token)


def _log_request(request: web.Request, status: int, seconds: float, jobs: list[Job], refusals: Refusals) -> None:
    route = route_of(request) or NO_ROUTE  # not the path: it is the client's text
    level = _level(request.method, route, status, jobs)
    if not _log.isEnabledFor(level):
        return
    method = method_name(request.method)
    facts = _facts(jobs[-1]) if jobs else {}
    fields = {"method": method, "route": route, "status": status, "seconds": round(seconds, 4), **facts}
    words = "".join(f", {_summary(job)}" for job in jobs)
    line = f"{method} {route} {status} in {seconds:.3f} s{words}"
    if 400 <= status < 500 or status == 503:
        refusals.count(f"{method} {route} {status}", line, level, **fields)
    else:
        _log.log(level, "%s", line, extra=with_fields(**fields))


def _level(method: str, route: str, status: int, jobs: list[Job]) -> int:
    """Return the log level: successful reads are for debugging only, failures are warnings."""
    if route in _UNLOGGED:
        return logging.DEBUG
    if status >= 500 or any(job.state is JobState.FAILED for job in jobs):
        return logging.WARNING
    uneventful = status < 400 or status == CLIENT_LEFT
    return logging.DEBUG if method in _READING and uneventful else logging.INFO


def _facts(job: Job) -> dict[str, object]:
    return {
        "job": job.id,
        "state": job.state.value,
        "version": None if job.key is None else job.key.version,
        "share": job.by_share,
        "code": None if job.error is None else job.error.code,
        "images": None if job.finished is None else len(job.finished.pictures),
    }


def _summary(job: Job) -> str:
    share = "" if job.by_share is None else f" ({job.by_share})"
    by = (
        f" by {job.key.version}{share}" if job.key is not None and job.state in (JobState.DONE, JobState.FAILED) else ""
    )
    why = f" ({job.error.code}: {job.error.message})" if job.error is not None else ""
    return f"{job.id} {job.state.value}{by}{why}"
