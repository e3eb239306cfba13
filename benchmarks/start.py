"""From the start of a process to its first picture: zwatch beside plain diffusers, in turns, in one run.

    python benchmarks/start.py --work DIR [--preset full] [--models DIR] [--repeats 5]
    python benchmarks/start.py --draw benchmarks/results/start.json

Each start is a new process. diffusers imports, loads with `from_pretrained`, moves to the device and draws; zwatch serves,
and a client that asked at once gets its picture. Both draw the version's default size with 8 steps. The kinds of starts:

- hot: weights in the page cache, Python's bytecode written; zwatch has started here before and kept what it prepared.
- fresh: the same, but the first start on a machine: the state directory and Triton's cache are empty.
- without bytecode: as hot, but every module is compiled anew, as in a container that forbids to write bytecode.
- cold: the weights are dropped from the page cache first (left out where the file system cannot, such as tmpfs).
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

from common import ROOT, Clock, Json, Results, canvas, command_line, machine, now, packages, parsed, place_line
from page_cache import drop, read_plainly
from served import Server
from versions import Version, make_versions

STEPS = 8
PROMPT = "a cat wearing sunglasses"
KINDS = ("hot", "fresh", "without bytecode", "cold")
LIMIT = 300.0
"""Seconds until a start is given up."""
PLAIN = """
import json, sys, time
marks = [("python", time.monotonic())]
import torch
marks.append(("import torch", time.monotonic()))
from diffusers import ZImagePipeline
marks.append(("import diffusers", time.monotonic()))
pipeline = ZImagePipeline.from_pretrained(sys.argv[1], torch_dtype=torch.bfloat16, local_files_only=True)
pipeline.to(sys.argv[2])
pipeline.set_progress_bar_config(disable=True)
marks.append(("load", time.monotonic()))
size = pipeline.vae.config.sample_size
generator = torch.Generator(sys.argv[2]).manual_seed(1)
image = pipeline(prompt=sys.argv[3], width=size, height=size, num_inference_steps=int(sys.argv[4]), guidance_scale=0.0,
    generator=generator).images[0]
image.save(sys.argv[5])
marks.append(("first picture", time.monotonic()))
print(json.dumps(marks))
"""
"""The whole program, as diffusers' documentation shows it, with the time of each part."""


