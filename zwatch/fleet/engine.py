"""An engine of a fleet: one version, ready on the replicas. To what serves requests it is what `zwatch.engine.pipeline.Engine` is."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zwatch.engine.parameters import Generation, GenerationParameters
from zwatch.fleet.following import Following, Lost, RemotePreview
from zwatch.fleet.messages import EngineFacts, Failure
from zwatch.fleet.stages import Rollout, everywhere

if TYPE_CHECKING:
    from PIL.Image import Image

    from zwatch.fleet.device import FleetDevice
    from zwatch.fleet.member import Member
    from zwatch.fleet.roster import Roster
    from zwatch.shadow.loader import Plan

_log = logging.getLogger(__name__)

MOST_LOST = 3
"""How many replicas one request may lose: it may be what they die of."""


@dataclass(frozen=True)
class FleetLoras:
    """LoRAs that all replicas have ready for an engine: what stands for `zwatch.engine.lora.Adapted`; names and digests."""

    named: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class _Pipeline:
    """What stands for an engine's components where only their identity is asked for."""

    transformer: "FleetEngine"


class FleetEngine:
    """One version on all replicas that have it ready. Several threads may draw with it, each on a replica of its own."""

    def __init__(
        self, fleet: "Roster", plan: "Plan", engine_id: str, facts: EngineFacts, device: "FleetDevice"
    ) -> None:
        self.id, self.plan, self.device = engine_id, plan, device
        self.version, self.digest = facts.version, facts.digest
        self.default_size, self.max_side, self.precision = facts.default_size, facts.max_side, facts.precision
        self.nbytes, self.host_nbytes, self.sizes = facts.nbytes, facts.host_nbytes, list(facts.sizes)
        self.device_buffers: list[Any] = []  # none is on a device of this process
        self.linear_shapes, self.has_control = facts.linear_shapes, facts.has_control
        self.golden = facts.golden
        self.is_unjudged = False
        self.is_live = False
        """Whether replicas that come have to prepare it: from when it is warm until it is closed."""
        self.is_complete = True
        self._fleet = fleet
        self.rollout: Rollout | None = None
        """What prepares it, until it is warm."""
        self._now = threading.local()

    @property
    def pipeline(self) -> _Pipeline:
        """What LoRAs are asked for by.

        Raises:
            RuntimeError: it is closed.
        """
        if not self.is_complete:
            raise RuntimeError(f"version {self.version} cannot make images: it is closed")
        return _Pipeline(self)

    @property
    def holders(self) -> "list[Member]":
        """The replicas that have it ready."""
        return [one for one in self._fleet.members if self.id in one.holds]

    def go_live(self, epochs: "dict[Member, int]") -> None:
        """Let these replicas draw with it that were not lost since these epochs, and others prepare it."""
        fleet = self._fleet
        with fleet.lock:
            self.is_live = True
            fleet.engines[self.id] = self
            for member, epoch in epochs.items():
                if member.epoch == epoch:
                    member.holds.add(self.id)
        fleet.changed()

    # --- drawing

    def serve(
        self,
        parameters: GenerationParameters,
        *,
        on_step: Callable[[int], None] = lambda done: None,
        on_image: "Callable[[int, Image], None]" = lambda number, image: None,
        cancelled: Callable[[], bool] = lambda: False,
        adapted: FleetLoras | None = None,
    ) -> Generation:
        """Make images as `Engine.serve` does, on a replica that draws nothing else. If that is lost, another one draws what is missing,
        with the same seeds.

        Raises:
            GenerationCancelled: `cancelled` returned true.
            RuntimeError: a device failed, or too many replicas were lost.
        """
        drawing = Following(
            self.id,
            self.device.step_seconds,
            parameters,
            () if adapted is None else adapted.named,
            on_step,
            on_image,
            cancelled,
            self._now,
        )
        lost: list[str] = []
        while len(lost) < MOST_LOST:
            with self._fleet.taken(self, drawing.run_id, cancelled) as (member, epoch):
                try:
                    generation = drawing.draw(member, epoch)
                    member.drawn += 1
                    return generation
                except Lost as error:
                    lost.append(f"{member.where}: {error}")
                    member.redrawn += 1
                    self._fleet.lose(member, epoch, str(error), ends=error.is_alive)
            drawing.renew()
            _log.warning("%s while it drew a request; another replica draws it again", lost[-1])
        raise RuntimeError(f"{len(lost)} replicas were lost while they drew this request; the last one was {lost[-1]}")

    def generate(
        self,
        parameters: GenerationParameters,
        *,
        on_step: Callable[[int], None] = lambda done: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Generation:
        """Make images for what is no request, as `Engine.generate`."""
        return self.serve(parameters, on_step=on_step, cancelled=cancelled)

    def preview(self) -> RemotePreview | None:
        """Return the preview that came with the last step, inside `on_step`; from now on there are more."""
        following: Following | None = getattr(self._now, "following", None)
        return None if following is None else following.preview()

    # --- the rest

    def verify_resident(self) -> tuple[int, list[str]]:
        """Hash every weight byte on all replicas; return how many there are on all, and a sentence per file that changed, with the
        replica's name."""
        found = everywhere(self._fleet, self.holders, "verify", self.id)
        total, problems = 0, []
        for member, answer in found.items():
            if isinstance(answer, Failure):
                problems.append(f"{member.where}: it cannot be verified: {answer.text}")
            else:
                total += answer[0]
                problems += [f"{member.where}: {problem}" for problem in answer[1]]
        return total, problems

    def prepare(self) -> None:
        """Do nothing: the replicas have done so."""

    def close(self) -> None:
        """Free it on all replicas."""
        fleet = self._fleet
        with fleet.lock:
            self.is_complete = self.is_live = False
            fleet.engines.pop(self.id, None)
            members = [one for one in fleet.members if one.is_open]
            for member in members:
                member.holds.discard(self.id)
        everywhere(fleet, members, "forget", self.id)
        fleet.changed()
