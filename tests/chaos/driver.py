"""A real service in which chosen system calls fail, and what must hold after each of them."""

import asyncio
import errno
import os
import re
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.calls import FOR_EVER, SHORT, Call, FailingCalls, name_of, text
from tests.harness import Server

QUICK = """
import sys
import zwatch.rollout.refusals as refusals
refusals.BACKOFF_FIRST = 0.05
from zwatch.__main__ import main
sys.exit(main())
"""
"""The command line with a shorter first pause before what failed for a moment is tried again."""
BUDGET = 64 * 2**20
LONG = bool(os.environ.get("ZWATCH_LONG"))
HONEST = {
    errno.ENOMEM: {"io_error", "out_of_memory"},
    errno.EAGAIN: {"io_error", "out_of_memory"},
}
"""The codes that a rejection may have after these errors; after every other one, `io_error` alone."""
IN_ALL = (Call.ALLOC, Call.THREAD)
"""Calls that fail in the whole process, also for what has nothing to do with a deploy."""
THREADS_OF_LANES = 12
"""Threads that serve calls of many kinds begin with the first call of each."""


class QuickServer(Server):
    """A server that tries again soon what failed for a moment."""

    def __init__(self, models: Path, state: Path, calls: FailingCalls, *options: str) -> None:
        options = ("--no-history", "--memory-budget", str(BUDGET), *options)
        super().__init__(models, state, *options, environment=calls.environment)
        self._command[1:3] = ["-c", QUICK]


@dataclass(frozen=True)
class Fault:
    """Which calls fail with what: those numbered from `first` on, `length` of them."""

    calls: Sequence[Call]
    error: int
    first: int
    length: int = 1
    least: int = 2**16

    def __str__(self) -> str:
        kind = self.calls[0].name.lower() if len(self.calls) == 1 else "call"
        times = {1: "", FOR_EVER: " and all later ones"}.get(self.length, f" and the {self.length - 1} after it")
        return f"{kind} {self.first}{times}: {name_of(self.error)}"


@dataclass
class Level:
    """What a process holds."""

    descriptors: Counter
    threads: int
    watches: int
    temporary: list[str]
    held: dict[int, int]
    """Bytes of device memory, by how many engines are resident."""


@dataclass
class Figures:
    """What a run of many cases came to."""

    cases: int = 0
    outcomes: Counter = field(default_factory=Counter)
    begun: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        return f"{self.cases} cases in {time.monotonic() - self.begun:.0f} s: {dict(self.outcomes)}"


