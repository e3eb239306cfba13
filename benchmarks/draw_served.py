"""Pictures as clients get them: latency, pictures a second with a queue, a promotion, and whether bytes stay the same.

    python benchmarks/draw_served.py --work DIR                     # on a GPU, full size, what fits into five minutes; DIR on tmpfs
    python benchmarks/draw_served.py --work DIR --parts fast fp8    # only these
    python benchmarks/draw_served.py --work DIR --preset tiny --device cpu --seconds 1   # that it runs

Each part starts a `zwatch serve`, or plain diffusers in a process of its own, on the same model with random weights:

- fast, fp8, exact: a lone client, from the sending of `POST /generate` to the last byte of the PNG, with a new prompt each time,
  with the same prompt, and with prompts of all lengths; then 4 and 8 clients that always wait for a picture. The phases are the
  server's own. `outside` is what a lone request takes outside encode, denoise and decode: HTTP, threads, the PNG, its file. `gap`
  is the time from one picture to the next, while others wait, without its phases: below 0 where they overlap. `busy` is the share of
  the time in which the GPU ran a kernel, as nvidia-smi says.
- fast, moreover: requests again in another order, and among others: whether they get the same bytes. And a promotion: one client
  draws while `current` is linked to v2; its first picture of v2 beside those that follow.
- restart: the same requests, asked of another process.
- diffusers, compiled: the pipeline, eager and compiled, and Pillow's PNG.

A row ends after 20 requests or after `--seconds`, but not before 3 requests. The result is written after each row.
"""

import argparse
import hashlib
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from common import HERE, Clock, Json, Results, command_line, machine, now, packages, parsed, quantile, search_path
from draw_served_report import PHASES, busy, line, medians, table
from served import Server, ServerError
from versions import Version, make_versions

STEPS = 8
LEAST, MOST = 3, 20
"""Requests of a row of a lone client."""
FOLLOWING = 100
"""Pictures after a promotion."""
SIDES = {"full": (1024, 512, 256), "tiny": (64, 48, 32)}
WAYS = {"fast": ["--no-exact"], "fp8": ["--no-exact", "--quantize", "fp8"], "exact": ["--exact"]}
PARTS = ("fast", "fp8", "compiled", "restart", "exact", "diffusers")
READY = re.compile(r"the kernels for drawing (are ready|do not work)")
PNG_START, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


class Picture:
    """A picture that a client got, and what the server says of it."""

    def __init__(self, server: Server, prompt: str, side: int, seed: int) -> None:
        body = {"prompt": prompt, "width": side, "height": side, "seed": seed, "steps": STEPS}
        self.begun = time.perf_counter()
        status, headers, file = server.call("POST", "/generate", body)
        self.ended = time.perf_counter()
        if status != 200 or not (file.startswith(PNG_START) and file.endswith(PNG_END)):
            raise ServerError(f"POST /generate answers {status}, {file[:300]!r}")
        self.seconds = self.ended - self.begun
        self.file = hashlib.sha256(file).hexdigest()
        self.version = str(headers["X-Zwatch-Version"])
        self._job = str(headers["X-Zwatch-Job"])

    def timings(self, server: Server) -> dict[str, float]:
        """Return the seconds of its phases."""
        found: dict[str, float] = server.get(f"/jobs/{self._job}")["timings"]
        return found


