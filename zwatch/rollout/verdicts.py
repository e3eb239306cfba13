"""Which versions were rejected, and why: of each content, what its last attempt to serve came to."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from zwatch.rollout.lifecycle import Attempt, AttemptState, VersionKey

KEPT_VERDICTS = 1000
"""How many rejected versions are remembered, the newest ones."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Why a version was rejected, and when (UTC)."""

    code: str
    reason: str
    when: datetime


class Verdicts:
    """The rejected versions of this run. One that serves is not rejected any more, and a changed one has another key; an
    attempt that was abandoned says nothing."""

    def __init__(self) -> None:
        self._rejected: dict[VersionKey, Verdict] = {}

    def find(self, version: str, digest: str | None) -> Verdict | None:
        """Return why a version with this digest was rejected, if it was."""
        return self._rejected.get(VersionKey(version, digest))

    def note(self, attempt: Attempt) -> None:
        """Note how an attempt ended."""
        if attempt.state is AttemptState.PROMOTED:
            self._rejected.pop(attempt.key, None)
        elif attempt.rejection is not None:
            self._rejected.pop(attempt.key, None)  # the newest are last
            when = attempt.started + timedelta(seconds=attempt.seconds)
            self._rejected[attempt.key] = Verdict(attempt.rejection.code, attempt.rejection.reason, when)
            while len(self._rejected) > KEPT_VERDICTS:
                del self._rejected[next(iter(self._rejected))]
