"""What the application gives to its handlers: the parts of the service, and the time limits for clients."""

import logging
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

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TimeLimits:
    """How long the server waits for clients and for their requests, in seconds."""

    body: float = 60.0
    """For a whole request body."""
    heartbeat: float = 10.0
    """Until a quiet event stream sends a comment, so that proxies keep it open and a dead client is noticed."""
    last_event: float = 5.0
    """For sending the last event of a stream whose request has timed out."""
    idle: float = 75.0
    """For the whole head of a connection's first request, or of the next one. Longer than the 60 s for which proxies keep
    an idle connection: the proxy then closes it first, and never while it sends a request."""
    stall: float = 75.0
    """For a client that reads nothing of an answer: each such answer may hold megabytes of images in memory."""
    drain: float = 120.0
    """For accepted requests when the service stops."""


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
