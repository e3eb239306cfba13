"""What a service starts with when it takes over: engines that were loaded before it began."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zwatch.bridge import Bridge
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import Attempt
from zwatch.rollout.supervisor import Supervisor

if TYPE_CHECKING:
    from zwatch.engine.factory import EngineFactory
    from zwatch.engine.pipeline import Engine


@dataclass(frozen=True, slots=True)
class Warmed:
    """What one alias is to serve: a warmed engine, and the attempt that loaded it."""

    attempt: Attempt
    engine: "Engine"


def inherit(
    bridge: Bridge,
    engines: EngineRegistry,
    supervisor: Supervisor,
    factory: "EngineFactory",
    warmed: Mapping[str, Warmed],
) -> None:
    """Let each alias serve its engine, unless the saved state says that it is unloaded or its version set aside. To be called
    after `Supervisor.start`, before requests come."""
    runner, saved = supervisor.runner, supervisor.state.saved
    runner.factory = factory
    for digest in runner.distrusted:
        factory.distrust(digest)
    unused = {found.engine for found in warmed.values()}
    for name, found in warmed.items():
        alias = supervisor.records.adopt(name, saved)
        if alias.is_unloaded or saved.is_set_aside(found.attempt.key):
            continue
        if engines.resident(found.attempt.key) is None:
            engines.admit(found.attempt.key, found.engine)
        unused.discard(found.engine)
        runner.latest.appendleft(found.attempt)
        alias.attempt = found.attempt
        alias.promote(found.attempt)
        runner.preparation.note_promoted(found.attempt.key)
        runner.end(found.attempt)
    for engine in unused:
        bridge.begin("close", engine.close)
