"""The effect of swaps on requests: a stream of images while one version after another is loaded and promoted.

    python benchmarks/swap.py --work DIR [--preset full] [--swaps 20] [--deadline 200]
    python benchmarks/swap.py --work DIR --leave 30 --swaps 6 --out benchmarks/results/swap_host.json
    python benchmarks/swap.py --draw benchmarks/results/swap.json

One request runs and one waits, so the device is never idle. Three versions take turns, v1 → v2 → v3 → v1…: the previous
version stays resident, so with only two each swap after the first would find its version resident. v1 and v2 differ in
the transformer, v3 in everything. Each request's start, end, version and seed is noted. Two latencies: what
a client sees, which includes its wait for the request before, and `served`, without that wait. "During" are those that
overlap the time between `ln` and the promotion, "steady" all others, before the first swap and between two, so that both are
measured in the same minutes and with the same versions.

With `--share 10` a fourth version draws a tenth of the requests meanwhile, through the link `current@10`; each request is another
client's.

With `--leave`, another process takes all of the device's memory except this many GB: too little for two versions. Then the new
one is verified in host memory, and requests wait while the two are exchanged.
"""

import argparse
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common import Clock, Json, Results, canvas, command_line, machine, now, packages, parsed, place_line, quantile
from page_cache import cached_share, read_plainly
from served import Server, ServerError
from versions import Version, make_versions

COLOURS = {"v1": "#1d6996", "v2": "#edad08", "v3": "#0f8554", "v4": "#94346e"}
NOTICED = 0.05
"""Seconds between two looks whether a swap is done: rare enough to cost the server nothing."""
BALLAST = """
import sys, torch
device = torch.device(sys.argv[1])
torch.empty(1, device=device)  # the context takes memory too
taken = torch.empty(torch.cuda.mem_get_info(device)[0] - int(sys.argv[2]), dtype=torch.uint8, device=device)
print(torch.cuda.mem_get_info(device)[0], flush=True)
sys.stdin.read()
"""


class Stream:
    """Clients that ask for the next image as soon as they have one."""

    def __init__(self, server: Server, clients: int, fields: Json) -> None:
        self.requests: list[Json] = []
        self._server = server
        self._fields = fields
        self._lock = threading.Lock()
        self._seed = 0
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    @property
    def count(self) -> int:
        """Requests that were answered."""
        return len(self.requests)

    def end(self) -> None:
        """Let the last requests finish."""
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        while not self._ended.is_set():
            with self._lock:
                self._seed += 1
                seed = self._seed
            found: Json = {"seed": seed, "start": time.monotonic()}
            try:
                status, body = self._server.generate(seed, user=f"client {seed}", **self._fields)
            except (OSError, ValueError) as error:
                status, body = 0, {"error": f"{type(error).__name__}: {error}"}
            found |= {"end": time.monotonic(), "status": status, "version": body.get("version")}
            if status == 200:
                found["timings"], found["share"] = body["timings"], body.get("share")
            else:
                found["error"] = str(body.get("error"))[:200]
                time.sleep(0.1)
            self.requests.append(found)


def swap(server: Server, version: Version, deadline: float) -> Json:
    """Link to a version and wait until new requests get it; say what the attempt says of itself."""
    before = server.counters()
    begun = server.link(version.name)
    server.wait(lambda: _decided(server, version), f"{version.name} is decided", deadline, NOTICED)
    ended = time.monotonic()
    after = server.counters()
    attempt = server.get("/attempts")["attempts"][0]
    if attempt["state"] != "PROMOTED":
        raise ServerError(f"{attempt['version']} is {attempt['state']}: {attempt['reason']}")
    kept = ("version", "way", "seconds", "bytes", "shared", "phases", "held")
    found: Json = {"start": begun, "end": ended, **{name: attempt[name] for name in kept}}
    if before is not None and after is not None:
        found["allocations"] = {name: after[name] - before[name] for name in after}
    return found


def begin_share(server: Server, version: Version, percent: int, deadline: float) -> None:
    """Let a version draw some of the requests, and wait until it does."""
    name = f"current@{percent}"
    (server.models / name).symlink_to(version.name)  # `measure` has removed those of runs before

    def draws() -> bool:
        attempt = server.get("/status")["shares"].get(name, {}).get("attempt")
        if attempt is not None and attempt["state"] in ("REJECTED", "ABANDONED"):
            raise ServerError(f"{attempt['version']} is {attempt['state']}: {attempt['reason']}")
        return attempt is not None and attempt["state"] == "PROMOTED"

    server.wait(draws, f"{name} is ready", deadline, NOTICED)


