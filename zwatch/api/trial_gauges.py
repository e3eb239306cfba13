"""Gauges of what trials and votes have shown so far, read from the state at each scrape.

They are no counters: a vote can be taken back, and a new trial begins at 0. Versions are labels only while they are resident or on trial.
"""

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from zwatch.generation.trial_results import TrialResults
from zwatch.generation.voting import Voting
from zwatch.rollout.engines import EngineRegistry


class TrialGauges(Collector):
    """Reads them on the event loop. `voting` is None where no pictures are kept."""

    def __init__(self, results: TrialResults, voting: Voting | None, engines: EngineRegistry) -> None:
        self._results = results
        self._voting = voting
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        """Yield every gauge."""
        if self._voting is not None:
            yield self._votes(self._voting)
        requests = GaugeMetricFamily(
            "zwatch_trial_requests",
            "Requests of each side of a trial that goes on, since it began; `share` is empty for the alias's own version.",
            labels=["alias", "version", "share", "outcome"],
        )
        for trial in self._results.running():
            for side, share in zip(trial.sides, ("", trial.share), strict=True):
                labels = [trial.alias, side.key.version, share]
                requests.add_metric([*labels, "ok"], side.requests - side.failures)
                requests.add_metric([*labels, "failed"], side.failures)
        yield requests

    def _votes(self, voting: Voting) -> Metric:
        votes = GaugeMetricFamily(
            "zwatch_votes",
            "Votes on pictures of each resident version, by the share that they were drawn by, empty for none; also of deleted pictures.",
            labels=["version", "share", "vote"],
        )
        counts: Counter[tuple[str, str, str]] = Counter()
        for resident in self._engines.residents:
            for vote in ("up", "down"):
                counts[resident.key.version, "", vote] += 0
        keys = {(resident.key.version, resident.key.digest or "") for resident in self._engines.residents}
        for total in voting.totals:
            version, digest, share, _ = total.drawn
            if (version, digest) in keys:
                counts[version, share, "up"] += total.up
                counts[version, share, "down"] += total.down
        for labels, count in counts.items():
            votes.add_metric(list(labels), count)
        return votes
