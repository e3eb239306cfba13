"""What the handlers of all calls work with."""

from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from zwatch.bridge import Bridge
from zwatch.rollout.gate import Gate
from zwatch.rollout.supervisor import Supervisor
from zwatch.service.history import History
from zwatch.service.metrics import Metrics
from zwatch.service.queue import GenerationQueue


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a running service. `timeout` is in seconds, `started` on the monotonic clock; `history` is None
    where images are not kept."""

    bridge: Bridge
    gate: Gate
    supervisor: Supervisor
    queue: GenerationQueue
    history: History | None
    models: Path
    timeout: float
    started: float
    metrics: Metrics


SERVICES = web.AppKey("services", Services)