def _decided(server: Server, version: Version) -> bool:
    attempt = server.get("/status")["aliases"]["current"]["attempt"]
    return bool(attempt["version"] == version.name and attempt["state"] not in ("LOADING", "WARMING"))


@contextmanager
def crowded(device: str, leave: float | None) -> Iterator[int | None]:
    """Let another process take the device's memory but `leave` GB; yield what is free then, bytes."""
    if leave is None:
        yield None
        return
    with subprocess.Popen(
        [sys.executable, "-c", BALLAST, device, str(int(leave * 1e9))],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None  # it was opened as a pipe
        told = process.stdout.readline()
        if not told:
            raise ServerError("the process that should take the device's memory ended")
        yield int(told)


def measure(options: argparse.Namespace, clock: Clock, results: Results) -> None:
    """Run the stream and the swaps."""
    models: Path = options.models
    versions = make_versions(models, options.preset, options.device, clock, count=3 if options.share is None else 4)
    for share in models.glob("current@*"):
        share.unlink()
    for version in versions:
        for path in version.weights:
            if cached_share([path]) < 1:
                read_plainly([path])
    data = results.data
    data["model"] = {
        "bytes": versions[0].nbytes,
        "cached": {one.name: round(cached_share(one.weights), 4) for one in versions},
    }
    results.save()
    with (
        crowded(options.device, options.leave) as free,
        Server(models, options.work, options.device, counted=True) as server,
    ):
        data["model"]["free_on_device"] = free
        server.serves(versions[0].digest)
        clock.say("v1 serves")
        if options.share is not None:
            begin_share(server, versions[3], options.share, min(120.0, clock.left))
            clock.say(f"{versions[3].name} draws {options.share} % of the requests")
        fields: Json = {} if options.preset == "tiny" else {"width": options.side, "height": options.side}
        stream = Stream(server, options.clients, fields)
        data["requests"], data["swaps"] = stream.requests, []
        try:
            server.wait(lambda: stream.count >= options.warm_up, "the first images are made", 120, NOTICED)
            if options.device.startswith("cuda"):
                server.has_kernels()
            data["settled"] = time.monotonic()
            want = stream.count + options.steady
            server.wait(lambda: stream.count >= want, "the steady state is measured", 600, NOTICED)
            clock.say(f"steady state: {options.steady} requests")
            for number in range(options.swaps):
                if clock.left < 25:
                    clock.say(f"no time for more than {number} swaps")
                    break
                found = swap(server, versions[(number + 1) % 3], min(60.0, clock.left))
                data["swaps"].append(found)
                clock.say(
                    f"swap {number + 1}: {found['version']}, {found['bytes'] / 1e9:.2f} GB, "
                    f"{found['seconds']:.3f} s, {found['phases']} {found.get('allocations', '')}"
                )
                ended = time.monotonic()
                # A few requests without a load between two swaps; and the memory for the next is made ready.
                want = stream.count + options.between
                server.wait(
                    lambda ended=ended, want=want: time.monotonic() > ended + options.pause and stream.count >= want,
                    "requests between two swaps", 120, NOTICED,
                )  # fmt: skip
                if number % 5 == 4:
                    finish(data, clock)
                    results.save()
        finally:
            stream.end()
            clock.say("the stream has ended")


def finish(data: Json, clock: Clock) -> None:
    """Say what it comes to."""
    requests, swaps = list(data["requests"]), data["swaps"]
    good = [one for one in requests if one["status"] == 200]
    for one in good:
        served = one["start"] + one["timings"]["queue"]
        one["latency"], one["served"] = one["end"] - one["start"], one["end"] - served
        for measure_, begun in (("latency", one["start"]), ("served", served)):
            during = any(begun < load["end"] and one["end"] > load["start"] for load in swaps)
            one[f"{measure_}_kind"] = "during" if during else "steady" if served >= data["settled"] else "warm-up"
    data["summary"] = summarise(good, requests, swaps)
    data["goals"] = goals(data)
    data["seconds"] = round(clock.passed, 1)


def summarise(good: list[Json], requests: list[Json], swaps: list[Json]) -> Json:
    """Return medians and p99, and their ratios to the steady state's."""
    found: Json = {"requests": len(requests), "failed": sum(one["status"] != 200 for one in requests)}
    found["wrong_version"] = sum(
        one["status"] == 200 and not one["share"] and one["version"] not in _possible(one, swaps) for one in requests
    )
    for measure_ in ("latency", "served"):
        found[measure_] = {}
        for kind in ("steady", "during"):
            values = [one[measure_] for one in good if one[f"{measure_}_kind"] == kind]
            if values:
                found[measure_][kind] = {
                    "n": len(values), "median": round(statistics.median(values), 4),
                    "p99": round(quantile(values, 0.99), 4), "longest": round(max(values), 4),
                }  # fmt: skip
        if found[measure_].keys() >= {"steady", "during"}:
            steady, during = found[measure_]["steady"], found[measure_]["during"]
            found[measure_]["during / steady"] = {
                part: round(during[part] / steady[part], 4) for part in ("median", "p99")
            }
    if swaps:
        seconds = [one["end"] - one["start"] for one in swaps]
        promotions = [one["phases"]["promote"] for one in swaps if "promote" in one["phases"]]
        found["swaps"] = {
            "n": len(swaps), "really_loaded": sum(one["way"] != "resident" and one["bytes"] > 0 for one in swaps),
            "ways": sorted({one["way"] for one in swaps}),
            "median": round(statistics.median(seconds), 4), "longest": round(max(seconds), 4),
            "promote_longest": max(promotions, default=None),
            "held_longest": round(max(one["held"] for one in swaps), 4),
        }  # fmt: skip
        counted = [one["allocations"] for one in swaps if "allocations" in one]
        if counted:
            found["swaps"]["allocations"] = {name: sum(one[name] for one in counted) for name in counted[0]}
    if shared := sum(bool(one.get("share")) for one in good):
        found["by_share"] = shared
    return found


def _possible(request: Json, swaps: list[Json]) -> set[str]:
    """Return the versions that served at any moment of a request: the one before it, and each promoted meanwhile."""
    before = [one["version"] for one in swaps if one["end"] < request["start"]]
    meanwhile = [one["version"] for one in swaps if one["start"] <= request["end"] and one["end"] >= request["start"]]
    return {before[-1] if before else "v1", *meanwhile}


def goals(data: Json) -> list[Json]:
    """Hold the result against what the issue asks for."""
    found = data["summary"]
    judged = [
        ("failed requests", 0, found["failed"]),
        ("answers of a version that did not serve", 0, found["wrong_version"]),
    ]
    for name, key in (("latency", "latency"), ("served, without the wait in the queue", "served")):
        ratios = found[key].get("during / steady")
        if ratios and data["settings"]["preset"] == "full" and not data["settings"]["leave"]:
            judged += [(f"{name}: median, during / steady", 1.05, ratios["median"])]
            judged += [(f"{name}: p99, during / steady", 1.15, ratios["p99"])]
    swaps = found.get("swaps", {})
    if swaps.get("promote_longest") is not None:
        judged.append(("what the promotion itself takes, longest, s", 0.001, swaps["promote_longest"]))
    if data["settings"]["leave"] and swaps:
        judged.append(("requests held beyond the one in flight, longest, s", 2.0, swaps["held_longest"]))
    judged += [
        (f"{name} from ln to promotion, all swaps", 0, count)
        for name, count in swaps.get("allocations", {}).items()
        if name in ("cudaMalloc", "cudaFree", "cudaHostAlloc")
    ]
    return [
        {"goal": name, "target": target, "measured": value, "met": value <= target} for name, target, value in judged
    ]


def table(data: Json) -> list[str]:
    """Return the result for a person."""
    found = data["summary"]
    lines = ["", f"{found['requests']} requests, {found['failed']} failed; swaps: {found.get('swaps')}"]
    for measure_ in ("latency", "served"):
        lines += [f"{measure_:<8} {kind:<18} {values}" for kind, values in found[measure_].items()]
    lines += [f"{'met   ' if one['met'] else 'MISSED'} {one['goal']}: {one['measured']} (goal {one['target']})" for one in data["goals"]]  # fmt: skip
    return lines


def draw(data: Json, path: Path) -> None:
    """Draw each request's latency over time, loads as bands, promotions as lines."""
    made = canvas(12, [3.2, 3.2])
    if made is None:
        return
    figure, panels = made
    good = [one for one in data["requests"] if one["status"] == 200]
    for axes, measure_ in zip(panels, ("latency", "served"), strict=True):
        for load in data["swaps"]:
            axes.axvspan(load["start"], load["end"], color="#e9ecef", lw=0)
            axes.axvline(load["end"], color="#adb5bd", lw=0.8)
        for version, colour in COLOURS.items():
            dots = [one for one in good if one["version"] == version]
            axes.scatter(
                [one["end"] for one in dots], [one[measure_] for one in dots], s=9, color=colour, label=version
            )
        steady = data["summary"][measure_].get("steady")
        if steady:
            axes.axhline(steady["median"], color="#d1495b", lw=0.8, label="steady median")
            axes.axhline(steady["median"] * 1.05, color="#d1495b", lw=0.8, ls=":", label="+5 %")
        axes.set_ylim(0, 1.25 * max(one[measure_] for one in good))
        axes.set_ylabel("s", fontsize=8)
        axes.tick_params(labelsize=8)
    panels[0].set_title("latency of each request, its wait for the one before it included", fontsize=9, loc="left")
    panels[1].set_title("the same without that wait", fontsize=9, loc="left")
    panels[0].legend(fontsize=8, ncols=5, loc="lower right")
    panels[1].set_xlabel(
        "s; a band is a load beside the serving version, from ln to its end, the promotion", fontsize=8
    )
    failed = data["summary"]["failed"]
    figure.suptitle(
        f"{len(data['swaps'])} swaps under a stream of requests, {failed} failed. {place_line(data['machine'])}",
        fontsize=10,
    )
    figure.savefig(path)


def main() -> None:
    """Measure, print the table, and write the result and the figure."""
    parser = command_line(__doc__, "swap")
    parser.add_argument("--swaps", type=int, default=20, help="(%(default)s)")
    parser.add_argument("--steady", type=int, default=12, help="requests before the first swap (%(default)s)")
    parser.add_argument("--warm-up", type=int, default=4, help="requests before that (%(default)s)")
    parser.add_argument("--between", type=int, default=4, help="requests after a swap before the next (%(default)s)")
    parser.add_argument(
        "--pause", type=float, default=1.5, help="least seconds after a swap before the next (%(default)s)"
    )
    parser.add_argument("--clients", type=int, default=2, help="one runs, the others wait (%(default)s)")
    parser.add_argument("--side", type=int, default=1024, help="width and height, pixels (%(default)s)")
    parser.add_argument("--share", type=int, metavar="PERCENT", help="of the requests are drawn by a fourth version")
    parser.add_argument(
        "--leave",
        type=float,
        metavar="GB",
        help="let another process take all of the device's memory except this",
    )
    options = parsed(parser, table, draw)
    clock = Clock(options.deadline)
    results = Results(
        options.out, [options.work, options.models],
        benchmark="swap", started=now(), machine=machine(options.work),
        versions=packages("torch", "diffusers", "transformers", "triton", "blake3", "aiohttp"),
        settings={
            name: getattr(options, name)
            for name in ("preset", "device", "swaps", "steady", "between", "pause", "clients", "side", "leave", "share")
        },
        requests=[], swaps=[], settled=0.0, not_run=[],
    )  # fmt: skip
    try:
        measure(options, clock, results)
    except Exception as error:
        clock.say(f"{type(error).__name__}: {error}")
        results.data["not_run"].append(
            {"name": "the rest", "reason": results.clean(f"{type(error).__name__}: {error}")}
        )
    finish(results.data, clock)
    results.data["complete"] = len(results.data["swaps"]) == options.swaps
    _from_the_first(results.data)
    results.save()
    print("\n".join(table(results.data)))
    if any(one["status"] == 200 for one in results.data["requests"]):
        draw(results.data, options.out.with_suffix(".png"))


def _from_the_first(data: Json) -> None:
    """Count times from the first request on, to the tenth of a millisecond."""
    zero = min((one["start"] for one in data["requests"]), default=0.0)
    data["settled"] = round(data["settled"] - zero, 4)
    for one in [*data["requests"], *data["swaps"]]:
        for name in ("start", "end"):
            one[name] = round(one[name] - zero, 4)
        for name in ("latency", "served"):
            if name in one:
                one[name] = round(one[name], 4)


if __name__ == "__main__":
    main()
