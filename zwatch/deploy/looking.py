"""Looking quickly: as one call while everything answers, and question by question while something does not."""

import logging
import time
from collections.abc import Callable, Iterable, Sequence

from zwatch.deploy.asking import ANSWER_SECONDS, Asker, Direct, Unanswered
from zwatch.deploy.followed import Known
from zwatch.deploy.following import ShareSeen
from zwatch.deploy.look import Awaited, Look, Looker
from zwatch.deploy.refused import RefusedStray

_log = logging.getLogger(__name__)

CAREFUL_SECONDS = 60.0
"""How long looks go on question by question after everything answered again."""


class QuickLooker:
    """Looks repeatedly, as `Looker`; a whole look is one call in a thread that can be left.

    A look question by question changes threads a dozen times, each of which may wait for the interpreter's lock while images
    are made. So that is done only after a look did not return.
    """

    def __init__(
        self,
        make: Callable[..., Looker],
        *,
        refused: Iterable[RefusedStray] = (),
        known: Known | None = None,
        answer_seconds: float = ANSWER_SECONDS,
    ) -> None:
        """`make` is `Looker` without `refused`, `asker` and `known`; `refused` are the strays that an earlier run refused, `known`
        is what it had seen; after `answer_seconds` a look goes on without what does not answer."""
        self._make = make
        self._asker = Asker(answer_seconds)
        self._looker = make(refused=refused, asker=Direct(), known=known)
        self._is_careful = False

    def look(self, awaited: Sequence[Awaited] = ()) -> Look:
        """Look once; follow stray wishes until there are none. What does not answer holds up nothing else."""
        if self._is_careful and time.monotonic() - self._asker.unanswered_at > CAREFUL_SECONDS:
            self._go_on(is_careful=False)
        if not self._is_careful:
            try:
                return self._asker.ask("look", self._looker.look, awaited)
            except Unanswered:  # the thread that does not return keeps its looker
                self._go_on(is_careful=True)
        return self._looker.look(awaited)

    def _go_on(self, *, is_careful: bool) -> None:
        before, self._is_careful = self._looker, is_careful
        asker = self._asker if is_careful else Direct()
        self._looker = self._make(refused=before.refused, asker=asker, known=before.known)


def log_news(seen: Look, before: Look) -> None:
    """Log what a look saw and the look before did not."""
    for note in seen.notes:
        _log.warning("%s", note)
    for alias, fault in seen.faults.items():
        if before.faults.get(alias) != fault:
            _log.warning("%s", fault.message)
    for alias, share in seen.shares.items():
        known = before.shares.get(alias, ShareSeen()).faults
        for message in dict.fromkeys(fault.message for name, fault in share.faults.items() if known.get(name) != fault):
            _log.warning("%s", message)
    for alias in seen.aliases if before.aliases else ():
        if alias not in before.aliases:
            _log.info("%s is followed from now on", alias)
    for alias in before.aliases:
        if alias not in seen.aliases:
            _log.info("%s is not followed any more: its link is gone", alias)
    for stray in seen.strays:
        if stray not in before.strays:
            _log.warning("%s -> %s was not followed: %s", stray.path, stray.text, stray.reason)
