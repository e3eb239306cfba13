"""Records what Prometheus gets from a real service in each failure that an alert is for.

    python -m tests.alerts.record [NAME…]

writes tests/alerts/recorded/NAME.json: the series of all metrics that the rules use, one value a scrape. Most failures are recorded
faster than they are played (`every`), since a fault that stands looks the same after a minute and after ten.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import yaml

from tests.hanging import HangingMount
from tests.harness import Server
from tests.test_broken_device import BROKEN
from tests.test_operations import flip
from zwatch.deploy.sealing import write_seal

HERE = Path(__file__).parent
RULES = HERE.parent.parent / "docs/alerts.yml"
EVERY = 30
"""Seconds between two scrapes as they are played."""
PATIENCE = 300.0
"""Seconds for a service to start, on a machine that is busy."""
_SAMPLE = re.compile(r"^(\w+)(\{.*?\})? (\S+)$")
FAILURES = {}


def failure(*alerts, every=EVERY):
    """Register a failure: the alerts that fire at its end, and no other."""

    def register(function):
        FAILURES[function.__name__] = (function, sorted(alerts), every)
        return function

    return register


def metrics_of_rules() -> set[str]:
    """Return the names of all metrics that the rules use."""
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return set(re.findall(r"\bzwatch_\w+", " ".join(rule["expr"] for group in groups for rule in group["rules"])))


class Recorder:
    """Records the scrapes of one failure; its servers use the same directories."""

    def __init__(self, root: Path, every: int):
        self.models, self.state, self.every = root / "models", root / "state", every
        self.scrapes: list[dict[str, str] | None] = []
        self.healthy = 0
        self._names = metrics_of_rules()

    @asynccontextmanager
    async def server(self, *options, environment=None, prefix=(), serves="v1", device="cpu"):
        """Run a service."""
        server = Server(self.models, self.state, *options, environment=environment, device=device)
        server._command = [*prefix, *server._command]
        async with server:
            if serves:
                await server.serves_current(serves, PATIENCE)
            yield server

    async def scrape(self, server, number=1, *, pause=0.5, during=None):
        """Scrape so many times; None is recorded where nobody answers. `during` is called before each scrape."""
        for _ in range(number):
            if during is not None:
                await during()
            try:
                async with server.http.get(server.url + "/metrics") as response:
                    text = await response.text()
            except (OSError, aiohttp.ClientError):
                self.scrapes.append(None)
            else:
                found = [match.groups() for line in text.splitlines() if (match := _SAMPLE.match(line))]
                self.scrapes.append(
                    {name + (labels or ""): value for name, labels, value in found if name in self._names}
                )
            await asyncio.sleep(pause)

    async def well(self, server):
        """Scrape while all is well."""
        await self.scrape(server, 3)
        self.healthy = len(self.scrapes)

    def series(self) -> dict[str, list[float | None]]:
        """Return {series: values}."""
        names = sorted({name for scrape in self.scrapes for name in scrape or ()})
        return {
            name: [None if scrape is None or name not in scrape else float(scrape[name]) for scrape in self.scrapes]
            for name in names
        }


def broken():
    """Return the environment of a service in which some prompts fail."""
    return {"PYTHONPATH": os.pathsep.join([str(BROKEN), str(BROKEN.parent.parent)])}


async def ask(server, prompt="a cat"):
    """Send a request, whatever the answer."""
    try:
        async with server.http.post(server.url + "/generate", json={"prompt": prompt, "seed": 1}) as response:
            await response.read()
    except (OSError, aiohttp.ClientError):
        pass


@failure()
async def well(recorder):
    async with recorder.server() as server:
        await recorder.scrape(server, 3, during=lambda: ask(server))
        flip(recorder.models, "v2")
        await server.serves("v2", PATIENCE)
        await recorder.scrape(server, 25, during=lambda: ask(server), pause=0.2)
        recorder.healthy = len(recorder.scrapes)


@failure("ZwatchDeviceLost")
async def device_lost(recorder):
    async with recorder.server(environment=broken()) as server:
        await recorder.well(server)
        for _ in range(3):
            await ask(server)
        await ask(server, "lose")
        await recorder.scrape(server, 2)
        await asyncio.to_thread(server.process.wait)
        await recorder.scrape(server, 1)
    async with recorder.server(environment=broken()) as server:
        await recorder.scrape(server, 5)


@failure("ZwatchGenerationHangs", every=5)
async def generation_hangs(recorder):
    async with recorder.server("--stall-timeout", "600", environment=broken()) as server:
        await recorder.well(server)
        asking = asyncio.create_task(ask(server, "hang"))
        await recorder.scrape(server, 27, pause=5)
        server.process.kill()
        await asking


@failure("ZwatchGenerationHung")
async def generation_hung(recorder):
    async with recorder.server("--stall-timeout", "1", environment=broken()) as server:
        await recorder.well(server)
        await ask(server, "hang")
        await asyncio.to_thread(server.process.wait)
        await recorder.scrape(server, 1)
    async with recorder.server(environment=broken()) as server:
        await recorder.scrape(server, 5)


@failure("ZwatchRestartLoop")
async def restart_loop(recorder):
    """Its last scrape finds nobody: ZwatchCrashed ends then, and fires again after each start."""
    for number in range(4):
        async with recorder.server() as server:
            for _ in range(3):
                await ask(server)
            if number == 0:
                await recorder.well(server)
            await recorder.scrape(server, 2)
            server.process.kill()
            await asyncio.to_thread(server.process.wait)
            await recorder.scrape(server, 1)


@failure("ZwatchVersionSetAside", "ZwatchCrashed", "ZwatchWrongVersionServes")
async def set_aside(recorder):
    async with recorder.server() as server:
        for _ in range(3):
            await ask(server)
        await recorder.well(server)
        flip(recorder.models, "v2")
        await server.serves("v2", PATIENCE)
        server.process.kill()
    async with recorder.server(serves="v2") as server:
        server.process.kill()
    async with recorder.server() as server:
        await recorder.scrape(server, 25)


@failure("ZwatchVersionRejected", "ZwatchWrongVersionServes")
async def corrupted(recorder):
    weights = recorder.models / "v2/transformer/diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    async with recorder.server() as server:
        await recorder.well(server)
        flip(recorder.models, "v2")
        await server.rejected("hash_mismatch")
        await recorder.scrape(server, 24)


@failure("ZwatchReplicaMissing")
async def replica_missing(recorder):
    """A replica dies, and its host's copy of the version is not what it was: it cannot come back. The other one draws on."""
    async with recorder.server("--devices", "cpu,cpu", device="auto") as server:

        async def states(*wanted):
            return [one["state"] for one in (await server.status())["replicas"]] == [*wanted]

        await server.until(lambda: states("READY", "READY"), "both replicas are ready", PATIENCE)
        await recorder.well(server)
        weights = recorder.models / "v1/transformer/diffusion_pytorch_model.safetensors"
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
        os.kill((await server.status())["replicas"][1]["pid"], signal.SIGKILL)
        await server.until(lambda: states("READY", "OUT"), "the replica is out", PATIENCE)
        await recorder.scrape(server, 15, during=lambda: ask(server))