class Bench:
    """One run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.clock = Clock(options.deadline)
        self.sides = SIDES[options.preset]
        self.is_gpu = options.device.startswith("cuda")
        self.versions: list[Version] = []
        self.numbers = itertools.count(1)
        self.compiled: set[str] = set()
        """The ways whose kernels are in the state directory."""
        self.files: dict[tuple[str, int, int], str] = {}
        """The hash of each file that a request got, by prompt, side and seed."""
        self.results = Results(
            options.out, [options.work, options.models], benchmark="draw_served", started=now(), machine=machine(options.work),
            versions=packages("torch", "triton", "diffusers", "transformers", "aiohttp", "isal"),
            settings={name: getattr(options, name) for name in ("preset", "device", "seconds", "parts")} | {"steps": STEPS},
            rows=[], not_run=[],
        )  # fmt: skip
        self.data = self.results.data

    def run(self) -> None:
        """Measure all parts that fit into the time."""
        shutil.rmtree(self.options.work / "state", ignore_errors=True)
        self.versions = make_versions(
            self.options.models, self.options.preset, self.options.device, self.clock, count=2
        )
        measuring: dict[str, Callable[[], None]] = {
            "fast": self.fast, "restart": self.restart, "fp8": lambda: self.other("fp8"), "exact": lambda: self.other("exact"),
            "compiled": lambda: self.plain("compiled"), "diffusers": lambda: self.plain("eager"),
        }  # fmt: skip
        needed = 4 * self.options.seconds + 20 * (self.options.preset == "full")
        for part in self.options.parts:
            if self.clock.left < needed:
                self.leave_out(part, f"{self.clock.left:.0f} s left")
                continue
            self.clock.say(f"--- {part}")
            try:
                measuring[part]()
            except Exception as error:
                self.leave_out(part, f"{type(error).__name__}: {error}")
        self.data["complete"] = not self.data["not_run"]
        self.data["seconds"] = round(self.clock.passed, 1)
        self.results.save()

    def leave_out(self, name: str, reason: str) -> None:
        """Say what was not measured, and why."""
        self.data["not_run"].append({"name": name, "reason": self.results.clean(reason)})
        self.results.save()
        self.clock.say(f"not run: {name}: {reason[-2000:]}")

    def row(self, way: str, part: str, side: int, **found: Any) -> None:
        """Add a row, and write it down at once."""
        self.data["rows"].append({"way": way, "part": part, "side": side, **found})
        self.results.save()
        self.clock.say(line(self.data["rows"][-1]))

    @contextmanager
    def server(self, way: str) -> Iterator[Server]:
        """Start a server, and let it get ready for every size."""
        work, begun = self.options.work, self.clock.passed
        log = f"serve-{way}-{next(self.numbers)}.log"
        # One state directory for all, where compiled kernels are kept.
        server = Server(self.options.models, work, self.options.device, state=work / "state", more=WAYS[way], log=log)
        server.link(self.versions[0].name)
        with server:
            server.serves(self.versions[0].digest, pause=0.02)
            serves = self.clock.passed - begun
            if self.is_gpu and way != "exact":
                self.wait_for_kernels(server, way)
            for side in self.sides * 2:
                self.picture(server, side)
            ready = self.clock.passed - begun
            self.clock.say(f"{way}: serves after {serves:.1f} s, and has drawn every size twice after {ready:.1f} s")
            yield server
        shutil.rmtree(work / "images", ignore_errors=True)

    def wait_for_kernels(self, server: Server, way: str) -> None:
        """Wait until what a way needs is compiled: the server says so once for what earlier starts compiled, and once for more."""
        wanted = 1 if way in self.compiled or not self.compiled else 2
        try:
            server.wait(
                lambda: len(READY.findall(server.log.read_text())) >= wanted, "kernels are compiled", 120.0, 0.1
            )
            self.compiled.add(way)
        except ServerError as error:
            if server.status is not None:
                raise
            self.leave_out(f"the wait for the kernels of {way}", str(error))

    def picture(self, server: Server, side: int, prompt: str | None = None) -> Picture:
        """Ask for a picture, by default with a new prompt."""
        number = next(self.numbers)
        return Picture(server, prompt or f"a cat wearing sunglasses, number {number:05}", side, number)

    def any_length(self, number: int) -> str:
        """Return a prompt whose length has little to do with that of the one before."""
        return " ".join([f"a cat, number {next(self.numbers)}"] + ["a cat"] * (37 * number % 100))

    # --- latency and throughput

    def other(self, way: str) -> None:
        """Measure a way of which only speed matters."""
        with self.server(way) as server:
            self.measure(server, way)

    def measure(self, server: Server, way: str) -> None:
        """Measure a lone client, and several; the fast way with more kinds of prompts, and at all sizes."""
        for side in self.sides if way == "fast" else self.sides[:2]:
            self.lone(server, way, "lone, new prompt", side, lambda number: None)
            if way == "fast":
                self.lone(server, way, "lone, same prompt", side, lambda number: "a cat wearing sunglasses", 0.5)
                self.lone(server, way, "lone, any length", side, self.any_length, 0.5)
        for clients in (8, 4) if way == "fast" else (8,):
            for side in self.sides[:2]:
                self.queue(server, way, clients, side)

    def lone(
        self, server: Server, way: str, kind: str, side: int, prompt: Callable[[int], str | None], part: float = 1.0
    ) -> None:  # fmt: skip
        """Measure one client that asks for one picture after the other, in a `part` of a row's time."""
        end = time.monotonic() + part * self.options.seconds
        pictures: list[Picture] = []
        timings = []
        while len(pictures) < LEAST or (len(pictures) < MOST and time.monotonic() < end):
            pictures.append(self.picture(server, side, prompt(len(pictures))))
            timings.append(pictures[-1].timings(server))
        spent = [1000 * one.seconds for one in pictures]
        outside = [
            whole - 1000 * sum(each[name] for name in PHASES) for whole, each in zip(spent, timings, strict=True)
        ]
        self.row(
            way, kind, side, n=len(spent), median=round(statistics.median(spent), 1), p99=round(quantile(spent, 0.99), 1),
            **medians(timings), outside=round(statistics.median(outside), 1),
        )  # fmt: skip

    def queue(self, server: Server, way: str, clients: int, side: int) -> None:
        """Measure clients that ask for the next picture as soon as they have one: the pictures a second from the first to the
        last but one."""
        pictures: list[Picture] = []
        errors: list[Exception] = []
        end = time.monotonic() + self.options.seconds

        def client() -> None:
            try:
                while time.monotonic() < end:
                    pictures.append(self.picture(server, side))
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=client) for _ in range(clients)]
        with busy(self.is_gpu) as shares:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        if errors:
            raise ServerError(f"{clients} clients, {side}: {len(errors)} failed, the first: {errors[0]}")
        ends = sorted(one.ended for one in pictures)[:-1]
        rate = (len(ends) - 1) / (ends[-1] - ends[0])
        timings = [one.timings(server) for one in pictures]
        drawn = 1000 * statistics.mean(sum(one[name] for name in PHASES) for one in timings)
        found: Json = {
            "n": len(pictures),
            "per_second": round(rate, 3),
            **medians(timings),
            "gap": round(1000 / rate - drawn, 2),
        }
        if shares:
            found["busy"] = round(statistics.mean(shares[2:-2] or shares), 1)
        self.row(way, f"{clients} clients", side, **found)

    # --- the same bytes, and a promotion

    def fast(self) -> None:
        """Measure the fast way, whether its bytes stay the same, and a promotion."""
        with self.server("fast") as server:
            self.measure(server, "fast")
            asked = [(f"a dog, number {number}", side, number) for number in range(3) for side in self.sides]
            self.files = {one: Picture(server, *one).file for one in asked}
            self.compare("again, in another order", {one: Picture(server, *one).file for one in reversed(asked)})
            self.compare("among others", self.together(server, asked))
            self.promote(server)

    def restart(self) -> None:
        """Ask another process for pictures that `fast` got."""
        if not self.files:
            raise RuntimeError("it needs the pictures of the part fast")
        with self.server("fast") as server:
            files = {one: Picture(server, *one).file for one in reversed(self.files)}
        self.compare("after a restart", files)

    def compare(self, how: str, files: dict[tuple[str, int, int], str]) -> None:
        """Say whether the same requests got the same bytes."""
        sides = sorted({one[1] for one, file in self.files.items() if files.get(one) != file})
        equal = sum(files.get(one) == file for one, file in self.files.items())
        self.row("fast", f"same bytes {how}", 0, n=len(self.files), equal=equal, differ_at=sides)

    def together(self, server: Server, asked: list[tuple[str, int, int]]) -> dict[tuple[str, int, int], str]:
        """Return the hashes of requests that are all sent at once, among others."""
        found: dict[tuple[str, int, int], str] = {}

        def ask(one: tuple[str, int, int]) -> None:
            self.picture(server, one[1])
            found[one] = Picture(server, *one).file

        threads = [threading.Thread(target=ask, args=(one,)) for one in asked]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if missing := len(asked) - len(found):
            raise ServerError(f"{missing} of {len(asked)} requests that were sent at once failed")
        return found

    def promote(self, server: Server) -> None:
        """Measure the pictures after a promotion, one client asking for one after the other meanwhile."""
        side = self.sides[-1]
        old = [self.picture(server, side) for _ in range(10)]
        new: list[Picture] = []
        linked, before = server.link(self.versions[1].name), len(old)
        while len(new) < FOLLOWING and self.clock.left > 5:
            made = self.picture(server, side)
            (old if made.version == self.versions[0].name else new).append(made)
            if not new and time.monotonic() - linked > 60:
                raise ServerError("v2 does not serve after 60 s")
        attempt = server.get("/attempts")["attempts"][0]
        usual, loading, spent = ([1000 * one.seconds for one in part] for part in (old[:before], old[before:], new))
        self.row(
            "fast", "promotion", side, before=round(statistics.median(usual), 1),
            while_loading=round(statistics.median(loading), 1) if loading else None, first=round(spent[0], 1),
            second=round(spent[1], 1), n=len(spent), last=round(spent[-1], 1), median=round(statistics.median(spent), 1),
            longest=round(max(spent), 1), load_seconds=attempt["seconds"],
        )  # fmt: skip

    # --- diffusers

    def plain(self, way: str) -> None:
        """Measure plain diffusers."""
        sides = self.sides if way == "eager" else self.sides[:2]
        command = [
            sys.executable, str(HERE / "draw_plain.py"), str(self.versions[0].directory), self.options.device, way,
            str(self.options.seconds), *map(str, sides),
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": search_path(), "HF_HUB_OFFLINE": "1"}
        limit = min(300.0, self.clock.left)
        with open(self.options.work / "plain.log", "w+") as log:
            try:
                ended = subprocess.run(
                    command, env=environment, stdout=subprocess.PIPE, stderr=log, text=True, timeout=limit, check=False
                )
                said, status = ended.stdout, str(ended.returncode or "")
            except subprocess.TimeoutExpired as late:
                said, status = (late.stdout or b"").decode(), f"not done after {limit:.0f} s"
            log.seek(0)
            words = log.read()[-1500:]
        for answer in map(json.loads, said.splitlines()):
            if "side" in answer:
                spent = [1000 * (drawn + png) for drawn, png in answer["requests"]]
                self.row(
                    f"diffusers, {way}", "lone, new prompt", answer["side"], n=len(spent),
                    median=round(statistics.median(spent), 1), p99=round(quantile(spent, 0.99), 1),
                    pipeline=round(statistics.median(1000 * drawn for drawn, _ in answer["requests"]), 1),
                    png=round(statistics.median(1000 * png for _, png in answer["requests"]), 1), first=1000 * answer["first"],
                )  # fmt: skip
        if status:
            raise RuntimeError(f"draw_plain.py ended with {status}: {words}")


def main() -> None:
    """Measure, print the table and write the result."""
    parser = command_line(__doc__, "draw_served")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure, in this order (all)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each row (%(default)s)")
    parser.set_defaults(deadline=300.0)
    bench = Bench(parsed(parser, table, lambda data, path: None))
    bench.run()
    print("\n".join(table(bench.data)))


if __name__ == "__main__":
    main()
