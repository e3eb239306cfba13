"""Wires everything together, starts it in order, and stops it in order."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from zwatch import systemd
from zwatch.api.answers import add_id, identify, shape_errors
from zwatch.api.auth import AUTHENTICATOR, Authenticator, authorizing
from zwatch.api.gauges import Gauges
from zwatch.api.metrics import Metrics
from zwatch.api.observe import log_job, observer
from zwatch.api.refusals import Refusals
from zwatch.api.routes import add_calls
from zwatch.api.server import Runner, connection_limits
from zwatch.api.services import SERVICES, TIME_LIMITS, Services, TimeLimits
from zwatch.api.streams import CLOSING
from zwatch.api.traces import Traces, wanted
from zwatch.api.vote_gauges import VoteGauges
from zwatch.bridge import CLOSE_SECONDS, Bridge, NoAnswer
from zwatch.config import Config
from zwatch.counting import count_trials, count_votes
from zwatch.deploy.oserrors import leads_nowhere
from zwatch.deploy.watch import RootWatcher
from zwatch.ending import STOPPING, end_requests, let_judge
from zwatch.errors import UsageError
from zwatch.generation.comparison import end_together
from zwatch.generation.finish import Finisher
from zwatch.generation.history import History
from zwatch.generation.queue import GenerationQueue
from zwatch.handover.door import keep_open
from zwatch.handover.following import Following
from zwatch.handover.giving import Giving
from zwatch.handover.leaving import leave_to_systemd
from zwatch.handover.taking import Taken
from zwatch.lasting import begin, end_traces, leave_systemd
from zwatch.listening import Listening, Passed, listen
from zwatch.opening import FleetSlot, follow_loras, make_factory, request_loras
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.inheritance import inherit
from zwatch.rollout.operator import Operator
from zwatch.rollout.state import StateFile
from zwatch.rollout.supervisor import Supervisor

if TYPE_CHECKING:
    from zwatch.engine.factory import EngineFactory

_log = logging.getLogger(__name__)

MAX_BODY = 2**20
"""Longest accepted request body, bytes."""


@dataclass(frozen=True, slots=True)
class Running:
    """A running service: its URL, and the parts that tests and `serve` use."""

    url: str
    services: Services
    app: web.Application
    lingering: list[str]
    """After the end: the lanes with calls that do not return, and what else has threads that end with the process."""
    given: asyncio.Event
    """Set when another process has taken over; the block is to be left then."""


@asynccontextmanager
async def running(
    config: Config,
    limits: TimeLimits = TimeLimits(),  # noqa: B008 (frozen)
    taken: Taken | None = None,
    passed: Passed = Passed(),  # noqa: B008 (nothing changes that of nobody)
) -> AsyncIterator[Running]:
    """Run the service inside the block. HTTP answers before torch is imported and before a version is loaded. `taken` is what
    another process handed over, `passed` what systemd did.

    Raises:
        UsageError: the configuration cannot work: the models root is missing, address in use, state directory in use.
    """
    check(config)
    slot = FleetSlot(config)
    bridge = Bridge(slot.lanes)
    taken = taken or Taken()
    state_file = await _state_file(config, bridge, taken)
    services = _wired(config, bridge, state_file, slot)
    giving = Giving(services, state_file, (config.host, config.port), limits.silence)
    runner, backlog = _runner(config, services, limits, giving)
    most_drain = max(limits.drain, config.timeout)
    following = (
        None
        if taken.channel is None
        else Following(taken, taken.channel, services, runner, config.memory_budget, most_drain, limits.silence)
    )
    root_watcher = RootWatcher(config.models, lambda: bridge.post(services.ring))
    tasks: list[asyncio.Task[None]] = []
    lingering: list[str] = []
    try:
        await runner.setup()
        listening = await _start(services, runner, taken, following, config, backlog, passed)
        tasks += begin(services, root_watcher, listening.url, has_taken_over=following is not None)
        giving.before_end = lambda: leave_systemd(tasks)
        tasks.append(asyncio.create_task(_hand_over(services, config, giving, following, listening), name="handover"))
        _log.info("serving %s at %s", config.models, listening.url)
        yield Running(listening.url, services, runner.app, lingering, giving.given)
        await _finish(services, runner, giving, most_drain, limits, keeps_sockets=bool(passed.sockets))
        await services.supervisor.stop()
    finally:
        await giving.close()
        if following is not None:
            await following.close()
        await _end(services, runner, tasks)
        await slot.end(bridge, ends_replicas=services.supervisor.failure is None)
        services.metrics.refusals.flush()
        lingering += await _close(bridge, root_watcher, services.supervisor.factory)
        state_file.close()


def _runner(config: Config, services: Services, limits: TimeLimits, giving: Giving) -> tuple[Runner, int]:
    """Return the HTTP server, and how many connections may wait to be accepted."""
    refusals = services.metrics.refusals
    max_connections, backlog = connection_limits()
    giving.runner = Runner(
        _application(config, services, limits, refusals, giving),
        max_connections=max_connections,
        limits=limits,
        refusals=refusals,
        handler_cancellation=True,
        shutdown_timeout=2.0,
        access_log=None,
    )
    return giving.runner, backlog


async def _finish(
    services: Services, runner: Runner, giving: Giving, most_drain: float, limits: TimeLimits, *, keeps_sockets: bool
) -> None:
    """End what was accepted. `keeps_sockets`: systemd passed the sockets, and passes them to the next process."""
    if keeps_sockets:
        runner.stop_accepting()
    if await giving.is_given():
        await giving.drain(most_drain)
        return
    systemd.notify("STOPPING=1")
    if keeps_sockets:
        await leave_to_systemd(services, runner, limits)
    else:
        await end_requests(services, limits)


async def _end(services: Services, runner: Runner, tasks: list[asyncio.Task[None]]) -> None:
    """End everything on the event loop, and all connections."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    services.queue.abandon(STOPPING)
    runner.app[CLOSING].set()
    services.supervisor.changes.fire()
    await runner.cleanup()
    await end_traces(services)


