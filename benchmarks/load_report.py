"""The report of a run of load.py: comparison with the goals, a table, and a figure."""

import statistics
from pathlib import Path
from typing import Any

from common import Json, canvas, place_line, quantile


def goals(data: Json) -> list[Json]:
    """Compare the result with the goals. A goal without a measurement is left out."""
    found: list[Json] = []
    if data["settings"]["preset"] != "full":
        return found  # times of a tiny model are not meaningful

    def judge(goal: str, target: float, measured: float | None, unit: str, *, at_least: bool = False) -> None:
        if measured is not None:
            met = measured >= target if at_least else measured <= target
            found.append({"goal": goal, "target": target, "measured": round(measured, 5), "unit": unit, "met": met})

    def median(values: list[float]) -> float | None:
        return statistics.median(values) if values else None

    server = data["server"]

    def of(name: str, *keys: str) -> list[float]:
        values: list[Any] = server.get(name, [])
        for key in keys:
            values = [one[key] for one in values]
        return values

    rows = {(row["group"], row["name"]): row for row in data["rows"]}
    verified = of("full", "attempt", "resolve_to_verified")
    judge("hot, all weights beside a serving version: resolve to verified, server", 0.60, median(verified), "s")
    judge("the same, tried for", 0.50, median(verified), "s")
    if ("hot", "zwatch") in rows:
        judge("hot, all weights, in a separate process", 0.60, rows["hot", "zwatch"]["median"], "s")
    plain = [one["gb_per_s"] for one in data["limits"] if one["group"] == "cold" and one["name"].startswith("disk")]
    if plain and ("cold", "zwatch") in rows:
        judge(
            "cold: share of a plain parallel read's speed", 0.95, rows["cold", "zwatch"]["gb_per_s"] / max(plain), "",
            at_least=True,
        )  # fmt: skip
    judge("a version that differs in the transformer: most bytes loaded", 12.4e9, max(of("transformer", "attempt", "bytes"), default=None), "B")  # fmt: skip
    judge("a version that differs in a config: most bytes loaded", 0, max(of("config", "attempt", "bytes"), default=None), "B")  # fmt: skip
    judge("rollback: ln to serving, median", 0.050, median(of("rollback", "ln_to_serving")), "s")
    judge("rollback: ln to serving, longest", 0.050, max(of("rollback", "ln_to_serving"), default=None), "s")
    judge("POST /api/verify, idle device", 0.050, median(of("verify_idle", "answer")), "s")
    promotions = [
        one["attempt"]["phases"]["promote"]
        for name in ("full", "transformer", "config")
        for one in server.get(name, [])
        if "promote" in one["attempt"]["phases"]
    ]
    judge("what the promotion itself takes, longest", 0.001, max(promotions, default=None), "s")
    return found


def table(data: Json) -> list[str]:
    """Return the result as readable lines."""
    base = {row["group"]: row["median"] for row in data["rows"] if row["name"] == "zwatch"}
    head = f"{'':<48}{'median s':>9}{'min s':>8}{'GB/s':>8}{'x zwatch':>9}   with a b3sum pass before"
    lines = []
    for group in ("hot", "cold"):
        shown = [one for one in data["rows"] + data["limits"] if one["group"] == group]
        if shown:
            lines += ["", f"page cache {group}, {data['model']['bytes'] / 1e9:.2f} GB", head]
        for one in sorted(shown, key=lambda one: -one["gb_per_s"]):
            ratio = f"{one['median'] / base[group]:9.2f}" if group in base and one["kind"] != "limit" else " " * 9
            both = one.get("with_b3sum")
            last = f"   {both['median']:.3f} s, {both['gb_per_s']:.1f} GB/s" if both else ""
            last = "   verified" if one["kind"] == "zwatch" else last
            lines.append(f"{one['name']:<48}{one['median']:9.3f}{one['min']:8.3f}{one['gb_per_s']:8.2f}{ratio}{last}")
    for name, one in data["server"].items():
        if isinstance(one, dict):
            lines += ["", f"server start: serving {one['serving']} s, first image {one['first_image']} s"]
            continue
        for key in ("ln_to_serving", "seal_to_serving", "ln_to_first_image", "answer"):
            values = [turn[key] for turn in one if key in turn]
            if values:
                lines.append(f"server, {name}: {key.replace('_', ' ')} {statistics.median(values):.4f} s, longest {quantile(values, 1):.4f}")  # fmt: skip
        for key in ("resolve_to_verified", "resolve_to_built"):
            values = [turn["attempt"][key] for turn in one if turn.get("attempt", {}).get("bytes")]
            if values:
                lines.append(f"server, {name}: {key.replace('_', ' ')} {statistics.median(values):.4f} s, longest {max(values):.4f}")  # fmt: skip
    lines += ["", *(f"{'met   ' if one['met'] else 'MISSED'} {one['goal']}: {one['measured']} {one['unit']} (goal {one['target']})" for one in data["goals"])]  # fmt: skip
    lines += [f"not run: {one['name']}: {one['reason']}" for one in data["not_run"]]
    return lines


