"""What LoRAs cost requests: one and two that are resident, the first use of one, and that while a version is loaded.

    python benchmarks/loras.py --work DIR [--preset full] [--rounds 12] [--first 5] [--deadline 400]
    python benchmarks/loras.py --work DIR --preset tiny --device cpu --rounds 3 --first 3
    python benchmarks/loras.py --draw benchmarks/results/loras.json

Pictures without a LoRA, with one, and with two take turns, so that all are measured in the same minutes; "served" is a request's time
without its wait in the queue. The LoRAs change the products of every block, in bfloat16, with the rank at which one has about 100 MB at
the size of Z-Image-Turbo.

First use: a LoRA that no request has named before, whose file was read a moment before, so that the page cache has it in both
measurements: plainly, as one process reads it, and by the request. What the request takes beyond one with a resident LoRA is what its
first use costs. While a version is loaded: the same, between `ln` and the promotion; and what the load takes then, beside one during
which requests without a new LoRA are drawn.
"""

import json
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from blake3 import blake3
from common import Clock, Json, Results, command_line, machine, now, packages, parsed, summary
from served import Server, ServerError
from swap import swap
from versions import Version, make_versions

from zwatch.deploy import header, seal
from zwatch.deploy.loras import WEIGHTS

MOST_ADDED, MOST_FIRST = 1.10, 0.100
"""The goals: times the latency without a LoRA, and seconds beyond the plain read."""
NBYTES = 100_000_000
BLOCKS = (".attention.to_", ".feed_forward.w")
RANK_OF_TINY = 4


def shapes_of(version: Version) -> dict[str, tuple[int, int]]:
    """Return the shapes (out, in) of the matrices in a version's blocks, by name without `.weight`."""
    found = {}
    for path in version.weights:
        if path.parent.name != "transformer":
            continue
        with path.open("rb") as file:
            tensors = header.read_header(file.fileno(), path.name).tensors
        for name, info in tensors.items():
            if name.endswith(".weight") and len(info.shape) == 2 and any(part in name for part in BLOCKS):
                found[name.removesuffix(".weight")] = (info.shape[0], info.shape[1])
    return found


def write_lora(root: Path, name: str, shapes: dict[str, tuple[int, int]], rank: int, seed: int) -> Path:
    """Write and seal a LoRA with random factors in bfloat16; return the file of its factors."""
    random = np.random.default_rng(seed)
    table: Json = {"__metadata__": {"version": name}}
    pieces: list[bytes] = []
    place = 0
    for module, (out, width) in shapes.items():
        for factor, shape, scale in (("A", (rank, width), width**-0.5), ("B", (out, rank), 0.02 * rank**-0.5)):
            values = random.standard_normal(shape, np.float32) * np.float32(scale)
            raw = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()  # rounded towards 0, which is good enough
            table[f"{module}.lora_{factor}.weight"] = {
                "dtype": "BF16", "shape": list(shape), "data_offsets": [place, place + len(raw)],
            }  # fmt: skip
            pieces.append(raw)
            place += len(raw)
    directory = root / name
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / WEIGHTS
    head = json.dumps(table).encode()
    head += b" " * (-(len(head) + header.LENGTH_BYTES) % 64)
    path.write_bytes(b"".join([len(head).to_bytes(header.LENGTH_BYTES, "little"), head, *pieces]))
    digest = blake3(path.read_bytes()).hexdigest()
    (directory / seal.SEAL_NAME).write_bytes(seal.format_seal({WEIGHTS: digest}))
    return path


