"""What is saved across restarts: last-known-good, what was being tried, crashes in a row, what an operator unloaded."""

import fcntl
import logging
import os
import stat
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, TypeAdapter, ValidationError

from zwatch.bridge import Bridge
from zwatch.deploy.durable import write_durably
from zwatch.deploy.refused import RefusedStray
from zwatch.deploy.resolving import LinkStamp
from zwatch.deploy.versions import is_version_name
from zwatch.errors import UsageError
from zwatch.rollout.lifecycle import VersionKey

_log = logging.getLogger(__name__)

CRASHES_TO_SET_ASIDE = 2
KEPT_GOOD = 2
"""How many last-known-good versions are saved, so that if one is set aside there is another."""
_FILE = "state.json"
_MOST_BYTES = 2**20
"""More than any state file needs: a version, its digest and a link stamp take 300 bytes."""


def _checked(key: VersionKey) -> VersionKey:
    if not is_version_name(key.version):
        raise ValueError(f"{key.version!r} is not a version name")
    return key


def _has_keys(*names: str) -> BeforeValidator:
    """Return a check that an object has all these keys. Defaults of fields are for new records, not for the file."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and (missing := [name for name in names if name not in value]):
            raise ValueError(f"missing: {', '.join(missing)}")
        return value

    return BeforeValidator(check)


_SavedKey = Annotated[VersionKey, AfterValidator(_checked)]


@dataclass(slots=True)
class SavedAlias:
    """One alias's part. `good` is newest first; `unloaded` is the link's stamp when an operator unloaded the alias."""

    serving: _SavedKey | None = None
    trying: _SavedKey | None = None
    previous: _SavedKey | None = None
    good: list[_SavedKey] = field(default_factory=list)
    link_stamp: Annotated[LinkStamp | None, Field(alias="stamp")] = None
    unloaded: LinkStamp | None = None


@dataclass(slots=True)
class Crash:
    """How many runs in a row crashed while this version served or was tried, and the link's stamp then."""

    key: _SavedKey
    count: Annotated[int, Field(ge=1, lt=2**31)]
    link_stamp: Annotated[LinkStamp | None, Field(alias="stamp")]


@dataclass(slots=True)
class SavedState:
    """Everything that is in the state file."""

    format: Literal[1] = field(default=1, kw_only=True)
    running: bool = False
    aliases: dict[
        str, Annotated[SavedAlias, _has_keys("serving", "trying", "previous", "good", "stamp", "unloaded")]
    ] = field(default_factory=dict)
    crashes: list[Crash] = field(default_factory=list)
    refused: list[RefusedStray] = field(default_factory=list)
    """Stray links that were refused and still exist, see `Look.refused`."""

    def alias(self, name: str) -> SavedAlias:
        """Return an alias's part, made on first use."""
        return self.aliases.setdefault(name, SavedAlias())

    def begin_run(self) -> list[VersionKey]:
        """Note the start of a run; if the previous run crashed, return what served or was tried then."""
        crashed: dict[VersionKey, LinkStamp | None] = {}
        if self.running:
            for part in self.aliases.values():
                crashed |= {key: part.link_stamp for key in (part.serving, part.trying) if key is not None}
        counts = {crash.key: crash.count for crash in self.crashes}
        self.crashes = [
            *(Crash(key, counts.get(key, 0) + 1, link_stamp) for key, link_stamp in crashed.items()),
            *(crash for crash in self.crashes if crash.count >= CRASHES_TO_SET_ASIDE and crash.key not in crashed),
        ]
        self.running = True
        for part in self.aliases.values():
            part.serving = part.trying = None
        return list(crashed)

    def end_run(self) -> None:
        """Note that this run ended without a crash."""
        self.running = False
        proved = {part.serving for part in self.aliases.values()}
        self.crashes = [
            crash for crash in self.crashes if crash.count >= CRASHES_TO_SET_ASIDE and crash.key not in proved
        ]

    def is_set_aside(self, key: VersionKey, link_stamp: LinkStamp | None) -> bool:
        """Say whether this version crashed too often since it was last linked (`link_stamp`) and sealed (its key)."""
        return any(
            crash.key == key
            and crash.count >= CRASHES_TO_SET_ASIDE
            and (link_stamp is None or crash.link_stamp == link_stamp)
            for crash in self.crashes
        )

    def note_good(self, alias: str, key: VersionKey) -> bool:
        """Note that a version has proved itself; return whether that is new."""
        good = self.alias(alias).good
        if good and good[0] == key:
            return False
        self.alias(alias).good = [key, *(other for other in good if other != key)][:KEPT_GOOD]
        return True

    def fallbacks(self, alias: str) -> list[VersionKey]:
        """Return last-known-good versions in the order to try them; versions that were set aside come last."""
        return sorted(self.alias(alias).good, key=lambda key: self.is_set_aside(key, None))


