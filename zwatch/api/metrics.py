"""Metrics for Prometheus: counters and histograms of events. `gauges` has what is read from the state.

No label grows without bound: version names are labels only of resident engines and of the few versions that drew last.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.process_collector import ProcessCollector

from zwatch import __version__
from zwatch.api.refusals import Refusals
from zwatch.api.version_metrics import VersionMetrics
from zwatch.errors import REJECTION_CODES, REQUEST_ERRORS, RequestError
from zwatch.generation.job import Job
from zwatch.generation.job_events import JobState
from zwatch.rollout.lifecycle import Attempt, AttemptState, LoadWay
from zwatch.rollout.trials import FaultKind, Suspicion

_PHASES = ("queue", "encode", "denoise", "decode", "write")
_OUTCOMES = ("ok", *(code for code, kind in REQUEST_ERRORS.items() if kind.is_outcome))
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_GENERATION_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
_HTTP_BUCKETS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_ATTEMPT_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
NO_ROUTE = "none"
"""The label `route` of a request that no route matches."""


class Metrics:
    """All counters and histograms of one service. Any thread may scrape `registry`; `present` has the gauges, which only the
    event loop may read."""

    # Long: one entry for each metric.
    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # they would double the number of series
        self.registry = registry = CollectorRegistry()
        self.present = CollectorRegistry()
        self.is_watching = True
        """Whether changes of the models root are reported by the system, as known a second ago."""
        self.refusals = Refusals()
        self.device_memory: tuple[int, int] | None = None
        """(free, total) bytes, as read for the last scrape."""
        ProcessCollector(namespace="zwatch", registry=registry)
        build = Gauge(
            "zwatch_build_info", "Always 1; the label is the version of zwatch.", ["version"], registry=registry
        )
        build.labels(__version__).set(1)

        self._requests = Counter(
            "zwatch_requests_total",
            "Requests for images, over all APIs, by outcome: ok, cancelled, or the code of the error.",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self.by_version = VersionMetrics()
        self._redrawn = Counter(
            "zwatch_requests_redrawn_total",
            "Requests that another version drew, or was to draw, because the one on trial failed, by fault.",
            ["fault"], registry=registry,
        )  # fmt: skip
        self._images = Counter("zwatch_images_total", "Images made and answered.", registry=registry)
        self._seconds = Histogram(
            "zwatch_request_duration_seconds", "Time from acceptance to the finished images, of successful requests.",
            buckets=_GENERATION_BUCKETS, registry=registry,
        )  # fmt: skip
        self._phases = Histogram(
            "zwatch_request_phase_seconds",
            "Phases of requests: queue (waiting), encode (the prompt), denoise, decode (the VAE), write (file and history).",
            ["phase"], buckets=_GENERATION_BUCKETS, registry=registry,
        )  # fmt: skip
        self._truncated = Counter(
            "zwatch_truncated_prompts_total", "Prompts that were cut to the text encoder's limit.", registry=registry
        )

        self._lora_uses = Counter(
            "zwatch_lora_uses_total", "LoRAs that successful requests were drawn with, each once a request.", registry=registry
        )  # fmt: skip
        self._lora_seconds = Histogram(
            "zwatch_lora_load_seconds", "Time to read and verify a LoRA that was not resident.",
            buckets=_ATTEMPT_BUCKETS, registry=registry,
        )  # fmt: skip

        self._attempts = Counter(
            "zwatch_attempts_total",
            "Attempts to bring a version into service, by outcome: promoted, abandoned, or the code of the rejection.",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self._promotions = Counter(
            "zwatch_promotions_total",
            "Successful attempts by way: device (loaded beside the old version), resident (already loaded), host (exchanged).",
            ["way"], registry=registry,
        )  # fmt: skip
        self._attempt_seconds = Histogram(
            "zwatch_attempt_duration_seconds", "Duration of attempts, whatever their outcome.",
            buckets=_ATTEMPT_BUCKETS, registry=registry,
        )  # fmt: skip
        self._attempt_phases = Histogram(
            "zwatch_attempt_phase_seconds", "Duration of the phases of attempts that loaded.",
            ["phase"], buckets=_ATTEMPT_BUCKETS, registry=registry,
        )  # fmt: skip
        self._attempt_bytes = Counter(
            "zwatch_attempt_read_bytes_total", "Bytes of versions that attempts have read.", registry=registry
        )
        self._held = Counter(
            "zwatch_attempt_held_seconds_total", "Time for which requests were held while two versions were exchanged.",
            registry=registry,
        )  # fmt: skip

        self._http = Counter(
            "zwatch_http_requests_total",
            "HTTP requests by route template, method and status; 499 is a client that disconnected.",
            ["route", "method", "status"], registry=registry,
        )  # fmt: skip
        self._http_seconds = Histogram(
            "zwatch_http_request_duration_seconds", "Duration of HTTP requests by route template, without event streams.",
            ["route"], buckets=_HTTP_BUCKETS, registry=registry,
        )  # fmt: skip
        self.http_open = Gauge(
            "zwatch_http_requests_in_progress",
            "HTTP requests being answered, event streams included.",
            registry=registry,
        )

        # All series exist from the start: rate() sees the first failure only as a step from 0.
        for outcome in _OUTCOMES:
            self._requests.labels(outcome)
        for fault in FaultKind:
            self._redrawn.labels(fault.value)
        for phase in _PHASES:
            self._phases.labels(phase)
        for outcome in ("promoted", "abandoned", *REJECTION_CODES):
            self._attempts.labels(outcome)
        for way in LoadWay:
            self._promotions.labels(way.value)

    def request_ended(self, job: Job) -> None:
        """Count an accepted request at its end."""
        match job.state:
            case JobState.DONE:
                outcome = "ok"
            case JobState.CANCELLED:
                outcome = "cancelled"
            case _:
                outcome = "generation_failed" if job.error is None else job.error.code
        self._requests.labels(outcome).inc()
        self.by_version.request_ended(job, outcome)
        if job.finished is None or job.seconds is None:
            return
        self._images.inc(len(job.finished.pictures))
        self._truncated.inc(int(job.finished.truncated))
        self._lora_uses.inc(len(job.finished.parameters.loras))
        self._seconds.observe(job.seconds)
        for phase in _PHASES:
            self._phases.labels(phase).observe(job.finished.timings.get(phase, 0.0))

    def lora_loaded(self, seconds: float) -> None:
        """Count a LoRA that was loaded; from any thread."""
        self._lora_seconds.observe(seconds)

    def request_redrawn(self, suspicion: Suspicion) -> None:
        """Count a request that another version draws again."""
        self._redrawn.labels(suspicion.kind.value).inc()
        self.by_version.request_redrawn(suspicion)

    def request_refused(self, error: RequestError) -> None:
        """Count a request that was refused."""
        self._requests.labels(error.code).inc()

    def attempt_ended(self, attempt: Attempt) -> None:
        """Count an attempt at its end."""
        promoted = attempt.state is AttemptState.PROMOTED
        rejection = attempt.rejection
        self._attempts.labels(
            "promoted" if promoted else rejection.code if rejection is not None else "abandoned"
        ).inc()
        if promoted:
            self._promotions.labels(attempt.way.value).inc()
        self._attempt_seconds.observe(attempt.seconds)
        self._held.inc(attempt.requests_waited)
        if attempt.control is not None:
            self._attempt_bytes.inc(attempt.control.bytes_done)
            for phase, seconds in attempt.control.phases.items():
                self._attempt_phases.labels(phase).observe(seconds)

    def http_ended(self, route: str | None, method: str, status: int, seconds: float | None) -> None:
        """Count an HTTP request; `seconds` is None for a stream."""
        route = route or NO_ROUTE
        self._http.labels(route, method_name(method), str(status)).inc()
        if seconds is not None:
            self._http_seconds.labels(route).observe(seconds)


def method_name(method: str) -> str:
    """Return a method's name, `other` for one that HTTP does not have: it is the client's text."""
    return method if method in _METHODS else "other"
