"""An hour of a service's life: mixed traffic over all APIs, a deploy every five seconds, and what the process holds.

    python benchmarks/soak.py [--minutes 60] [--device cpu] [--flip-seconds 5] [--models DIR]
    python benchmarks/soak.py --minutes 8 --device cuda:0 --preset full --work DIR
    python benchmarks/soak.py --draw benchmarks/results/soak.json

`zwatch serve` runs in a process of its own, with a token and a limited history, on a copy of the repository's versions and a
third one that shares their text encoder and VAE. Its clients draw over all APIs, follow events, cancel, leave in the middle,
search, log in, and send wrong requests, some from an address and under a name that is never seen again. An operator deploys
by links of every form and by HTTP, also versions that did not exist before, links to bad ones, unloads and loads.

Every 5 s the resources of the process are noted, and once a minute at rest: when the clients have closed their connections and
nothing waits, runs or loads. What is still there then was not given back, so the trend is that of the samples at rest. Pictures
are compared with those that each version drew before: the pixels, and which versions were linked meanwhile.
`soak_report.py` has the rule by which a resource is called flat.
"""

import argparse
import asyncio
import json
import os
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from common import HERE, RESULTS, Clock, Json, Results, machine, now, packages, quantile
from served import Server
from soak_calls import PROMPTS, SEEDS, Book, Client, Failure, Judge, Timeline, opened
from soak_operator import Operator
from soak_report import draw, finish, pack, table, unpack
from soak_sampling import Sample, memory_of, sample
from soak_traffic import visit
from soak_versions import Fleet, prepare

from zwatch.engine.kernels import READY as KERNELS

TOKEN = "soak-" + "0123456789abcdef" * 2
SAMPLE_SECONDS = 5.0
KEPT_JOBS = 1000
"""Finished jobs that zwatch keeps: made and cancelled first, so that the store is full from the beginning."""
KEPT_PICTURES = 150
REST_SECONDS = 60.0
"""Longest wait until nothing runs; what takes longer is noted as a failure."""
LATE_SECONDS = 300.0
"""Longest time beyond the end, for the least number of deploys."""
WARNING = re.compile(r"\d\d:\d\d:\d\d (warning|error|critical): ")
SETTLED = 1.0
"""Seconds at rest before the sample, for threads and connections to end."""


