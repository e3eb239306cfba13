"""Wires everything together, starts it in order, and stops it in order."""

import asyncio
import gc
import logging
import os
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from aiohttp import web

from zwatch import systemd
from zwatch.api.answers import add_id, identify, shape_errors
from zwatch.api.auth import AUTHENTICATOR, Authenticator, authorizing
from zwatch.api.health import health
from zwatch.api.metrics import Gauges, Metrics
from zwatch.api.observe import log_job, observer
from zwatch.api.refusals import Refusals
from zwatch.api.routes import add_calls
from zwatch.api.server import Runner, connection_limits
from zwatch.api.services import SERVICES, TIME_LIMITS, Services, TimeLimits
from zwatch.api.streams import CLOSING
from zwatch.bridge import CLOSE_SECONDS, Bridge, NoAnswer
from zwatch.config import Config
from zwatch.deploy.watch import RootWatcher
from zwatch.errors import FatalError, RequestError, UsageError, retry_after
from zwatch.generation.finish import Finisher
from zwatch.generation.history import History
from zwatch.generation.queue import GenerationQueue
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.operator import Operator
from zwatch.rollout.state import StateFile
from zwatch.rollout.supervisor import Supervisor

if TYPE_CHECKING:
    from zwatch.engine.factory import EngineFactory

_log = logging.getLogger(__name__)

MAX_BODY = 2**20
"""Longest accepted request body, bytes."""


STOPPING = RequestError("shutting_down", "the service stops", headers=retry_after(5))


@dataclass(frozen=True, slots=True)
class Running:
    """A running service: its URL, and the parts that tests and `serve` use."""

    url: str
    services: Services
    app: web.Application
    lingering: list[str] = field(default_factory=list)
    """After the end: the lanes with calls that do not return. Their threads end with the process."""


@asynccontextmanager
async def running(config: Config, limits: TimeLimits = TimeLimits()) -> AsyncIterator[Running]:  # noqa: B008 (frozen)
    """Run the service inside the block. HTTP answers before torch is imported and before a version is loaded.

    Raises:
        UsageError: the configuration cannot work: the models root is missing, address in use, state directory in use.
    """
    config.check()
    if not config.models.is_dir():
        raise UsageError(f"--models {config.models}: there is no such directory")
    bridge = Bridge()
    state_file = await _state_file(config, bridge)
    services = _wired(config, bridge, state_file)
    max_connections, backlog = connection_limits()
    refusals = Refusals()
    runner = Runner(
        _application(config, services, limits, refusals),
        max_connections=max_connections,
        limits=limits,
        refusals=refusals,
        handler_cancellation=True,
        shutdown_timeout=2.0,
        access_log=None,
    )
    root_watcher = RootWatcher(config.models, lambda: bridge.post(services.supervisor.ring), config.aliases)
    tasks: list[asyncio.Task[None]] = []
    lingering: list[str] = []
    try:
        await runner.setup()
        url = await _listen(runner, config, backlog)
        await services.supervisor.start()
        tasks += _begin(services, root_watcher, url)
        for task in tasks:
            if task.get_name() in ("queue", "supervisor"):
                task.add_done_callback(lambda ended: _stop_without(services, ended))
        _log.info("serving %s at %s", config.models, url)
        yield Running(url, services, runner.app, lingering)
        systemd.notify("STOPPING=1")
        await _drain(services, limits.drain if services.supervisor.failure is None else 0.0)
        await services.supervisor.stop()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        services.queue.abandon(STOPPING)
        runner.app[CLOSING].set()
        services.supervisor.changes.fire()
        await runner.cleanup()
        refusals.flush()
        lingering += await _close(bridge, root_watcher)
        state_file.close()


async def _state_file(config: Config, bridge: Bridge) -> StateFile:
    try:
        return await bridge.run("state", StateFile, config.state_dir)
    except NoAnswer as error:
        raise UsageError(
            f"the state directory {config.state_dir} cannot be used: {error.strerror}; see --state-dir"
        ) from None


async def _close(bridge: Bridge, root_watcher: RootWatcher) -> list[str]:
    """End all threads; return the lanes of those that do not end."""
    with suppress(NoAnswer):
        await bridge.run("watch", root_watcher.stop)
    bridge.close(0.0)
    # Not in a thread of asyncio's: that would import a module, for which another import may have to end first.
    end = time.monotonic() + CLOSE_SECONDS
    while bridge.is_busy and time.monotonic() < end:  # noqa: ASYNC110 (threads set no event)
        await asyncio.sleep(0.005)
    if lingering := bridge.close(0.0):
        _log.warning("not waiting for calls that do not return: %s", ", ".join(lingering))
    return lingering


def _wired(config: Config, bridge: Bridge, state_file: StateFile) -> Services:
    """Make the parts of the service and connect them; nothing runs yet."""

    def leases_changed() -> None:
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
    history = _make_history(config, bridge)
    queue = GenerationQueue(
        engines,
        bridge,
        Finisher(bridge, history),
        config.aliases,
        limit=config.queue,
        max_work=config.max_work,
        changes=supervisor.changes,
    )

    async def judge(error: Exception) -> RequestError | None:
        if not await supervisor.judge(error):
            return None
        queue.close(STOPPING, permanent=True)
        queue.refuse_waiting(STOPPING)
        return STOPPING

    queue.judge = judge
    if history is not None:
        history.on_change = supervisor.changes.fire
    metrics, started = Metrics(), time.monotonic()
    metrics.present.register(Gauges(metrics, supervisor, engines, queue, history, started))
    queue.is_unloaded = supervisor.is_unloaded
    queue.on_end += [metrics.request_ended, log_job]
    queue.on_refuse.append(metrics.request_refused)
    supervisor.on_end.append(metrics.attempt_ended)
    operator = Operator(supervisor, bridge)
    return Services(
        bridge, engines, supervisor, operator, queue, history, config.models, config.timeout, started, metrics
    )