def check(config: Config) -> None:
    """Check what no option can check alone.

    Raises:
        UsageError: the configuration cannot work.
    """
    config.check()
    try:
        is_there = config.models.is_dir()
    except OSError as error:
        if leads_nowhere(error):
            raise UsageError(f"--models {config.models}: {error.strerror}") from None
        is_there = True  # that may pass: it is looked at again, and the status says why nothing is loaded
    if not is_there:
        raise UsageError(f"--models {config.models}: there is no such directory")


async def _start(
    services: Services,
    runner: Runner,
    taken: Taken,
    following: Following | None,
    config: Config,
    backlog: int,
    passed: Passed,
) -> Listening:
    """Read the saved state, and listen: first, so that probes are answered at once, unless another process still answers.

    Raises:
        UsageError: the address cannot be bound.
    """
    supervisor = services.supervisor
    if following is None:
        listening = await listen(runner, config, backlog, own=passed.sockets)
        await supervisor.start()
    else:
        await supervisor.start()
        supervisor.runner.neighbour.is_leaving = lambda: following.is_leaving
    if taken.factory is not None:
        inherit(services.bridge, services.engines, supervisor, taken.factory, taken.warmed)
    if following is not None:
        await following.begin()
        await following.take_entrance()
        listening = await listen(runner, config, backlog, taken.sockets, taken.address, passed.sockets)
    if passed.connections:
        while passed.connections:
            await runner.adopt(passed.connections.pop())
        await systemd.forget_connections()
    await supervisor.state.save()
    return listening


async def _hand_over(
    services: Services, config: Config, giving: Giving, following: Following | None, listening: Listening
) -> None:
    """Follow the process that was taken over until it ends; then let another one take over, but not the controller of a fleet."""
    if following is not None:
        await following.run(takes_connections=listening.is_inherited)
    if not config.is_fleet:
        await keep_open(config.state_dir, services.bridge, giving.meet, giving.given)


async def _state_file(config: Config, bridge: Bridge, taken: Taken) -> StateFile:
    try:
        is_alone = taken.channel is None
        return await bridge.run("state", StateFile, config.state_dir, taken.lock, is_alone=is_alone)
    except NoAnswer as error:
        raise UsageError(
            f"the state directory {config.state_dir} cannot be used: {error.strerror}; see --state-dir"
        ) from None


