"""The command line's side of HTTP: calling a running service, and showing what it says to a person."""

import json
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from zwatch.errors import UsageError
from zwatch.progress import Progress

_POLL_SECONDS = 0.1
_ANSWER_SECONDS = 3600.0  # a deploy waits for its load, however slow the disk is


class Service:
    """A running zwatch, reached by HTTP."""

    def __init__(self, url: str, token: str | None) -> None:
        self._url = url.rstrip("/")
        self._headers = {"Accept": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Return (status, body) of a GET.

        Raises:
            UsageError: nothing that speaks our language answers there.
        """
        return self._call(urllib.request.Request(f"{self._url}{path}", headers=self._headers))

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        """Return (status, body) of a POST with a JSON body.

        Raises:
            UsageError: nothing that speaks our language answers there.
        """
        headers = {**self._headers, "Content-Type": "application/json"}
        return self._call(urllib.request.Request(f"{self._url}{path}", json.dumps(body).encode(), headers))

    def _call(self, request: urllib.request.Request) -> tuple[int, dict[str, Any]]:
        try:
            with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as response:
                return response.status, _parsed(response.read(), self._url)
        except urllib.error.HTTPError as error:
            return error.code, _parsed(error.read(), self._url)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise UsageError(
                f"no service at {self._url}: {reason}; start it with `zwatch serve`, or see --url"
            ) from None


@contextmanager
def followed(service: Service, alias: str) -> Iterator[None]:
    """Show a bar of the alias's load on a terminal while the block runs."""
    if not sys.stderr.isatty():
        yield
        return
    ended = threading.Event()
    thread = threading.Thread(target=_follow, args=(service, alias, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _follow(service: Service, alias: str, ended: threading.Event) -> None:
    with Progress("loading", None) as progress:
        while not ended.wait(_POLL_SECONDS):
            attempt = service.get("/status")[1].get("aliases", {}).get(alias, {}).get("attempt")
            if attempt and attempt["progress"]:
                total = round(attempt["bytes"] / attempt["progress"])
                progress.update(attempt["bytes"], total, f"{attempt['version']} {attempt['state']}")


def message(body: dict[str, Any]) -> str:
    """Return the sentence in an error answer."""
    error = body.get("error")
    return str(error["message"]) if isinstance(error, dict) and "message" in error else json.dumps(body)


def status_lines(status: dict[str, Any]) -> list[str]:
    """Return the status for a person."""
    serving = status["serving"]
    what = (
        f"{serving['version']} serves since {serving['since']}, {serving['images']} images"
        if serving
        else "nothing serves"
    )
    lines = [f"{status['status']}: {what}", *(f"  {reason}" for reason in status["reasons"])]
    for name, alias in status["aliases"].items():
        attempt = alias["attempt"]
        how = f", last attempt {attempt['version']} {attempt['state']} in {attempt['seconds']:.2f} s" if attempt else ""
        lines.append(f"  {name} -> {alias['link']}{how}")
    lines += [f"  stray {stray['path']} -> {stray['text']}: {stray['reason']}" for stray in status["strays"]]
    lines += [
        f"  {one['version']} {one['state']}, {one['leases']} leases, {one['bytes']:,} bytes"
        for one in status["engines"]
    ]
    queue = status["queue"]
    return [*lines, f"  queue: {queue['waiting']} waiting, {queue['running']} running, room for {queue['limit']}"]


def version_lines(body: dict[str, Any]) -> list[str]:
    """Return the versions for a person."""
    lines = []
    for one in body["versions"]:
        marks = [mark for mark in ("serving", "resident") if one[mark]][:1] + [
            f"<- {alias}" for alias in one["aliases"]
        ]
        seal = one["digest"][:12] if one["sealed"] else one["problem"] or "not sealed"
        lines.append(f"{one['name']:<20} {one['bytes']:>16,} bytes  {seal}  {' '.join(marks)}".rstrip())
    return lines or ["there are no versions"]


def attempt_lines(body: dict[str, Any]) -> list[str]:
    """Return the attempts for a person."""
    return [
        f"{one['started']}  {one['alias']} {one['version']:<12} {one['state']:<9} {one['seconds']:.2f} s  {one['reason'] or ''}".rstrip()
        for one in body["attempts"]
    ] or ["there were no attempts"]


def _parsed(raw: bytes, url: str) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise UsageError(f"what answers at {url} is not zwatch")
    return body
