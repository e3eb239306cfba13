"""Metrics of requests by the version that drew them, and by the share by which they came to it."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from prometheus_client.metrics_core import CounterMetricFamily, Metric, SummaryMetricFamily

from zwatch.generation.job import Job
from zwatch.rollout.trials import Suspicion

KEPT_VERSIONS = 16
"""How many versions that are not resident any more keep their rows, such as one that was withdrawn: those that drew last."""


@dataclass(slots=True)
class _Side:
    """What one version drew by one share: requests by outcome, and the seconds of those that succeeded."""

    outcomes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    done: int = 0


class VersionMetrics:
    """Counts requests by version and share, so that both sides of a trial are side by side. The label `share` is empty for requests
    that did not come by one. On the event loop only."""

    def __init__(self) -> None:
        self._versions: dict[str, dict[str, _Side]] = {}  # by version and share; the version that drew last is the last

    def request_ended(self, job: Job, outcome: str) -> None:
        """Count a request at its end; one that no version began to draw is none of theirs."""
        if job.key is None:
            return
        side = self._side(job.key.version, job.by_share)
        side.outcomes[outcome] = side.outcomes.get(outcome, 0) + 1
        if job.finished is not None and job.seconds is not None:
            side.seconds += job.seconds
            side.done += 1

    def request_redrawn(self, suspicion: Suspicion) -> None:
        """Count a request that a version on trial failed to draw, and another draws again, as its outcome `redrawn`."""
        side = self._side(suspicion.key.version, suspicion.by_share)
        side.outcomes["redrawn"] = side.outcomes.get("redrawn", 0) + 1

    def _side(self, version: str, by_share: str | None) -> _Side:
        sides = self._versions[version] = self._versions.pop(version, {})
        return sides.setdefault(by_share or "", _Side())

    def collect(self, resident: Collection[str]) -> Iterator[Metric]:
        """Yield the metrics of the versions that are resident and of the last `KEPT_VERSIONS` others; the rest is forgotten, so that
        there are never many."""
        for version in [one for one in self._versions if one not in resident][:-KEPT_VERSIONS]:
            del self._versions[version]
        requests = CounterMetricFamily(
            "zwatch_version_requests",
            "Requests that a version drew or failed to draw, by outcome as in zwatch_requests_total; redrawn: by another.",
            labels=["version", "share", "outcome"],
        )
        seconds = SummaryMetricFamily(
            "zwatch_version_request_seconds",
            "Time from acceptance to the finished images, of the successful requests of a version.",
            labels=["version", "share"],
        )
        found = [([version, share], side) for version, sides in self._versions.items() for share, side in sides.items()]
        for labels, side in found:
            for outcome, count in side.outcomes.items():
                requests.add_metric([*labels, outcome], count)
            seconds.add_metric(labels, side.done, side.seconds)
        yield from (requests, seconds)
