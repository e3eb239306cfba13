"""What the handlers of all calls work with."""

from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from zwatch.api.metrics import Metrics
from zwatch.bridge import Bridge
from zwatch.generation.history import History
from zwatch.generation.queue import GenerationQueue
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.operator import Operator
from zwatch.rollout.supervisor import Supervisor


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a running service. `timeout` is in seconds, `started` on the monotonic clock; `history` is None
    where images are not kept."""

    bridge: Bridge
    engines: EngineRegistry
    supervisor: Supervisor
    operator: Operator
    queue: GenerationQueue
    history: History | None
    models: Path
    timeout: float
    started: float
    metrics: Metrics


SERVICES = web.AppKey("services", Services)
