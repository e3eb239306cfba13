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
    is_taken: bool = False
    """Whether another version was to draw the job. It was not left to chance then who draws it, so that its end counts in no trial."""
    trial: str = ""
    """The id of the trial in which its end would have counted, and the first version's fault does; "" for none."""

    def take_suspicion(self) -> Suspicion | None:
        """Return how the version failed, if what that means is not known yet; from now on it is."""
        suspicion, self.suspicion = self.suspicion, None
        return suspicion