def _make_history(config: Config, bridge: Bridge) -> History | None:
    if not config.history:
        return None
    # In the state directory, which only one process uses, and which may be written where the output directory may not.
    cache = config.state_dir / "history"
    return History(bridge, config.output_dir, config.history_max_images, config.history_max_bytes, cache)


def _begin(services: Services, root_watcher: RootWatcher, url: str) -> list[asyncio.Task[None]]:
    """Start everything that runs for as long as the service."""
    return [
        asyncio.create_task(services.queue.run(), name="queue"),
        *(() if services.history is None else _begin_history(services.history)),
        asyncio.create_task(_keep_watching(root_watcher, services), name="root watcher"),
        asyncio.create_task(services.supervisor.run(), name="supervisor"),
        asyncio.create_task(systemd.keep_alive(), name="watchdog"),
        asyncio.create_task(_announce(services, url), name="announce"),
    ]


def _begin_history(history: History) -> list[asyncio.Task[None]]:
    return [
        asyncio.create_task(history.open(), name="history"),
        asyncio.create_task(history.keep_current(), name="history changes"),
    ]


def _stop_without(services: Services, ended: asyncio.Task[None]) -> None:
    """Stop the service when a task ends without which nothing is drawn, or no link is followed."""
    if not ended.cancelled() and (error := ended.exception()) is not None:
        failure = FatalError(f"the {ended.get_name()} ended unexpectedly: {type(error).__name__}: {error}")
        failure.__cause__ = error
        services.supervisor.fail(failure)


def _make_factory(config: Config) -> "EngineFactory":
    """Import torch and open the device; called in a thread."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from zwatch.engine.opening import import_library, open_factory

    gc.disable()  # imports make no garbage: to look for it takes a tenth of their time
    try:
        import_library("zwatch.generation.png")  # a missing library must show now, not at the first image
        factory = open_factory(config.device, budget=config.memory_budget, cache=config.state_dir / "prepared")
    finally:
        gc.enable()
    # The libraries' 400,000 objects are never freed. Without this, each full garbage collection checks them, for a fifth of
    # a second in which no thread runs.
    gc.freeze()
    return factory


def _application(config: Config, services: Services, limits: TimeLimits, refusals: Refusals) -> web.Application:
    authenticator = Authenticator(config.token, config.state_dir)
    app = web.Application(
        client_max_size=MAX_BODY,
        middlewares=[
            identify,
            observer(services.metrics, refusals),
            shape_errors,
            authorizing(authenticator, config.host, config.allowed_hosts),
        ],
    )
    app.on_response_prepare.append(add_id)
    app[AUTHENTICATOR] = authenticator
    app[SERVICES] = services
    app[TIME_LIMITS] = limits
    app[CLOSING] = asyncio.Event()
    add_calls(app, needs_token=config.token is not None)
    return app


async def _listen(runner: web.AppRunner, config: Config, backlog: int) -> str:
    site = web.TCPSite(runner, config.host, config.port, reuse_address=True, backlog=backlog)
    try:
        await site.start()
    except OSError as error:
        if error.errno is None or isinstance(error, socket.gaierror):  # the resolver has numbers of its own
            reason = error.strerror or str(error)
        else:
            reason = os.strerror(error.errno)  # asyncio's own text is a long sentence
        raise UsageError(f"{config.host}:{config.port} cannot be bound: {reason}; see --host and --port") from None
    host, port = runner.addresses[0][:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def _keep_watching(root_watcher: RootWatcher, services: Services) -> None:
    """See to it every second, and whenever other folders matter, that they and the models root are watched."""
    supervisor = services.supervisor
    while True:
        folders = supervisor.seen.folders
        try:
            await services.bridge.run("watch", root_watcher.ensure_running, folders)
        except NoAnswer:
            pass  # the look says so
        except Exception:  # without this the watching would end for good
            _log.exception("watching %s failed; retrying", services.models)
        try:
            async with asyncio.timeout(1.0):
                while supervisor.seen.folders == folders:
                    await supervisor.changes.wait()
        except TimeoutError:
            pass


async def _announce(services: Services, url: str) -> None:
    """Tell systemd that the service is ready once the first decision was made, and the status whenever that changes."""
    supervisor = services.supervisor
    while not supervisor.settled_once:
        await supervisor.changes.wait()
    if supervisor.failure is None:
        await systemd.tell("READY=1")
    said: str | None = None
    while True:
        serving = services.engines.serving("current")
        state, reasons = health(
            supervisor, services.engines, None if services.history is None else services.history.fault
        )
        what = "nothing" if serving is None else serving.key.version
        line = f"{url} serves {what}" + (f"; {state}: {'; '.join(reasons)}" if reasons else "")
        if line != said:
            await systemd.tell(f"STATUS={line}".replace("\n", " "))
            said = line
        await supervisor.changes.wait()


async def _drain(services: Services, seconds: float) -> None:
    services.queue.close(STOPPING, permanent=True)
    try:
        async with asyncio.timeout(seconds):
            await services.queue.drained()
    except TimeoutError:
        _log.warning("%d requests were still waiting after %g s", services.queue.waiting, seconds)
