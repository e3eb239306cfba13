"""Opens the device for a service: imports torch, in a thread, and makes what loads versions."""

import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING

from zwatch.bridge import Bridge
from zwatch.config import Config
from zwatch.deploy.loras import LoraRoot
from zwatch.generation.loras import Loras
from zwatch.rollout.loras import LoraFollower
from zwatch.shadow.control import LoadControl

if TYPE_CHECKING:
    from zwatch.engine.factory import EngineFactory
    from zwatch.engine.lora_store import LoraStore
    from zwatch.rollout.supervisor import Supervisor


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


def make_factory(config: Config, control: LoadControl) -> "EngineFactory":
    """Import torch and open the device; called in a thread. `control` is told what is done."""
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
