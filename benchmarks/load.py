"""How fast a version is loaded from files to verified tensors, compared with other loaders and the machine's limits.

    python benchmarks/load.py --work DIR [--preset full] [--deadline 400] [--peers DIR]
    python benchmarks/load.py --draw benchmarks/results/load.json

Three versions of one pipeline are written first (`versions.make_versions`). Then, in one run:

- server: `zwatch serve` over HTTP and `ln -sfn`: its start, a load of everything beside the serving version, of the
  transformer alone, of nothing but a config, a rollback, /api/verify, and a load of everything with a cold page cache.
- cold: every loader in a separate process, with the files dropped from the page cache before each turn, zwatch in
  turns with plain parallel reads.
- hot: every loader in turns, with the files in the page cache; a `b3sum` pass before each is what verification costs
  for a loader without verification.

Loading ends when every tensor is on the device and the device is idle. zwatch's time includes reading the seal and
verifying all bytes; the other loaders do not verify. A pipeline of modules around the tensors is a separate row: that is
what from_pretrained makes. The result is written after every step, so what was measured is kept if the run is killed.
"""

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from common import HERE, Clock, Json, Results, command_line, machine, now, packages, parsed, search_path, summary
from load_report import draw, goals, table
from page_cache import B3sum, cached_share, drop, read_plainly
from served import Server, ServerError
from versions import Version, make_versions

ROW_SECONDS = 15.0
"""Seconds in total after which a loader gets no further turn."""
ANSWER_SECONDS = 90.0
"""Seconds after which a load is aborted."""
REPORTED = ("torch", "diffusers", "transformers", "safetensors", "triton", "blake3", "aiohttp", "numpy", "accelerate")


@dataclass
class Contender:
    """One way to load: a worker of `peers.py` and a variant of it, when it takes part, and its results."""

    label: str
    worker: str
    variant: str = ""
    hot: bool = True
    cold: bool = True
    seconds: list[float] = field(default_factory=list)
    b3sum: list[float] = field(default_factory=list)
    told: list[Json] = field(default_factory=list)
    cached: list[float] = field(default_factory=list)
    error: str | None = None


def contenders() -> list[Contender]:
    """Return all ways to load. If a library can read through the page cache or directly, each is used where it is faster."""
    return [
        Contender("zwatch", "zwatch"),
        Contender("safetensors load_file", "safetensors", "load_file"),
        Contender(
            "safetensors load_file, then to the device", "safetensors", "load_file, then to the device", cold=False
        ),
        Contender("safetensors prefetch, 16 threads", "safetensors prefetch", "file by file, 16 threads"),
        Contender("safetensors prefetch, all files at once", "safetensors prefetch", "at once", cold=False),
        Contender("InstantTensor, mmap", "InstantTensor", "mmap", cold=False),
        Contender("InstantTensor, buffered", "InstantTensor", "buffered", cold=False),
        Contender("InstantTensor", "InstantTensor", "default", hot=False),
        Contender("runai-model-streamer", "runai-model-streamer"),
        Contender("fastsafetensors, buffered", "fastsafetensors", "buffered", cold=False),
        Contender("fastsafetensors", "fastsafetensors", "direct", hot=False),
        Contender("diffusers from_pretrained, device_map", "diffusers", "device_map"),
        Contender("diffusers from_pretrained, then to the device", "diffusers", "to", cold=False),
    ]


class Worker:
    """A process of `peers.py`."""

    def __init__(self, name: str, device: str, peers: Path | None, log: Path) -> None:
        self.name = name
        self.error: str | None = None
        self.versions: dict[str, str] = {}
        # Its own safetensors would shadow the one that everything else is measured with.
        added = (
            peers
            if name in ("safetensors prefetch", "InstantTensor", "runai-model-streamer", "fastsafetensors")
            else None
        )
        with open(log, "ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "peers.py"), name, device], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=errors, text=True, env={**os.environ, "PYTHONPATH": search_path(added)},
            )  # fmt: skip

    def begin(self, deadline: float) -> None:
        """Wait until it has imported everything and holds a device."""
        answer = self._answer(deadline)
        self.error = answer.get("error")
        self.versions = answer.get("ready", {})

    def load(self, version: Version, variant: str, deadline: float, *, again: bool = False) -> Json:
        """Run one load, or `again` loads if it is fast; return its answer."""
        if self.error is not None:
            return {"error": self.error}
        order = {
            "directory": str(version.directory),
            "files": [str(path) for path in version.weights],
            "variant": variant,
            "again": again,
        }
        assert self._process.stdin is not None  # it was opened as a pipe
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self.error = "its process ended"
            return {"error": self.error}
        return self._answer(min(deadline, ANSWER_SECONDS))

    def end(self) -> None:
        """Stop the process."""
        if self._process.stdin is not None:
            try:
                self._process.stdin.close()
            except BrokenPipeError:
                pass
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _answer(self, deadline: float) -> Json:
        assert self._process.stdout is not None  # it was opened as a pipe
        ready, _, _ = select.select([self._process.stdout], [], [], min(max(0.0, deadline), 600.0))
        line = self._process.stdout.readline() if ready else ""
        if not line:
            self.error = "its process ended" if ready else f"no answer within {deadline:.0f} s"
            self._process.kill()
            return {"error": self.error}
        found: Json = json.loads(line)
        return found


