"""What makes engines of a fleet: each stage of a load runs on all replicas at the same time.

It has the interface of `zwatch.engine.factory.EngineFactory`, so that the gate, leases, promotion in one assignment, shares,
last-known-good, rollback and unload are those of a service with one device.
"""

import logging
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zwatch.deploy.loras import OpenedLora
from zwatch.deploy.resolving import Directory
from zwatch.errors import Rejection
from zwatch.fleet.device import FleetDevice
from zwatch.fleet.engine import FleetEngine, FleetLoras
from zwatch.fleet.messages import EngineFacts, Failure
from zwatch.fleet.stages import Rollout, Stage, everywhere
from zwatch.shadow import loader

if TYPE_CHECKING:
    from zwatch.engine.parameters import Generation
    from zwatch.fleet.member import Member
    from zwatch.fleet.roster import Roster
    from zwatch.shadow.control import LoadControl

_log = logging.getLogger(__name__)

_DEATHS = 2
"""How many replicas may die of a version that is being prepared, in rollouts in a row, before it is set aside."""


@dataclass(frozen=True, eq=False)
class FleetPlan:
    """A version that replicas have found and whose seal and headers they have read; `plan` is the controller's own."""

    plan: loader.Plan
    rollout: Rollout

    @property
    def version(self) -> str:
        """Its name."""
        return self.plan.version


class FleetFactory:
    """Makes engines on all replicas. Its methods block."""

    def __init__(self, fleet: "Roster") -> None:
        self.fleet = fleet
        self.device = FleetDevice(fleet)
        self.loras = FleetLoraStore(fleet)
        self._deaths: Counter[str] = Counter()

    def plan(self, directory: Directory, digest: str | None, control: "LoadControl") -> FleetPlan:
        """Read a version's seal and headers here, and on all replicas once their hosts have it.

        Raises:
            Rejection: it is not valid here, or too few replicas find the same.
            Abandoned: `control` was told to abandon the load.
        """
        planned = loader.plan(directory, digest, control)
        found = self.fleet.gather(control)
        needed = self.fleet.settings.quorum.of(len(found))
        rollout = Rollout(secrets.token_hex(8), planned.version, planned.seal.digest, [*found], needed)
        for member, failure in found.items():
            if failure is not None:
                rollout.failed[member] = failure
        rollout.members = [one for one in rollout.members if one not in rollout.failed]
        seconds = self.fleet.limits.await_version
        self._run(
            rollout, control, "finding",
            lambda one: one.actor.call("plan", rollout.engine_id, planned.version, planned.seal.digest, seconds),
        )  # fmt: skip
        return FleetPlan(planned, rollout)

    def lacks(self, planned: FleetPlan) -> bool:
        """Return whether a replica has too little memory for a version in addition to what is resident there."""
        rollout = planned.rollout
        found = everywhere(self.fleet, rollout.members, "lacks", rollout.engine_id)
        return any(answer is True for answer in found.values())

    def fits_instead(self, planned: FleetPlan, old: FleetEngine, others: Sequence[FleetEngine]) -> bool:
        """Return False: a fleet does not exchange versions, since no moment would be the same on all replicas."""
        return False

    def build(self, directory: Directory, planned: FleetPlan, control: "LoadControl") -> FleetEngine:
        """Load and verify a version on all replicas.

        Raises:
            Rejection: too few replicas could.
            Abandoned: `control` was told to abandon the load.
        """
        rollout = planned.rollout
        begun = self._run(
            rollout, control, "loading", lambda one: one.actor.call("build", rollout.engine_id, rollout.digest)
        )  # fmt: skip
        facts: list[EngineFacts] = [*begun.values()]
        for one in facts:
            for name, seconds in one.phases.items():
                control.phases[name] = max(control.phases.get(name, 0.0), seconds)
        control.shared.extend(facts[0].shared)
        control.bytes_done = sum(one.bytes_done for one in facts)
        control.bytes_total = max(control.bytes_total, control.bytes_done)
        engine = FleetEngine(self.fleet, planned.plan, rollout.engine_id, facts[0], self.device)
        engine.rollout = rollout
        return engine

    def warm(self, engine: FleetEngine, control: "LoadControl") -> None:
        """Let the engine make its warm-up image on all replicas; from then on those that come prepare it too.

        Raises:
            Rejection: too few replicas made a usable one.
            Abandoned: `control` was told to abandon the load.
        """
        rollout = engine.rollout
        if rollout is None:  # it serves; whether it can is in doubt
            rollout = Rollout(engine.id, engine.version, engine.digest, engine.holders, 1)
        with control.phase("warm"):
            warmed = self._run(rollout, control, "warming", lambda one: one.actor.call("warm", rollout.engine_id))
        engine.golden = next(iter(warmed.values())).golden
        self._deaths.pop(engine.digest, None)
        engine.rollout = None
        engine.go_live({one: rollout.epochs[one] for one in warmed})

    def _run(
        self, rollout: Rollout, control: "LoadControl", what: str, begin: "Callable[[Member], Any]"
    ) -> "dict[Member, Any]":
        before = {*rollout.failed}
        try:
            return Stage(self.fleet, rollout, control, what, begin).run()
        except Rejection as rejection:
            died = any(one.kind in ("lost", "anew") for member, one in rollout.failed.items() if member not in before)
            self._deaths[rollout.digest] += died
            if died and self._deaths[rollout.digest] >= _DEATHS:
                del self._deaths[rollout.digest]
                raise Rejection(
                    "set_aside",
                    f"{rejection.reason}; it was the {_DEATHS}nd time that a replica was lost while it was preparing it",
                ) from None
            raise

    def is_proven(self, engine: FleetEngine) -> bool:
        """Return False: every replica proves the engine by itself."""
        return False

    def fault(self, engine: FleetEngine, generation: "Generation") -> Rejection | None:
        """Return None: no warm-up is skipped."""
        return None

    def distrust(self, digest: str) -> None:
        """Do nothing: every replica makes the warm-up image at each load."""

    def note_golden(self, engine: FleetEngine) -> None:
        """Do nothing: every replica compares golden images at each load."""


