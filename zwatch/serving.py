"""The process that serves: it stops at a signal, or when something failed for good, and it ends whatever its threads do."""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from zwatch import logwriter
from zwatch.api.services import Services
from zwatch.app import running
from zwatch.config import Config
from zwatch.errors import FatalError

_log = logging.getLogger(__name__)

SHORT_TOKEN = 16
"""A token with fewer characters causes a warning: tokens in headers can be tried without limit."""
SAVE_SECONDS = 1.0
"""Seconds that a stop at once waits for the state to be saved, and for the log."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a service ended: what failed for good, if something did, and `Running.lingering`: if that is not empty, the caller
    ends the process without waiting for threads."""

    failure: FatalError | None
    lingering: list[str]


async def serve(config: Config) -> Ended:
    """Serve until SIGINT, SIGTERM or SIGHUP (the terminal was closed); a second signal does not wait for requests. It ends too
    when something failed for good.

    Raises:
        UsageError: see `running`.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    services: list[Services] = []

    def on_signal() -> None:
        if stop.is_set():
            _log.warning("second signal: stopping without waiting for requests")
            for started in services:
                _within(SAVE_SECONDS, started.supervisor.stop_at_once)
            end_at_once(130)
        stop.set()
        _log.info("stopping: accepted requests finish first; a second signal stops at once")

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            loop.add_signal_handler(number, on_signal)
    if config.token is not None and len(config.token) < SHORT_TOKEN:
        _log.warning(
            "the token has only %d characters; `openssl rand -hex 32` makes one that cannot be guessed",
            len(config.token),
        )
    async with running(config) as service:
        supervisor = service.services.supervisor
        services.append(service.services)
        await _first_of(stop, supervisor.has_failed)
    return Ended(supervisor.failure, service.lingering)


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


def _within(seconds: float, function: Callable[[], object]) -> None:
    """Call a function that may never return, for a process that ends next."""
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    thread.join(seconds)