class Soak:
    """One run against one server."""

    def __init__(
        self, options: argparse.Namespace, server: Server, fleet: Fleet, clock: Clock, results: Results
    ) -> None:
        self.options, self.server, self.fleet, self.clock, self.results = options, server, fleet, clock, results
        self.chance = random.Random(options.seed)
        self.book = Book({name: fleet.digest(name) for name in fleet.good}, Timeline(fleet.good[0]))
        self.book.tell = clock.say
        self.judge = Judge(self.book)
        self.side = 0
        self.begun = 0.0
        self._open = asyncio.Event()
        self._noting = asyncio.Lock()
        self._visiting = self._jobs = 0
        self._seen: Counter[str] = Counter()

    async def run(self) -> None:
        """Learn what each version draws; then traffic, deploys and samples until the time is over."""
        async with Client(self.server.url, TOKEN, self.book, self.chance) as client:
            await self._learn(client)
            await self._fill(client)
            operator = Operator(client, self.fleet, self.book)
            self.book.latencies.clear()
            self._jobs = self.book.jobs
            self.begun = time.monotonic()
            self._open.set()
            clients = [asyncio.create_task(self._visit()) for _ in range(self.options.clients)]
            watching = asyncio.create_task(self._watch(client))
            operating = asyncio.create_task(self._operate(operator, self.begun + self.options.minutes * 60))
            for one in (signal.SIGTERM, signal.SIGINT):
                asyncio.get_running_loop().add_signal_handler(one, self._cut_off, one, operating)
            try:
                await operating
            except asyncio.CancelledError:
                if "cut_off" not in self.results.data:
                    raise
            finally:
                watching.cancel()
                for one in clients:
                    one.cancel()
                await asyncio.gather(watching, *clients, return_exceptions=True)
            self._open.clear()
            await self._rest(client)
            self.results.data["types_at_end"] = self.server.asked("types")
            self._write(operator)

    def _cut_off(self, signal_: signal.Signals, operating: asyncio.Task[None]) -> None:
        """End before the time is over, with a verdict over what there is; a second signal ends at once."""
        self.clock.say(f"{signal_.name}: cut off")
        self.results.data["cut_off"] = signal_.name
        asyncio.get_running_loop().remove_signal_handler(signal_)
        operating.cancel()

    async def _learn(self, client: Client) -> None:
        """Note the pixels that each version draws, and see that they differ."""
        operator = Operator(client, self.fleet, self.book)
        for version in self.fleet.good[1:] + self.fleet.good[:1]:
            await operator._flip(version, "ln -sfn")  # noqa: SLF001 (a helper of this script)
            for prompt in PROMPTS:
                for seed in SEEDS:
                    body = {"prompt": prompt, "seed": seed}
                    answer, file = await client.call("picture", "POST", "/generate", json=body)
                    told, pixels = opened(file)
                    if not told == answer.headers["X-Zwatch-Version"] == version:
                        raise SystemExit(f"{version} serves, but {told} drew a picture")
                    self.book.pictures[version, prompt, seed] = pixels
        status = await client.json("status", "GET", "/status")
        self.side = status["serving"]["default_size"]
        different = len({self.book.pictures[name, PROMPTS[0], SEEDS[0]] for name in self.fleet.good})
        self.results.data["settings"] |= {
            "versions": len(self.fleet.good),
            "side": self.side,
            "distinct_pictures": different,
        }
        self.clock.say(f"{len(self.fleet.good)} versions draw {different} different pictures, {self.side} pixels")

    async def _fill(self, client: Client) -> None:
        for _ in range(self.options.kept_jobs):
            body = {"prompt": "a cat"}
            name = (await client.json("job", "POST", "/jobs", json=body, expected=(202,)))["id"]
            await client.call("cancel", "DELETE", f"/jobs/{name}")
        self.clock.say(f"{self.options.kept_jobs} jobs were made and cancelled")

    async def _visit(self) -> None:
        """One client after another, until it is cancelled."""
        while True:
            await self._open.wait()
            self._visiting += 1
            try:
                async with Client(
                    self.server.url, TOKEN, self.book, random.Random(self.chance.getrandbits(64))
                ) as client:
                    for _ in range(client.chance.randrange(1, 4)):
                        await visit(client, self.judge, self.side)
                        if not self._open.is_set():
                            break
            finally:
                self._visiting -= 1
            await asyncio.sleep(self.chance.random() * self.options.pause)

    async def _operate(self, operator: Operator, end: float) -> None:
        """Deploy every few seconds; between two deploys, and every minute, rest."""
        rest_seconds = self.options.rest_seconds or max(15.0, self.options.minutes)
        at, rest_at = time.monotonic(), time.monotonic() + rest_seconds
        while not self._is_over(operator, end):
            await operator.step()
            if self.server.status is not None:
                raise SystemExit(f"the server ended: {self.server.last_words()}")
            if time.monotonic() >= rest_at and operator.is_usual:
                rest_at += rest_seconds
                self._open.clear()
                await self._rest(operator.client)
                self._open.set()
                self._write(operator)
            at = max(at + self.options.flip_seconds, time.monotonic() - self.options.flip_seconds)
            await asyncio.sleep(max(0.0, at - time.monotonic()))

    def _is_over(self, operator: Operator, end: float) -> bool:
        """Say whether it lasted long enough; on a busy machine longer, so that there were enough deploys and pictures."""
        now = time.monotonic()
        is_enough = operator.number >= self.options.deploys and self.book.compared > 0
        return now >= end and (is_enough or now >= end + LATE_SECONDS)

    async def _rest(self, client: Client) -> None:
        """Wait until nothing happens, and note what the process holds then."""
        begun, status = time.monotonic(), {}
        while time.monotonic() < begun + REST_SECONDS:
            try:
                status = await client.json("operator", "GET", "/status")
            except Failure:  # noted
                await asyncio.sleep(1.0)
                continue
            attempt = status["aliases"]["current"]["attempt"]
            is_loading = attempt and attempt["state"] in ("LOADING", "WARMING")
            if not (self._visiting or status["queue"]["waiting"] or status["queue"]["running"] or is_loading):
                break
            await asyncio.sleep(0.1)
        else:
            left = status.get("queue", "no answer")
            self.book.fails("rest", f"{self._visiting} clients and {left} are left after {REST_SECONDS} s")
        async with self._noting:
            await client.renew()
            await asyncio.sleep(SETTLED)
            with suppress(Failure):  # noted
                await self._note(client, is_rest=True)

    async def _watch(self, client: Client) -> None:
        """Note what the process holds every five seconds."""
        while True:
            await asyncio.sleep(SAMPLE_SECONDS)
            async with self._noting:
                if self._open.is_set():
                    with suppress(Failure):  # noted
                        await self._note(client, is_rest=False)

    async def _note(self, client: Client, *, is_rest: bool) -> None:
        pid, work = self.server.pid, self.options.work
        folders = {
            "state": self.server.state,
            "thumbnails": self.server.state / "history" / "thumbnails",
            "output": work / "images",
            "temporary": work / "tmp",
            "models": self.fleet.models,
        }
        found: Sample = await asyncio.to_thread(sample, pid, folders, has_gpu=self.options.device != "cpu")
        found |= await asyncio.to_thread(self.server.asked, "sizes")
        if is_rest:
            await asyncio.to_thread(self.server.asked, "trim")
            found["held"] = (await asyncio.to_thread(memory_of, pid))["anonymous"]
        # Not before: at rest no connection is open.
        status = await client.json("status", "GET", "/status")
        book, latencies = self.book, self.book.latencies
        book.latencies = []
        drawing = [seconds for kind, seconds in latencies if kind in ("picture", "pictures", "OpenAI", "stream")]
        looking = [seconds for kind, seconds in latencies if kind in ("monitoring", "status")]
        found |= {
            "at": round(time.monotonic() - self.begun, 2), "rest": float(is_rest), "calls": float(len(latencies)),
            "failures": float(len(book.failures)), "jobs": float(book.jobs - self._jobs), "log_bytes": float(self.server.log.stat().st_size),
            "engines": float(len(status["engines"])),
            "engine_bytes": float(sum(one["bytes"] for one in status["engines"])),
            "device_taken": float(status["device"]["total"] - status["device"]["free"]) if status["device"] else 0.0,
            **({"picture_p50": quantile(drawing, 0.5), "picture_max": max(drawing)} if drawing else {}),
            **({"status_p50": quantile(looking, 0.5), "status_p99": quantile(looking, 0.99)} if looking else {}),
        }  # fmt: skip
        drawn = book.drawn - self._seen
        self._seen = book.drawn.copy()
        data = self.results.data
        data["samples"].append(found)
        data["drawn"].append({"at": found["at"], **drawn})
        if is_rest and "types_at_first" not in data and found["at"] > self.options.warm_up * 60:
            data["types_at_first"] = await asyncio.to_thread(self.server.asked, "types")
        if is_rest:
            self.clock.say(
                f"{found['at'] / 60:5.1f} min: USS {found['uss'] / 2**20:.1f} MiB, heap {found.get('heap_used', 0) / 2**20:.1f}, "
                f"blocks {found['blocks']:.0f}, descriptors {found['descriptors']:.0f}, threads {found['threads']:.0f}, "
                f"children {found['children']:.0f}, {sum(book.calls.values())} calls, {len(book.failures)} failures, "
                f"{len(book.wrong_pictures) + len(book.timeline.wrong)} wrong, load {found['load']:.1f}"
            )

    def _write(self, operator: Operator) -> None:
        """Write down what there is so far."""
        book, data = self.book, self.results.data
        book.timeline.judge()
        data |= {
            "log": [self.results.clean(line) for line in warnings_of(self.server.log)[-30:]],
            "calls": {kind: {"calls": count, **book.statuses[kind]} for kind, count in sorted(book.calls.items())},
            "failures": [self.results.clean(one) for one in book.failures[:100]], "failed": len(book.failures),
            "wrong_pictures": (book.wrong_pictures + book.timeline.wrong)[:100], "compared": book.compared,
            "provoked": dict(book.provoked), "deploys": dict(operator.done), "pictures": sum(book.drawn.values()),
            "by_version": {name: book.drawn[name] for name in self.fleet.good},
            "deploy_seconds": {
                "median": round(quantile(operator.seconds, 0.5), 3), "longest": round(max(operator.seconds), 3),
            } if operator.seconds else {},
            "minutes": round((time.monotonic() - self.begun) / 60, 2),
        }  # fmt: skip
        finish(data)
        self.results.save()
        missed = [one["goal"] for one in data["goals"] if not one["met"] and "exit status" not in one["goal"]]
        told = [one for one in missed if "not proved" not in one]
        self.clock.say(
            f"saved; of {len(data['goals'])} goals {len(missed) - len(told)} need more samples, missed are {told}"
        )


