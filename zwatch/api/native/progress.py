"""The progress of attempts in a stream: their bytes and seconds change all the time, and no change wakes the stream for them."""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

from zwatch.api.views import AttemptView, attempt_view
from zwatch.rollout.lifecycle import Attempt, AttemptState

SECONDS = 0.25
"""Least time between two views of one attempt in the same state."""


class _Shown(NamedTuple):
    attempt: Attempt
    state: AttemptState
    at: float
    view: AttemptView | None


class Progress:
    """Views of each alias's attempt, for one stream. While an attempt runs, the same view is returned for `SECONDS`, unless its
    state changes."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._shown: dict[str, _Shown] = {}

    def view(self, attempt: Attempt | None) -> AttemptView | None:
        """Return an attempt's view, or null."""
        if attempt is None or not attempt.running:
            return attempt_view(attempt)
        shown, now = self._shown.get(attempt.alias), self._clock()
        is_same = shown is not None and shown.attempt is attempt and shown.state is attempt.state
        if shown is None or not is_same or now - shown.at >= SECONDS:
            shown = self._shown[attempt.alias] = _Shown(attempt, attempt.state, now, attempt_view(attempt))
        return shown.view


def next_look(attempts: Iterable[Attempt | None]) -> float | None:
    """Return the seconds after which to look again without a change; None if no attempt runs."""
    return SECONDS if any(attempt is not None and attempt.running for attempt in attempts) else None