class FleetLoraStore:
    """The LoRAs of all replicas, where the service asks for those of its device."""

    def __init__(self, fleet: "Roster") -> None:
        self.on_load: Callable[[float], None] = lambda seconds: None
        self._fleet = fleet
        self._lock = threading.Lock()
        self._ready: dict[tuple[str, tuple[str, ...]], FleetLoras] = {}

    @property
    def residents(self) -> dict[str, int]:
        """Device bytes of each LoRA that a replica has, by digest."""
        found: dict[str, int] = {}
        for member in self._fleet.members:
            found |= {} if member.sign is None else member.sign.loras
        return found

    @property
    def nbytes(self) -> int:
        """Device bytes of all of them, on one replica."""
        return sum(self.residents.values())

    def ready(self, network: FleetEngine, digests: Sequence[str]) -> FleetLoras | None:
        """Return what draws with these LoRAs, if the replicas have loaded them once; one that has let them go loads them again."""
        with self._lock:
            return self._ready.get((network.id, tuple(digests)))

    def load(self, network: FleetEngine, opened: Sequence[OpenedLora]) -> FleetLoras:
        """Load LoRAs on all replicas that have an engine ready.

        Raises:
            Rejection: no replica could; with the first reason.
        """
        named = tuple((one.name, one.digest) for one in opened)
        found = everywhere(self._fleet, network.holders, "load_loras", network.id, named)
        failures = {
            member: one
            for member, one in found.items()
            if isinstance(one, Failure) and one.kind not in ("lost", "anew")
        }
        for member, failure in failures.items():
            if failure.kind == "memory":
                raise MemoryError(f"out of memory: {failure.text} ({member.where})")
            raise Rejection(failure.code or "device_error", f"{failure.text} ({member.where})")
        made = FleetLoras(named)
        with self._lock:
            live = set(self._fleet.engines)
            self._ready = {key: one for key, one in self._ready.items() if key[0] in live}
            self._ready[network.id, tuple(one.digest for one in opened)] = made
        return made

    def used(self, view: FleetLoras | None) -> AbstractContextManager[None]:
        """Return what does nothing: a replica keeps what it draws with."""
        return nullcontext()

    def prepare(self) -> None:
        """Do nothing: a replica prepares for the first LoRA when it comes."""

    def renew(self) -> None:
        """Do nothing: a load that does not return holds up its own replica's LoRAs only."""

    def give_room(self) -> bool:
        """Let all LoRAs go that nothing needs."""
        with self._lock:
            self._ready.clear()
        found = everywhere(self._fleet, [one for one in self._fleet.members if one.is_open], "give_lora_room")
        return any(answer is True for answer in found.values())