class Observed(Server):
    """A server that also says what it holds inside."""

    def __init__(self, models: Path, work: Path, device: str, *, trace: bool, processes: bool) -> None:
        (work / "tmp").mkdir()
        token = work / "token"
        token.write_text(TOKEN)
        self.state = work / "state"
        self._asking = threading.Lock()
        super().__init__(
            models, work, device, state=self.state, more=("--history-max-images", str(KEPT_PICTURES), "--token-file", str(token)),
            env={
                "TMPDIR": str(work / "tmp"), "ZWATCH_SOAK_TRACE": str(int(trace)), "ZWATCH_SOAK_PROCESSES": str(int(processes)),
            }, script=HERE / "observed.py", has_session=True,
        )  # fmt: skip

    def asked(self, question: str) -> Json:
        """Return the answer to a question of `observed.py`."""
        with self._asking:
            found: Json = json.loads(self.answer(question))
        return found


def warnings_of(log: Path) -> list[str]:
    """Return the lines of a log that are warnings or worse."""
    return [line for line in log.read_text(errors="replace").splitlines() if WARNING.match(line)]


def options_of() -> argparse.Namespace:
    """Return the options; with --draw, show an existing result and exit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="how long the traffic lasts (%(default)s)")
    parser.add_argument("--device", default=None, help="cpu or cuda:N (cuda:0 if nvidia-smi finds one)")
    parser.add_argument("--flip-seconds", type=float, default=5.0, help="from one deploy to the next (%(default)s)")
    parser.add_argument("--deploys", type=int, default=0, help="least number, however long that takes (%(default)s)")
    parser.add_argument("--models", type=Path, metavar="DIR", help="sealed versions to copy (the repository's)")
    parser.add_argument("--preset", choices=("full", "tiny"), help="random versions of this size instead")
    parser.add_argument("--clients", type=int, default=6, help="at the same time (%(default)s)")
    parser.add_argument("--pause", type=float, default=0.2, help="longest between two visits, seconds (%(default)s)")
    parser.add_argument("--warm-up", type=float, help="minutes that do not count (a quarter): caches and stores fill")
    parser.add_argument("--rest-seconds", type=float, help="from one rest to the next (a sixtieth, at least 15)")
    parser.add_argument(
        "--kept-jobs", type=int, default=KEPT_JOBS, help="cancelled jobs before it begins (%(default)s)"
    )
    parser.add_argument(
        "--processes", action="store_true", help="keep each tokenizer in a process of its own, as large ones are"
    )
    parser.add_argument("--trace", action="store_true", help="say which lines of code hold memory; slow")
    parser.add_argument("--seed", type=int, default=1, help="of the clients' choices (%(default)s)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="an empty folder for all files (a temporary one)")
    parser.add_argument("--out", type=Path, default=RESULTS / "soak.json", help="the result (%(default)s)")
    parser.add_argument("--draw", type=Path, metavar="JSON", help="only judge and draw this existing result")
    options = parser.parse_args()
    if options.draw:
        data = json.loads(options.draw.read_text())
        unpack(data)
        finish(data)
        print("\n".join(table(data)))
        draw(data, options.draw.with_suffix(".png"))
        sys.exit()
    options.warm_up = options.minutes / 4 if options.warm_up is None else options.warm_up
    options.device = options.device or ("cuda:0" if machine(HERE)["gpu"] else "cpu")
    return options


def soak(options: argparse.Namespace) -> Results:
    """Run it, and return the result."""
    clock = Clock(None)
    work: Path = options.work
    results = Results(
        options.out, [work], benchmark="soak", started=now(), machine=machine(work),
        versions=packages("torch", "diffusers", "transformers", "aiohttp", "blake3", "pillow"),
        settings={name: getattr(options, name) for name in ("minutes", "device", "flip_seconds", "preset", "clients", "pause", "warm_up", "kept_jobs", "seed", "processes")},
        samples=[], drawn=[],
    )  # fmt: skip
    results.data["settings"]["kept_pictures"] = KEPT_PICTURES
    fleet = prepare(work / "models", options.models, options.preset, options.device, clock)
    with Observed(fleet.models, work, options.device, trace=options.trace, processes=options.processes) as server:
        server.wait(lambda: server.call("GET", "/health/ready")[0] == 200, "it serves", 600.0, 0.1)
        clock.say("it serves")
        if options.device.startswith("cuda"):  # until they are, pictures have other bytes
            server.wait(lambda: KERNELS in server.log.read_text(), "the kernels for drawing are ready", 300.0, 0.1)
        running = Soak(options, server, fleet, clock, results)
        asyncio.run(running.run())
        if options.trace:
            results.data["trace"] = server.asked("trace")
        server.terminate()
        results.data["exit_status"] = server.status
    results.data["complete"] = "cut_off" not in results.data
    finish(results.data)
    results.save()
    return results


def main() -> None:
    """Run it, print the table, draw the figure; the exit status is 1 if something failed, was wrong or grew."""
    options = options_of()
    with tempfile.TemporaryDirectory(prefix="zwatch-soak-") as temporary:
        options.work = options.work or Path(temporary)
        options.work.mkdir(parents=True, exist_ok=True)
        if os.listdir(options.work):
            raise SystemExit(f"--work {options.work}: it is not empty")
        results = soak(options)
    data = results.data
    pack(data)
    results.save()
    unpack(data)
    print("\n".join(table(data)))
    draw(data, options.out.with_suffix(".png"))
    sys.exit(not all(one["met"] for one in data["goals"]))


if __name__ == "__main__":
    main()
