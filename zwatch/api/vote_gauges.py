"""What votes come to, read from the state at each scrape: a gauge, since a vote can be taken back.

Versions are labels only while they are resident.
"""

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from zwatch.generation.voting import Voting
from zwatch.rollout.engines import EngineRegistry


class VoteGauges(Collector):
    """Reads them on the event loop."""

    def __init__(self, voting: Voting, engines: EngineRegistry) -> None:
        self._voting = voting
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        """Yield the gauge."""
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
        for total in self._voting.totals:
            version, digest, share, _ = total.drawn
            if (version, digest) in keys:
                counts[version, share, "up"] += total.up
                counts[version, share, "down"] += total.down
        for labels, count in counts.items():
            votes.add_metric(list(labels), count)
        yield votes