COLOURS = {"zwatch": "#d1495b", "peer": "#8d99ae", "limit": "#e2e4ea"}


def _served(data: Json) -> list[Json]:
    """Return rows for what the service loaded beside a serving version, the files in the page cache."""
    rows = []
    for kind, label in (("full", "all files"), ("transformer", "only the transformer changed")):
        turns = [one["attempt"] for one in data["server"].get(kind, [])]
        if turns:
            speed = statistics.median(one["bytes"] / one["resolve_to_verified"] / 1e9 for one in turns)
            rows.append({"name": f"zwatch serving, {label}", "group": "hot", "kind": "zwatch", "gb_per_s": speed})
    return rows


def draw(data: Json, path: Path) -> None:
    """Draw the rows as bars in GB/s, hot above cold, each with its own scale."""
    groups = {
        group: sorted(
            (
                one
                for one in data["rows"] + data["limits"] + _served(data)
                if one["group"] == group and "b3sum" not in one["name"]
            ),
            key=lambda one: -one["gb_per_s"],
        )
        for group in ("hot", "cold")
    }
    groups = {group: shown for group, shown in groups.items() if shown}
    made = canvas(10, [1.1 + 0.3 * len(shown) for shown in groups.values()]) if groups else None
    if made is None:
        return
    figure, panels = made
    for axes, (group, shown) in zip(panels, groups.items(), strict=True):
        longest = shown[0]["gb_per_s"]
        for place, one in enumerate(shown):
            speed, both = one["gb_per_s"], one.get("with_b3sum")
            axes.barh(place, speed, height=0.74, color=COLOURS[one["kind"]])
            text = f"{speed:.2f}, verified" if one["kind"] == "zwatch" else f"{speed:.2f}"
            if both:
                axes.barh(place, both["gb_per_s"], height=0.32, color="#2b2d42")
                text += f"  ({both['gb_per_s']:.2f} verified)"
            end = max(speed, both["gb_per_s"]) if both else speed
            axes.text(end + longest * 0.008, place, text, va="center", fontsize=8)
        axes.set_yticks(range(len(shown)), [one["name"] for one in shown], fontsize=8)
        for label, one in zip(axes.get_yticklabels(), shown, strict=True):
            label.set_fontweight("bold" if one["kind"] == "zwatch" else "normal")
        axes.invert_yaxis()
        axes.set_xlim(0, longest * 1.2)
        axes.tick_params("x", labelsize=8)
        axes.set_title(f"page cache {group}", fontsize=9, fontweight="bold", loc="left")
    panels[-1].set_xlabel(
        "GB/s, files to tensors on the device. Dark: with the b3sum pass that verification takes. "
        "Pale: what the machine can do.", fontsize=8,
    )  # fmt: skip
    figure.suptitle(f"{data['model']['bytes'] / 1e9:.1f} GB to the device. {place_line(data['machine'])}", fontsize=10)
    figure.savefig(path)
