"""A replica as the fleet knows it: its state, what it has ready, and what it draws. All of it is guarded by the fleet's lock."""

import time
from dataclasses import dataclass, field

from zwatch.fleet.cluster import Actor, Call
from zwatch.fleet.messages import Sign
from zwatch.fleet.settings import Place
from zwatch.fleet.views import ReplicaState, ReplicaView


@dataclass(eq=False)
class Member:
    """One replica. `epoch` grows with each loss: what was begun before it has no answer any more."""

    name: str
    actor: Actor
    place: Place
    state: ReplicaState = ReplicaState.STARTING
    since: float = field(default_factory=time.monotonic)
    epoch: int = 0
    sign: Sign | None = None
    is_open: bool = False
    """Whether its device is open."""
    holds: set[str] = field(default_factory=set)
    """The ids of the engines that it has ready."""
    running: set[str] = field(default_factory=set)
    """The drawings that it was given and that have not ended."""
    attempt: str | None = None
    problem: str | None = None
    drawn: int = 0
    redrawn: int = 0
    losses: int = 0
    last_drawn: float = 0.0
    look: Call | None = None
    looked: float = 0.0
    """When the look that has no answer yet was begun."""
    look_epoch: int = 0
    is_joining: bool = False
    failures: int = 0
    """How often in a row it could not prepare what serves."""
    try_again: float = 0.0
    is_extra: bool = False
    """Begun because of the queue, or a device that came: no rollout waits for it before it is open."""

    @property
    def where(self) -> str:
        """Its name, its host and its device, for texts."""
        if self.sign is None:
            return f"replica {self.name}"
        device = "" if self.sign.device is None else f", {self.sign.device.partition(' ')[0]}"
        return f"replica {self.name} ({self.sign.host}{device})"

    @property
    def is_usable(self) -> bool:
        """Whether it may draw what it has ready."""
        return self.is_open and self.state not in (ReplicaState.STARTING, ReplicaState.LOST, ReplicaState.LEAVING)

    def change(self, state: ReplicaState, problem: str | None = None) -> bool:
        """Change the state; return whether that is another one, or has another problem."""
        if self.state is state and self.problem == problem:
            return False
        if self.state is not state:
            self.since = time.monotonic()
        self.state, self.problem = state, problem
        return True

    def view(self, versions: dict[str, str]) -> ReplicaView:
        """Return what is told of it; `versions` are those of engines by their ids."""
        sign = self.sign
        free, total = (None, None) if sign is None or sign.memory is None else sign.memory
        held = tuple(self.holds)  # other threads change it
        names = tuple(sorted({versions[one] for one in held if one in versions}))
        return ReplicaView(
            self.name, None if sign is None else sign.host, None if sign is None else sign.device, self.state, names, self.attempt,
            len(self.running), self.drawn, self.redrawn, self.losses, None if sign is None else sign.pid, self.problem,
            round(time.monotonic() - self.since, 3), free, total,
        )  # fmt: skip
