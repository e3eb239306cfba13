"""What runs for as long as the service: the queue, the supervisor, the history, and what systemd is told."""

import asyncio
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from zwatch import systemd
from zwatch.api.health import health
from zwatch.api.services import Services
from zwatch.api.traces import VARIABLES, Exporter, Traces
from zwatch.bridge import NoAnswer
from zwatch.deploy.watch import RootWatcher
from zwatch.errors import FatalError
from zwatch.generation.golden_checks import GoldenChecks
from zwatch.generation.history import History
from zwatch.rollout.lifecycle import Attempt, AttemptState

if TYPE_CHECKING:
    from zwatch.engine.pipeline import Engine

_log = logging.getLogger(__name__)

STATUS_SECONDS = 0.25
"""Least time between two lines to systemd."""
_MOST_STATUS = 2000
"""Characters of that line: systemd ignores more than 4,096 bytes."""
_TRACES_SECONDS = 2.0
"""How long the end of the service waits for a collector of traces."""


def begin(services: Services, root_watcher: RootWatcher, url: str, *, has_taken_over: bool) -> list[asyncio.Task[None]]:
    """Start everything that runs for as long as the service."""
    tasks = [
        asyncio.create_task(services.queue.run(), name="queue"),
        *(() if services.history is None else _begin_history(services.history)),
        *(() if services.voting is None else (asyncio.create_task(services.voting.open(), name="votes"),)),
        asyncio.create_task(services.trials.run(), name="trials"),
        asyncio.create_task(_keep_watching(root_watcher, services), name="root watcher"),
        asyncio.create_task(services.supervisor.run(), name="supervisor"),
        asyncio.create_task(services.loras.run(), name="loras"),
        asyncio.create_task(_golden_checks(services).run(), name="golden images"),
        asyncio.create_task(systemd.keep_alive(services.queue.worker_stuck_since), name="watchdog"),
        asyncio.create_task(_watch_device(services), name="device"),
        asyncio.create_task(_announce(services, url, has_taken_over=has_taken_over), name="announce"),
    ]
    if services.traces is not None:
        tasks.append(asyncio.create_task(_trace(services, services.traces), name="traces"))
    for task in tasks:
        if task.get_name() in ("queue", "supervisor"):
            task.add_done_callback(lambda ended: _stop_without(services, ended))
    return tasks


def _golden_checks(services: Services) -> GoldenChecks:
    """Return what checks golden images beside requests."""
    supervisor = services.supervisor
    checks = GoldenChecks(services.bridge, services.engines, services.queue, supervisor.changes)

    def remember(engine: "Engine") -> None:
        if supervisor.factory is not None:
            supervisor.factory.note_golden(engine)

    checks.remember = remember
    checks.on_checked.append(supervisor.withdrawal.note_golden)
    return checks


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


def leave_systemd(tasks: list[asyncio.Task[None]]) -> None:
    """Say nothing more to systemd: another process is the service."""
    for task in tasks:
        if task.get_name() in ("watchdog", "announce"):
            task.cancel()


async def _keep_watching(root_watcher: RootWatcher, services: Services) -> None:
    """See to it every second, and whenever other folders matter, that they and the models root are watched."""
    supervisor = services.supervisor
    while True:
        folders, aliases, loras = supervisor.seen.folders, supervisor.aliases, services.loras.folders()
        root_watcher.follow(aliases)
        try:
            services.metrics.is_watching = await services.bridge.run(
                "watch", _watched, root_watcher, [*folders, *loras]
            )
        except NoAnswer:
            services.metrics.is_watching = False
        except Exception:  # without this the watching would end for good
            _log.exception("watching %s failed; retrying", services.models)
        try:
            async with asyncio.timeout(1.0):
                while (supervisor.seen.folders, supervisor.aliases, services.loras.folders()) == (
                    folders,
                    aliases,
                    loras,
                ):
                    await supervisor.changes.wait()
        except TimeoutError:
            pass


async def _trace(services: Services, traces: Traces) -> None:
    """Import OpenTelemetry in a thread once the first decision was made, which must not wait for that, and export traces."""
    while not services.supervisor.settled_once:
        await services.supervisor.changes.wait()
    if (exporter := await services.bridge.begin("import", _make_exporter).future) is not None:
        traces.begin(exporter)


def _make_exporter() -> Exporter | None:
    """Import OpenTelemetry and return its exporter; None, which is logged, if that is not possible. It blocks for a second."""
    try:
        from zwatch.api.otel import OtelExporter

        return OtelExporter()
    except ImportError as error:
        _log.warning(
            "traces are asked for (%s), but OpenTelemetry cannot be imported (%s): install zwatch[otel], or unset the "
            "variable",
            ", ".join(name for name in VARIABLES if os.environ.get(name)),
            error,
        )
    except Exception as error:  # of values of its variables
        _log.warning("no traces are sent: %s: %s", type(error).__name__, error)
    return None


async def end_traces(services: Services) -> None:
    """Send the traces of what has ended, for a moment at most."""
    exporter = None if services.traces is None else services.traces.end()
    if exporter is not None:
        with suppress(OSError, RuntimeError):  # no thread for it: the end goes on
            await services.bridge.run("inspect", exporter.close, _TRACES_SECONDS)


def _watched(root_watcher: RootWatcher, folders: Sequence[str]) -> bool:
    """See to it that the models root and these folders are watched, and return whether the system does so."""
    root_watcher.ensure_running(folders)
    return root_watcher.kind == "native" and root_watcher.problem is None


async def _watch_device(services: Services) -> None:
    """See to it that a device that is lost while nobody draws is noticed."""
    supervisor, queue = services.supervisor, services.queue
    await supervisor.device_judge.watch(
        lambda: queue.running is not None or supervisor.runner.running is not None or supervisor.is_stopping
    )


async def _announce(services: Services, url: str, *, has_taken_over: bool) -> None:
    """Tell systemd that the service is ready, since it listens: requests wait for the first load. Then tell the status whenever that
    changes."""
    # After a takeover systemd may still take the old process for the service.
    main = [f"MAINPID={os.getpid()}"] if has_taken_over else []
    said = _status_line(services, url)
    await systemd.tell(*main, "READY=1")
    await systemd.tell(f"STATUS={said}")
    while True:
        coming = services.supervisor.changes.next()
        if (line := _status_line(services, url)) != said:
            await systemd.tell(f"STATUS={line}")
            said = line
        await asyncio.shield(coming)
        await asyncio.sleep(STATUS_SECONDS)  # a load changes something many times a second


def _status_line(services: Services, url: str) -> str:
    """Return the line of `systemctl status`, such as `serving v2, loading v3 62 % at http://…`, and what is not as it should be."""
    supervisor, serving = services.supervisor, services.engines.serving("current")
    what = "serving nothing" if serving is None else f"serving {serving.key.version}"
    if (attempt := supervisor.attempts[0] if supervisor.attempts else None) is not None and attempt.running:
        what += f", {_progress(attempt)}"
    state, reasons = health(supervisor, services.engines, None if services.history is None else services.history.fault)
    return f"{what} at {url}{f'; {state}: ' if reasons else ''}{'; '.join(reasons)}".replace("\n", " ")[:_MOST_STATUS]


def _progress(attempt: Attempt) -> str:
    if attempt.state is AttemptState.WARMING:
        return f"warming up {attempt.key.version}"
    control = attempt.control
    part = (
        f" {100 * control.bytes_done // control.bytes_total} %" if control is not None and control.bytes_total else ""
    )
    return f"loading {attempt.key.version}{part}"
