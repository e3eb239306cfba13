"""Shared code of the benchmarks: statistics, clock, results, command line, machine facts, figures."""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESULTS = HERE / "results"
Json = dict[str, Any]


def search_path(*first: Path | None) -> str:
    """Return the PYTHONPATH of a program that a benchmark starts: `first`, this project, and what it was set to already."""
    return os.pathsep.join(str(one) for one in (*first, ROOT, os.environ.get("PYTHONPATH")) if one)


# --- numbers


def quantile(values: Iterable[float], part: float) -> float:
    """Return a quantile of some values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))]


def summary(seconds: Sequence[float], nbytes: int | None = None) -> Json:
    """Return all repeats with their median and minimum, and the median as GB/s (10^9) where bytes were moved."""
    found: Json = {
        "seconds": [round(one, 5) for one in seconds],
        "median": round(statistics.median(seconds), 5),
        "min": round(min(seconds), 5),
    }
    if nbytes is not None:
        found |= {"bytes": nbytes, "gb_per_s": round(nbytes / statistics.median(seconds) / 1e9, 3)}
    return found


# --- the run


class Clock:
    """Seconds since the start, a deadline, and progress lines."""

    def __init__(self, deadline: float | None) -> None:
        self._begun = time.monotonic()
        self._deadline = deadline or float("inf")

    @property
    def passed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._begun

    @property
    def left(self) -> float:
        """Seconds to the deadline."""
        return self._deadline - self.passed

    def say(self, text: str) -> None:
        """Print a line with the time."""
        print(f"[{self.passed:7.1f} s] {text}", flush=True)


class Results:
    """A result file that is complete JSON at any moment, so that finished measurements are kept if the run is killed."""

    def __init__(self, path: Path, private: Sequence[Path], **first: Any) -> None:
        self.path = path
        self.data: Json = {**first, "complete": False}
        self._private = sorted({str(one) for one in [*private, Path.home(), ROOT]}, key=len, reverse=True)
        path.parent.mkdir(parents=True, exist_ok=True)

    def save(self) -> None:
        """Write it, under a temporary name first."""
        temporary = self.path.with_suffix(".part")
        temporary.write_text(json.dumps(self.data, indent=2, ensure_ascii=False) + "\n")
        os.replace(temporary, self.path)

    def clean(self, text: str) -> str:
        """Return a message without this machine's paths."""
        for path in self._private:
            text = text.replace(path, "…")
        return re.sub(r"(?<![\w.…])/(?:[\w.+-]+/)+", "…/", text)[:300]


# --- the command line


def command_line(about: str, name: str) -> argparse.ArgumentParser:
    """Return the options of a benchmark of versions; `name` is the name of its result file."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, metavar="DIR", help="directory for all files, on the disk to measure")
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help="directory of the versions, created if missing (WORK/models)"
    )
    parser.add_argument("--preset", choices=("full", "tiny"), default="full", help="tiny: a smoke test (%(default)s)")
    parser.add_argument("--device", help="cuda or cpu (cuda if nvidia-smi finds one)")
    parser.add_argument("--deadline", type=float, metavar="SECONDS", help="skip measurements that no longer fit")
    parser.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="the result (%(default)s)")
    parser.add_argument("--draw", type=Path, metavar="JSON", help="only print and draw this existing result")
    return parser


def parsed(
    parser: argparse.ArgumentParser, table: Callable[[Json], list[str]], draw: Callable[[Json, Path], None]
) -> argparse.Namespace:
    """Return the complete options. With --draw, show the existing result and exit."""
    options = parser.parse_args()
    if options.draw:
        data = json.loads(options.draw.read_text())
        print("\n".join(table(data)))
        draw(data, options.draw.with_suffix(".png"))
        sys.exit()
    if options.work is None:
        parser.error("--work is needed: a folder with room for three versions")
    options.work.mkdir(parents=True, exist_ok=True)
    options.models = options.models or options.work / "models"
    options.device = options.device or ("cuda:0" if machine(HERE)["gpu"] else "cpu")
    return options


# --- facts


def cpu_model() -> str:
    """Return the processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), platform.machine())


def machine(place: Path) -> Json:
    """Return the machine's hardware and the file system of `place`, without the host's name."""
    found: Json = {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": platform.release().split("-")[0],
        "python": platform.python_version(),
        "filesystem": filesystem(place),
        "gpu": None,
        "bytecode_written": not sys.dont_write_bytecode,
    }
    asked = "name,driver_version,memory.total,pcie.link.gen.max,pcie.link.width.max"
    try:
        told = subprocess.run(
            ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"], capture_output=True, text=True, check=True
        ).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return found
    found["gpu"] = dict(zip(("name", "driver", "memory", "pcie_gen", "pcie_width"), told.split(", "), strict=False))
    return found


def filesystem(place: Path) -> str:
    """Return the type of a directory's file system."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        point = left.split()[4]
        if (place.resolve() == Path(point) or Path(point) in place.resolve().parents) and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind


def packages(*names: str) -> dict[str, str]:
    """Return the installed versions of those packages that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = installed(name)
        except PackageNotFoundError:
            continue
    return found


def now() -> str:
    """Return the current time as ISO 8601 in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- figures


def canvas(width: float, heights: Sequence[float]) -> tuple[Any, list[Any]] | None:
    """Return matplotlib's figure and its axes, one above the other, in inches; None if it is not installed."""
    try:
        import matplotlib as mpl
    except ImportError:
        print("no figure: matplotlib is not installed", file=sys.stderr)
        return None
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(
        len(heights), figsize=(width, sum(heights)), height_ratios=heights, dpi=120, layout="constrained", squeeze=False
    )
    for one in axes.flat:
        one.spines[["top", "right"]].set_visible(False)
    return figure, list(axes.flat)


def place_line(facts: Json) -> str:
    """Return the machine in one line, as the caption of a figure or table."""
    gpu = facts["gpu"]["name"] if facts["gpu"] else "no GPU"
    return f"{gpu}, {facts['cores']} x {facts['cpu']}, Linux {facts['kernel']}, {facts['filesystem']}"
