"""A fleet on one host: pictures a second by replicas, what the controller adds to a request, swaps under load, a controller that dies.

    python benchmarks/fleet.py --work DIR --deadline 280                            # GPUs 0 and 1, full size
    python benchmarks/fleet.py --work DIR --preset tiny --device cpu                # that it runs: its replicas share the cores
    python benchmarks/fleet.py --work DIR --devices 0 0,1 0,1,2,3                   # other fleets; the first has one replica

- added: one request at a time, in turns to a server without a fleet and to a fleet of one, both on the first device: milliseconds of the
  whole, and of what is beside the drawing itself (encode, denoise, decode). What the second takes longer, at the median, is what the
  controller, the replica's process and the way between them add.
- queue: pictures a second while there are always two requests for each replica; for N replicas also as a share of N times one.
- swap: versions are linked one after the other under that load; the latency of requests that overlap a swap, beside the others'.
- adopted: the controller is killed with SIGKILL, and another begun: until it answers that it is ready, until the first picture,
  what it read, and whether the replicas are the same processes.

Each row is printed and written when it is measured; one that fails says why, and the others follow.
"""

import argparse
import os
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from common import Clock, Json, Results, command_line, machine, now, packages, parsed, place_line, quantile
from draw import line
from served import Server
from swap import Stream, finish, swap
from versions import Version, make_versions

PAIRS = 24
"""Requests to each of the two servers that are compared."""
QUEUED = 2
"""Clients for each replica: one request is drawn and one waits."""
SWAPS = 6


class Bench:
    """What all parts share."""

    def __init__(
        self, options: argparse.Namespace, clock: Clock, results: Results, versions: Sequence[Version]
    ) -> None:
        self.options, self.clock, self.results, self.versions = options, clock, results, versions
        self.fields: Json = {} if options.preset == "tiny" else {"width": options.side, "height": options.side}
        self.alone: float | None = None
        """Pictures a second of one replica."""

    def row(self, part: str, way: str, **found: object) -> None:
        """Add a row, and write it down at once."""
        row = {"part": part, "way": way, **found}
        self.results.data["rows"].append(row)
        self.results.save()
        self.clock.say(line(row))

    @contextmanager
    def trying(self, part: str, seconds: float) -> Iterator[bool]:
        """Yield whether there are so many seconds left; go on if what is inside fails, with a row that says why."""
        if self.clock.left < seconds:
            self.row(part, "skipped", seconds_left=round(self.clock.left))
            yield False
            return
        try:
            yield True
        except Exception as error:
            self.row(part, "failed", error=self.results.clean(f"{type(error).__name__}: {error}"))

    def fleet(self, devices: str, **more: object) -> Server:
        """Return a server of a fleet."""
        options = self.options
        name = f"fleet-{len(devices.split(','))}"
        return Server(
            options.models, options.work, "auto", more=["--devices", devices], log=f"{name}.log",
            state=options.work / f"state-{name}-{os.getpid()}", **more,  # type: ignore[arg-type]
        )  # fmt: skip

    def ready(self, server: Server, version: Version | None = None) -> None:
        """Wait until a version serves, all replicas are ready, and kernels are compiled."""
        server.serves((version or self.versions[0]).digest, min(180.0, self.clock.left))

        def all_ready() -> bool:
            return all(one["state"] == "READY" for one in server.get("/status")["replicas"] or [])

        server.wait(all_ready, "all replicas are ready", 120, 0.05)


def replicas_of(server: Server) -> dict[str, Json]:
    """Return the replicas by name."""
    return {one["name"]: one for one in server.get("/status")["replicas"]}


