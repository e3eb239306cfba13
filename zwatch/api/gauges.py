"""Gauges for Prometheus, read from the state at each scrape, so that they always agree with `/status`.

No label grows without bound: version names are labels only of resident engines.
"""

import time
from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from zwatch import logwriter
from zwatch.api.health import HEALTH_STATES, health
from zwatch.api.metrics import Metrics
from zwatch.api.replica_gauges import replica_metrics
from zwatch.api.replica_views import Replicas
from zwatch.errors import Ending
from zwatch.generation.history import History
from zwatch.generation.queue import GenerationQueue
from zwatch.rollout.crashes import CRASHES_TO_SET_ASIDE
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.supervisor import Supervisor


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
        fleet: Replicas,
    ) -> None:
        self._metrics = metrics
        self._supervisor = supervisor
        self._engines = engines
        self._queue = queue
        self._history = history
        self._started = started
        self._fleet = fleet

    def collect(self) -> Iterator[Metric]:
        """Yield every gauge."""
        yield _gauge("zwatch_uptime_seconds", "Time since the start.", time.monotonic() - self._started)
        yield from self._queue_gauges()
        yield from self._serving_gauges()
        yield from self._engine_gauges()
        yield from self._metrics.by_version.collect({one.key.version for one in self._engines.residents})
        yield from self._device_gauges()
        yield from replica_metrics(self._fleet.views)
        yield from self._lora_gauges()
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

    def _lora_gauges(self) -> Iterator[Metric]:
        loras = self._queue.loras
        yield _gauge("zwatch_loras_resident", "LoRAs that are resident.", len(loras.residents))
        yield _gauge(
            "zwatch_lora_resident_bytes",
            "Device memory of resident LoRAs, and of what was made of several of them for requests.",
            loras.nbytes,
        )

    def _queue_gauges(self) -> Iterator[Metric]:
        queue = self._queue
        yield _gauge("zwatch_queue_waiting", "Requests that wait.", queue.waiting)
        yield _gauge("zwatch_queue_running", "Requests that are running.", len(queue.turns.jobs))
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


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
