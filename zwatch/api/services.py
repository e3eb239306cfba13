"""What the application gives to its handlers: the parts of the service, and the time limits for clients."""

import logging
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from zwatch.api.metrics import Metrics
from zwatch.api.replica_views import Replicas
from zwatch.api.traces import Traces
from zwatch.bridge import Bridge
from zwatch.deploy.summaries import Summaries
from zwatch.generation.history import History
from zwatch.generation.queue import GenerationQueue
from zwatch.generation.trial_file import TrialFile
from zwatch.generation.voting import Voting
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.loras import LoraFollower
from zwatch.rollout.operator import Operator
from zwatch.rollout.supervisor import Supervisor

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """How long the server waits for clients and for their requests, in seconds."""

    head: float = 10.0
    """For the whole head of a new connection's first request, and of each later one from its first byte."""
    body: float = 10.0
    """For the rest of a request's body, or the next `bodies.LEAST` bytes of it."""
    heartbeat: float = 10.0
    """Until a quiet event stream sends a comment, so that proxies keep it open and a dead client is noticed."""
    last_event: float = 5.0
    """For sending the last event of a stream whose request has timed out."""
    idle: float = 75.0
    """Between two requests. Longer than the 60 s for which proxies keep an idle connection: the proxy then closes it first, and
    never while it sends a request."""
    stall: float = 75.0
    """For a client that reads nothing of an answer."""
    drain: float = 120.0
    """For accepted requests when the service stops."""
    failed_drain: float = 5.0
    """The same when something failed for good: for pictures that are drawn and not yet written."""
    silence: float = 30.0
    """For a sign of life of the other process of a handover. An import under load holds an event loop up for one or two."""


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
    trials: TrialFile
    voting: Voting | None
    """None where images are not kept."""
    loras: LoraFollower
    fleet: Replicas
    """The replicas, where there are some."""
    traces: Traces | None = None
    """None where no traces are wanted."""
    summaries: Summaries = field(init=False)
    """Of the versions below `models`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "summaries", Summaries(self.models))

    def ring(self) -> None:
        """Look again now at the links and at the LoRAs."""
        self.supervisor.ring()
        self.loras.ring()

    async def device_memory(self) -> tuple[int, int] | None:
        """Return (free, total) bytes of the device's memory; None before it is opened, or if it cannot be read now, for example
        for want of file descriptors."""
        factory = self.supervisor.factory
        if factory is None:
            return None
        try:
            return await self.bridge.run("memory", factory.device.memory)
        except Exception as error:  # of /proc, of torch, of the driver: never a reason to show nothing at all
            _log.debug("the device's memory cannot be read: %s", error)
            return None


SERVICES = web.AppKey("services", Services)
TIME_LIMITS = web.AppKey("time_limits", TimeLimits)
