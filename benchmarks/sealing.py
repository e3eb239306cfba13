"""`zwatch verify` beside `b3sum --check`, `zwatch seal` beside `cp` of the bytes that change, in one run, page cache hot.

    python benchmarks/sealing.py DIR [--size 20.5] [--rounds 5] [--deadline 170] [--out FILE]

DIR is an empty folder on the file system to measure, with room for three times the size. A version of Z-Image's proportions
is written there, with random weights in bf16. The commands take turns; each is a process of its own, started and ended inside
the time. A first sealing writes the transformer anew, because published headers have no room for the version: it is compared
with `cp` of that file, and with `cp` and `sync` of it, since a sealing ends with all on disk. A restamp and a sealing of what is
sealed change some bytes at most and hash the rest: they are compared with `b3sum` of all. The result is written after each round; no
round begins that would end after the deadline.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from common import RESULTS, Json, machine, now, packages, place_line, search_path, summary

from zwatch.deploy.pipeline_files import INDEX, PIPELINE, REQUIRED, WEIGHTS
from zwatch.deploy.verifying import sealed_bytes

SHARES = {"transformer": 0.6, "text_encoder": 0.392, "vae": 0.008}
"""Of the bytes of Z-Image-Turbo in bf16: 12.3, 8.0 and 0.17 of 20.5 GB."""
TENSORS = 500
"""In a file; Z-Image's transformer has 521, its text encoder 398."""
BLOCK = 64 * 2**20
TRANSFORMER = WEIGHTS["transformer"]
ZWATCH = (sys.executable, "-m", "zwatch")


def write_version(directory: Path, nbytes: int) -> None:
    """Write an unsealed version of about so many bytes."""
    for path in [*REQUIRED, "tokenizer/tokenizer.json"]:
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(json.dumps({"_class_name": PIPELINE}) if path == INDEX else "{}")
    for component, share in SHARES.items():
        write_weights(directory / WEIGHTS[component], int(nbytes * share))


def write_weights(path: Path, nbytes: int) -> None:
    """Write a file of random bf16 weights as the safetensors package writes it: without room in its header."""
    each = nbytes // TENSORS // 2
    table = {
        f"layers.{number}.weight": {
            "dtype": "BF16",
            "shape": [each],
            "data_offsets": [2 * each * number, 2 * each * (number + 1)],
        }
        for number in range(TENSORS)
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **table}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    block = os.urandom(min(BLOCK, max(nbytes, 1)))
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        left = 2 * each * TENSORS
        while left > 0:
            left -= file.write(block[:left])


class Bench:
    """One version, and what every command on it took."""

    def __init__(self, work: Path, nbytes: int) -> None:
        self.version = work / "v1"
        self.pristine = work / "transformer.safetensors"
        self.copy = work / "copy.safetensors"
        write_version(self.version, nbytes)
        (self.version / TRANSFORMER).rename(self.pristine)
        self.unseal()
        os.sync()
        self.taken: dict[str, list[tuple[float, float]]] = {}

    def unseal(self) -> None:
        """Make the version as it was published."""
        (self.version / TRANSFORMER).unlink(missing_ok=True)
        (self.version / "BLAKE3SUMS").unlink(missing_ok=True)
        os.link(self.pristine, self.version / TRANSFORMER)

    def rename(self) -> None:
        """Give the version another name, so that its seal has to be another."""
        other = self.version.with_name("v2" if self.version.name == "v1" else "v1")
        self.version = self.version.rename(other)

    def time(self, what: str, *commands: Sequence[str | Path], before: Callable[[], None] = lambda: None) -> None:
        """Run commands and note their seconds and their seconds of processor time."""
        before()
        begun, used = time.perf_counter(), _processor_seconds()
        for command in commands:
            subprocess.run(
                command,
                cwd=self.version,
                check=True,
                stdout=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": search_path()},
            )
        took = time.perf_counter() - begun, _processor_seconds() - used
        self.taken.setdefault(what, []).append(took)
        print(f"{what:<15} {took[0]:7.3f} s, {took[1]:7.3f} s of processor time", file=sys.stderr, flush=True)

    def round(self) -> None:
        """Run every command once."""
        seal, check = (*ZWATCH, "seal", "."), ("b3sum", "--check", "BLAKE3SUMS")
        self.time("first seal", seal, before=self.unseal)
        self.time("b3sum --check", check)
        self.time("verify", (*ZWATCH, "verify", "."))
        self.time("cp", ("cp", self.pristine, self.copy), before=self._without_copy)
        self.time("cp, sync", ("cp", self.pristine, self.copy), ("sync", self.copy), before=self._without_copy)
        self._without_copy()
        self.time("restamp", seal, before=self.rename)
        self.time("seal again", seal)

    def _without_copy(self) -> None:
        self.copy.unlink(missing_ok=True)


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


