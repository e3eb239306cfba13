"""The operator of a soak: deploys by links of every form and by HTTP, links bad versions, unloads and loads."""

import asyncio
import os
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import Json
from soak_calls import Book, Client, Failure, Link
from soak_versions import BAD, Fleet

SERVED = 120.0
"""Seconds after which a version that was linked to must serve, or be rejected."""


def _shell(command: str) -> Callable[[Path, str], None]:
    def flip(models: Path, version: str) -> None:
        subprocess.run(command.format(version=version), shell=True, cwd=models, check=True)  # noqa: S602 (names of ours)

    return flip


def _replace(models: Path, version: str) -> None:
    (models / "temporary").symlink_to(version)
    os.replace(models / "temporary", models / "current")


FORMS: dict[str, Callable[[Path, str], None]] = {
    "ln -sf": _shell("ln -sf {version} current"),
    "ln -sfn": _shell("ln -sfn {version} current"),
    "ln -sfT": _shell("ln -sfT {version} current"),
    "mv -T": _shell("ln -s {version} next && mv -T next current"),
    "cp -PfT": _shell("ln -s {version} ../next && cp -PfT ../next current; rm -f ../next"),
    "rm, ln -s": _shell("rm current; ln -s {version} current"),
    "os.replace": _replace,
    **({"busybox ln -sf": _shell("busybox ln -sf {version} current")} if shutil.which("busybox") else {}),
}
LINKED_BADLY = (*BAD, "nowhere")
"""What is linked to though it cannot serve."""