@failure("ZwatchQueueFull")
async def queue_full(recorder):
    async with recorder.server("--queue", "1") as server:
        await recorder.well(server)
        await recorder.scrape(server, 36, pause=0.1, during=lambda: asyncio.gather(*(ask(server) for _ in range(6))))


@failure("ZwatchFails")
async def requests_fail(recorder):
    async with recorder.server(environment=broken()) as server:
        await recorder.well(server)
        await recorder.scrape(server, 24, pause=0.2, during=lambda: ask(server, "fail"))


@failure("ZwatchLosesLogLines", "ZwatchFails")
async def log_is_not_read(recorder):
    """Standard error is a pipe that nobody reads, and each failed request logs a traceback."""
    async with recorder.server(environment=broken()) as server:
        url, http = server.url, server.http
        recorder.state = recorder.state.with_name("other")
        other = Server(recorder.models, recorder.state, environment=broken())
        other._command[other._command.index("--port") + 1] = str(free_port())
        reader, writer = os.pipe()
        other.process = subprocess.Popen(other._command, stdout=writer, stderr=writer, env=other._environment)
        os.close(writer)
        other.http, other.url = http, f"http://127.0.0.1:{other._command[other._command.index('--port') + 1]}"
        assert url != other.url
        await serves_somewhere(other)
        await recorder.well(other)
        await recorder.scrape(
            other, 24, pause=0.1, during=lambda: asyncio.gather(*(ask(other, "fail") for _ in range(30)))
        )
        other.process.kill()
        os.close(reader)


@failure("ZwatchCannotKeepImages")
async def history_full(recorder):
    images = recorder.state.with_suffix(".images")
    with full_disk(images) as fill:
        async with recorder.server() as server:
            await recorder.well(server)
            fill()
            await recorder.scrape(server, 15, during=lambda: ask(server))


