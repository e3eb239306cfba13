"""Shows the progress of a load on a terminal, as a running service reports it."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zwatch.client import Service
from zwatch.errors import UsageError

_POLL_SECONDS = 0.1
_JOIN_SECONDS = 1.0  # Ctrl-C must not wait for a service that does not answer


@contextmanager
def followed(service: Service, alias: str, *, of_share: bool = False) -> Iterator[None]:
    """Show the progress of the load of an alias, or of its share, on a terminal while the block runs."""
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(service, alias, of_share, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_JOIN_SECONDS)


def _follow(service: Service, alias: str, of_share: bool, ended: threading.Event) -> None:
    from zwatch.progress import Progress  # tqdm, for a terminal only

    with Progress(f"{alias}") as progress:
        while not ended.wait(_POLL_SECONDS):
            try:
                status = service.get("/status")[1]
            except UsageError:
                return  # the call that is being followed reports it
            attempt = _attempt(status, alias, of_share=of_share)
            if attempt is None or attempt["state"] not in ("LOADING", "WARMING"):
                progress.step("waiting for the service")
            else:
                total = round(attempt["bytes"] / attempt["progress"]) if attempt["progress"] else 0
                progress.update(attempt["bytes"], total, f"{attempt['version']} {attempt['state']}")


def _attempt(status: dict[str, Any], alias: str, *, of_share: bool) -> dict[str, Any] | None:
    """Return the last attempt of an alias or of its share, if there is one."""
    if not of_share:
        found = status.get("aliases", {}).get(alias)
    else:
        found = next((one for one in status.get("shares", {}).values() if one["alias"] == alias), None)
    return None if found is None else found.get("attempt")