@cache
def _schema() -> TypeAdapter[SavedState]:
    # At the first use, in a thread: building it takes some 30 ms, which the first answer would wait for.
    return TypeAdapter(Annotated[SavedState, _has_keys("format", "running", "aliases", "crashes")])


def serialise(saved: SavedState) -> bytes:
    """Return the bytes of the state file for this state."""
    return _schema().dump_json(saved, by_alias=True, indent=1)


class StateFile:
    """The file in the state directory, which this process owns while it holds the lock there."""

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
        """Return what was written last. A file that cannot be used is renamed, and the state starts empty."""
        path = self._directory / _FILE
        try:
            return _schema().validate_json(_read_regular(path), strict=True)
        except FileNotFoundError:
            return SavedState()
        except (OSError, ValueError) as error:
            _log.warning(
                "%s cannot be used (%s); it is renamed to %s.bad, and the service starts without saved state",
                path, _described(error), _FILE,
            )  # fmt: skip
            try:
                path.replace(path.with_name(f"{_FILE}.bad"))
            except OSError as failure:
                _log.warning("%s could not be renamed: %s", path, failure.strerror)
            return SavedState()

    def write(self, data: bytes) -> None:
        """Replace the file, durably: after a crash it has the new bytes or the old ones, never a part.

        Raises:
            OSError: the directory could not be written.
        """
        write_durably(self._directory, _FILE, data)

    def close(self) -> None:
        """Release the lock, so that another process can use the directory."""
        os.close(self._lock)


class StateKeeper:
    """The saved state that this run works on, and the writing of it. After a failed write, the next save tries again."""

    def __init__(self, bridge: Bridge, file: StateFile) -> None:
        self.saved = SavedState()
        self.is_written = True
        """Whether the last write succeeded."""
        self._bridge = bridge
        self._file = file

    async def read(self) -> SavedState:
        """Read what the previous run saved."""
        self.saved = await self._bridge.run("state", self._file.read)
        return self.saved

    async def save(self) -> None:
        """Write the state as it is now; a failure is logged once, until a write succeeds again."""
        try:
            await self._bridge.run("state", self._file.write, serialise(self.saved))
        except OSError as error:
            if self.is_written:
                _log.warning("the state directory could not be written; retrying: %s", error.strerror)
            self.is_written = False
        else:
            self.is_written = True

    def save_blocking(self) -> None:
        """Write the state as it is now, without threads; for a process that exits next."""
        try:
            self._file.write(serialise(self.saved))
        except OSError as error:
            _log.warning("the state directory could not be written: %s", error.strerror)


def _read_regular(path: Path) -> bytes:
    """Return a file's bytes. It never blocks, whatever is there under this name.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a regular file, or it is too large.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a FIFO would wait for a writer
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        if status.st_size > _MOST_BYTES:
            raise ValueError(f"it has {status.st_size} bytes, at most {_MOST_BYTES} are expected")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(_MOST_BYTES)
    finally:
        os.close(descriptor)


def _described(error: OSError | ValueError) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        return f"{place}: {first['msg']}" if place else first["msg"]
    return str(error)
