"""Wires everything together, starts it in order, and stops it in order."""

import asyncio
import gc
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiohttp import web

from zwatch import systemd
from zwatch.api.answers import add_id, encoded, identify, shape_errors
from zwatch.api.auth import DOOR, Door, guard
from zwatch.api.gauges import Present
from zwatch.api.metrics import Metrics
from zwatch.api.native.operations import DOCUMENT
from zwatch.api.observe import log_job, observer
from zwatch.api.openapi import document
from zwatch.api.routes import add_routes
from zwatch.api.server import Runner, room
from zwatch.api.services import SERVICES, Services
from zwatch.api.streams import CLOSING
from zwatch.bridge import Bridge
from zwatch.config import Config
from zwatch.deploy.watch import RootWatcher
from zwatch.errors import RequestError, UsageError
from zwatch.generation.finish import Finisher
from zwatch.generation.history import History
from zwatch.generation.queue import GenerationQueue
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.state import StateFile
from zwatch.rollout.supervisor import Supervisor

if TYPE_CHECKING:
    from zwatch.engine.factory import EngineFactory

_log = logging.getLogger(__name__)

MAX_BODY = 2**20
"""Longest accepted request body, bytes."""
SHORT_TOKEN = 16
"""Characters below which a token is worth a warning: headers may be tried as often as somebody likes."""
DRAIN_SECONDS = 120.0
"""How long a stop waits for accepted requests."""

STOPPING = RequestError(503, "shutting_down", "the service stops", headers={"Retry-After": "5"})


@dataclass(frozen=True, slots=True)
class Running:
    """A service that runs: where it listens, and the parts that tests and the page of `serve` look at."""

    url: str
    services: Services
    app: web.Application


@asynccontextmanager
async def running(config: Config) -> AsyncIterator[Running]:
    """Run the service inside the block. HTTP answers before torch is imported and before anything is loaded.

    Raises:
        UsageError: the configuration cannot work: no models root, address in use, state directory in use.
    """
    config.check()
    if not config.models.is_dir():
        raise UsageError(f"--models {config.models}: there is no such directory")
    state_file = StateFile(config.state_dir)
    bridge = Bridge()
    supervisor: Supervisor | None = None

    def leases_changed() -> None:
        assert supervisor is not None  # leases are given out later
        queue.wake()
        supervisor.ring()
        supervisor.changes.fire()

    engines = EngineRegistry(leases_changed)
    supervisor = Supervisor(
        config.models,
        config.aliases,
        strict_links=config.strict_links,
        bridge=bridge,
        engines=engines,
        state_file=state_file,
        make_factory=lambda: _make_factory(config),
    )
    history = None
    if config.history:
        history = History(bridge, config.output_dir, config.history_max_images, config.history_max_bytes)
    queue = GenerationQueue(
        engines,
        bridge,
        Finisher(bridge, history),
        config.aliases,
        limit=config.queue,
        max_work=config.max_work,
        changes=supervisor.changes,
    )
    metrics = Metrics()
    services = Services(
        bridge, engines, supervisor, queue, history, config.models, config.timeout, time.monotonic(), metrics
    )
    metrics.present.register(Present(services))
    queue.on_end += [metrics.request_ended, log_job]
    queue.on_refuse.append(metrics.request_refused)
    supervisor.on_end.append(metrics.attempt_ended)
    most, backlog = room()
    runner = Runner(
        _application(config, services), most=most, handler_cancellation=True, shutdown_timeout=2.0, access_log=None
    )
    root_watcher = RootWatcher(config.models, lambda: bridge.post(services.supervisor.ring))
    tasks: list[asyncio.Task[None]] = []
    try:
        await runner.setup()
        url = await _listen(runner, config, backlog)
        await supervisor.start()
        tasks += [
            asyncio.create_task(queue.run(), name="queue"),
            *([asyncio.create_task(history.open(), name="history")] if history is not None else []),
            asyncio.create_task(_keep_watching(root_watcher, bridge), name="root watcher"),
            asyncio.create_task(supervisor.run(), name="supervisor"),
            asyncio.create_task(systemd.keep_alive(), name="watchdog"),
            asyncio.create_task(_announce(services, url), name="announce"),
        ]
        _log.info("serving %s at %s", config.models, url)
        yield Running(url, services, runner.app)
        systemd.notify("STOPPING=1")
        await _drain(services)
        await supervisor.stop()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        queue.abandon(STOPPING)
        runner.app[CLOSING].set()
        supervisor.changes.fire()
        await runner.cleanup()
        await asyncio.to_thread(root_watcher.stop)
        await asyncio.to_thread(bridge.close)
        state_file.close()


