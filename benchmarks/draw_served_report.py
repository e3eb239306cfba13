"""The rows of draw_served.py: figures of requests, the load of the GPU, and the table."""

import json
import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from common import Json, place_line

PHASES = ("encode", "denoise", "decode")
GOALS = (
    ("fast", "lone, new prompt", 1024, "median", 800.0), ("fast", "lone, new prompt", 512, "median", 200.0),
    ("fp8", "lone, new prompt", 1024, "median", 600.0), ("fast", "8 clients", 1024, "per_second", 1.25),
    ("fp8", "8 clients", 1024, "per_second", 1.7),
)  # fmt: skip
"""(way, row, side, figure, goal); the goals are for an H100."""


@contextmanager
def busy(is_gpu: bool) -> Iterator[list[float]]:
    """Collect inside the percentage of the time in which the GPU runs a kernel; nothing where there is none."""
    shares: list[float] = []
    if not is_gpu:
        yield shares
        return
    asked = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "250", "-i", "0"]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield shares
        finally:
            process.terminate()
            said, _ = process.communicate()
            shares += [float(one) for one in said.split() if one.isdigit()]


def medians(timings: list[dict[str, float]]) -> dict[str, float]:
    """Return the median milliseconds of each phase."""
    return {
        name: round(1000 * statistics.median(one[name] for one in timings), 1) for name in (*PHASES, "write", "queue")
    }


def line(row: Json) -> str:
    """Return a row as text."""
    numbers = [f"{name} {value}" for name, value in row.items() if name not in ("way", "part", "side")]
    return f"{row['way']:<20} {row['part']:<20} {row['side'] or '':>5}  {'  '.join(numbers)}"


def table(data: Json) -> list[str]:
    """Return the result as lines of text; times are milliseconds."""
    lines = [place_line(data["machine"]), json.dumps(data["versions"]), *map(line, data["rows"])]
    if data["settings"]["preset"] == "full":
        for way, part, side, figure, goal in GOALS:
            for row in data["rows"]:
                if (row["way"], row["part"], row["side"]) == (way, part, side) and row[figure] is not None:
                    met = row[figure] >= goal if figure == "per_second" else row[figure] <= goal
                    lines.append(f"{'met   ' if met else 'MISSED'} {way}, {part}, {side}: {row[figure]} (goal {goal})")
    return [*lines, *(f"not run: {one['name']}: {one['reason']}" for one in data["not_run"])]