class Bench:
    """A service, and what is measured of it."""

    def __init__(self, server: Server, size: int | None, steps: int) -> None:
        self.server = server
        self._fields: Json = {"steps": steps, **({} if size is None else {"width": size, "height": size})}
        self._seed = 0

    def drawn(self, *names: str) -> float:
        """Draw a picture with LoRAs; return the seconds it took, without the wait in the queue."""
        self._seed += 1
        loras = [{"name": name, "scale": 0.8} for name in names]
        begun = time.monotonic()
        status, body = self.server.generate(self._seed, loras=loras, **self._fields)
        seconds = time.monotonic() - begun
        if status != 200:
            raise ServerError(f"an answer of {status}: {body}")
        return seconds - float(body["timings"]["queue"])

    def same_bytes(self, *names: str) -> bool:
        """Say whether a request has the same pictures twice."""
        body = {"prompt": "a cat", "seed": 7, "loras": [{"name": name} for name in names], **self._fields}
        answers = [self.server.call("POST", "/generate", body)[2] for _ in range(2)]
        return answers[0] == answers[1]


def read(path: Path) -> float:
    """Read a file plainly; return the seconds."""
    buffer = bytearray(path.stat().st_size)
    begun = time.monotonic()
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.monotonic() - begun


def first_uses(bench: Bench, paths: list[Path], resident: float) -> list[Json]:
    """Draw with each LoRA for the first time, after its file was read plainly."""
    found = []
    for path in paths:
        read(path)
        plainly = read(path)
        served = bench.drawn(path.parent.name)
        found.append({"read": plainly, "served": served, "beyond_the_read": served - resident - plainly})
    return found


def during_swaps(
    server: Server, versions: list[Version], draw: Callable[[int], float], wait: float, deadline: float
) -> list[Json]:
    """Deploy versions one after the other, and draw while each is loaded, `wait` seconds after the link."""
    found: list[Json] = []
    for number, version in enumerate(versions):
        drawn: Json = {}

        def ask(number: int = number, drawn: Json = drawn) -> None:
            time.sleep(wait)
            drawn["start"] = time.monotonic()
            drawn["served"] = draw(number)
            drawn["end"] = time.monotonic()

        thread = threading.Thread(target=ask)
        thread.start()
        made = swap(server, version, deadline)
        thread.join()
        is_during = drawn["start"] < made["end"]
        found.append({"seconds": made["seconds"], "served": drawn["served"], "way": made["way"], "during": is_during})
    return found


def measure(options: object, results: Results, clock: Clock) -> None:
    """Measure all, and save after each part."""
    preset, rounds, first = options.preset, options.rounds, options.first  # type: ignore[attr-defined]
    models, work, device = options.models, options.work, options.device  # type: ignore[attr-defined]
    versions = make_versions(models, preset, device, clock, count=3)
    shapes = shapes_of(versions[0])
    per_rank = 2 * sum(out + width for out, width in shapes.values())
    rank = round(NBYTES / per_rank) if preset == "full" else RANK_OF_TINY
    root = work / "loras"
    clock.say(f"writing {2 + 2 * first} LoRAs of rank {rank}")
    paths = [write_lora(root, f"lora{number}", shapes, rank, number) for number in range(2 + 2 * first)]
    one, two, *others = paths
    names = one.parent.name, two.parent.name
    data = results.data
    data["lora"] = {"rank": rank, "bytes": one.stat().st_size, "modules": len(shapes)}
    with Server(models, work, device, more=("--loras", str(root))) as server:
        server.serves(versions[0].digest, options.deadline or 600.0)  # type: ignore[attr-defined]
        size = None if preset == "tiny" else options.size  # type: ignore[attr-defined]
        bench = Bench(server, size, options.steps)  # type: ignore[attr-defined]
        ways = {"none": (), "one": names[:1], "two": names}
        if device.startswith("cuda"):
            bench.drawn()
            server.has_kernels()
            clock.say("all kernels are compiled")
        for _ in range(options.warm):  # type: ignore[attr-defined]  # graphs and plans of each way
            for way in ways.values():
                bench.drawn(*way)
        clock.say("resident ones, in turns")
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, given in ways.items():
                seconds[way].append(bench.drawn(*given))
            clock.say(", ".join(f"{way} {values[-1]:.4f} s" for way, values in seconds.items()))
        data["served"] = {way: summary(values) for way, values in seconds.items()}
        data["same_bytes"] = bench.same_bytes(*names)
        results.save()
        resident = statistics.median(seconds["one"])
        clock.say("first uses")
        data["first_use"] = first_uses(bench, others[:first], resident)
        results.save()
        clock.say("while versions are loaded")
        turns = [versions[(number + 1) % 3] for number in range(first)]
        quiet = during_swaps(server, turns, lambda number: bench.drawn(), options.wait, 600.0)  # type: ignore[attr-defined]
        turns = [versions[(first + number + 1) % 3] for number in range(first)]
        fresh = [path.parent.name for path in others[first:]]
        with_new = during_swaps(server, turns, lambda number: bench.drawn(fresh[number]), options.wait, 600.0)  # type: ignore[attr-defined]
        data["swaps"] = {"without": quiet, "with a first use": with_new}
        data["summary"] = summarised(data)
        data["goals"] = goals(data)
        data["complete"] = True
        results.save()


