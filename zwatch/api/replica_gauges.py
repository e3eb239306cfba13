"""Metrics of a fleet's replicas, read at each scrape. Where there is one device and no fleet there are none.

The label `replica` has the names r0, r1, …: there are never more than replicas. Host, device and versions are labels of an info metric
alone, so that a replica that comes back on another host goes on with its series.
"""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from zwatch.fleet.views import ReplicaState, ReplicaView

_GAUGES: dict[str, tuple[str, Callable[[ReplicaView], float | None]]] = {
    "zwatch_replica_up": (
        "Whether a replica is ready and gets requests; 0 also while it begins or prepares what serves.",
        lambda one: int(one.state is ReplicaState.READY),
    ),
    "zwatch_replica_requests_running": ("Requests that a replica draws now.", lambda one: one.running),
    "zwatch_replica_memory_free_bytes": (
        "Memory of a replica's device that weights may take, free; as it was told last.",
        lambda one: one.free,
    ),
    "zwatch_replica_memory_total_bytes": (
        "Memory of a replica's device that weights may take, total.",
        lambda one: one.total,
    ),
}
"""By name: what it is, and how it is read of a replica; None where it is not known."""
_COUNTERS: dict[str, tuple[str, Callable[[ReplicaView], int]]] = {
    "zwatch_replica_requests": ("Requests that a replica has drawn.", lambda one: one.drawn),
    "zwatch_replica_requests_redrawn": (
        "Requests that were taken from a replica that was lost, and drawn again by another.",
        lambda one: one.redrawn,
    ),
    "zwatch_replica_losses": (
        "How often a replica was lost: it died, hung or was out of reach.",
        lambda one: one.losses,
    ),
}


def replica_metrics(replicas: Sequence[ReplicaView] | None) -> Iterator[Metric]:
    """Yield the metrics of replicas; nothing if there is no fleet."""
    if replicas is None:
        return
    for name, (text, read) in _GAUGES.items():
        gauge = GaugeMetricFamily(name, text, labels=["replica"])
        for one in replicas:
            if (value := read(one)) is not None:
                gauge.add_metric([one.name], value)
        yield gauge
    for name, (text, count) in _COUNTERS.items():
        counter = CounterMetricFamily(name, text, labels=["replica"])
        for one in replicas:
            counter.add_metric([one.name], count(one))
        yield counter
    yield from (_states(replicas), _infos(replicas))


def _states(replicas: Sequence[ReplicaView]) -> Metric:
    states = GaugeMetricFamily(
        "zwatch_replica_state", "1 for a replica's present state, 0 for the others.", labels=["replica", "state"]
    )
    for one in replicas:
        for state in ReplicaState:
            states.add_metric([one.name, state.value.lower()], int(state is one.state))
    return states


def _infos(replicas: Sequence[ReplicaView]) -> Metric:
    infos = GaugeMetricFamily(
        "zwatch_replica_info",
        "Always 1; the labels are a replica's host, its device, and the versions that it has ready.",
        labels=["replica", "host", "device", "versions"],
    )
    for one in replicas:
        infos.add_metric([one.name, one.host or "", one.device or "", ",".join(one.versions)], 1)
    return infos