class Operator:
    """Makes one deploy after another."""

    def __init__(self, client: Client, fleet: Fleet, book: Book) -> None:
        self.client, self.fleet, self.book = client, fleet, book
        self.done: Counter[str] = Counter()
        self.seconds: list[float] = []
        """From each link to the moment at which its version was seen to serve."""
        self.serving = fleet.good[0]
        self.number = 0
        """How many deploys were made or tried."""
        self._added: list[str] = []
        self._usual = 0

    @property
    def is_usual(self) -> bool:
        """Whether the last two steps have led to versions that serve, so that as many engines are resident as usual."""
        return self._usual >= 2

    async def step(self) -> None:
        """Make the next deploy; failures are noted."""
        self.number += 1
        self._usual += 1
        number, chance = self.number, self.client.chance
        try:
            if number % 60 == 0:
                await self._unload()
            elif number % 12 == 0:
                await self._link_to_a_bad_one()
            elif number % 12 == 6 and self.fleet.is_small:
                await self._link_to_a_new_one()
            elif number % 8 == 3:
                await self._deploy_by_http()
            elif number % 16 == 5:
                await self._roll_back()
            elif number % 16 == 13:
                await self._flip(self._another(), chance.choice(list(FORMS)), waits=False)
                await asyncio.sleep(chance.random() * 0.3)
                await self._flip(self._another(), chance.choice(list(FORMS)))
            else:
                await self._flip(self._another(), chance.choice(list(FORMS)))
            if number % 10 == 7:
                await self.client.json("verify", "POST", "/api/verify", json={})
        except Failure:
            pass
        except Exception as error:
            self.book.fails("operator", f"{type(error).__name__}: {error}")
        known = len(self.book.timeline.wrong)
        self.book.timeline.judge()
        for one in self.book.timeline.wrong[known:]:
            self.book.tell(f"WRONG {self.book.doing}, {one}")

    def _begins(self, what: str, version: str = "") -> None:
        """Note what is done now; a failure of a client names it."""
        self.done[what] += 1
        self.book.doing = f"at deploy {self.number} ({what} {version})"

    async def _flip(self, version: str, form: str, *, waits: bool = True) -> None:
        self._begins(form, version)
        link = Link(time.monotonic(), version)
        self.book.timeline.links.append(link)
        self.serving = version
        await asyncio.to_thread(FORMS[form], self.fleet.models, version)
        if waits:
            await self._serves(link, form)

    async def _serves(self, link: Link, form: str) -> None:
        status: Json = {}
        while time.monotonic() < link.begun + SERVED:
            status = await self.client.json("operator", "GET", "/status")
            serving, current = status["serving"], status["aliases"]["current"]
            if serving and serving["version"] == link.version and current["target"] == link.version:
                link.seen = time.monotonic()
                self.seconds.append(link.seen - link.begun)
                return
            await asyncio.sleep(0.05)
        self.book.fails("operator", f"{link.version} by {form} did not serve in {SERVED} s: {status.get('aliases')}")

    async def _deploy_by_http(self) -> None:
        version = self._another()
        self._begins("POST /api/deploy", version)
        link = Link(time.monotonic(), version)
        self.book.timeline.links.append(link)
        await self.client.json("deploy", "POST", "/api/deploy", json={"version": version})
        link.seen = time.monotonic()
        self.seconds.append(link.seen - link.begun)
        self.serving = version

    async def _roll_back(self) -> None:
        self._begins("POST /api/rollback")
        link = Link(time.monotonic(), None)
        self.book.timeline.links.append(link)
        found = await self.client.json("rollback", "POST", "/api/rollback", json={})
        link.version, link.seen = found["version"], time.monotonic()
        self.serving = found["version"]

    async def _link_to_a_new_one(self) -> None:
        """Deploy a version that was never there before, and delete one of those before it."""
        name = f"daily-{self.number}"
        await asyncio.to_thread(self.fleet.add, name, self.number)
        first = self.fleet.good[0]
        self.book.digests[name] = self.fleet.digest(name)
        self.book.pictures |= {
            (name, prompt, seed): pixels
            for (version, prompt, seed), pixels in self.book.pictures.items()
            if version == first
        }
        self._begins("a new version", name)
        await self._flip(name, self.client.chance.choice(list(FORMS)))
        self._added.append(name)
        if len(self._added) > 2:
            await asyncio.to_thread(self.fleet.remove, self._added.pop(0))

    async def _link_to_a_bad_one(self) -> None:
        """Link to what cannot serve, see that it is refused and that what served still serves; the next step links to a good one."""
        bad = self.client.chance.choice(LINKED_BADLY)
        self._begins(f"linked to {bad}")
        self._usual = 0
        await asyncio.to_thread(_replace, self.fleet.models, bad)
        begun = time.monotonic()
        while time.monotonic() < begun + SERVED:
            status = await self.client.json("operator", "GET", "/status")
            if _is_refused(status["aliases"]["current"], bad):
                break
            await asyncio.sleep(0.05)
        else:
            self.book.fails("operator", f"{bad} was not refused: {status['aliases']}")
        if not status["serving"] or status["serving"]["version"] != self.serving:
            self.book.fails("operator", f"{bad} was linked, and {status['serving']} serves instead of {self.serving}")
        self.book.provoked[f"refused: {bad}"] += 1

    async def _unload(self) -> None:
        self._begins("unload and load")
        self._usual = 0
        begun = time.monotonic()
        self.book.unloaded.append((begun, float("inf")))
        await self.client.json("unload", "POST", "/api/unload_model", json={})
        await asyncio.sleep(0.5)
        await self.client.json("load", "POST", "/api/load_model", json={})
        self.book.unloaded[-1] = (begun, time.monotonic())
        del self.book.unloaded[:-20]

    def _another(self) -> str:
        """Return a good version that the link does not point to."""
        linked = os.readlink(self.fleet.models / "current").rstrip("/")
        return self.client.chance.choice([one for one in self.fleet.good if one not in (linked, self.serving)])


def _is_refused(alias: dict[str, Any], bad: str) -> bool:
    """Say whether the status shows that this version is not served, and why."""
    attempt = alias["attempt"]
    if bad in BAD and attempt and attempt["version"] == bad:
        return bool(attempt["state"] == "REJECTED" and attempt["reason"])
    return bad not in BAD and alias["fault"] is not None