async def serve(config: Config) -> None:
    """Serve until SIGINT, SIGTERM or SIGHUP (its terminal went away); a second one does not wait for requests.

    Raises:
        UsageError: as `running`.
    """
    if config.token is not None and len(config.token) < SHORT_TOKEN:
        _log.warning(
            "the token has %d characters only; `openssl rand -hex 32` makes one that nobody guesses", len(config.token)
        )
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    services: list[Services] = []

    def on_signal() -> None:
        if stop.is_set():
            _log.warning("stopping at once")
            for started in services:
                started.supervisor.stop_at_once()
            os._exit(130)
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            loop.add_signal_handler(number, on_signal)
    async with running(config) as service:
        services.append(service.services)
        await stop.wait()
        _log.info("stopping: accepted requests finish first")


def _make_factory(config: Config) -> "EngineFactory":
    """Import torch and open the device; called in a thread."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from zwatch.engine.factory import EngineFactory
    from zwatch.generation import png  # noqa: F401 (with numpy; what is missing shall show now, not at the first image)

    factory = EngineFactory(config.device, budget=config.memory_budget)
    # The libraries' 400,000 objects stay for good: to look through them takes a fifth of a second, in which no thread runs.
    gc.freeze()
    return factory


def _application(config: Config, services: Services) -> web.Application:
    door = Door(config.token)
    app = web.Application(
        client_max_size=MAX_BODY,
        middlewares=[
            identify,
            observer(services.metrics),
            shape_errors,
            guard(door, config.host, config.allowed_hosts),
        ],
    )
    app.on_response_prepare.append(add_id)
    app[DOOR] = door
    app[DOCUMENT] = encoded(document(needs_token=config.token is not None))
    app[SERVICES] = services
    app[CLOSING] = asyncio.Event()
    add_routes(app)
    return app


async def _listen(runner: web.AppRunner, config: Config, backlog: int) -> str:
    site = web.TCPSite(runner, config.host, config.port, reuse_address=True, backlog=backlog)
    try:
        await site.start()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise UsageError(f"{config.host}:{config.port} cannot be bound: {reason}; see --host and --port") from None
    host, port = runner.addresses[0][:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _keep_watching(root_watcher: RootWatcher, bridge: Bridge) -> None:
    """Check every second that the models root is still watched."""
    while True:
        await bridge.run("inspect", root_watcher.ensure_running)
        await asyncio.sleep(1.0)


async def _announce(services: Services, url: str) -> None:
    """Tell systemd, and whoever reads the log, once something was decided."""
    supervisor = services.supervisor
    while not supervisor.settled_once:
        await supervisor.changes.wait()
    systemd.notify("READY=1")
    said: str | None = None
    while True:
        serving = services.engines.serving("current")
        line = f"{url} serves {serving.key.version}" if serving is not None else f"{url} serves nothing, see /status"
        if line != said:
            systemd.notify(f"STATUS={line}")
            said = line
        await supervisor.changes.wait()


async def _drain(services: Services) -> None:
    services.queue.close(STOPPING, for_good=True)
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            await services.queue.drained()
    except TimeoutError:
        _log.warning("%d requests were not done after %g s", services.queue.waiting, DRAIN_SECONDS)