class Bench:
    """One run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.clock = Clock(options.deadline)
        self.device = options.device
        self.models: Path = options.models
        self.b3sum = B3sum()
        self.pause = 0.3 if options.preset == "tiny" else 1.5
        self.contenders = [one for one in contenders() if self.wanted(one.label)]
        self.mapping: set[str] = set()
        """Loaders that had a turn: each may still have its files mapped."""
        self.results = Results(
            options.out, [options.work, self.models, *([options.peers] if options.peers else [])],
            benchmark="load", started=now(),
            settings={"preset": options.preset, "repeats": options.repeats, "device": self.device, "b3sum": self.b3sum.name},
            machine=machine(options.work), versions=packages(*REPORTED), rows=[], server={}, limits=[], not_run=[],
        )  # fmt: skip
        self.data = self.results.data

    def wanted(self, name: str) -> bool:
        """Return whether --only selects this."""
        return not self.options.only or any(asked.lower() in name.lower() for asked in self.options.only)

    def run(self) -> None:
        """Run all stages that fit into the time."""
        say = self.clock.say
        say("starting the loaders; they import while the versions are written")
        names = dict.fromkeys([*(one.worker for one in self.contenders), *(["link"] if self.wanted("limits") else [])])
        workers = {name: self.worker(name) for name in names}
        try:
            versions = make_versions(self.models, self.options.preset, self.device, self.clock)
            self.data["model"] = {
                "bytes": versions[0].nbytes,
                "files": {
                    str(path.relative_to(versions[0].directory)): path.stat().st_size for path in versions[0].weights
                },
            }
            for worker in workers.values():
                worker.begin(max(60.0, self.clock.left / 3))
                self.data["versions"] |= worker.versions
                if worker.error:
                    self.leave_out(worker.name, worker.error)
            say(f"versions and loaders are ready: {', '.join(n for n, w in workers.items() if not w.error)}")
            self.results.save()
            if self.wanted("server"):
                self.attempt("server", lambda: self.serve(versions))
            # Cold first: the page cache keeps whatever a process has mapped, and some loaders never unmap.
            if not self.options.skip_cold:
                self.attempt("cold", lambda: self.cold(versions[0], workers))
            self.attempt("hot", lambda: self.hot(versions[0], workers))
            self.data["complete"] = True
        finally:
            for worker in workers.values():
                worker.end()
            self.data["seconds"] = round(self.clock.passed, 1)
            self.data["goals"] = goals(self.data)
            self.results.save()

    def worker(self, name: str) -> Worker:
        """Start a loader's process."""
        return Worker(name, self.device, self.options.peers, self.options.work / "peers.log")

    def attempt(self, name: str, stage: Callable[[], None]) -> None:
        """Run a stage; an error is recorded, and the next stage runs."""
        self.clock.say(f"--- {name}")
        try:
            stage()
        except Exception as error:
            self.leave_out(name, f"{type(error).__name__}: {error}")
        self.data["goals"] = goals(self.data)
        self.results.save()

    def leave_out(self, name: str, reason: str) -> None:
        """Record what was skipped, and why."""
        self.data["not_run"].append({"name": name, "reason": self.results.clean(reason)})
        self.clock.say(f"not run: {name}: {reason[-2000:]}")

    # --- the server

    def serve(self, versions: list[Version]) -> None:
        """Measure zwatch as a running service."""
        v1, _, v3 = versions
        for version in versions:
            for path in version.weights:
                if cached_share([path]) < 1:
                    read_plainly([path])
        found = self.data["server"]
        with Server(self.models, self.options.work, self.device) as server:
            _, attempt = server.serves(v1.digest)
            serving = time.monotonic() - server.begun
            status, body = server.generate(1)
            first = time.monotonic() - server.begun
            found["start"] = {
                "serving": round(serving, 3), "first_image": round(first, 3), "image_status": status,
                "attempt": _attempt(attempt), "image": body.get("timings"),
            }  # fmt: skip
            self.clock.say(f"start: serves after {serving:.1f} s, first image after {first:.1f} s")
            for name in ("full", "transformer", "config", "rollback", "rollback_image"):
                found[name] = []
            for number in range(self.options.repeats):
                if self.clock.left < 60:
                    self.leave_out(f"server, round {number + 1}", "no time left")
                    break
                self._round(server, versions, number)
                self.results.save()
            self._verify(server)
            if not self.options.skip_cold and self.clock.left > 60:
                stayed = drop(v3.weights)
                time.sleep(self.pause)
                found["cold_full"] = [{**self._flip(server, v3), "cached_before": round(stayed, 4)}]
        self.clock.say("the server has ended")

    def _round(self, server: Server, versions: list[Version], number: int) -> None:
        """v1 serves before and after; each step names what it loads."""
        v1, v2, v3 = versions
        found = self.data["server"]
        found["full"].append(self._flip(server, v3))
        for version in (v1, v3, v1):
            begun = server.link(version.name)
            seen, attempt = server.serves(version.digest, pause=0.001)
            found["rollback"].append({"ln_to_serving": round(seen - begun, 5), "attempt": _attempt(attempt)})
            time.sleep(self.pause / 3)
        begun = server.link(v3.name)
        while (image := server.generate(number))[1].get("version") != v3.name:
            if time.monotonic() - begun > 30:
                raise ServerError(f"no image of {v3.name}: {image}")
        found["rollback_image"].append(
            {"ln_to_first_image": round(time.monotonic() - begun, 4), "image": image[1].get("timings")}
        )
        server.link(v1.name)
        server.serves(v1.digest)
        found["transformer"].append(self._flip(server, v2))
        time.sleep(self.pause)
        begun = time.monotonic()
        v2.change_a_config()
        seen, attempt = server.serves(v2.digest)
        found["config"].append({"seal_to_serving": round(seen - begun, 5), "attempt": _attempt(attempt)})
        found["transformer"].append(self._flip(server, v1))

    def _flip(self, server: Server, version: Version) -> Json:
        """Link to a version that is not resident, and wait until it serves."""
        time.sleep(self.pause)  # the memory for the next load is reserved when the service is idle
        begun = server.link(version.name)
        seen, attempt = server.serves(version.digest)
        view = _attempt(attempt)
        self.clock.say(
            f"{version.name}: {view['bytes'] / 1e9:.2f} GB, verified after {view['resolve_to_verified']:.3f} s, "
            f"serves {seen - begun:.3f} s after ln; phases {view['phases']}"
        )
        return {"ln_to_serving": round(seen - begun, 5), "attempt": view}

    def _verify(self, server: Server) -> None:
        """POST /api/verify on an idle device, and while images are generated constantly."""
        found = self.data["server"]
        found["verify_idle"] = [self._verify_once(server) for _ in range(10)]
        ended = threading.Event()

        def keep_busy() -> None:
            seed = 0
            while not ended.is_set():
                server.generate(seed)
                seed += 1

        busy = threading.Thread(target=keep_busy, daemon=True)
        busy.start()
        time.sleep(self.pause)
        found["verify_busy"] = []
        try:
            for _ in range(10):
                found["verify_busy"].append(self._verify_once(server))
                time.sleep(self.pause / 5)
        finally:
            ended.set()
            busy.join()
        medians = [statistics.median(one["answer"] for one in found[f"verify_{how}"]) for how in ("idle", "busy")]
        self.clock.say(f"verify: {medians[0] * 1e3:.1f} ms idle, {medians[1] * 1e3:.1f} ms while images are made")

    def _verify_once(self, server: Server) -> Json:
        begun = time.monotonic()
        status, body = server.post("/api/verify")
        spent = time.monotonic() - begun
        if status != 200:
            raise ServerError(f"verify answered {status}: {body}")
        return {"seconds": body["seconds"], "answer": round(spent, 5), "bytes": body["bytes"]}

    # --- loaders

    def hot(self, version: Version, workers: dict[str, Worker]) -> None:
        """Every loader in turns, the files in the page cache."""
        paths, nbytes = version.weights, version.nbytes
        cold_rows: list[Json] = list(self.data["rows"])
        hot_rows: list[Json] = []
        read_plainly(paths)
        if self.wanted("limits"):
            self.limit("page cache, read by 16 threads", "hot", [read_plainly(paths) for _ in range(5)], nbytes)
            self.limit(f"{self.b3sum.name}, alone", "hot", [self.b3sum(paths) for _ in range(3)], nbytes)
            answers = [workers["link"].load(version, "", self.clock.left) for _ in range(5)]
            seconds = [one["seconds"] for one in answers if "seconds" in one]
            if seconds:
                self.limit("link, pinned memory to the device", "hot", seconds, answers[0]["tensor_bytes"])
        taking_part = [one for one in self.contenders if one.hot]
        for number in range(self.options.repeats):
            for one in taking_part if number % 2 == 0 else reversed(taking_part):
                if one.error or sum(one.seconds) > ROW_SECONDS or not self.time_for(one, version):
                    continue
                verifying = self.b3sum(paths)  # this reads every file, too
                one.cached.append(round(cached_share(paths), 4))
                answer = workers[one.worker].load(version, one.variant, self.clock.left, again=True)
                self.note(one, answer, verifying)
            hot_rows = [row for one in taking_part for row in self.rows(one, "hot", nbytes)]
            self.data["rows"] = cold_rows + hot_rows
            self.results.save()
        b3sum_cold = [one["median"] for one in self.data["limits"] if one["group"] == "cold" and "b3sum" in one["name"]]
        for row in cold_rows:
            _add_cold_b3sum(row, b3sum_cold, hot_rows)
        self.say_what_is_missing("hot", taking_part)

    def cold(self, version: Version, workers: dict[str, Worker]) -> None:
        """Every loader once or twice, the files dropped from the page cache before each."""
        if self.data["machine"]["filesystem"] in ("tmpfs", "ramfs"):
            raise ValueError("files in memory have no cold state; give --work on a disk")
        paths, nbytes = version.weights, version.nbytes
        taking_part = [Contender(one.label, one.worker, one.variant) for one in self.contenders if one.cold]
        plain: dict[str, list[float]] = {"around the page cache": [], "through the page cache": []}
        zwatch = next((one for one in taking_part if one.worker == "zwatch"), None)
        b3sum_cold: list[float] = []

        def write() -> None:
            self.data["limits"] = []
            for how, seconds in plain.items():
                if seconds:
                    self.limit(f"disk, read {how} by 16 threads", "cold", seconds, nbytes, quiet=True)
            if b3sum_cold:
                self.limit(f"{self.b3sum.name}, alone", "cold", b3sum_cold, nbytes, quiet=True)
            self.data["rows"] = [row for one in taking_part for row in self.rows(one, "cold", nbytes)]
            self.results.save()

        for _ in range(self.options.cold_repeats):
            # In turns, so that a disk whose speed varies by the minute is the same disk for both.
            if self.wanted("limits") and self.clock.left > self.guess(version):
                drop(paths)
                plain["around the page cache"].append(read_plainly(paths, direct=True))
            if zwatch is not None:
                self.cold_turn(zwatch, version, workers)
            if self.wanted("limits") and self.clock.left > self.guess(version):
                drop(paths)
                plain["through the page cache"].append(read_plainly(paths))
            write()
            self.clock.say(f"plain reads: { {how: [round(s, 2) for s in spent] for how, spent in plain.items()} }")
        if self.wanted("limits") and self.clock.left > self.guess(version):
            drop(paths)
            b3sum_cold.append(self.b3sum(paths))
        for one in taking_part:
            if one is not zwatch:
                self.cold_turn(one, version, workers)
                write()
        write()
        self.say_what_is_missing("cold", taking_part)

    def cold_turn(self, one: Contender, version: Version, workers: dict[str, Worker]) -> None:
        """Run one cold load."""
        if workers[one.worker].error:
            one.error = workers[one.worker].error
        if one.error or not self.time_for(one, version, cold=True):
            return
        stayed = drop(version.weights)
        if stayed > 0.01:
            self.clock.say(f"{stayed:.0%} of the files stayed in the page cache: another loader has them mapped")
            for name in self.mapping:
                workers[name].end()
                workers[name] = self.worker(name)
                workers[name].begin(max(60.0, self.clock.left / 3))
            self.mapping.clear()
            stayed = drop(version.weights)
        one.cached.append(round(stayed, 4))
        self.mapping.add(one.worker)
        self.note(one, workers[one.worker].load(version, one.variant, self.clock.left), None)

    def guess(self, version: Version) -> float:
        """Return the seconds that a cold load may take."""
        return 2.0 + version.nbytes / 1.2e9

    def time_for(self, one: Contender, version: Version, *, cold: bool = False) -> bool:
        """Return whether another turn fits before the deadline."""
        expected = max(one.seconds, default=self.guess(version))
        return self.clock.left > 1.3 * (max(expected, self.guess(version)) if cold else expected) + 3

    def note(self, one: Contender, answer: Json, verifying: float | None) -> None:
        """Record one turn."""
        if "error" in answer:
            one.error = answer["error"]
            self.clock.say(f"{one.label}: {one.error}")
            return
        one.seconds.append(answer.pop("seconds"))
        one.told.append(answer)
        if verifying is not None:
            one.b3sum.append(verifying)
        self.clock.say(
            f"{one.label:<46} {one.seconds[-1]:8.3f} s  cached {one.cached[-1]:.1%}  {answer.get('phases', '')}"
        )

    def say_what_is_missing(self, group: str, taking_part: list[Contender]) -> None:
        """List the loaders that had no turn. Loaders that are not installed were listed at the start."""
        known = {one["name"] for one in self.data["not_run"]}
        for one in taking_part:
            if not one.seconds and one.worker not in known:
                self.leave_out(f"{one.label}, {group}", one.error or "no time left")

    def rows(self, one: Contender, group: str, nbytes: int) -> list[Json]:
        """Return a loader's row of the result; zwatch has one to verified tensors, and one to a pipeline of them."""
        if not one.seconds:
            return []
        mine = one.worker == "zwatch"
        found: Json = {
            "name": one.label, "group": group, "kind": "zwatch" if mine else "peer", "verified": mine,
            **summary(one.seconds, nbytes), "cached_before": one.cached,
            "tensor_bytes": one.told[-1]["tensor_bytes"],
        }  # fmt: skip
        if mine:
            found["loads"] = [
                {name: value for name, value in told.items() if name != "tensor_bytes"} for told in one.told
            ]
            verified = [total - told["phases"]["build"] for total, told in zip(one.seconds, one.told, strict=True)]
            return [{**found, **summary(verified, nbytes)}, {**found, "name": f"{one.label}, pipeline built"}]
        if one.b3sum:
            together = [load + first for load, first in zip(one.seconds, one.b3sum, strict=True)]
            found["with_b3sum"] = {**summary(together, nbytes), "sum_of_two_runs": False}
        return [found]

    def limit(self, name: str, group: str, seconds: list[float], nbytes: int, *, quiet: bool = False) -> None:
        """Record the machine's limits."""
        self.data["limits"].append({"name": name, "group": group, "kind": "limit", **summary(seconds, nbytes)})
        if not quiet:
            self.clock.say(f"{name:<46} {min(seconds):8.3f} s  {nbytes / min(seconds) / 1e9:.1f} GB/s")


