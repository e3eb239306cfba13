"""The process that serves: it stops at a signal, or when something failed for good, and it ends whatever its threads do."""

import asyncio
import faulthandler
import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NoReturn

from zwatch import logwriter
from zwatch.app import Running, check, running
from zwatch.bridge import Bridge
from zwatch.config import Config
from zwatch.errors import FatalError
from zwatch.handover.taking import Taken, Taking
from zwatch.hangup import Hangup
from zwatch.listening import Passed
from zwatch.opening import make_factory
from zwatch.reloading import look_again

_log = logging.getLogger(__name__)

SHORT_TOKEN = 16
"""A token with fewer characters causes a warning: tokens in headers can be tried without limit."""
MOST_ENDING_SECONDS = 20.0
"""Seconds after which a process whose device is lost or stuck ends, whatever does not come back in it."""
SAVE_SECONDS = 1.0
"""Seconds that a stop at once waits for the state to be saved, and for the log."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a service ended: what failed for good, if something did, and `Running.lingering`: if that is not empty, the caller
    ends the process without waiting for threads."""

    failure: FatalError | None
    lingering: list[str]


async def serve(config: Config, passed: Passed = Passed()) -> Ended:  # noqa: B008 (nothing changes that of nobody)
    """Serve until SIGINT, SIGTERM, or the end of the terminal; a second signal does not wait for requests. It ends too
    when something failed for good. Any other SIGHUP looks again. `passed` is what systemd passed.

    Raises:
        UsageError: see `running`.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    running_now: list[Running] = []
    looking: set[asyncio.Task[None]] = set()  # the event loop keeps only weak references

    def on_signal() -> None:
        if stop.is_set():
            _log.warning("second signal: stopping without waiting for requests")
            for one in running_now:
                _within(SAVE_SECONDS, one.services.supervisor.state.end_at_once)
            end_at_once(130)
        stop.set()
        _log.info("stopping: accepted requests finish first; a second signal stops at once")

    def on_hangup() -> None:
        for one in running_now:  # before it runs, it has not looked yet
            task = loop.create_task(look_again(config, one), name="look again")
            looking.add(task)
            task.add_done_callback(looking.discard)

    actions: dict[signal.Signals, Callable[[], None]] = {
        signal.SIGINT: on_signal,
        signal.SIGTERM: on_signal,
        signal.SIGHUP: Hangup(on_hangup, on_signal),
    }
    for number, action in actions.items():
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            loop.add_signal_handler(number, action)
    if config.token is not None and len(config.token) < SHORT_TOKEN:
        _log.warning(
            "the token has only %d characters; `openssl rand -hex 32` makes one that cannot be guessed",
            len(config.token),
        )
    taken, lingering = await _taken(config, stop) if config.takeover else (None, [])
    if stop.is_set():
        return Ended(None, lingering)
    async with running(config, taken=taken, passed=passed) as service:
        supervisor = service.services.supervisor
        running_now.append(service)
        await _first_of(stop, supervisor.has_failed, service.given)
        if supervisor.failure is not None and supervisor.failure.is_crash:
            _end_within(MOST_ENDING_SECONDS)
    return Ended(supervisor.failure, service.lingering + lingering)


async def _taken(config: Config, stop: asyncio.Event) -> tuple[Taken | None, list[str]]:
    """Take over from a process that uses the state directory; return what it gave, and the lanes with calls that do not return.
    Where `stop` is set first, that process is not touched.

    Raises:
        UsageError, FatalError: this process could not serve.
    """
    check(config)
    bridge = Bridge()
    taking = asyncio.create_task(Taking(config, bridge, partial(make_factory, config)).take_over(), name="take over")
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([taking, stopping], return_when=asyncio.FIRST_COMPLETED)
        if not taking.done():
            taking.cancel()
            await asyncio.wait([taking])
        return (None if taking.cancelled() else taking.result()), bridge.close(0.0)
    finally:
        stopping.cancel()


async def _first_of(*events: asyncio.Event) -> None:
    """Return when one of these events is set."""
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()


def end_at_once(status: int) -> NoReturn:
    """End the process without waiting for its threads: the interpreter would wait for those of calls that do not return, or
    crash in them."""
    logwriter.flush()
    os._exit(status)


def _end_within(seconds: float) -> None:
    """End the process with status 1 after this time, whatever does not come back in it.

    A thread that calls a lost device may hold the interpreter's lock for ever; faulthandler's thread needs no lock. What it writes
    goes nowhere: nobody may read standard error.
    """
    faulthandler.dump_traceback_later(seconds, exit=True, file=os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC))


def _within(seconds: float, function: Callable[[], object]) -> None:
    """Call a function that may never return, for a process that ends next."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)
