"""What the counts of a trial say, with honest intervals, in figures and in one sentence. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from zwatch.generation.intervals import Estimate, difference, median, share

FEW = 6
"""Requests below which a median has no interval."""


@dataclass(frozen=True, slots=True)
class Counts:
    """What was counted of one side; `seconds` is a sample of how long drawing took, `up` and `down` are votes."""

    version: str
    requests: int
    failures: int
    seconds: Sequence[float]
    up: int
    down: int


@dataclass(frozen=True, slots=True)
class Figures:
    """The estimates of one side, or of the difference of both (the second less the first). None is what nothing is known of."""

    failure_rate: Estimate | None
    latency: Estimate | None
    """Seconds."""
    votes: Estimate | None
    """The share of votes that are up."""


def figures(side: Counts) -> Figures:
    """Return the estimates of one side."""
    return Figures(share(side.failures, side.requests), median(side.seconds), share(side.up, side.up + side.down))


def compared(first: Figures, second: Figures) -> Figures:
    """Return what the second side has more than the first."""
    return Figures(
        difference(first.failure_rate, second.failure_rate),
        difference(first.latency, second.latency),
        difference(first.votes, second.votes),
    )


def conclusion(first: Counts, second: Counts) -> str:
    """Return what can be said of the second side against the first, and of what nothing can be concluded yet."""
    found = compared(figures(first), figures(second))
    said, unsaid = [], []
    for what, one, more, less, unit in (
        ("failures", found.failure_rate, "fails more often", "fails less often", "points"),
        ("latency", found.latency, "draws slower", "draws faster", "s"),
        ("votes", found.votes, "is liked better", "is liked less", "points"),
    ):
        if one is not None and one.excludes_zero:
            said.append(f"{more if one.value > 0 else less} ({_span(one, unit)})")
        else:
            unsaid.append(what)
    counts = (
        f"{first.requests} and {second.requests} requests, {first.up + first.down} and {second.up + second.down} votes"
    )
    if not said:
        return f"nothing can be concluded yet, from {counts}"
    rest = f"; of {_listed(unsaid)} nothing can be concluded yet" if unsaid else ""
    return f"{second.version} {_listed(said)} than {first.version}{rest}; from {counts}"


def _span(one: Estimate, unit: str) -> str:
    factor = 100 if unit == "points" else 1
    low, high = sorted((abs(one.low * factor), abs(one.high * factor)))
    return f"by {low:.3g} to {high:.3g} {unit}"


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