async def _close(bridge: Bridge, root_watcher: RootWatcher, factory: "EngineFactory | None") -> list[str]:
    """End all threads; return the lanes of those that do not end, and what else still runs."""
    with suppress(NoAnswer):
        await bridge.run("watch", root_watcher.stop)
    bridge.close(0.0)
    # Not in a thread of asyncio's: that would import a module, for which another import may have to end first.
    end = time.monotonic() + CLOSE_SECONDS
    while bridge.is_busy and time.monotonic() < end:  # noqa: ASYNC110 (threads set no event)
        await asyncio.sleep(0.005)
    if lingering := bridge.close(0.0):
        _log.warning("not waiting for calls that do not return: %s", ", ".join(lingering))
    return lingering + (["the device"] if factory is not None and factory.device.is_preparing else [])


def _wired(config: Config, bridge: Bridge, state_file: StateFile, slot: FleetSlot) -> Services:
    """Make the parts of the service and connect them; nothing runs yet."""

    def leases_changed() -> None:
        queue.wake()
        supervisor.ring()
        supervisor.changes.fire()

    engines = EngineRegistry(leases_changed)
    supervisor = Supervisor(
        config.models,
        config.followed,
        strict_links=config.strict_links,
        bridge=bridge,
        engines=engines,
        state_file=state_file,
        make_factory=partial(make_factory, config, slot=slot),
        policy_file=config.require_signature,
    )
    history = _make_history(config, bridge)
    queue = _make_queue(config, bridge, supervisor, engines, history)
    let_judge(supervisor, queue, probation=config.probation, timeout=config.timeout)
    if history is not None:
        history.on_change = supervisor.changes.fire
    slot.connect(bridge, supervisor, queue)
    metrics, started = Metrics(), time.monotonic()
    metrics.present.register(Gauges(metrics, supervisor, engines, queue, history, started, slot))
    queue.is_unloaded, queue.is_coming = supervisor.is_unloaded, supervisor.is_coming
    trials = count_trials(config.state_dir, bridge, supervisor, queue)
    voting = count_votes(config.state_dir, bridge, history, trials.results)
    if voting is not None:
        metrics.present.register(VoteGauges(voting, engines))
    queue.on_end += [partial(end_together, queue), metrics.request_ended, log_job]
    queue.on_refuse.append(metrics.request_refused)
    queue.drawer.on_redraw.append(metrics.request_redrawn)
    supervisor.on_end.append(metrics.attempt_ended)
    queue.loras.on_load = metrics.lora_loaded
    traces = Traces() if wanted() else None
    if traces is not None:
        queue.on_end.append(traces.job_ended)
        supervisor.on_end.append(traces.attempt_ended)
    operator = Operator(supervisor, bridge)
    loras = follow_loras(queue.loras, bridge, supervisor)
    return Services(
        bridge, engines, supervisor, operator, queue, history, config.models, config.timeout, started, metrics, trials,
        voting, loras, slot, traces,
    )  # fmt: skip


def _make_queue(
    config: Config, bridge: Bridge, supervisor: Supervisor, engines: EngineRegistry, history: History | None
) -> GenerationQueue:
    return GenerationQueue(
        engines,
        bridge,
        Finisher(bridge, history),
        supervisor.traffic,
        limit=config.queue,
        max_work=config.max_work,
        changes=supervisor.changes,
        stall=config.stall_timeout,
        traffic=supervisor.traffic,
        loras=request_loras(config.lora_root, bridge, supervisor),
    )


def _make_history(config: Config, bridge: Bridge) -> History | None:
    if not config.history:
        return None
    # In the state directory, which only one process uses, and which may be written where the output directory may not.
    cache = config.state_dir / "history"
    return History(bridge, config.output_dir, config.history_max_images, config.history_max_bytes, cache)


def _application(
    config: Config, services: Services, limits: TimeLimits, refusals: Refusals, giving: Giving
) -> web.Application:
    authenticator = Authenticator(config.token, config.state_dir)
    app = web.Application(
        client_max_size=MAX_BODY,
        middlewares=[
            identify,
            observer(services.metrics, refusals, services.traces),
            shape_errors,
            authorizing(authenticator, config.hosts, config.allowed_hosts),
            giving.middleware,
        ],
    )
    app.on_response_prepare.append(add_id)
    app[AUTHENTICATOR] = authenticator
    app[SERVICES] = services
    app[TIME_LIMITS] = limits
    app[CLOSING] = asyncio.Event()
    add_calls(app, needs_token=config.token is not None)
    return app
