"""`GET /api/trial`: what a trial has shown so far, of both sides."""

from aiohttp import web
from typing_extensions import TypedDict

from zwatch.api.answers import answer
from zwatch.api.schema import Digest, Fraction, Number, Seconds, Time, VersionName
from zwatch.api.services import SERVICES, Services
from zwatch.api.views import time_text
from zwatch.errors import RequestError
from zwatch.generation.intervals import Estimate
from zwatch.generation.request import PRIMARY
from zwatch.generation.trial_results import Side, Trial
from zwatch.generation.trial_verdict import Counts, Figures, compared, conclusion, figures


class EstimateView(TypedDict):
    """A value, and the interval that holds the true one in 95 of 100 cases."""

    value: float
    low: float
    high: float


class LatencyView(TypedDict):
    """The median of the seconds that drawing took, without waiting; null of fewer than 6 requests."""

    median: Seconds | None
    low: Seconds | None
    high: Seconds | None


class TrialVotesView(TypedDict):
    """The votes on a side's pictures that were given during the trial; `share` are up, with its interval, null of none."""

    up: Number
    down: Number
    share: Fraction | None
    low: Fraction | None
    high: Fraction | None


class SideView(TypedDict):
    """One side: `share` is the name of the share by which the version gets its requests, null for the alias's own version.
    `failure_rate` is null without requests."""

    version: VersionName
    digest: Digest | None
    share: str | None
    requests: Number
    failures: Number
    failure_rate: EstimateView | None
    latency: LatencyView
    votes: TrialVotesView


class DifferenceView(TypedDict):
    """What the share's side has more than the alias's own, each null where nothing is known. An interval that does not reach 0 is a
    difference."""

    failure_rate: EstimateView | None
    latency: EstimateView | None
    votes: EstimateView | None


class TrialView(TypedDict):
    """A trial: `share` is the link's name, `ended` null while it goes on. `sides` are the alias's own version, then the share's; there are
    none, and the rest is null, where there was no trial. `conclusion` is a sentence."""

    alias: str
    share: str | None
    began: Time | None
    ended: Time | None
    sides: list[SideView]
    difference: DifferenceView
    conclusion: str


async def trial(request: web.Request) -> web.Response:
    """Return the trial of an alias that goes on, else its last one."""
    services = request.app[SERVICES]
    alias = request.query.get("alias", PRIMARY)
    record = services.supervisor.records.get(alias)
    if record is None or record.is_share:
        raise RequestError("not_found", f"there is no alias {alias[:100]!r}, see /status")
    found = services.trials.results.find(alias)
    return answer(_nothing(alias) if found is None else _view(services, found))


def _nothing(alias: str) -> TrialView:
    return {
        "alias": alias, "share": None, "began": None, "ended": None, "sides": [],
        "difference": {"failure_rate": None, "latency": None, "votes": None},
        "conclusion": f"{alias} has no trial: a link {alias}@10 begins one, as `zwatch share v3 10` makes it",
    }  # fmt: skip


def _view(services: Services, found: Trial) -> TrialView:
    counts = [_counts(services, found, side) for side in found.sides]
    estimates = [figures(side) for side in counts]
    between = compared(*estimates)
    return {
        "alias": found.alias,
        "share": found.share,
        "began": time_text(found.began),
        "ended": None if found.ended is None else time_text(found.ended),
        "sides": [
            _side(side, count, estimate, share)
            for side, count, estimate, share in zip(found.sides, counts, estimates, (None, found.share), strict=True)
        ],
        "difference": {
            "failure_rate": _estimate(between.failure_rate),
            "latency": _estimate(between.latency),
            "votes": _estimate(between.votes),
        },
        "conclusion": conclusion(*counts),
    }


def _counts(services: Services, found: Trial, side: Side) -> Counts:
    totals = [] if services.voting is None else services.voting.totals
    votes = [
        total for total in totals if total.drawn.trial == found.id and total.drawn.digest == (side.key.digest or "")
    ]
    return Counts(
        side.key.version,
        side.requests,
        side.failures,
        side.seconds,
        sum(total.up for total in votes),
        sum(total.down for total in votes),
    )


def _side(side: Side, count: Counts, estimate: Figures, share: str | None) -> SideView:
    latency, votes = estimate.latency, estimate.votes
    return {
        "version": side.key.version,
        "digest": side.key.digest,
        "share": share,
        "requests": count.requests,
        "failures": count.failures,
        "failure_rate": _estimate(estimate.failure_rate),
        "latency": {
            "median": None if latency is None else round(latency.value, 4),
            "low": None if latency is None else round(latency.low, 4),
            "high": None if latency is None else round(latency.high, 4),
        },
        "votes": {
            "up": count.up,
            "down": count.down,
            "share": None if votes is None else round(votes.value, 4),
            "low": None if votes is None else round(votes.low, 4),
            "high": None if votes is None else round(votes.high, 4),
        },
    }


def _estimate(one: Estimate | None) -> EstimateView | None:
    if one is None:
        return None
    return {"value": round(one.value, 4), "low": round(one.low, 4), "high": round(one.high, 4)}
