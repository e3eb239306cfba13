"""What the samples of a soak come to: the trend of each resource, the rule by which it is flat, the table and the figure.

The rule: of the samples at rest after the warm-up, a straight line is fitted to each resource. A resource is *flat* if the
upper end of the slope's 95 % confidence interval is below a limit, per hour. The interval counts only as many samples as are
independent of each other (from the residuals' correlation with the one before), so that a slow wave is not taken for a
certain trend, nor a short run for a proof: with too few samples the interval is wide, and nothing is called flat.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist, fmean, median
from typing import Any

from common import Json, canvas, place_line

MIB = 2**20
NEW = "new versions"
COLOURS = ("#1d6996", "#edad08", "#0f8554", "#cc503e", "#6f4070", "#994e95")


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource, the unit it is told in, and how much it may grow in an hour, in that unit."""

    name: str
    label: str
    unit: float
    unit_name: str
    limit: float
    is_proof: bool = True
    """Whether it must be flat; else only not certainly grow: what the process has beside what it holds changes all the time."""


_MEMORY = 16.0
"""MiB an hour. An hour of the soak has 720 deploys, more than a team makes in a year, and some 30,000 calls: it is 23 KiB a
deploy or half a KiB a call. A service that is deployed to daily and restarted yearly could afford a hundred times of it."""
_COUNT = 1.0
"""An hour. What a process has of these it has by design, each for a reason: one that is never given back is a fault, and
with the usual limit of 1,024 descriptors it ends a service within weeks."""

RESOURCES = (
    Resource("rss", "resident memory (RSS)", MIB, "MiB", _MEMORY, is_proof=False),
    Resource("anonymous", "anonymous memory", MIB, "MiB", _MEMORY, is_proof=False),
    Resource("held", "anonymous memory, malloc tidied", MIB, "MiB", _MEMORY),
    Resource("heap_used", "given out by malloc", MIB, "MiB", _MEMORY),
    Resource("blocks", "Python's memory blocks", 1000, "thousand", 20.0),
    Resource("objects", "Python's objects", 1000, "thousand", 5.0),
    Resource("tasks", "tasks of the event loop", 1, "", _COUNT),
    Resource("descriptors", "descriptors", 1, "", _COUNT),
    Resource("deleted_files", "descriptors of deleted files", 1, "", _COUNT),
    Resource("inotify_watches", "inotify watches", 1, "", _COUNT),
    Resource("threads", "threads", 1, "", _COUNT),
    Resource("children", "child processes", 1, "", _COUNT),
    Resource("state_files", "files in the state directory", 1, "", _COUNT),
    Resource("state_bytes", "bytes in the state directory", MIB, "MiB", 1.0),
    Resource("temporary_files", "temporary files", 1, "", _COUNT),
    Resource("engines", "resident engines", 1, "", _COUNT),
    Resource("device_used", "device memory, as the device says", MIB, "MiB", _MEMORY),
    Resource("nvidia_smi_used", "device memory, as nvidia-smi says", MIB, "MiB", _MEMORY),
    Resource("cuda_allocated", "device memory allocated by torch", MIB, "MiB", _MEMORY),
    Resource("cuda_reserved", "device memory reserved by torch", MIB, "MiB", _MEMORY),
)
"""What is judged; of the state directory without the thumbnails. PSS and USS are drawn only: they grow when another process ends
that mapped the same libraries. `device_taken` of /status is drawn only: on a CPU it is the whole machine's memory."""


@dataclass(frozen=True, slots=True)
class Trend:
    """A line through samples: the mean, the slope per hour, the ends of its 95 % confidence interval, and the independent samples."""

    mean: float
    slope: float
    low: float
    high: float
    independent: float


def trend(hours: Sequence[float], values: Sequence[float]) -> Trend:
    """Fit a line by least squares. The slope's standard error is that of as many samples as are independent of each other:
    n (1 - r) / (1 + r), r the residuals' correlation with the one before (Santer et al. 2000, J. Geophys. Res. 105, 7337)."""
    count, middle, mean = len(hours), fmean(hours), fmean(values)
    spread = sum((hour - middle) ** 2 for hour in hours)
    if count < 4 or spread == 0:
        return Trend(mean, 0.0, -math.inf, math.inf, count)
    slope = sum((hour - middle) * (value - mean) for hour, value in zip(hours, values, strict=True)) / spread
    residuals = [value - mean - slope * (hour - middle) for hour, value in zip(hours, values, strict=True)]
    squares = sum(one * one for one in residuals)
    if squares < 1e-12 * max(1.0, mean * mean):  # a constant, or a line, but for rounding
        return Trend(mean, slope, slope, slope, count)
    related = sum(one * other for one, other in itertools.pairwise(residuals)) / squares
    independent = count * (1 - max(0.0, related)) / (1 + max(0.0, related))
    if independent <= 3:
        return Trend(mean, slope, -math.inf, math.inf, independent)
    error = math.sqrt(squares / (independent - 2) / spread)
    half = student(independent - 2) * error
    return Trend(mean, slope, slope - half, slope + half, independent)


