"""Opens the device for a service: imports torch, in a thread, and makes what loads versions."""

import gc
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from zwatch.bridge import Bridge, Lane, LaneLimits, NoAnswer
from zwatch.config import Config
from zwatch.deploy.loras import LoraRoot
from zwatch.fleet.settings import FleetSettings, replica_count
from zwatch.generation.loras import Loras
from zwatch.rollout.loras import LoraFollower
from zwatch.shadow.control import LoadControl

if TYPE_CHECKING:
    from zwatch.engine.factory import EngineFactory
    from zwatch.engine.lora_store import LoraStore
    from zwatch.fleet.fleet import Fleet
    from zwatch.fleet.views import ReplicaView
    from zwatch.generation.queue import GenerationQueue
    from zwatch.rollout.supervisor import Supervisor


_MOST_TURNS = 256
"""Of a fleet whose number of replicas is not known beforehand."""


def request_loras(root: Path, bridge: Bridge, supervisor: "Supervisor") -> Loras:
    """Return the LoRAs that requests may name, those under a LoRA root."""

    def store() -> "LoraStore | None":
        return None if supervisor.factory is None else supervisor.factory.loras

    return Loras(bridge, LoraRoot(root, supervisor.gate.signer_of_lora), store)


def follow_loras(requested: Loras, bridge: Bridge, supervisor: "Supervisor") -> LoraFollower:
    """Return what follows the LoRA root. Once there are LoRAs, and a device, that is prepared for the first that is loaded."""

    def prepare(*_: object) -> None:
        if follower.seen:
            requested.prepare()

    def changed() -> None:
        supervisor.changes.fire()
        prepare()

    follower = LoraFollower(requested.root, bridge, supervisor.gate, changed)
    follower.residents = lambda: requested.residents
    supervisor.on_end.append(prepare)  # the device may have been opened for this attempt
    return follower


class FleetSlot:
    """Where the fleet of a service is, once it has been opened. Nothing is imported for it before."""

    def __init__(self, config: Config) -> None:
        self.fleet: Fleet | None = None
        self._config = config
        self._changed: Callable[[], object] = lambda: None
        self._waiting: Callable[[], int] = lambda: 0
        self._post: Callable[[Callable[[], None]], object] = lambda function: None

    def connect(self, bridge: Bridge, supervisor: "Supervisor", queue: "GenerationQueue") -> None:
        """Let the queue draw as many requests at a time as there are replicas, and tell what changes."""
        queue.turns.capacity = lambda: self.capacity
        self._changed, self._waiting = partial(bridge.post, supervisor.changes.fire), lambda: queue.waiting
        self._post = bridge.post

    @property
    def capacity(self) -> int:
        """How many requests can be drawn at the same time."""
        return 1 if self.fleet is None else self.fleet.roster.capacity

    @property
    def views(self) -> "list[ReplicaView] | None":
        """What is known of the replicas; None where there is one device, and no fleet."""
        if not self._config.is_fleet:
            return None
        return [] if self.fleet is None else self.fleet.roster.views()

    @property
    def lanes(self) -> dict[Lane, LaneLimits]:
        """What lanes are other than those of one device: each replica that draws has a thread that waits for it."""
        return {"generate": LaneLimits(width=self._most, most_left=self._most)} if self._config.is_fleet else {}

    @property
    def _most(self) -> int:
        if (devices := self._config.devices) is not None and devices != ("all",):
            return len(devices)
        return self._config.replicas.most if self._config.replicas is not None else _MOST_TURNS

    def open(self, control: LoadControl) -> "EngineFactory":
        """Connect to Ray, and find or begin the replicas; called in a thread."""
        from zwatch.fleet.factory import FleetFactory
        from zwatch.fleet.fleet import Fleet

        made = self.fleet or Fleet(_fleet_settings(self._config), self._waiting)
        made.roster.on_change = self._changed
        self.fleet = made
        made.open(control)
        self._post(_keep_sigterm)
        # To what loads and draws it is an engine's factory like any other: the one place where that is said.
        return cast("EngineFactory", FleetFactory(made.roster))

    async def end(self, bridge: Bridge, *, ends_replicas: bool) -> None:
        """End the fleet, if there is one; without its replicas, which are then there for the next controller."""
        if self.fleet is not None:
            with suppress(NoAnswer):
                await bridge.run("close", partial(self.fleet.close, ends_replicas=ends_replicas))


def _keep_sigterm() -> None:
    """Take SIGTERM back: Ray's core writes a stack trace to standard error at each, as if the process had crashed, before it goes on to
    what was there before."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        signal.siginterrupt(signal.SIGTERM, False)  # as asyncio has it


def _fleet_settings(config: Config) -> FleetSettings:
    count = config.replicas if config.devices is not None or config.replicas is not None else replica_count("auto")
    return FleetSettings(
        config.models, config.lora_root, config.state_dir, config.devices, config.ray, count, config.quorum, config.device,
        config.memory_budget, config.exact, config.dtype, config.quantize, config.text_encoder, config.stall_timeout, config.places,
        config.fleet_limits,
    )  # fmt: skip


def make_factory(config: Config, control: LoadControl, slot: FleetSlot | None = None) -> "EngineFactory":
    """Import torch and open the device, or the fleet of a slot; called in a thread. `control` is told what is done."""
    if slot is not None and config.is_fleet:
        return slot.open(control)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from zwatch.engine.opening import import_library, open_factory

    gc.disable()  # imports make no garbage: to look for it takes a tenth of their time
    try:
        import_library("zwatch.generation.png")  # a missing library must show now, not at the first image
        cache = config.state_dir / "prepared"
        factory = open_factory(
            config.device, budget=config.memory_budget, cache=cache, control=control, exact=config.exact, dtype=config.dtype,
            quantize=config.quantize, text_encoder=config.text_encoder,
        )  # fmt: skip
    finally:
        gc.enable()
    # The libraries' 400,000 objects are never freed. Without this, each full garbage collection checks them, for a fifth of
    # a second in which no thread runs.
    gc.freeze()
    return factory