class Bench:
    """One run."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.clock = Clock(options.deadline)
        self.kept = options.work / "kept"
        self.results = Results(
            options.out, [options.work, options.models], benchmark="start", started=now(), machine=machine(options.models),
            settings={"preset": options.preset, "repeats": options.repeats, "device": options.device, "steps": STEPS},
            versions=packages("torch", "diffusers", "transformers", "tokenizers", "triton"), rows=[], not_run=[],
        )  # fmt: skip

    def run(self) -> None:
        """Measure every kind of start."""
        version = make_versions(self.options.models, self.options.preset, self.options.device, self.clock, count=1)[0]
        self.environment = {
            **os.environ, "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }  # fmt: skip
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.clock.say("one start of each, not counted: bytecode is written, weights are read")
        self.start("diffusers", "hot", version)
        self.prepare()
        self.answers(version)
        for kind in self.options.kinds:
            self.measure(kind, version)
        self.results.data["complete"] = True
        self.results.save()

    def prepare(self) -> None:
        """Let zwatch start, draw, and prepare what it keeps for the next start: the hash kernel takes half a minute."""
        self.kept.mkdir(exist_ok=True)
        with Server(
            self.options.models, self.kept, self.options.device, state=self.kept / "state", env=self.environment
        ) as server:
            server.generate(1, steps=STEPS)
            if self.options.device.startswith("cuda"):
                server.has_kernels()

    def measure(self, kind: str, version: Version) -> None:
        """Start both in turns; note their parts, medians and the ratio."""
        if kind == "cold" and drop(version.weights) > 0.05:
            self.results.data["not_run"].append("cold: this file system keeps the weights in memory")
            return
        found: dict[str, list[list[tuple[str, float]]]] = {"diffusers": [], "zwatch": []}
        for number in range(self.options.repeats):
            for name in ("diffusers", "zwatch") if number % 2 else ("zwatch", "diffusers"):
                if self.clock.left < 1.5 * max([30.0, *(sum(s for _, s in one) for one in found[name])]):
                    continue
                if kind == "cold":
                    drop(version.weights)
                found[name].append(self.start(name, kind, version))
                self.clock.say(f"{kind}: {name} {sum(s for _, s in found[name][-1]):.2f} s  {shown(found[name][-1])}")
        if not all(found.values()):
            self.results.data["not_run"].append(f"{kind}: no time was left")
            return
        totals = {name: [round(sum(s for _, s in one), 3) for one in starts] for name, starts in found.items()}
        medians = {name: statistics.median(seconds) for name, seconds in totals.items()}
        row = {
            "kind": kind, "seconds": totals, "median": medians, "ratio": round(medians["zwatch"] / medians["diffusers"], 3),
            "parts": {name: parts(starts) for name, starts in found.items()},
        }  # fmt: skip
        if kind == "cold":
            drop(version.weights)
            row["plain_read"] = round(read_plainly(version.weights, direct=True), 3)
        self.results.data["rows"].append(row)
        self.results.save()

    def start(self, name: str, kind: str, version: Version) -> list[tuple[str, float]]:
        """Start one process, wait for its first picture, and end it; return (part, seconds) in order."""
        environment = dict(self.environment)
        if kind == "without bytecode":
            nowhere = self.options.work / "no-bytecode"
            shutil.rmtree(nowhere, ignore_errors=True)
            environment |= {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPYCACHEPREFIX": str(nowhere)}
        if name == "diffusers":
            return self.plain(environment, version)
        kept = self.kept
        if kind == "fresh":
            kept = self.options.work / "fresh"
            shutil.rmtree(kept, ignore_errors=True)
            environment["TRITON_CACHE_DIR"] = str(self.options.work / "fresh-triton")
            shutil.rmtree(environment["TRITON_CACHE_DIR"], ignore_errors=True)
        return self.served(environment, kept)

    def plain(self, environment: dict[str, str], version: Version) -> list[tuple[str, float]]:
        """Start diffusers."""
        begun = time.monotonic()
        ended = subprocess.run(
            [
                sys.executable, "-c", PLAIN, str(version.directory), self.options.device, PROMPT, str(STEPS),
                str(self.options.work / "plain.png"),
            ],
            env=environment, capture_output=True, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
        if ended.returncode:
            raise SystemExit(f"plain diffusers failed: {ended.stderr[-2000:]}")
        return between(begun, json.loads(ended.stdout.strip().splitlines()[-1]))

    def served(self, environment: dict[str, str], kept: Path) -> list[tuple[str, float]]:
        """Start zwatch; the client asks once, as soon as it listens, and waits for its picture."""
        kept.mkdir(exist_ok=True)
        with Server(self.options.models, kept, self.options.device, state=kept / "state", env=environment) as server:
            listens, asked = time.monotonic() - server.begun, time.monotonic()
            status, found = server.generate(1, steps=STEPS)
            if status != 200:
                raise SystemExit(f"zwatch answers {status}: {server.last_words()}")
            answered = time.monotonic() - asked
            phases = server.get("/status")["aliases"]["current"]["attempt"]["phases"]
        drawn = {name: found["timings"][name] for name in ("encode", "denoise", "decode", "write")}
        rest = answered - sum(phases.values()) - sum(drawn.values())
        return [("until it listens", listens), *phases.items(), *drawn.items(), ("everything else", rest)]

    def answers(self, version: Version) -> None:
        """Ask a start of its own, all the time, whether it is alive and what its status is; note when the first answer came, and
        the longest."""
        kept, slowest, first = self.kept, {}, {}  # slowest: how long it took, and when it was asked
        with Server(
            self.options.models, kept, self.options.device, state=kept / "state", env=self.environment
        ) as server:
            drawing = threading.Thread(target=server.generate, args=(1,), kwargs={"steps": STEPS})
            drawing.start()
            while drawing.is_alive():
                for path in ("/health/live", "/status"):
                    begun = time.monotonic()
                    server.call("GET", path)
                    ended = time.monotonic()
                    first.setdefault(path, round(ended - server.begun, 3))
                    asked = (round(ended - begun, 4), round(begun - server.begun, 2))
                    slowest[path] = max(slowest.get(path, asked), asked)
                time.sleep(0.01)
        self.results.data["answers"] = {"first": first, "slowest": slowest}
        self.results.save()


def between(begun: float, marks: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """Return the seconds of each part from the moments at which they ended."""
    found = []
    for name, moment in marks:
        found.append((name, moment - begun))
        begun = moment
    return found


def parts(starts: list[list[tuple[str, float]]]) -> dict[str, float]:
    """Return the median seconds of each part."""
    names = dict.fromkeys(name for start in starts for name, _ in start)
    return {name: round(statistics.median(dict(start).get(name, 0.0) for start in starts), 3) for name in names}


def shown(start: list[tuple[str, float]]) -> str:
    """Return the parts of a start in one line."""
    return ", ".join(f"{name} {seconds:.2f}" for name, seconds in start)


def table(data: Json) -> list[str]:
    """Return the result as lines of text."""
    lines = [place_line(data["machine"]), f"{'':18}{'diffusers':>12}{'zwatch':>10}{'ratio':>8}"]
    for row in data["rows"]:
        median = row["median"]
        lines.append(f"{row['kind']:18}{median['diffusers']:12.2f}{median['zwatch']:10.2f}{row['ratio']:8.3f}")
    for row in data["rows"]:
        for name, found in row["parts"].items():
            lines.append(
                f"{row['kind']}, {name}: " + ", ".join(f"{part} {seconds:.2f}" for part, seconds in found.items())
            )
        if "plain_read" in row:
            lines.append(
                f"{row['kind']}: 16 threads read the weights, and do nothing else, in {row['plain_read']:.2f} s"
            )
    if answers := data.get("answers"):
        lines += [
            f"{path}: first answer {first:.2f} s after the start, the longest took {1000 * answers['slowest'][path][0]:.0f} ms, "
            f"{answers['slowest'][path][1]:.1f} s after the start"
            for path, first in answers["first"].items()
        ]
    return [*lines, *data["not_run"]]


def draw(data: Json, path: Path) -> None:
    """Draw each kind of start as a waterfall."""
    bars = [(row["kind"], name, row["parts"][name]) for row in data["rows"] for name in ("diffusers", "zwatch")]
    made = canvas(10, [0.5 * len(bars) + 1.2])
    if made is None:
        return
    figure, (axis,) = made
    for place, (_kind, _name, found) in enumerate(bars):
        begun = 0.0
        for number, (part, seconds) in enumerate(found.items()):
            axis.barh(place, seconds, left=begun, color=f"C{number % 10}", height=0.7)
            if seconds > 0.04 * max(sum(one.values()) for _, _, one in bars):
                axis.text(begun + seconds / 2, place, f"{part}\n{seconds:.1f}", ha="center", va="center", fontsize=6)
            begun += seconds
        axis.text(begun, place, f"  {begun:.1f} s", va="center", fontsize=8)
    axis.set_yticks(range(len(bars)), [f"{kind}: {name}" for kind, name, _ in bars])
    axis.invert_yaxis()
    axis.set_xlabel("seconds from the start of the process to its first picture, medians")
    axis.set_title(place_line(data["machine"]), fontsize=8)
    figure.savefig(path)


def main() -> None:
    """Run it, or show a result."""
    parser = command_line(__doc__ or "", "start")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="starts of each kind (%(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="kinds of starts (all)")
    options = parsed(parser, table, draw)
    bench = Bench(options)
    bench.run()
    print("\n".join(table(bench.results.data)))
    draw(bench.results.data, options.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