def added(bench: Bench, plain: Server, fleet: Server) -> None:
    """One request at a time, to the one server and to the other in turns."""
    took: dict[str, list[float]] = {"no fleet": [], "fleet of 1": []}
    outside: dict[str, list[float]] = {way: [] for way in took}
    for seed in range(-3, PAIRS):
        for way, server in (("no fleet", plain), ("fleet of 1", fleet))[:: 1 if seed % 2 else -1]:
            begun = time.monotonic()
            status, body = server.generate(seed + 3, **bench.fields)
            seconds = time.monotonic() - begun
            if status != 200:
                raise RuntimeError(f"{way}: {status} {body.get('error')}")
            if seed >= 0:  # the first ones compile, and record
                took[way].append(seconds * 1000)
                parts = sum(body["timings"].get(name, 0.0) for name in ("encode", "denoise", "decode"))
                outside[way].append((seconds - parts) * 1000)
    for way, times in took.items():
        found = {"ms": round(statistics.median(times), 2), "p95": round(quantile(times, 0.95), 2), "n": len(times)}
        bench.row("added", way, **found, beside_drawing=round(statistics.median(outside[way]), 2))
    whole, beside = (
        statistics.median(one - other for one, other in zip(found["fleet of 1"], found["no fleet"], strict=True))
        for found in (took, outside)
    )
    bench.row("added", "by the fleet", ms=round(whole, 2), beside_drawing=round(beside, 2), goal="<= 5 ms")


def rate(bench: Bench, server: Server, count: int, way: str) -> None:
    """Pictures a second while requests always wait."""
    stream = Stream(server, QUEUED * count, bench.fields)
    try:
        server.wait(lambda: stream.count >= 2 * QUEUED * count, "the first images are made", 120, 0.02)
        before, begun = {name: one["drawn"] for name, one in replicas_of(server).items()}, time.monotonic()
        server.wait(lambda: time.monotonic() - begun > bench.options.seconds, "the rate is measured", 600, 0.05)
        first = [one for one in [*stream.requests] if begun <= one["end"]]
        drawn = {name: one["drawn"] - before[name] for name, one in replicas_of(server).items()}
    finally:
        stream.end()
    ends = sorted(one["end"] for one in first if one["status"] == 200)
    per_second = (len(ends) - 1) / (ends[-1] - ends[0])
    found: Json = {
        "per_second": round(per_second, 3),
        "n": len(ends),
        "failed": sum(one["status"] != 200 for one in first),
    }
    if count == 1:
        bench.alone = per_second
    elif bench.alone:
        found["of_n_times_one"] = round(per_second / (count * bench.alone), 3)
        found["goal"] = ">= 0.95" if bench.options.device != "cpu" else "none: the replicas share the cores"
    bench.row("queue", way, **found, by_replica=drawn)


def swaps(bench: Bench, server: Server, count: int, way: str) -> None:
    """Versions, one after the other, under load."""
    stream = Stream(server, QUEUED * count, bench.fields)
    data: Json = {
        "requests": stream.requests, "swaps": [], "settled": 0.0, "settings": {"preset": "", "leave": None}
    }  # fmt: skip
    try:
        server.wait(lambda: stream.count >= 2 * QUEUED * count, "the first images are made", 120, 0.02)
        data["settled"] = time.monotonic()
        want = stream.count + 6 * count
        server.wait(lambda: stream.count >= want, "the steady state is measured", 120, 0.02)
        for number in range(SWAPS):
            if bench.clock.left < 20:
                break
            data["swaps"].append(swap(server, bench.versions[(number + 1) % 3], min(60.0, bench.clock.left)))
            want = stream.count + 4 * count
            server.wait(lambda want=want: stream.count >= want, "requests between two swaps", 120, 0.02)
    finally:
        stream.end()
    finish(data, bench.clock)
    found = data["summary"]
    ratios = found["served"].get("during / steady", {})
    bench.row(
        "swap", way, swaps=len(data["swaps"]), requests=found["requests"], failed=found["failed"],
        wrong_version=found["wrong_version"], median_ratio=ratios.get("median"), p99_ratio=ratios.get("p99"),
        seconds=found.get("swaps", {}).get("median"), promote_ms=round(1000 * (found.get("swaps", {}).get("promote_longest") or 0), 3),
    )  # fmt: skip


