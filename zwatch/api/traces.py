"""What happened, as trees of spans: each request for images with its jobs, and each attempt from its link to its promotion.

They are made when something has ended, from the times that were noted anyway, so that nothing waits for them. Here nothing is known
of OpenTelemetry: `Exporter` makes its spans, and may come later than the first events.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary

from aiohttp import web

from zwatch.generation.job import Job
from zwatch.generation.job_events import JobState
from zwatch.logs import request_id
from zwatch.rollout.lifecycle import Attempt, AttemptState
from zwatch.timeline import Phase

_log = logging.getLogger(__name__)

MOST_PENDING = 1000
"""Trees that wait for the exporter; older ones are dropped."""
_OF_THE_ENGINE = frozenset({"encode", "denoise", "decode"})
VARIABLES = ("OTEL_TRACES_EXPORTER", "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
"""Variables of OpenTelemetry's SDKs each of which asks for traces."""

Attributes = Mapping[str, str | int | float | bool]


@dataclass(eq=False, slots=True)
class Span:
    """Some work: its begin and end in nanoseconds since 1970, what it was, and why it failed. Below a `parent`, or below the client's
    span that the `carrier`, a request's headers, names. `context` is the exporter's."""

    name: str
    begun: int
    ended: int
    attributes: Attributes = field(default_factory=dict)
    error: str | None = None
    children: "list[Span]" = field(default_factory=list)
    is_server: bool = False
    parent: "Span | None" = None
    carrier: Mapping[str, str] | None = None
    context: object = None


class Exporter(Protocol):
    """Makes spans of trees, and sends them."""

    def export(self, root: Span) -> None:
        """Make the spans of a tree; never blocks."""

    def close(self, seconds: float) -> None:
        """Send what was made, for so long at most; blocks."""


class Traces:
    """Makes a tree of what has ended, on the event loop. Until `begin`, trees wait."""

    def __init__(self) -> None:
        self._exporter: Exporter | None = None
        self._pending: deque[Span] = deque(maxlen=MOST_PENDING)
        self._requests: WeakKeyDictionary[Job, Span] = WeakKeyDictionary()
        self._links: dict[str, int] = {}
        self._began = time.time_ns()

    def begin(self, exporter: Exporter) -> None:
        """Export what has ended, and from now on what ends."""
        self._exporter = exporter
        while self._pending:
            self._emit(self._pending.popleft())

    def end(self) -> Exporter | None:
        """Export nothing more; return the exporter, to be closed."""
        exporter, self._exporter = self._exporter, None
        return exporter

    def request_ended(self, request: web.Request, route: str, status: int, begun: float, jobs: Iterable[Job]) -> None:
        """Note an HTTP request that has ended, with the jobs that it created; those that go on follow at their end. `begun` is a
        time of the monotonic clock."""
        attributes: dict[str, str | int] = {
            "http.request.method": request.method, "http.route": route, "http.response.status_code": status,
            "zwatch.request_id": request_id.get() or "",
        }  # fmt: skip
        error = f"status {status}" if status >= 500 else None
        now = time.monotonic()
        tree = Span(f"{request.method} {route}", _wall(begun), _wall(now), attributes, error, is_server=True)
        tree.carrier = request.headers
        for job in jobs:
            if job.state.is_final:
                tree.children.append(_of_job(job))
            else:
                self._requests[job] = tree
        self._emit(tree)

    def job_ended(self, job: Job) -> None:
        """Note a job that has ended; one whose request still runs is a part of that."""
        request = self._requests.pop(job, None)
        if request is not None:
            span = _of_job(job)
            span.parent = request
            self._emit(span)

    def attempt_ended(self, attempt: Attempt) -> None:
        """Note an attempt that has ended: from the moment in which its link was made, if this process saw that and tried
        nothing for this link before."""
        begun = _wall(attempt.begun)
        linked = attempt.linked_ns
        is_new = linked is not None and self._links.get(attempt.alias) != linked
        if linked is not None:
            self._links[attempt.alias] = linked
        children = []
        if linked is not None and is_new and self._began <= linked <= begun:
            children.append(Span("resolve", linked, begun))
        control = attempt.control
        if control is not None:
            children += [_of_phase(phase) for phase in control.timeline]
        rejection = attempt.rejection
        attributes: dict[str, str | int | float] = {
            "zwatch.alias": attempt.link_name, "zwatch.version": attempt.key.version, "zwatch.digest": attempt.key.digest or "",
            "zwatch.attempt.state": attempt.state.value, "zwatch.attempt.way": attempt.way.value,
            "zwatch.attempt.held_seconds": attempt.requests_waited,
            "zwatch.attempt.bytes": 0 if control is None else control.bytes_done,
        }  # fmt: skip
        if rejection is not None:
            attributes["zwatch.attempt.code"] = rejection.code
        error = rejection.reason if attempt.state is AttemptState.REJECTED and rejection is not None else None
        ended = begun + int(attempt.seconds * 1e9)
        first = min([begun, *(child.begun for child in children if child.name == "resolve")])
        self._emit(Span("deploy", first, ended, attributes, error, children))

    def _emit(self, tree: Span) -> None:
        _enclose(tree)
        if self._exporter is None:
            self._pending.append(tree)
            return
        try:
            self._exporter.export(tree)
        except Exception:
            _log.exception("a trace could not be made")


def _of_job(job: Job) -> Span:
    """Return the span of a job that has ended. A prompt is not in it."""
    attributes: dict[str, str | int | float] = {
        "zwatch.job": job.id, "zwatch.request_id": job.request_id or "", "zwatch.model": job.request.model,
        "zwatch.job.state": job.state.value, "zwatch.steps_done": job.step,
    }  # fmt: skip
    if job.key is not None:
        attributes |= {"zwatch.version": job.key.version, "zwatch.digest": job.key.digest or ""}
    if (made := job.parameters) is not None:
        attributes |= {
            "zwatch.width": made.width, "zwatch.height": made.height, "zwatch.steps": made.steps,
            "zwatch.images": len(made.seeds), "zwatch.guidance_scale": made.guidance_scale,
        }  # fmt: skip
    error = None
    if job.state is JobState.FAILED and job.error is not None:
        attributes["zwatch.code"] = job.error.code
        error = job.error.code  # not its message, which may quote a field
    span = Span("job", _wall(job.accepted), _wall(job.accepted + (job.seconds or 0.0)), attributes, error)
    of_engine = [phase for phase in job.phases if phase.name in _OF_THE_ENGINE]
    for phase in job.phases:
        if phase.name not in _OF_THE_ENGINE:
            child = _of_phase(phase)
            if phase.name == "generate":
                child.children = [
                    _of_phase(one) for one in of_engine if phase.begun <= one.begun and one.ended <= phase.ended
                ]
            span.children.append(child)
    return span


def _enclose(span: Span) -> None:
    """Let a span last at least as long as what is below it: the two clocks are not read at the same moment, and the last phase of an
    attempt ends just after the attempt."""
    for child in span.children:
        _enclose(child)
        span.begun, span.ended = min(span.begun, child.begun), max(span.ended, child.ended)


def _of_phase(phase: Phase) -> Span:
    return Span(phase.name, _wall(phase.begun), _wall(phase.ended))


def _wall(monotonic: float) -> int:
    """Return the time of the system's clock, in nanoseconds, for one of the monotonic clock, in seconds."""
    return time.time_ns() - time.monotonic_ns() + int(monotonic * 1e9)


def wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether the environment asks for traces: it names where they go, as OpenTelemetry's SDKs read it."""
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none":
        return False
    return any(environment.get(name) for name in VARIABLES)
