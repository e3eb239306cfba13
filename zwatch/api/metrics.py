"""Metrics for Prometheus: counters of events, and gauges that are read from the state at each scrape, so that they always
agree with `/status`.

No label grows without bound: version names are labels only of resident engines.
"""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from zwatch import __version__, logwriter
from zwatch.api.health import HEALTH_STATES, health
from zwatch.api.refusals import Refusals
from zwatch.api.version_metrics import VersionMetrics
from zwatch.errors import REJECTION_CODES, REQUEST_ERRORS, Ending, RequestError
from zwatch.generation.history import History
from zwatch.generation.job import Job, JobState
from zwatch.generation.queue import GenerationQueue
from zwatch.rollout.crashes import CRASHES_TO_SET_ASIDE
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import Attempt, AttemptState, LoadWay
from zwatch.rollout.supervisor import Supervisor
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
        self._seconds.observe(job.seconds)
        for phase in _PHASES:
            self._phases.labels(phase).observe(job.finished.timings.get(phase, 0.0))

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


class Gauges(Collector):
    """Reads the gauges from the state of a running service, on the event loop. The device's memory, whose reading would
    block, is read before the scrape, into `Metrics.device_memory`."""

    def __init__(
        self,
        metrics: Metrics,
        supervisor: Supervisor,
        engines: EngineRegistry,
        queue: GenerationQueue,
        history: History | None,
        started: float,
    ) -> None:
        self._metrics = metrics
        self._supervisor = supervisor
        self._engines = engines
        self._queue = queue
        self._history = history
        self._started = started

    def collect(self) -> Iterator[Metric]:
        """Yield every gauge."""
        yield _gauge("zwatch_uptime_seconds", "Time since the start.", time.monotonic() - self._started)
        yield from self._queue_gauges()
        yield from self._serving_gauges()
        yield from self._engine_gauges()
        yield from self._metrics.by_version.collect({one.key.version for one in self._engines.residents})
        yield from self._device_gauges()
        yield from self._history_gauges()
        yield from self._fault_gauges()
        refused = CounterMetricFamily(
            "zwatch_connections_refused",
            "Connections refused because too many were open, and connections closed because no whole HTTP request arrived in time.",
        )
        refused.add_metric([], self._metrics.refusals.connections)
        yield refused
        lines = CounterMetricFamily(
            "zwatch_log_lines_dropped",
            "Log lines that were not written: standard error took none, or too many in a second.",
        )
        lines.add_metric([], logwriter.unwritten())
        yield lines

    def _queue_gauges(self) -> Iterator[Metric]:
        queue = self._queue
        yield _gauge("zwatch_queue_waiting", "Requests that wait.", queue.waiting)
        yield _gauge("zwatch_queue_running", "Requests that are running.", int(queue.running is not None))
        yield _gauge(
            "zwatch_generation_silence_seconds",
            "Time since the running request made its last step; 0 if none runs.",
            queue.generator.silence,
        )
        yield _gauge("zwatch_queue_limit", "Requests that may wait; more are answered with 429.", queue.limit)

    def _serving_gauges(self) -> Iterator[Metric]:
        supervisor, engines = self._supervisor, self._engines
        present, _ = health(supervisor, engines, None if self._history is None else self._history.fault)
        status = GaugeMetricFamily("zwatch_status", "1 for the present status, 0 for the others.", labels=["status"])
        for name in HEALTH_STATES:
            status.add_metric([name], int(name == present))
        serving = GaugeMetricFamily(
            "zwatch_serving_info",
            "Always 1; the labels are what an alias serves.",
            labels=["alias", "version", "digest"],
        )
        since = GaugeMetricFamily(
            "zwatch_serving_since_timestamp_seconds",
            "When the version that an alias serves was promoted.",
            labels=["alias"],
        )
        current = GaugeMetricFamily(
            "zwatch_alias_as_asked", "Whether an alias serves what its link asks for.", labels=["alias"]
        )
        fault = GaugeMetricFamily(
            "zwatch_alias_fault", "Whether an alias's link resolves to no version.", labels=["alias"]
        )
        faulty = {alias for alias, share in supervisor.seen.shares.items() if share.faults}
        for key, record in supervisor.records.items():
            alias, resident, wish = record.name, engines.serving(key), record.wish
            if resident is not None:
                serving.add_metric([alias, resident.key.version, resident.key.digest or ""], 1)
                since.add_metric([alias], resident.since.timestamp())
            current.add_metric([alias], int(resident is not None and resident.key == wish))
            fault.add_metric([alias], int(key in supervisor.seen.faults or key in faulty))
        yield from (status, serving, since, current, fault)
        strays = len(supervisor.seen.strays)
        yield _gauge("zwatch_strays", "Links inside versions that were ignored, see /status.", strays)
        running = sum(attempt.running for attempt in supervisor.attempts)
        yield _gauge("zwatch_attempts_running", "Attempts in progress.", running)

    def _engine_gauges(self) -> Iterator[Metric]:
        labels = ["version", "digest", "state"]
        weights = GaugeMetricFamily(
            "zwatch_engine_weights_bytes",
            "Weights of each resident engine; shared weights count in each.",
            labels=labels,
        )
        leases = GaugeMetricFamily("zwatch_engine_leases", "Requests that hold a resident engine.", labels=labels)
        for resident in self._engines.residents:
            values = [resident.key.version, resident.key.digest or "", resident.state.value.lower()]
            weights.add_metric(values, resident.engine.nbytes)
            leases.add_metric(values, resident.leases)
        yield from (weights, leases, self._golden_gauge())

    def _golden_gauge(self) -> Metric:
        golden = GaugeMetricFamily(
            "zwatch_golden_images",
            "Golden images of each resident engine: drawn as they should be, missed, or still to be checked.",
            labels=["version", "digest", "result"],
        )
        for resident in self._engines.residents:
            found = resident.engine.golden
            counts = {
                "passed": found.checked - found.missed,
                "missed": found.missed,
                "pending": len(found.pictures) - found.checked,
            }
            for result, count in counts.items():
                golden.add_metric([resident.key.version, resident.key.digest or "", result], count)
        return golden

    def _device_gauges(self) -> Iterator[Metric]:
        factory = self._supervisor.factory
        memory = self._metrics.device_memory
        if memory is None or factory is None:
            return
        for what, size in zip(("free", "total"), memory, strict=True):
            name, text = f"zwatch_device_memory_{what}_bytes", f"Memory that weights may take, {what}."
            family = GaugeMetricFamily(name, text, labels=["device"])
            family.add_metric([factory.device.name], size)
            yield family

    def _history_gauges(self) -> Iterator[Metric]:
        if self._history is None:
            return
        view = self._history.view()
        yield _gauge("zwatch_history_images", "Images in the output directory.", view["images"])
        yield _gauge("zwatch_history_bytes", "Total size of the images in the output directory.", view["bytes"])
        fault = int(view["fault"] is not None)
        yield _gauge(
            "zwatch_history_fault", "Whether images or thumbnails cannot be kept, or old ones not deleted.", fault
        )

    def _fault_gauges(self) -> Iterator[Metric]:
        supervisor = self._supervisor
        yield _gauge(
            "zwatch_state_fault", "Whether the state directory cannot be written.", supervisor.state.problem is not None
        )
        yield _gauge("zwatch_links_fault", "Whether the links cannot be looked at.", supervisor.fault is not None)
        yield _gauge(
            "zwatch_watching", "Whether the system reports changes of the models root; else only the check sees them.",
            self._metrics.is_watching,
        )  # fmt: skip
        before = supervisor.previous_run
        previous = GaugeMetricFamily(
            "zwatch_previous_run", "1 for how the run before this one ended, 0 for the others.", labels=["ending"]
        )
        for name in ("none", *(ending.value for ending in Ending)):
            previous.add_metric([name], int(name == ("none" if before is None else before.ending.value)))
        yield previous
        yield _gauge(
            "zwatch_versions_set_aside", "Versions that are not loaded because they crashed too often.",
            len({crash.key for crash in supervisor.state.saved.crashes if crash.count >= CRASHES_TO_SET_ASIDE}),
        )  # fmt: skip


def method_name(method: str) -> str:
    """Return a method's name, `other` for one that HTTP does not have: it is the client's text."""
    return method if method in _METHODS else "other"


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
