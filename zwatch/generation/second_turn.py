"""What is known of a request that a version on trial failed to draw, and that another version draws again."""

from dataclasses import dataclass

from zwatch.errors import RequestError
from zwatch.rollout.lifecycle import VersionKey
from zwatch.rollout.trials import Suspicion


@dataclass(eq=False)
class SecondTurn:
    """The second turn of a job; nothing before it failed."""

    avoided: frozenset[VersionKey] = frozenset()
    """The version that failed."""
    suspicion: Suspicion | None = None
    """How it failed, until it is known whether the other version can draw the request."""
    error: RequestError | None = None
    """What is answered if no other version draws it."""

    def take_suspicion(self) -> Suspicion | None:
        """Return how the version failed, if what that means is not known yet; from now on it is."""
        suspicion, self.suspicion = self.suspicion, None
        return suspicion
