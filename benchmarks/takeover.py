"""`zwatch serve --takeover` under traffic: what clients see while one process takes a service over from another.

    python benchmarks/takeover.py --work DIR [--preset full] [--models DIR] [--full-card]
    python benchmarks/takeover.py --draw benchmarks/results/takeover.json

Two clients draw without a pause, one submits jobs and polls them, one asks /health/live on a new connection each time. A
second process with --takeover starts, the first one ends. Counted: calls that failed or were refused, the longest time
without an answer of /health/live, the longest time without a finished picture beside the median of one, and jobs that the
first process accepted and the second one answered for.

With `--full-card` another program holds so much of the GPU that two models do not fit: the first process has to end
before the second one can load.
"""

import argparse
import http.client
import itertools
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from common import Clock, Json, Results, command_line, machine, now, packages, parsed, place_line
from served import Server
from versions import make_versions

STEPS = 8
BEFORE, AFTER = 6.0, 6.0
"""Seconds of traffic before the second process starts, and after it serves alone."""
LEFT_FREE = 12 * 2**30
"""Bytes that `--full-card` leaves beside one model, of 20.5 GB."""
MODEL = 21 * 2**30
HOLD = """
import sys, time, torch
free, _ = torch.cuda.mem_get_info(0)
held = torch.empty(free - int(sys.argv[1]), dtype=torch.uint8, device="cuda:0")
print("held", held.numel(), flush=True)
time.sleep(10_000)
"""


class Traffic:
    """Calls a service from several threads until it is told to stop."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.address = address
        self.pictures: list[tuple[float, float]] = []
        """When each picture was asked for, and when it came."""
        self.alive: list[float] = []
        self.failures: list[str] = []
        self.jobs: dict[str, str] = {}
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._repeat, args=(one,))
            for one in (self._picture, self._picture, self._job, self._live)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _repeat(self, call: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                call()
            except (OSError, http.client.HTTPException, ValueError) as error:
                self.failures.append(f"{time.monotonic():.3f} {call.__name__}: {type(error).__name__}: {error}")

    def _call(self, method: str, path: str, body: Json | None = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self.address, timeout=180)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            found = answer.status, answer.read()
        finally:
            connection.close()
        if found[0] >= 400:
            raise ValueError(f"{found[0]} {found[1][:300]!r}")
        return found

    def _picture(self) -> None:
        begun = time.monotonic()
        self._call("POST", "/generate", {"prompt": "a cat", "seed": 1, "steps": STEPS})
        self.pictures.append((begun, time.monotonic()))

    def _job(self) -> None:
        job = json.loads(self._call("POST", "/jobs", {"prompt": "a dog", "seed": 2, "steps": STEPS})[1])["id"]
        state = "queued"
        while state in ("queued", "running"):
            time.sleep(0.05)
            state = json.loads(self._call("GET", f"/jobs/{job}")[1])["state"]
        self.jobs[job] = state

    def _live(self) -> None:
        self._call("GET", "/health/live")
        self.alive.append(time.monotonic())
        time.sleep(0.01)


def measured(options: argparse.Namespace, clock: Clock, *, full_card: bool) -> Json:
    """Let one process take over from another under traffic; return what was counted."""
    state = options.work / f"state-takeover-{full_card}"
    old = Server(options.models, options.work, options.device, state=state)
    holder = None
    if full_card:
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(MODEL + LEFT_FREE)], stdout=subprocess.PIPE, text=True
        )
        assert holder.stdout is not None
        clock.say(f"another program has taken memory: {holder.stdout.readline().strip()}")
    try:
        with old:
            old.wait(lambda: old.get("/status")["serving"], "it serves")
            return _taken_over(options, clock, old, state)
    finally:
        if holder is not None:
            holder.kill()
            holder.wait()


def _taken_over(options: argparse.Namespace, clock: Clock, old: Server, state: Path) -> Json:
    new = Server(
        options.models,
        options.work,
        options.device,
        state=state,
        port=old.address[1],
        more=["--takeover"],
        log="new.log",
    )
    with ExitStack() as running:
        with Traffic(old.address) as traffic:
            time.sleep(BEFORE)
            clock.say("the second process starts")
            running.enter_context(new)
            new.wait(lambda: old.status is not None, "the first process has ended")
            ended = time.monotonic()
            time.sleep(AFTER)
        left = new.get("/status")
    before = [end - begun for begun, end in traffic.pictures if end < new.begun]
    done = sorted(end for _, end in traffic.pictures if end < ended + AFTER)
    return {
        "failures": traffic.failures, "pictures": len(traffic.pictures),
        "jobs": {state: list(traffic.jobs.values()).count(state) for state in set(traffic.jobs.values())},
        "exit status of the first": old.status, "seconds from start to the end of the first": round(ended - new.begun, 2),
        "longest without an answer of /health/live": round(longest_gap(traffic.alive), 4),
        "longest between two pictures": round(longest_gap(done), 2),
        "longest wait for a picture": round(max(end - begun for begun, end in traffic.pictures), 2),
        "median wait for a picture before": round(statistics.median(before), 2) if before else None,
        "served after": None if left["serving"] is None else left["serving"]["version"],
        "phases": left["aliases"]["current"]["attempt"]["phases"],
    }  # fmt: skip


def longest_gap(moments: list[float]) -> float:
    """Return the longest time between two of these."""
    return max(after - before for before, after in itertools.pairwise(moments))


def table(data: Json) -> list[str]:
    """Return the result as lines of text."""
    lines = [place_line(data["machine"])]
    for row in data["rows"]:
        lines.append(f"--- {row['kind']}")
        lines += [f"{name}: {value}" for name, value in row.items() if name != "kind"]
    return lines


def main() -> None:
    """Run it, or show a result."""
    parser = command_line(__doc__ or "", "takeover")
    parser.add_argument("--full-card", action="store_true", help="also where two models do not fit on the GPU")
    options = parsed(parser, table, lambda data, path: None)
    clock = Clock(options.deadline)
    results = Results(
        options.out, [options.work, options.models], benchmark="takeover", started=now(), machine=machine(options.models),
        settings={"preset": options.preset, "device": options.device, "steps": STEPS}, versions=packages("torch"), rows=[],
    )  # fmt: skip
    make_versions(options.models, options.preset, options.device, clock, count=1)
    for full_card in (False, True) if options.full_card else (False,):
        kind = "no room for two models" if full_card else "room for two models"
        results.data["rows"].append({"kind": kind, **measured(options, clock, full_card=full_card)})
        results.save()
    results.data["complete"] = True
    results.save()
    print("\n".join(table(results.data)))


if __name__ == "__main__":
    main()