class Chaos:
    """A server, its failing calls, and what each of its three versions draws."""

    def __init__(self, server: Server, calls: FailingCalls) -> None:
        self.server, self.calls, self.models = server, calls, server.models
        self.pictures: dict[str, bytes] = {}
        self.serving, self.warm = "v1", ""
        self.figures = Figures()

    async def begin(self) -> None:
        """Draw with each version, and note what the process holds when nothing fails."""
        self.calls.of(self.server.process.pid)
        for version in ("v1", "v2", "v3", "v1", "v2", "v3", "v1"):
            self.link(version)
            await self.becomes(version)
            drawn, _, self.pictures[version] = await self.server.generate()
            assert drawn == version
        assert len(set(self.pictures.values())) == 3
        for path in ("/api/load_model", "/api/verify"):
            assert (await self.server.post(path))[0] == 200
        for path in ("/versions", "/attempts", "/metrics", "/health"):
            async with self.server.http.get(self.server.url + path) as response:
                assert response.status == 200
        held = {2: await self.held()}
        await Reload().deploy(self, "v1")
        await self.becomes("v1")
        self.level = self.now()
        self.level.held = {**held, 1: await self.held()}
        assert held[2] > self.level.held[1] > 0
        await self.settle("v1")

    @property
    def next(self) -> str:
        """The version that is not resident."""
        return f"v{int(self.serving[1]) % 3 + 1}"

    def link(self, version: str) -> None:
        """Repoint as `ln -sfn` does."""
        temporary = self.models / ".made-by-hand"
        temporary.symlink_to(version)
        os.replace(temporary, self.models / "current")

    # --- what can be seen

    async def becomes(self, version: str) -> None:
        """Wait until a version serves, and nothing else is resident but what served before."""

        async def check() -> bool:
            status = await self.server.status()
            states = sorted(engine["state"] for engine in status["engines"])
            serving = status["serving"]
            return bool(serving) and serving["version"] == version and states in (["SERVING"], ["SERVING", "WARM"])

        await self.server.until(check, f"{version} serves alone")
        self.serving = version
        self.warm = "".join(
            engine["version"] for engine in (await self.server.status())["engines"] if engine["state"] == "WARM"
        )

    def now(self) -> Level:
        """Return what the process holds."""
        folder = Path(f"/proc/{self.server.process.pid}")
        descriptors: Counter = Counter()
        watches = 0
        for entry in os.listdir(folder / "fd"):
            try:
                target = os.readlink(folder / "fd" / entry)
                if "inotify" in target:
                    watches += (folder / "fdinfo" / entry).read_text().count("inotify wd:")
            except FileNotFoundError:
                continue
            if not target.startswith("socket:"):
                descriptors[re.sub(r"v[123]|\[\d+\]|\(deleted\)", "", target)] += 1
        state = Path(f"{self.server.log}").with_suffix("")
        temporary = [name for name in os.listdir(self.models) if name.startswith(".")]
        temporary += [name for name in os.listdir(state) if name.startswith(".") and "." in name[1:]]
        threads = len(os.listdir(folder / "task"))
        return Level(descriptors, threads, watches, temporary, {})

    async def held(self) -> int:
        """Return the bytes of device memory that weights hold."""
        return BUDGET - (await self.server.status())["device"]["free"]

    async def settle(self, version: str) -> None:
        """Wait until a version serves, and the process holds what it held when nothing had failed."""
        await self.becomes(version)
        end, found, held, expected = time.monotonic() + 30, self.level, 0, 0
        while time.monotonic() < end:
            status = await self.server.status()
            found, held = self.now(), BUDGET - status["device"]["free"]
            expected = self.level.held[len(status["engines"])]
            if (
                status["status"] == "ok"
                and found.descriptors == self.level.descriptors
                and found.threads <= self.level.threads + THREADS_OF_LANES
                and found.watches == self.level.watches
                and not found.temporary
                and held == expected
            ):
                return
            await asyncio.sleep(0.02)
        raise AssertionError(
            f"not as before: {found.descriptors - self.level.descriptors} more and "
            f"{self.level.descriptors - found.descriptors} fewer descriptors, {found.threads} threads of {self.level.threads}, "
            f"{found.watches} watches of {self.level.watches}, {found.temporary}, {held} bytes of {expected}\n"
            f"{status['status']} {status['reasons']}"
        )

    async def draw(self, *versions: str) -> str:
        """Draw; the picture is of one of these versions and as its pictures were before."""
        version, _, picture = await self.server.generate()
        assert version in versions, f"drawn by {version}, expected {versions}"
        assert picture == self.pictures[version], f"another picture of {version}"
        return version

    # --- one case

    async def case(self, way: "Way", fault: Fault) -> bool:
        """Deploy in one way while something fails; return whether anything did."""
        old, new = self.serving, way.target(self)
        newest, log = (await self.server.get("/attempts"))["attempts"][:1], self.server.log.stat().st_size
        with self.calls.fail(fault.calls, fault.error, fault.first, fault.length, least=fault.least):
            answer = await way.deploy(self, new)
            failed = self.calls.failed
            outcome = await self._outcome(fault, new) if answer is None else "refused"
            if fault.length == FOR_EVER and fault.calls[0] not in IN_ALL and not way.unloads:
                await self.draw(old, new)
            failed, where, path = self.calls.failed, self.calls.first_failed, self.calls.path
        try:
            assert answer is None or text(fault.error) in answer, answer
            if not way.unloads:
                await self.draw(old, new)
            if answer is not None:
                assert await way.deploy(self, new) is None, "the same deploy was refused when nothing failed"
            await self.becomes(new)
            await self.draw(new)
            await self.settle(new)
            self._check_reasons(fault, await self._since(newest), path)
            said = self.server.log.read_bytes()[log:].decode()
            assert "Traceback" not in said or fault.calls[0] in IN_ALL, "the log has a traceback"
        except AssertionError as error:
            said = self.server.log.read_bytes()[log:].decode()
            raise AssertionError(f"{way.name}, {fault} ({where}): {error}\n{said[-3000:]}") from None
        self.figures.cases += bool(failed)
        self.figures.outcomes[outcome if failed else "none failed"] += 1
        return failed > 0

    async def start_again(self, fault: Fault) -> bool:
        """Restart the service while something fails; return whether anything did."""
        server, version = self.server, self.serving
        await server.http.close()
        assert server.stop() == 0
        self.calls.of(0)  # whichever process it will be
        log = server.log.stat().st_size
        with self.calls.fail(fault.calls, fault.error, fault.first, fault.length, least=fault.least):
            server.start()
            outcome = await self._started(fault, log)
            failed, where = self.calls.failed, self.calls.first_failed
        try:
            if outcome == "exited":
                server.start()
                await server.connect()
            self.calls.of(server.process.pid)
            await self.becomes(version)
            await self.draw(version)
            await self.settle(version)
        except AssertionError as error:
            raise AssertionError(f"start, {fault} ({where}): {error}\n{self._said(log)}") from None
        self.figures.cases += bool(failed)
        self.figures.outcomes[f"start: {outcome}" if failed else "none failed"] += 1
        return failed > 0

    async def _started(self, fault: Fault, log: int) -> str:
        """Wait until the service serves, says why it does not, or has ended and said why."""
        server, end = self.server, time.monotonic() + 120
        while " at http://" not in self._said(log):
            if server.process.poll() is not None:
                assert server.process.returncode in (1, 2), f"status {server.process.returncode}: {self._said(log)}"
                assert text(fault.error) in self._said(log), f"{fault}: {self._said(log)}"
                return "exited"
            assert time.monotonic() < end, f"{fault} ({self.calls.first_failed}): it does not listen: {self._said(log)}"
            await asyncio.sleep(0.02)
        await server.connect()
        while time.monotonic() < end:
            status = await server.status()
            if status["serving"]:
                return "served"
            if any(text(fault.error) in reason for reason in status["reasons"]):
                return "told in the status"
            await asyncio.sleep(0.02)
        raise AssertionError(f"{fault} ({self.calls.first_failed}): nothing becomes of the start: {status}")

    def _said(self, log: int) -> str:
        return self.server.log.read_bytes()[log:].decode()[-5000:]

    async def _outcome(self, fault: Fault, new: str) -> str:
        """Wait until the new version serves, or the status says why it does not."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            status = await self.server.status()
            if status["serving"] and status["serving"]["version"] == new:
                return "served"
            current = status["aliases"]["current"]
            attempt = current["attempt"]
            if attempt and attempt["version"] == new and attempt["state"] == "REJECTED":
                return f"rejected ({attempt['code']})"
            why = [reason for reason in status["reasons"] if text(fault.error) in reason or "memory ran out" in reason]
            if why and (current["fault"] or (self.calls.failed and fault.length == FOR_EVER)):
                return "told in the status"
            await asyncio.sleep(0.01)
        raise AssertionError(f"{fault} ({self.calls.first_failed}): nothing became of {new}: {status}")

    async def _since(self, newest: list) -> list:
        attempts = (await self.server.get("/attempts"))["attempts"]
        if not newest:
            return attempts
        return attempts[: next((at for at, one in enumerate(attempts) if one == newest[0]), len(attempts))]

    @staticmethod
    def _check_reasons(fault: Fault, attempts: list, path: Path) -> None:
        allowed = HONEST.get(fault.error, {"io_error"}) if fault.error != SHORT else set()
        for attempt in attempts:
            if attempt["state"] != "REJECTED":
                continue
            code, reason = attempt["code"], attempt["reason"]
            assert code in allowed, f"{code}: {reason}"
            if code == "io_error":
                assert text(fault.error) in reason, reason
                assert fault.length != 1 or path.name in reason or (path.suffix == "" and ": " in reason), (
                    f"{reason!r} does not name {path}"
                )


class Way:
    """By a link, as `ln -sfn` makes it."""

    name, unloads = "link", False

    def target(self, chaos: Chaos) -> str:
        """Return the version to deploy: one that has to be loaded."""
        return chaos.next

    async def deploy(self, chaos: Chaos, version: str) -> str | None:
        """Ask for it; return why it was refused, or None if it was accepted."""
        chaos.link(version)
        return None


class ByStray(Way):
    """By `ln -sf v2 current`, which makes a link inside the version that serves."""

    name = "stray"

    async def deploy(self, chaos: Chaos, version: str) -> str | None:
        await asyncio.sleep(0.01)  # a later tick of the clock than the one in which the alias was made
        subprocess.run(["ln", "-sf", version, "current"], cwd=chaos.models, check=True)
        return None


class ByCall(Way):
    """By `POST /api/deploy`."""

    name, path = "http", "/api/deploy"

    async def deploy(self, chaos: Chaos, version: str) -> str | None:
        status, body = await chaos.server.post(self.path, self.body(version))
        if status == 200 or os.readlink(chaos.models / "current") == version:
            return None
        return body["error"]["message"]

    def body(self, version: str) -> dict:
        return {"version": version}


class Rollback(ByCall):
    """By `POST /api/rollback`."""

    name, path = "rollback", "/api/rollback"

    def target(self, chaos: Chaos) -> str:
        return chaos.warm or chaos.next

    def body(self, version: str) -> dict:
        return {}


class Reload(Way):
    """By `POST /api/unload_model` and `POST /api/load_model`."""

    name, unloads = "reload", True

    def target(self, chaos: Chaos) -> str:
        return chaos.serving

    async def deploy(self, chaos: Chaos, version: str) -> str | None:
        status, _ = await chaos.server.post("/api/unload_model")
        assert status == 200
        await chaos.server.post("/api/load_model")
        return None
