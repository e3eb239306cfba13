"""What a service that does not run has saved about the versions that it needs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zwatch.deploy.durable import read_regular
from zwatch.deploy.shares import alias_of_key
from zwatch.errors import UsageError

_MOST_BYTES = 2**20


def saved_needs(state_directory: Path) -> dict[str, list[str]] | None:
    """Return the versions that a state directory names, and what for; None if it has no state file.

    Raises:
        UsageError: a process uses the directory, or the file cannot be read.
    """
    path = state_directory / "state.json"
    if (process := _holder(state_directory / "lock")) is not None:
        raise UsageError(
            f"process {process} uses the state directory {state_directory}: a service runs; give its --url instead"
        )
    try:
        saved = json.loads(read_regular(path, _MOST_BYTES))
        aliases = saved["aliases"].items()
        found: dict[str, list[str]] = {}
        for key, part in aliases:
            alias = alias_of_key(key)
            for use, version in _named(part):
                found.setdefault(version, []).append(f"{use} of {key if alias is None else f'the share of {alias}'}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise UsageError(f"{path} cannot be read: {why}; what the service needs is not known") from None
    return {version: list(dict.fromkeys(uses)) for version, uses in found.items()}


def _named(part: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, use in (("serving", "served"), ("trying", "tried"), ("wish", "linked"), ("previous", "previous")):
        if part.get(key) is not None:
            yield use, part[key]["version"]
    for key, use in (("good", "last-known-good"), ("promoted", "last-known-good")):
        for one in part.get(key, ()):
            yield use, one["version"]


def _holder(lock: Path) -> int | None:
    """Return the process that has locked a file, as far as the system tells. The lock is not tried: a service that starts in
    that moment would find it taken."""
    try:
        status = lock.stat()
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:  # the device that it names is not always the one that stat names
        fields = line.split()
        if fields[1:2] == ["FLOCK"] and fields[5].endswith(f":{status.st_ino}"):
            return int(fields[4])
    return None
