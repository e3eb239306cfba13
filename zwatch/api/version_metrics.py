"""Metrics of requests by the version that drew them, and by the share by which they came to it."""

from prometheus_client import CollectorRegistry, Counter, Summary

from zwatch.generation.job import Job


class VersionMetrics:
    """Counts requests by version and share: both sides of a trial side by side. The label `share` is empty for requests that did not
    come by one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "zwatch_version_requests_total",
            "Requests that a version drew or failed to draw, by outcome as in zwatch_requests_total.",
            ["version", "share", "outcome"], registry=registry,
        )  # fmt: skip
        self._seconds = Summary(
            "zwatch_version_request_seconds",
            "Time from acceptance to the finished images, of successful requests.",
            ["version", "share"], registry=registry,
        )  # fmt: skip

    def request_ended(self, job: Job, outcome: str) -> None:
        """Count a request at its end; one that no version began to draw is none of theirs."""
        if job.key is None:
            return
        labels = (job.key.version, job.by_share or "")
        self._requests.labels(*labels, outcome).inc()
        if job.finished is not None and job.seconds is not None:
            self._seconds.labels(*labels).observe(job.seconds)
