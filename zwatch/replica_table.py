"""The replicas of a fleet as a table for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

_HEAD = ("replica", "host", "device", "state", "version", "attempt", "requests")


def replica_lines(replicas: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table of the `replicas` of a status; under each what is wrong with it."""
    rows = [_HEAD, *(_row(one) for one in replicas)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    shown = [lines[0]]
    for one, line in zip(replicas, lines[1:], strict=True):
        shown += [line, *([f"  {one['problem']}"] if one["problem"] else [])]
    return shown


def _row(one: Mapping[str, Any]) -> tuple[str, ...]:
    running = f" (+{one['running']})" if one["running"] else ""
    return (
        one["name"], one["host"] or "-", one["device"] or "-", one["state"], ", ".join(one["versions"]) or "-",
        one["attempt"] or "-", f"{one['requests']:,}{running}",
    )  # fmt: skip