def student(freedom: float) -> float:
    """Return the 97.5 % quantile of Student's t (Abramowitz and Stegun 26.7.5; within 1 % from 3 degrees of freedom on)."""
    z = NormalDist().inv_cdf(0.975)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom**power for power, term in enumerate(terms, 1))


def trends(samples: Sequence[Json], warm_up: float, kept_jobs: int = 0) -> list[Json]:
    """Judge each resource by the samples at rest after the warm-up, minutes. It lasts at least until as many jobs were made as are
    kept: the ones with which the store was filled are smaller."""
    rests = [
        one for one in samples if one["rest"] and one["at"] >= warm_up * 60 and one.get("jobs", kept_jobs) >= kept_jobs
    ]
    found = []
    for resource in RESOURCES:
        known = [one for one in rests if resource.name in one]
        if not known:
            continue
        values = [one[resource.name] / resource.unit for one in known]
        line = trend([one["at"] / 3600 for one in known], values)
        found.append({
            "resource": resource.name, "label": resource.label, "unit": resource.unit_name, "samples": len(known),
            "independent": round(line.independent, 1), "mean": _short(line.mean), "first": _short(values[0]),
            "last": _short(values[-1]), "slope_per_hour": _short(line.slope), "low": _short(line.low),
            "high": _short(line.high), "limit": resource.limit, "flat": line.high < resource.limit,
            "verdict": "flat" if line.high < resource.limit else "grows" if line.low > resource.limit else "not proved",
            "met": line.high < resource.limit if resource.is_proof else line.low <= resource.limit,
        })  # fmt: skip
    return found


