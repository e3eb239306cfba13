"""The metrics of requests by version: which rows there are, and for how long."""

from zwatch.api.version_metrics import KEPT_VERSIONS, VersionMetrics
from zwatch.rollout.lifecycle import VersionKey
from zwatch.rollout.trials import FaultKind, Suspicion


def redraw(metrics, version, share="current@10"):
    metrics.request_redrawn(Suspicion(VersionKey(version, "1" * 64), FaultKind.ERROR, "it fails", share))


def rows(metrics, resident):
    """Return the values of the requests by their labels, for which these versions are resident."""
    requests = next(iter(metrics.collect(resident)))
    return {tuple(sample.labels.values()): sample.value for sample in requests.samples}


def test_what_was_withdrawn_and_freed_keeps_its_rows():
    metrics = VersionMetrics()
    redraw(metrics, "v3")
    redraw(metrics, "v3")
    assert rows(metrics, {"v1", "v3"}) == rows(metrics, {"v1"}) == {("v3", "current@10", "redrawn"): 2}


def test_of_the_versions_that_are_gone_the_last_ones_are_kept_and_all_that_are_resident():
    metrics = VersionMetrics()
    names = [f"v{number}" for number in range(KEPT_VERSIONS + 3)]
    for name in names:
        redraw(metrics, name)
    redraw(metrics, names[1])  # again
    found = [version for version, _, _ in rows(metrics, {names[0]})]
    assert found == [names[0], *names[4:], names[1]]
