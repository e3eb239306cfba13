"""Loading and warming beside the process that serves, before this one serves anything."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from zwatch.bridge import Bridge
from zwatch.deploy.look import open_version
from zwatch.errors import Abandoned, FatalError, Rejection
from zwatch.rollout.gate import Gate
from zwatch.rollout.inheritance import Warmed
from zwatch.rollout.lifecycle import Attempt, LoadWay, VersionKey
from zwatch.rollout.load_thread import LoadLimits, LoadThread
from zwatch.shadow.control import LoadControl

if TYPE_CHECKING:
    from zwatch.engine.factory import EngineFactory
    from zwatch.engine.pipeline import Engine

_log = logging.getLogger(__name__)

_OF_MEMORY = ("insufficient_memory", "out_of_memory")
_OF_OPTIONS = ("signature_missing", "signature_invalid", "signer_not_allowed", "policy_invalid", "weights_mismatch")
"""Codes of what the other process could load: it was given another policy or precision."""
_NO_ROOM = Rejection("insufficient_memory", "two do not fit in memory; it is loaded when the other process has ended")


class Beside:
    """The engines of the versions that the other process serves. On the event loop."""

    def __init__(self, models: Path, bridge: Bridge, policy_file: Path | None = None) -> None:
        """`policy_file` is that of `--require-signature`."""
        self._models = models
        self._bridge = bridge
        self._gate = Gate(policy_file)
        self._engines: dict[VersionKey, Engine] = {}
        self._attempts: dict[VersionKey, Attempt] = {}
        self._wanted: dict[str, VersionKey] = {}
        self._factory: EngineFactory | None = None
        self._thread = LoadThread(bridge, LoadLimits(), self._renew_reader)

    async def load(
        self,
        factory: "EngineFactory",
        wanted: Mapping[str, tuple[str, str | None]],
        make_room: Callable[[], Awaitable[None]],
    ) -> None:
        """Load what the aliases serve in the other process, each as (version, digest); what cannot be loaded is left out, and
        the log says why. `make_room` is called when memory is short, before the second try.

        Raises:
            FatalError: this process would serve nothing, because of its own options.
        """
        self._factory = factory
        self._wanted = {alias: VersionKey(*key) for alias, key in wanted.items()}
        for key in set(self._engines) - set(self._wanted.values()):
            await self._bridge.run("close", self._engines.pop(key).close)
        of_options = None
        for alias, key in self._wanted.items():
            if key in self._engines:
                continue
            try:
                await self._load(factory, alias, key, make_room)
            except (Rejection, Abandoned) as error:
                _log.warning("%s is not loaded beside the other process: %s", key.version, error)
                if isinstance(error, Rejection) and error.code in _OF_OPTIONS:
                    of_options = f"{key.version}: {error}"
            except OSError as error:
                _log.warning("%s is not loaded beside the other process: %s", key.version, error.strerror)
        if of_options is not None and not self._engines:
            raise FatalError(
                f"with these options nothing of what the running zwatch serves can be loaded ({of_options}), so it goes on and this one "
                "ends; change --require-signature, --dtype or --quantize, or stop it first"
            )

    def warmed(self) -> dict[str, Warmed]:
        """Return what each alias is to serve."""
        found, used = {}, set()
        for alias, key in self._wanted.items():
            if (engine := self._engines.get(key)) is None:
                continue
            attempt = self._attempts[key]
            if key in used:
                attempt = Attempt(alias, key, LoadWay.RESIDENT, signer=attempt.signer)
                attempt.begin_warming()
            used.add(key)
            found[alias] = Warmed(attempt, engine)
        return found

    async def _load(
        self, factory: "EngineFactory", alias: str, key: VersionKey, make_room: Callable[[], Awaitable[None]]
    ) -> None:
        for is_last in (False, True):
            try:
                self._attempts[key], self._engines[key] = await self._tried(
                    factory, Attempt(alias, key, LoadWay.DEVICE)
                )
            except Rejection as rejection:
                if is_last or rejection.code not in _OF_MEMORY:
                    raise
            else:
                return
            await make_room()

    async def _tried(self, factory: "EngineFactory", attempt: Attempt) -> "tuple[Attempt, Engine]":
        """Load and warm a version.

        Raises:
            Rejection, Abandoned, OSError: it cannot be loaded, or not now.
        """
        key, run = attempt.key, self._thread.run
        attempt.control = control = LoadControl()
        directory = await run(attempt, open_version, self._models, key.version)
        try:
            attempt.signer = await run(attempt, self._gate.signer, directory, key, control)
            planned = await run(attempt, factory.plan, directory, key.digest, control)
            if await run(attempt, factory.lacks, planned):
                raise _NO_ROOM.with_traceback(None)
            engine = await run(attempt, factory.build, directory, planned, control)
            attempt.begin_warming()
            try:
                await run(attempt, factory.warm, engine, control)
            except BaseException:
                await self._bridge.run("close", engine.close)
                raise
        finally:
            if not control.is_left:  # else it is closed when the thread that uses it has ended
                directory.close()
        _log.info("%s is loaded and warm beside the other process (%.2f s)", key.version, attempt.seconds)
        return attempt, engine

    def _renew_reader(self) -> None:
        if self._factory is not None:
            self._factory.device.reader.renew()