def _short(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def finish(data: Json) -> None:
    """Judge the run: no failure, no wrong picture, everything flat, and a good end."""
    data["trends"] = trends(data["samples"], data["settings"]["warm_up"], data["settings"].get("kept_jobs", 0))
    data["goals"] = [
        {"goal": "failed calls", "measured": data.get("failed", 0), "met": not data.get("failed", 0)},
        {"goal": "pictures by a wrong version", "measured": len(data.get("wrong_pictures", ())), "met": not data.get("wrong_pictures")},
        {"goal": "pictures compared", "measured": data.get("compared", 0), "met": data.get("compared", 0) > 0},
        *_bounds(data),
        {"goal": "exit status after SIGTERM", "measured": data.get("exit_status"), "met": data.get("exit_status") == 0},
        *(
            {
                "goal": f"{one['label']}: {one['verdict']}", "measured": one["slope_per_hour"], "low": one["low"],
                "high": one["high"], "limit": one["limit"], "met": one["met"],
            }
            for one in data["trends"]
        ),
    ]  # fmt: skip
    loads = [one["load"] for one in data["samples"]]
    data["load"] = {"median": round(median(loads), 1), "most": round(max(loads), 1)} if loads else {}
    if "drawn" in data:
        data["by_minute"] = by_minute(data)
    first, last = data.get("types_at_first"), data.get("types_at_end")
    if first and last:
        grown = {name: last[name] - first.get(name, 0) for name in last}
        data["types_grown"] = dict(sorted(grown.items(), key=lambda one: -one[1])[:20])


def _bounds(data: Json) -> list[Json]:
    """Judge what has a limit that it may reach: pictures and their thumbnails, most at rest."""
    limit = data["settings"].get("kept_pictures")
    rests = [one for one in data["samples"] if one["rest"] and "thumbnails_files" in one]
    if limit is None or not rests:
        return []
    return [
        {"goal": f"{name}, most at rest", "measured": most, "limit": limit, "met": most <= limit}
        for name, most in (
            ("pictures kept", max(one["output_files"] for one in rests)),
            ("thumbnails kept", max(one["thumbnails_files"] for one in rests)),
        )
    ]


def table(data: Json) -> list[str]:
    """Return the result for a person."""
    calls = sum(one["calls"] for one in data.get("calls", {}).values())
    load = data.get("load") or {"median": None}
    lines = [
        "", f"{place_line(data['machine'])}; load average {load['median']}, other work included",
        (f"{data.get('minutes')} minutes, {calls} calls, {data.get('pictures')} pictures, {sum(data.get('deploys', {}).values())} deploys: "
        f"{data.get('failed')} calls failed, {len(data.get('wrong_pictures', ()))} pictures by a wrong version of {data.get('compared')} compared"),
        f"{'resource':<36}{'first':>10}{'last':>10}{'per hour':>10}{'at most':>10}{'limit':>8}",
    ]  # fmt: skip
    for one in data["trends"]:
        high = "?" if one["high"] is None else f"{one['high']:.2f}"
        lines.append(
            f"{one['label']:<36}{one['first']:>10.2f}{one['last']:>10.2f}{one['slope_per_hour']:>10.2f}{high:>10}{one['limit']:>8} "
            f"{one['unit']:<9}{one['verdict']}{'' if one['met'] else ', MISSED'}"
        )
    lines += [f"{one['goal']}: {one['measured']}, at most {one['limit']}" for one in _bounds(data)]
    lines += data.get("failures", [])[:10] + data.get("wrong_pictures", [])[:10]
    return lines


_PANELS: tuple[tuple[str, float, tuple[str, ...]], ...] = (
    ("memory, MiB", MIB, ("rss", "tree_pss", "anonymous", "held", "heap_used")),
    ("device memory, MiB", MIB, ("device_used", "nvidia_smi_used", "cuda_allocated", "cuda_reserved")),
    ("descriptors, threads, children", 1, ("descriptors", "inotify_watches", "threads", "children", "tasks")),
    ("files on disk", 1, ("state_files", "output_files", "thumbnails_files", "temporary_files")),
)
_LATENCIES = ("picture_p50", "picture_max", "status_p50", "status_p99")


def draw(data: Json, path: Path) -> None:
    """Draw each resource over time, faint under traffic and strong at rest, then latencies and who drew how many pictures."""
    samples = data["samples"]
    panels = [panel for panel in _PANELS if any(name in one for one in samples for name in panel[2])]
    made = canvas(11, [2.4] * (len(panels) + 2))
    if made is None or not samples:
        return
    figure, axes = made
    for one, (title, unit, names) in zip(axes, panels, strict=False):
        for colour, name in zip(COLOURS, names, strict=False):
            for rest, style in ((0, {"lw": 0.6, "alpha": 0.35}), (1, {"lw": 1.6, "label": name})):
                known = [each for each in samples if each["rest"] == rest and name in each]
                one.plot(
                    [each["at"] / 60 for each in known], [each[name] / unit for each in known], color=colour, **style
                )
        one.set_ylim(0)
        one.set_title(f"{title}: strong at rest, faint under traffic", fontsize=9, loc="left")
    for colour, name in zip(COLOURS, _LATENCIES, strict=False):
        known = [each for each in samples if name in each]
        axes[-2].plot(
            [each["at"] / 60 for each in known], [each[name] for each in known], color=colour, lw=0.7, label=name
        )
    axes[-2].set_yscale("log")
    axes[-2].set_title("seconds of calls; picture_* include the wait in the queue", fontsize=9, loc="left")
    _draw_versions(data, axes[-1])
    for one in axes:
        one.axvspan(0, data["settings"]["warm_up"], color="#f1f3f5", lw=0, zorder=-1)
        one.set_xlim(0, samples[-1]["at"] / 60)
        one.tick_params(labelsize=8)
        one.legend(fontsize=7, ncols=6, loc="lower right")
    axes[-1].set_xlabel("minutes; grey: the warm-up, which does not count", fontsize=8)
    flat = sum(one["flat"] for one in data["trends"])
    figure.suptitle(
        f"{data.get('minutes')} minutes, {data.get('pictures')} pictures, {sum(data.get('deploys', {}).values())} deploys, "
        f"{data.get('failed')} failed calls; {flat} of {len(data['trends'])} resources flat. {place_line(data['machine'])}, "
        f"load average {(data.get('load') or {}).get('median')}",
        fontsize=9,
    )  # fmt: skip
    figure.savefig(path, dpi=80)


def _draw_versions(data: Json, axes: Any) -> None:
    """Draw how many pictures each version drew a minute; versions that were made while it ran are one band."""
    counts = data["by_minute"]
    minutes = [minute + 0.5 for minute in range(len(next(iter(counts.values()), ())))]
    axes.stackplot(minutes, counts.values(), labels=list(counts), colors=COLOURS, alpha=0.8)
    axes.set_title("pictures a minute by version", fontsize=9, loc="left")


def by_minute(data: Json) -> dict[str, list[int]]:
    """Return how many pictures each version drew in each minute."""
    own, last = list(data.get("by_version", {})), max((one["at"] for one in data["drawn"]), default=0.0)
    counts = {name: [0] * (int(last // 60) + 1) for name in [*own, NEW]}
    for one in data["drawn"]:
        for name in one.keys() - {"at"}:
            counts[name if name in own else NEW][int(one["at"] // 60)] += one[name]
    return counts


def pack(data: Json) -> None:
    """Make a complete result small: all samples at rest and every third of the others, a line each."""
    busy = [one for one in data["samples"] if not one["rest"]][::3]
    kept = sorted([*busy, *(one for one in data["samples"] if one["rest"])], key=lambda one: one["at"])
    columns = list(dict.fromkeys(name for one in kept for name in one))
    rows = [",".join(f"{one[name]:.12g}" if name in one else "" for name in columns) for one in kept]
    data["samples"] = {"columns": ",".join(columns), "rows": rows}
    for name in ("drawn", "types_at_first", "types_at_end"):
        data.pop(name, None)


def unpack(data: Json) -> None:
    """Read a result that was packed."""
    if isinstance(data["samples"], list):
        return
    columns = data["samples"]["columns"].split(",")
    data["samples"] = [
        {name: float(value) for name, value in zip(columns, row.split(","), strict=True) if value}
        for row in data["samples"]["rows"]
    ]
