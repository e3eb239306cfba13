"""One running load, and why it may be abandoned."""

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from zwatch.deploy.look import Awaited
from zwatch.deploy.resolving import Directory, LinkStamp
from zwatch.rollout.alias import Alias
from zwatch.rollout.lifecycle import Attempt
from zwatch.rollout.policy import LoadView

if TYPE_CHECKING:
    from zwatch.engine.pipeline import Engine


class AbandonReason(Enum):
    """Why a load was abandoned, for the log."""

    SUPERSEDED = "its alias no longer asks for it"
    UNLOADED = "an operator unloaded everything"
    STOPPING = "the service is stopping"
    YIELDING = "what an alias asks for is loaded before what a share does; this one follows"


@dataclass(eq=False)
class Load:
    """One running load: its attempt, and all that has to be given back at its end."""

    alias: Alias
    attempt: Attempt
    forced: bool
    link_stamp: LinkStamp | None
    """The stamp of the link that asked for it; None for last-known-good, which no link asks for."""
    abandoned: AbandonReason | None = None
    directory: Directory | None = None
    awaited: Awaited | None = None
    to_close: "list[Engine]" = field(default_factory=list)

    @property
    def view(self) -> LoadView:
        """What the policy has to know of it."""
        attempt = self.attempt
        return LoadView(attempt.alias, attempt.key, attempt.fallback, self.forced, self.abandoned is not None)

    def move_to(self, alias: Alias) -> None:
        """Let it be for an alias that asks for the same version: the share's link that began it took the alias's name."""
        assert alias.target is not None  # it asks for the version
        self.alias, self.link_stamp = alias, alias.target.link_stamp
        self.attempt.alias, self.attempt.shown, self.attempt.linked_ns = alias.key, None, alias.linked_ns
        alias.attempt, alias.saved.trying = self.attempt, self.attempt.key