def summarised(data: Json) -> Json:
    """Return the medians that the goals are about."""
    none = data["served"]["none"]["median"]
    swaps = {way: [one for one in found if one["way"] != "resident"] for way, found in data["swaps"].items()}
    during = {way: [one["served"] for one in found if one["during"]] for way, found in swaps.items()}
    return {
        "one / none": round(data["served"]["one"]["median"] / none, 4),
        "two / none": round(data["served"]["two"]["median"] / none, 4),
        "first use beyond the read": round(statistics.median(one["beyond_the_read"] for one in data["first_use"]), 4),
        "plain read": round(statistics.median(one["read"] for one in data["first_use"]), 4),
        "load": {
            way: round(statistics.median(one["seconds"] for one in found), 4) for way, found in swaps.items() if found
        },
        "served during a load": {way: round(statistics.median(found), 4) for way, found in during.items() if found},
    }


def goals(data: Json) -> list[Json]:
    """Hold the result against the goals, which are about the full size."""
    if data["settings"]["preset"] != "full":
        return []
    found = data["summary"]
    judged = [
        ("latency with one resident LoRA, times that without", MOST_ADDED, found["one / none"]),
        ("first use of one beyond the plain read, s", MOST_FIRST, found["first use beyond the read"]),
    ]
    return [
        {"goal": name, "target": target, "measured": value, "met": value <= target} for name, target, value in judged
    ]


def table(data: Json) -> list[str]:
    """Return the result for a person."""
    lines = ["", f"a LoRA of rank {data['lora']['rank']}, {data['lora']['bytes']} bytes"]
    lines += [f"{way:<5} {found}" for way, found in data["served"].items()]
    lines += [f"{name}: {value}" for name, value in data["summary"].items()]
    lines += [f"same bytes again: {data['same_bytes']}"]
    return lines + [f"{'met   ' if one['met'] else 'MISSED'} {one['goal']}: {one['measured']} (goal {one['target']})" for one in data["goals"]]  # fmt: skip


def main() -> None:
    """Measure, and print the result."""
    assert __doc__ is not None
    parser = command_line(__doc__, "loras")
    parser.add_argument("--rounds", type=int, default=12, help="pictures of each way (%(default)s)")
    parser.add_argument("--first", type=int, default=5, help="first uses, and loads of each kind (%(default)s)")
    parser.add_argument("--warm", type=int, default=3, help="pictures of each way before that (%(default)s)")
    parser.add_argument("--size", type=int, default=1024, help="side of a picture, pixels (%(default)s)")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--wait", type=float, default=0.1, help="seconds from the link to the request (%(default)s)")
    options = parsed(parser, table, lambda data, path: None)
    clock = Clock(options.deadline)
    settings = {
        name: getattr(options, name) for name in ("preset", "device", "rounds", "first", "size", "steps", "wait")
    }
    results = Results(
        options.out, [options.work], when=now(), machine=machine(options.work), packages=packages("torch", "triton"),
        settings=settings,
    )  # fmt: skip
    measure(options, results, clock)
    print("\n".join(table(results.data)))


if __name__ == "__main__":
    main()