def adopted(bench: Bench, server: Server, devices: str, way: str) -> None:
    """The controller dies, and the next one finds the replicas."""
    serving = server.get("/status")["serving"]["version"]
    version = next(one for one in bench.versions if one.name == serving)
    before = {name: one["pid"] for name, one in replicas_of(server).items()}
    in_flight = threading.Thread(target=_ask_once, args=(server, bench.fields))
    in_flight.start()
    time.sleep(0.2)
    server.kill()
    begun = time.monotonic()
    in_flight.join()
    with bench.fleet(devices, port=server.address[1]) as next_one:
        next_one.wait(lambda: next_one.call("GET", "/health/ready")[0] == 200, "it is ready", 120, 0.01)
        ready = time.monotonic() - begun
        status, _ = next_one.generate(7, **bench.fields)
        first = time.monotonic() - begun
        bench.ready(next_one, version)
        attempt = next_one.get("/status")["aliases"]["current"]["attempt"]
        after = {name: one["pid"] for name, one in replicas_of(next_one).items()}
        bench.row(
            "adopted", way, ready_s=round(ready, 2), first_picture_s=round(first, 2), status=status, bytes_read=attempt["bytes"],
            same_processes=after == before,
        )  # fmt: skip


def _ask_once(server: Server, fields: Json) -> None:
    try:
        server.generate(1, **fields)
    except (OSError, ValueError):
        return  # its controller was killed


def measure(bench: Bench) -> None:
    """Measure all, the fleet of one first."""
    for devices in bench.options.devices:
        count = len(devices.split(","))
        way = f"{count} x {'cpu' if devices.startswith('cpu') else 'GPU'}"
        with bench.trying(way, 45) as has_time:
            if not has_time:
                continue
            with bench.fleet(devices) as server:
                bench.ready(server)
                parts(bench, server, devices, count, way)


def parts(bench: Bench, server: Server, devices: str, count: int, way: str) -> None:
    """Measure one fleet."""
    options = bench.options
    if count == 1:
        with (
            bench.trying("added", 40) as has_time,
            Server(options.models, options.work, "cpu" if way.endswith("cpu") else f"cuda:{devices}", log="plain.log") as plain,
        ):  # fmt: skip
            if has_time:
                plain.serves(bench.versions[0].digest, 120)
                if not way.endswith("cpu"):
                    plain.has_kernels()
                added(bench, plain, server)
    with bench.trying(f"queue, {way}", options.seconds + 15) as has_time:
        if has_time:
            rate(bench, server, count, way)
    if count > 1:
        with bench.trying(f"swap, {way}", 40) as has_time:
            if has_time:
                swaps(bench, server, count, way)
        with bench.trying(f"adopted, {way}", 30) as has_time:
            if has_time:
                adopted(bench, server, devices, way)


def table(data: Json) -> list[str]:
    """Return the result as lines of text."""
    return [place_line(data["machine"]), *(line(row) for row in data["rows"])]


def main() -> None:
    """Run it, or show a result."""
    parser = command_line(__doc__ or "", "fleet")
    parser.add_argument("--devices", nargs="+", metavar="LIST", help="the fleets (0 0,1; on the CPU: cpu cpu,cpu)")
    parser.add_argument("--side", type=int, default=1024, help="width and height, pixels (%(default)s)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of a rate (%(default)s)")
    options = parsed(parser, table, lambda data, path: None)
    options.devices = options.devices or (["cpu", "cpu,cpu"] if options.device == "cpu" else ["0", "0,1"])
    clock = Clock(options.deadline)
    results = Results(
        options.out, [options.work, options.models], benchmark="fleet", started=now(), machine=machine(options.work),
        settings={name: getattr(options, name) for name in ("preset", "device", "devices", "side", "seconds")},
        versions=packages("torch", "ray", "aiohttp"), rows=[],
    )  # fmt: skip
    bench = Bench(options, clock, results, make_versions(options.models, options.preset, options.device, clock))
    measure(bench)
    results.data |= {"complete": True, "seconds": round(clock.passed, 1)}
    results.save()
    clock.say("done")


if __name__ == "__main__":
    main()