def _add_cold_b3sum(row: Json, b3sum_cold: list[float], hot_rows: list[Json]) -> None:
    """After a cold b3sum pass the files are in the page cache: what follows is the loader's best hot time."""
    family = row["name"].split(",")[0]
    hot = [one["median"] for one in hot_rows if one["name"].split(",")[0] == family]
    if row["kind"] == "peer" and b3sum_cold and hot:
        together = [statistics.median(b3sum_cold) + min(hot)]
        row["with_b3sum"] = {**summary(together, row["bytes"]), "sum_of_two_runs": True}


def _attempt(attempt: Json) -> Json:
    """Return the main figures of an attempt: built is all but the first image and the promotion, verified is before that."""
    kept = {name: attempt[name] for name in ("version", "seconds", "bytes", "shared", "way", "phases")}
    phases = attempt["phases"]
    built = attempt["seconds"] - phases.get("warm", 0.0) - phases.get("promote", 0.0)
    return {
        **kept,
        "resolve_to_verified": round(built - phases.get("build", 0.0), 4),
        "resolve_to_built": round(built, 4),
    }


def main() -> None:
    """Measure, print the table, and write the result and the figure."""
    parser = command_line(__doc__, "load")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each loader, page cache hot (%(default)s)")
    parser.add_argument(
        "--cold-repeats", type=int, default=2, help="turns of zwatch and plain reads, cold (%(default)s)"
    )
    parser.add_argument("--skip-cold", action="store_true")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="parts of names: server, limits, zwatch, safetensors…"
    )
    parser.add_argument("--peers", type=Path, metavar="DIR", help="a folder with other loaders, `pip install --target`")
    bench = Bench(parsed(parser, table, draw))
    bench.run()
    print("\n".join(table(bench.data)))
    draw(bench.data, bench.results.path.with_suffix(".png"))


if __name__ == "__main__":
    main()
