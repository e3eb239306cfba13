"""Counters and histograms, against those of `prometheus_client`."""

import prometheus_client
from prometheus_client.parser import text_string_to_metric_families

from zwatch.service.series import Counter, Histogram

BOUNDS = (0.1, 1, 2.5)


def samples(text):
    """Return the kind and text of each metric, and all its samples."""
    return {
        family.name: (family.type, family.documentation, {(s.name, frozenset(s.labels.items())): s.value for s in family.samples})
        for family in text_string_to_metric_families(text)
        if not family.name.endswith("_created")
    }  # fmt: skip


def test_what_they_say_is_what_prometheus_own_library_says():
    prometheus_client.disable_created_metrics()
    registry = prometheus_client.CollectorRegistry()
    counts, theirs = Counter("made_total", "Made.", "kind", "of"), prometheus_client.Counter("made", "Made.", ["kind", "of"], registry=registry)  # fmt: skip
    for values, by in [(("a", 'q"\\\n'), 1), (("a", 'q"\\\n'), 2.5), (("猫", ""), 0)]:
        counts.add(*values, by=by)
        theirs.labels(*values).inc(by)
    seconds, others = Histogram("took_seconds", "Took.", BOUNDS, "way"), prometheus_client.Histogram("took_seconds", "Took.", ["way"], buckets=BOUNDS, registry=registry)  # fmt: skip
    for number in (0, 0.1, 0.1000001, 1, 2.5, 3, 1e9, 1e-9):
        seconds.observe(number, "x")
        others.labels("x").observe(number)
    seconds.expect("y")
    others.labels("y")
    text = "".join((*counts.lines(), *seconds.lines()))
    assert samples(text) == samples(prometheus_client.generate_latest(registry).decode())


def test_without_labels_they_are_there_from_the_start():
    text = "".join((*Counter("a_total", "A.").lines(), *Histogram("b", "B.", BOUNDS).lines()))
    assert text.splitlines()[2] == "a_total 0"
    assert 'b_bucket{le="+Inf"} 0' in text
