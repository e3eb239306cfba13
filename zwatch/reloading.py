"""SIGHUP: look at all links again, try again what was rejected, read the token again."""

import logging
import time

from zwatch import systemd
from zwatch.api.auth import AUTHENTICATOR
from zwatch.api.sessions import Sessions
from zwatch.app import Running
from zwatch.bridge import NoAnswer
from zwatch.config import Config, read_token
from zwatch.errors import UsageError

_log = logging.getLogger(__name__)


async def look_again(config: Config, service: Running) -> None:
    """Look at all links now, try again what was rejected, and read the token's file again. What serves goes on serving; what is
    wrong changes nothing but the log and the status."""
    await systemd.tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
    try:
        _log.info("looking again at all links, and at what was rejected")
        supervisor = service.services.supervisor
        for alias in supervisor.records.values():
            if not alias.is_unloaded:
                alias.refusals.end_pauses()
        if not supervisor.is_stopping:
            await supervisor.look_now()
        if config.token_file is not None:
            await _renew_token(config, service)
    finally:
        if not service.services.supervisor.is_stopping:
            await systemd.tell("READY=1")


async def _renew_token(config: Config, service: Running) -> None:
    """Use the token that its file has now, unless it cannot be used."""
    authenticator, bridge = service.app[AUTHENTICATOR], service.services.bridge

    def read() -> tuple[str, Sessions] | None:
        token = read_token(config.token_file)
        assert token is not None  # of a file that is named
        return None if authenticator.is_token(token) else (token, Sessions(token, state_dir=config.state_dir))

    try:
        if (new := await bridge.run("inspect", read)) is not None:
            authenticator.renew(*new)
            _log.info("the token is a new one: the old one and all sessions of the page have ended")
    except (UsageError, NoAnswer) as error:
        _log.error("%s; the token stays as it was", error)