@failure("ZwatchCannotSaveState")
async def state_not_writable(recorder):
    with full_disk(recorder.state) as fill:
        async with recorder.server() as server:
            await recorder.well(server)
            fill()
            await recorder.scrape(server, 10, pause=1.5)


@failure("ZwatchNotWatching")
async def no_inotify(recorder):
    prefix = ("unshare", "-U", "-r", "sh", "-c", 'echo 0 > /proc/sys/user/max_inotify_instances && exec "$@"', "sh")
    async with recorder.server(prefix=prefix) as server:
        await recorder.scrape(server, 15)


@failure("ZwatchLinkIsWrong")
async def root_does_not_answer(recorder):
    mount = LinkMount(recorder.models)
    try:
        async with recorder.server() as server:
            await recorder.well(server)
            mount.hangs = ""
            await asyncio.sleep(62)
            await recorder.scrape(server, 5)
            mount.heal()
    finally:
        mount.close()


@failure("ZwatchServesNothing", "ZwatchLinkIsWrong", "ZwatchWrongVersionServes")
async def nothing_serves(recorder):
    flip(recorder.models, "v9")
    async with recorder.server(serves=None) as server:
        await recorder.scrape(server, 24)


@failure("ZwatchRefusesConnections")
async def refused_clients(recorder):
    async with recorder.server(prefix=("sh", "-c", 'ulimit -n 256 && exec "$@"', "sh")) as server:
        host, port = server.url.removeprefix("http://").split(":")
        await recorder.well(server)
        held = [socket.create_connection((host, int(port))) for _ in range(140)]

        async def more():
            held.append(socket.create_connection((host, int(port))))

        await recorder.scrape(server, 15, pause=0.2, during=more)
        for one in held:
            one.close()


@failure("ZwatchServesNothing")
async def gone(recorder):
    async with recorder.server() as server:
        await recorder.well(server)
        assert server.stop(signal.SIGTERM) == 0
        await recorder.scrape(server, 15)


class LinkMount(HangingMount):
    """A file system that may hang, with links in it."""

    def _result(self, operation, path, body):
        if operation == 5:  # FUSE_READLINK
            return os.fsencode(os.readlink(path, dir_fd=self._under))
        return super()._result(operation, path, body)


class full_disk:  # noqa: N801 (a context manager)
    """A small disk of its own over a directory; the function that it gives fills it."""

    def __init__(self, directory: Path):
        self._directory = directory

    def __enter__(self):
        self._directory.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", self._directory], check=True)
        return self._fill

    def __exit__(self, *error):
        subprocess.run(["umount", "-l", self._directory], check=True)

    def _fill(self):
        try:
            (self._directory / "other").write_bytes(bytes(2**21))
        except (OSError, aiohttp.ClientError):
            pass


async def serves_somewhere(server):
    """Wait for a service whose log nobody reads."""
    for _ in range(3000):
        try:
            if (await server.status())["serving"]:
                return
        except (OSError, aiohttp.ClientError):
            pass
        await asyncio.sleep(0.1)
    raise AssertionError("it does not serve")


def free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def versions(root: Path) -> Path:
    """Make a models root with v1 and v2, and current -> v1."""
    sys.path.insert(0, str(HERE.parent.parent / "tools"))
    from random_pipeline import PRESETS, write_pipeline

    for seed in (1, 2):
        write_pipeline(root / f"v{seed}", PRESETS["tiny"], seed)
        write_seal(root / f"v{seed}", f"v{seed}")
    return root


def main():
    """Record the failures that are named, or all."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as directory:
        made = versions(Path(directory) / "versions")
        for name in sys.argv[1:] or FAILURES:
            function, alerts, every = FAILURES[name]
            root = Path(directory) / name
            root.mkdir()
            shutil.copytree(made, root / "models")
            (root / "models/current").symlink_to("v1")
            recorder = Recorder(root, every)
            asyncio.run(function(recorder))
            recorded = {"alerts": alerts, "every": every, "healthy": recorder.healthy, "series": recorder.series()}
            (HERE / "recorded").mkdir(exist_ok=True)
            text = json.dumps(recorded).replace('], "', '],\n"')
            (HERE / f"recorded/{name}.json").write_text(text + "\n")
            print(name, len(recorder.scrapes), "scrapes", len(recorded["series"]), "series", flush=True)


if __name__ == "__main__":
    main()
