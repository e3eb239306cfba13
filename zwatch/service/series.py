"""Counters and histograms for the event loop alone, in Prometheus' text format.

A scrape is a part of a millisecond for all of them: no locks, and of every line only the number is made anew. Those of
`prometheus_client` take ten times as long, in which no request is answered.
"""

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


class Counter:
    """Numbers that only grow, one for each combination of label values. `name` ends in `_total`."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self._name = name
        self._head = _head(name, text, "counter")
        self._labels = labels
        self._counts: dict[tuple[str, ...], float] = {} if labels else {(): 0}

    def add(self, *values: str, by: float = 1) -> None:
        """Count; `by` of 0 makes the series known, so that the first count is a step that an alert can see."""
        self._counts[values] = self._counts.get(values, 0) + by

    def lines(self) -> Iterator[str]:
        """Give its part of a scrape."""
        yield self._head
        for values, count in self._counts.items():
            yield f"{_series(self._name, self._labels, values)}{count}\n"


class Histogram:
    """How often a number was at most each of `bounds`, and the sum, for each combination of label values."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], *labels: str) -> None:
        self._name = name
        self._head = _head(name, text, "histogram")
        self._bounds = bounds
        self._labels = labels
        self._children: dict[tuple[str, ...], _Child] = {}
        if not labels:
            self.expect()

    def expect(self, *values: str) -> "_Child":
        """Make a series known before anything is observed; return it."""
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = _Child(self._name, self._labels, values, self._bounds)
        return child

    def observe(self, number: float, *values: str) -> None:
        """Take a number in."""
        child = self.expect(*values)
        child.counts[bisect_left(self._bounds, number)] += 1
        child.sum += number

    def lines(self) -> Iterator[str]:
        """Give its part of a scrape."""
        yield self._head
        for child in self._children.values():
            yield from child.lines()


class _Child:
    """One histogram. `counts` are between the bounds, the last one beyond them all."""

    def __init__(self, name: str, labels: tuple[str, ...], values: tuple[str, ...], bounds: tuple[float, ...]) -> None:
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        texts = [*(str(float(bound)) for bound in bounds), "+Inf"]
        self._series = [_series(f"{name}_bucket", (*labels, "le"), (*values, text)) for text in texts]
        self._count, self._sum = (_series(f"{name}_{what}", labels, values) for what in ("count", "sum"))

    def lines(self) -> Iterator[str]:
        for series, count in zip(self._series, accumulate(self.counts), strict=True):
            yield f"{series}{count}\n"
        yield f"{self._count}{sum(self.counts)}\n{self._sum}{self.sum}\n"


def _head(name: str, text: str, kind: str) -> str:
    return f"# HELP {name} {text}\n# TYPE {name} {kind}\n"


def _series(name: str, labels: tuple[str, ...], values: tuple[str, ...]) -> str:
    pairs = ",".join(f'{label}="{value.translate(_ESCAPES)}"' for label, value in zip(labels, values, strict=True))
    return f"{name}{{{pairs}}} " if pairs else f"{name} "
