"""What is remembered across restarts: last-known-good, what was being tried, crashes in a row, unloading by hand."""

import fcntl
import json
import logging
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from zwatch.deploy.durable import write_durably
from zwatch.deploy.refused import RefusedStray
from zwatch.deploy.resolving import LinkStamp
from zwatch.deploy.versions import is_version_name
from zwatch.errors import UsageError
from zwatch.rollout.lifecycle import VersionKey

_log = logging.getLogger(__name__)

CRASHES_TO_SET_ASIDE = 2
KEPT_GOOD = 2
"""How many last-known-good versions are remembered, so that one that was set aside has another behind it."""
_FILE = "state.json"
_FORMAT = 1


@dataclass(slots=True)
class SavedAlias:
    """One alias's part. `good` is newest first; `unloaded` is the link's stamp at the time."""

    serving: VersionKey | None = None
    trying: VersionKey | None = None
    previous: VersionKey | None = None
    good: list[VersionKey] = field(default_factory=list)
    stamp: LinkStamp | None = None
    unloaded: LinkStamp | None = None


@dataclass(slots=True)
class Crash:
    """How many runs in a row ended in a crash while this version served or was tried, and the link's stamp then."""

    key: VersionKey
    count: int
    stamp: LinkStamp | None


@dataclass(slots=True)
class SavedState:
    """All of it, as it goes into the state file."""

    running: bool = False
    aliases: dict[str, SavedAlias] = field(default_factory=dict)
    crashes: list[Crash] = field(default_factory=list)
    refused: list[RefusedStray] = field(default_factory=list)
    """Stray links that were refused and still exist, see `Look.refused`."""

    def alias(self, name: str) -> SavedAlias:
        """Return an alias's part, made on first use."""
        return self.aliases.setdefault(name, SavedAlias())

    def begin_run(self) -> list[VersionKey]:
        """Note the start of a run; return what served or was tried if the last run did not end by itself."""
        crashed: dict[VersionKey, LinkStamp | None] = {}
        if self.running:
            for part in self.aliases.values():
                crashed |= {key: part.stamp for key in (part.serving, part.trying) if key is not None}
        counts = {crash.key: crash.count for crash in self.crashes}
        self.crashes = [
            *(Crash(key, counts.get(key, 0) + 1, stamp) for key, stamp in crashed.items()),
            *(crash for crash in self.crashes if crash.count >= CRASHES_TO_SET_ASIDE and crash.key not in crashed),
        ]
        self.running = True
        for part in self.aliases.values():
            part.serving = part.trying = None
        return list(crashed)

    def end_run(self) -> None:
        """Note that this run ended by itself."""
        self.running = False
        proved = {part.serving for part in self.aliases.values()}
        self.crashes = [
            crash for crash in self.crashes if crash.count >= CRASHES_TO_SET_ASIDE and crash.key not in proved
        ]

    def is_set_aside(self, key: VersionKey, stamp: LinkStamp | None) -> bool:
        """Say whether this version crashed too often since it was last linked (`stamp`) and sealed (its key)."""
        return any(
            crash.key == key and crash.count >= CRASHES_TO_SET_ASIDE and (stamp is None or crash.stamp == stamp)
            for crash in self.crashes
        )

    def note_good(self, alias: str, key: VersionKey) -> bool:
        """Note that a version has proved itself; return whether that is news."""
        good = self.alias(alias).good
        if good and good[0] == key:
            return False
        self.alias(alias).good = [key, *(other for other in good if other != key)][:KEPT_GOOD]
        return True

    def fallbacks(self, alias: str) -> list[VersionKey]:
        """Return last-known-good versions in the order to try them: one that was set aside is the last resort."""
        return sorted(self.alias(alias).good, key=lambda key: self.is_set_aside(key, None))


class StateFile:
    """The memory's file in the state directory, which this process owns while it holds the file open."""

    def __init__(self, directory: Path) -> None:
        """Open the state directory, making it if it is not there.

        Raises:
            UsageError: it cannot be written, or another process uses it.
        """
        self._directory = directory
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UsageError(
                f"the state directory {directory} cannot be used: {error.strerror}; see --state-dir"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise UsageError(f"another zwatch uses the state directory {directory}; see --state-dir") from None

    def read(self) -> SavedState:
        """Return what was written last; an unreadable file is put aside and forgotten."""
        path = self._directory / _FILE
        try:
            return _parse(json.loads(path.read_bytes()))
        except FileNotFoundError:
            return SavedState()
        except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            _log.warning("%s is not readable (%s); it is kept as %s.bad, and nothing is remembered", path, error, _FILE)
            try:
                path.replace(path.with_name(f"{_FILE}.bad"))
            except OSError:
                pass
            return SavedState()

    def write(self, memory: bytes) -> None:
        """Replace the file, durably: the new bytes or the old ones survive a crash, never half.

        Raises:
            OSError: the directory could not be written.
        """
        write_durably(self._directory, _FILE, memory)

    def close(self) -> None:
        """Let another process use the directory."""
        os.close(self._lock)


def serialise(memory: SavedState) -> bytes:
    """Return the bytes of the state file for this memory."""
    return json.dumps({"format": _FORMAT, **asdict(memory)}, indent=1).encode()


def _parse(state: dict[str, Any]) -> SavedState:
    if state["format"] != _FORMAT:
        raise ValueError(f"format {state['format']!r}, expected {_FORMAT}")
    aliases = {
        name: SavedAlias(
            serving=_key(part["serving"]),
            trying=_key(part["trying"]),
            previous=_key(part["previous"]),
            good=[_certain_key(key) for key in part["good"]],
            stamp=_stamp(part["stamp"]),
            unloaded=_stamp(part["unloaded"]),
        )
        for name, part in state["aliases"].items()
    }
    crashes = [
        Crash(_certain_key(crash["key"]), int(crash["count"]), _stamp(crash["stamp"])) for crash in state["crashes"]
    ]
    refused = [_refused(stray) for stray in state.get("refused", [])]  # older files have none
    return SavedState(bool(state["running"]), aliases, crashes, refused)


def _key(value: dict[str, Any] | None) -> VersionKey | None:
    return None if value is None else _certain_key(value)


def _certain_key(value: dict[str, Any]) -> VersionKey:
    version, digest = value["version"], value["digest"]
    if not isinstance(version, str) or not is_version_name(version) or not isinstance(digest, str | None):
        raise ValueError(f"{value!r} is no version with its digest")
    return VersionKey(version, digest)


def _stamp(value: dict[str, Any] | None) -> LinkStamp | None:
    return None if value is None else LinkStamp(*(int(value[name]) for name in ("device", "inode", "ctime_ns")))


def _refused(value: dict[str, Any]) -> RefusedStray:
    stamp = _stamp(value["stamp"])
    if stamp is None or not isinstance(value["path"], str) or not isinstance(value["reason"], str):
        raise ValueError(f"{value!r} is not a refused stray")
    return RefusedStray(value["path"], stamp, value["reason"])
