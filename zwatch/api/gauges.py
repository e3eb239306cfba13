"""What is at present, for Prometheus: read from the state when it is scraped, so that it cannot differ from `/status`."""

import time
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from zwatch.api import views
from zwatch.api.services import Services


class Present(Collector):
    """Reads a running service's state. To be scraped on the event loop; what would block is asked for before and left in
    `Metrics.device_memory`."""

    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        """Give every gauge."""
        yield _gauge("zwatch_uptime_seconds", "Since the start.", time.monotonic() - self._services.started)
        yield from self._queue()
        yield from self._serving()
        yield from self._engines()
        yield from self._device()
        yield from self._history()

    def _queue(self) -> Iterator[Metric]:
        queue = self._services.queue
        yield _gauge("zwatch_queue_waiting", "Requests that wait for their turn.", queue.waiting)
        yield _gauge("zwatch_queue_running", "Requests that the device works on.", int(queue.running is not None))
        yield _gauge("zwatch_queue_limit", "How many may wait; beyond that the answer is 429.", queue.limit)

    def _serving(self) -> Iterator[Metric]:
        supervisor, engines = self._services.supervisor, self._services.engines
        present, _ = views.health(supervisor, engines)
        status = GaugeMetricFamily("zwatch_status", "1 for the status that it has.", labels=["status"])
        for name in ("ok", "degraded", "unavailable"):
            status.add_metric([name], int(name == present))
        serving = GaugeMetricFamily(
            "zwatch_serving_info",
            "Always 1; the labels say what an alias serves.",
            labels=["alias", "version", "digest"],
        )
        since = GaugeMetricFamily(
            "zwatch_serving_since_timestamp_seconds", "When what an alias serves was promoted.", labels=["alias"]
        )
        current = GaugeMetricFamily(
            "zwatch_alias_as_asked", "Whether an alias serves what its link asks for.", labels=["alias"]
        )
        fault = GaugeMetricFamily(
            "zwatch_alias_fault", "Whether something is wrong with an alias's link itself.", labels=["alias"]
        )
        for alias in supervisor.aliases:
            resident, wish = engines.serving(alias), supervisor.wish(alias)
            if resident is not None:
                serving.add_metric([alias, resident.key.version, resident.key.digest or ""], 1)
                since.add_metric([alias], resident.since.timestamp())
            current.add_metric([alias], int(resident is not None and resident.key == wish))
            fault.add_metric([alias], int(alias in supervisor.seen.faults))
        yield from (status, serving, since, current, fault)
        strays = len(supervisor.seen.strays)
        yield _gauge("zwatch_strays", "Links inside versions that were not taken for a wish, see /status.", strays)
        running = sum(attempt.running for attempt in supervisor.attempts)
        yield _gauge("zwatch_attempts_running", "Attempts that are loading or warming.", running)

    def _engines(self) -> Iterator[Metric]:
        labels = ["version", "digest", "state"]
        weights = GaugeMetricFamily(
            "zwatch_engine_weights_bytes", "Weights of each resident engine, shared ones in each.", labels=labels
        )
        leases = GaugeMetricFamily("zwatch_engine_leases", "Requests that hold a resident engine.", labels=labels)
        for resident in self._services.engines.residents:
            values = [resident.key.version, resident.key.digest or "", resident.state.value.lower()]
            weights.add_metric(values, resident.engine.nbytes)
            leases.add_metric(values, resident.leases)
        yield from (weights, leases)

    def _device(self) -> Iterator[Metric]:
        factory = self._services.supervisor.factory
        memory = self._services.metrics.device_memory
        if memory is None or factory is None:
            return
        for what, size in zip(("free", "total"), memory, strict=True):
            name, text = f"zwatch_device_memory_{what}_bytes", f"Memory that weights may take, {what}."
            family = GaugeMetricFamily(name, text, labels=["device"])
            family.add_metric([factory.device.name], size)
            yield family

    def _history(self) -> Iterator[Metric]:
        if self._services.history is None:
            return
        view = self._services.history.view()
        yield _gauge("zwatch_history_images", "Images in the output directory.", view["images"])
        yield _gauge("zwatch_history_bytes", "Bytes of them together.", view["bytes"])
        fault = int(view["fault"] is not None)
        yield _gauge("zwatch_history_fault", "Whether images cannot be kept, or old ones not be deleted.", fault)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)