PAIRS = (
    ("verify", "b3sum --check"), ("first seal", "cp"), ("first seal", "cp, sync"), ("restamp", "b3sum --check"),
    ("seal again", "b3sum --check"),
)  # fmt: skip
"""What is compared with what."""


def found(bench: Bench) -> Json:
    """Return medians by command, and how fast zwatch is compared with its yardsticks: 1.0 is as fast."""
    sizes = {
        what: bench.pristine.stat().st_size if what.startswith("cp") else sealed_bytes(bench.version)
        for what in bench.taken
    }
    commands = {
        what: summary([wall for wall, _ in taken], sizes[what])
        | {"processor": round(statistics.median(used for _, used in taken), 4)}
        for what, taken in bench.taken.items()
    }
    ratios = [
        {"command": one, "compared_with": other,
         "speed": round(commands[other]["median"] / commands[one]["median"], 3),
         "speed_by_processor_time": round(commands[other]["processor"] / commands[one]["processor"], 3)}
        for one, other in PAIRS
    ]  # fmt: skip
    return {"commands": commands, "ratios": ratios}


def table(data: Json) -> list[str]:
    """Return the result as lines of Markdown."""
    lines = [place_line(data["machine"]), "", "| command | median s | GB/s | processor s |", "|---|---|---|---|"]
    lines += [
        f"| {what} | {one['median']:.3f} | {one['gb_per_s']:.1f} | {one['processor']:.3f} |"
        for what, one in data["commands"].items()
    ]
    lines += ["", "| command | compared with | speed | by processor time |", "|---|---|---|---|"]
    lines += [
        f"| {one['command']} | {one['compared_with']} | {one['speed']:.0%} | {one['speed_by_processor_time']:.0%} |"
        for one in data["ratios"]
    ]
    return lines


def main() -> None:
    """Measure, print a table, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument(
        "--size", type=float, default=20.5, metavar="GB", help="of the version, 10^9 bytes (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--deadline", type=float, default=float("inf"), metavar="SECONDS")
    parser.add_argument("--note", default="", help="what the reader of the result should know, such as other load")
    parser.add_argument("--out", type=Path, default=RESULTS / "sealing.json")
    options = parser.parse_args()
    if shutil.which("b3sum") is None:
        parser.error("b3sum is not installed (Debian: apt install b3sum)")
    work = options.directory.resolve() / "sealing"
    begun = time.monotonic()
    work.mkdir(parents=True)
    try:
        bench = Bench(work, int(options.size * 1e9))
        print(f"written after {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
        bench.round()  # everything is in the page cache then
        bench.taken.clear()
        data: Json = {}
        for number in range(options.rounds):
            at = time.monotonic()
            bench.round()
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr, flush=True)
            data = measured(bench, options.note, number + 1, work)
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
            if 2 * time.monotonic() - at - begun > options.deadline:
                print("no time for another round", file=sys.stderr, flush=True)
                break
    finally:
        shutil.rmtree(work)
    print("\n".join(table(data)))


def measured(bench: Bench, note: str, rounds: int, work: Path) -> Json:
    """Return the result of some rounds."""
    b3sum = subprocess.run(["b3sum", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return {
        "about": "medians; each command is a process of its own, the page cache is hot", "note": note,
        "measured_at": now(), "rounds": rounds, "machine": machine(work), "load": os.getloadavg()[0],
        "packages": packages("blake3"), "b3sum": b3sum, **found(bench),
    }  # fmt: skip


if __name__ == "__main__":
    main()
