"""The life of one attempt: from its version's directory to its promotion or its end."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from zwatch.bridge import Begun, Bridge, Pulse
from zwatch.deploy.look import Awaited, await_files, open_version
from zwatch.deploy.resolving import Directory, LinkStamp
from zwatch.errors import Abandoned, FatalError, Rejection
from zwatch.rollout.alias import Alias
from zwatch.rollout.engines import EngineCloser, EngineRegistry
from zwatch.rollout.exchange import Exchanger
from zwatch.rollout.lifecycle import Attempt, LoadWay, VersionKey
from zwatch.rollout.load_thread import CHECK_SECONDS, LoadLimits, LoadThread
from zwatch.rollout.policy import LoadView
from zwatch.rollout.prepare import Preparation
from zwatch.rollout.state import StateKeeper
from zwatch.shadow.control import LoadControl

if TYPE_CHECKING:
    from zwatch.engine.factory import EngineFactory
    from zwatch.engine.pipeline import Engine

_log = logging.getLogger(__name__)

KEPT_ATTEMPTS = 100
_OF_THE_DEVICE = ("device_error", "out_of_memory", "internal_error", "bad_image")
"""Codes of rejections that a device may cause which does not work any more."""


class AbandonReason(Enum):
    """Why a load was abandoned, for the log."""

    SUPERSEDED = "its alias no longer asks for it"
    UNLOADED = "an operator unloaded everything"
    STOPPING = "the service is stopping"


@dataclass(eq=False)
class Load:
    """One running load: its attempt, and all that has to be given back at its end."""

    alias: Alias
    attempt: Attempt
    forced: bool
    link_stamp: LinkStamp | None
    """The stamp of the link that asked for it; None for last-known-good, which no link asks for."""
    abandoned: AbandonReason | None = None
    directory: Directory | None = None
    awaited: Awaited | None = None
    to_close: "list[Engine]" = field(default_factory=list)

    @property
    def view(self) -> LoadView:
        """What the policy has to know of it."""
        attempt = self.attempt
        return LoadView(attempt.alias, attempt.key, attempt.fallback, self.forced, self.abandoned is not None)


class AttemptRunner:
    """Carries out attempts: promotions of resident engines immediately, loads one at a time in a separate task.

    `wake` is called when a load has ended, so that the next action is decided; `fail` when something failed for good;
    `judge`, after an error of the device, returns whether it is lost.
    """

    def __init__(
        self,
        root: Path,
        aliases: Sequence[Alias],
        *,
        bridge: Bridge,
        engines: EngineRegistry,
        closer: EngineCloser,
        state: StateKeeper,
        changes: Pulse,
        wake: Callable[[], None],
        make_factory: Callable[[], "EngineFactory"],
        fail: Callable[[FatalError], None],
        judge: Callable[[], Awaitable[bool]],
        limits: LoadLimits,
    ) -> None:
        self.running: Load | None = None
        self.factory: EngineFactory | None = None
        """Made by the first load; torch is imported then."""
        self.latest: deque[Attempt] = deque(maxlen=KEPT_ATTEMPTS)
        """The last attempts, newest first."""
        self.on_end: list[Callable[[Attempt], None]] = []
        """Called with each attempt at its end, however it ended."""
        self._root = root
        self._bridge = bridge
        self._engines = engines
        self._closer = closer
        self._state = state
        self._changes = changes
        self._wake = wake
        self._make_factory = make_factory
        self._fail = fail
        self._judge = judge
        self.keeps_trying = False
        """Whether what is being tried stays in the saved state: the end of this run counts as its crash."""
        self._making: Begun[EngineFactory] | None = None
        self._thread = LoadThread(bridge, limits, self._renew_reader)
        self.preparation = Preparation(bridge, engines, changes.fire)
        self._exchanger = Exchanger(aliases, self._thread, engines, self.preparation, changes)
        self._task: asyncio.Task[None] | None = None

    # --- what the supervisor and operators ask for

    async def promote_resident(self, alias: Alias, key: VersionKey) -> None:
        """Let an alias serve an engine that is resident."""
        attempt = self._new_attempt(alias, key, LoadWay.RESIDENT)
        attempt.begin_warming()
        alias.promote(attempt)
        self._changes.fire()
        self._end(attempt)
        await self._state.save()

    def begin_load(self, alias: Alias, key: VersionKey, *, fallback: bool) -> None:
        """Start to load a version, as the alias's wish or as its fallback; no other load may be running."""
        attempt = self._new_attempt(alias, key, LoadWay.DEVICE, fallback=fallback)
        attempt.control = LoadControl(lambda: self._bridge.post(self._changes.fire))
        link_stamp = None if fallback or alias.target is None else alias.target.link_stamp
        self.running = Load(alias, attempt, alias.forced, link_stamp)
        alias.forced = False
        self._task = asyncio.create_task(self._run(self.running), name=f"load {key.version}")
        self._task.add_done_callback(self._load_ended)

    def abandon(self, reason: AbandonReason) -> None:
        """Stop the running load, if there is one, at its next chunk."""
        load = self.running
        if load is None:
            return
        load.abandoned = load.abandoned or reason
        if load.attempt.control is not None:
            load.attempt.control.abandon()
        self._changes.fire()  # an exchange may be waiting for a long request

    def prepare(self) -> None:
        """Reserve memory for the next version, while nothing loads."""
        if self.running is None and self.factory is not None:
            self.preparation.begin(self.factory.device)

    async def stop(self) -> None:
        """Abandon the running load, and wait for its end as long as `LoadLimits` says."""
        self._thread.is_stopping = True
        if self._task is not None:
            self.abandon(AbandonReason.STOPPING)
            await asyncio.wait([self._task])
        if self._making is not None:
            self._making.leave()
        self.preparation.cancel()

    # --- the life of a load

    async def _run(self, load: Load) -> None:
        alias, attempt = load.alias, load.attempt
        _log.info("loading %s for %s", attempt.key.version, alias.name)
        try:
            await self._load_and_promote(load)
        except Abandoned:
            reason = load.abandoned or AbandonReason.SUPERSEDED
            attempt.abandon(reason.value)
            _log.info("%s is abandoned after %.2f s: %s", attempt.key.version, attempt.seconds, reason.value)
        except FatalError as error:  # not a fault of this version
            attempt.abandon(str(error))
            self._fail(error)
        except Rejection as rejection:
            if rejection.code in _OF_THE_DEVICE:
                await self._judge()
            alias.refuse(attempt, self._thread.explained(rejection), load.link_stamp, load.awaited)
        except Exception as error:  # an attempt without an end would begin again at once, in an endless loop
            _log.exception("load failed unexpectedly")
            await self._judge()
            unexpected = Rejection("internal_error", f"{type(error).__name__}: {error}")
            alias.refuse(attempt, unexpected, load.link_stamp, load.awaited)
        finally:
            self._end(attempt)
            while load.to_close:
                await self._closer.close(load.to_close.pop())
            if load.directory is not None and not (attempt.control is not None and attempt.control.is_left):
                load.directory.close()  # else it is closed when the thread that uses it has ended
            load.directory = None
            if not self.keeps_trying:
                alias.saved.trying = None
            await self._state.save()

    async def _load_and_promote(self, load: Load) -> None:
        alias, attempt = load.alias, load.attempt
        if not attempt.fallback and self._state.saved.is_set_aside(attempt.key):
            raise Rejection("set_aside", self._state.saved.why_set_aside(alias.name, attempt.key))
        try:
            if alias.target is not None and not attempt.fallback:
                load.directory = alias.target.directory.duplicate()
            else:
                load.directory = await self._thread.run(attempt, open_version, self._root, attempt.key.version)
            load.awaited = await self._thread.run(attempt, await_files, load.directory)
        except OSError as error:
            where = f"{error.filename}: " if isinstance(error.filename, str) else ""
            raise Rejection("io_error", f"{attempt.key.version}: {where}{error.strerror}") from None
        # Before the first byte is loaded: if this version kills the process, the next run must know.
        alias.saved.trying = attempt.key
        await self._state.save()
        # Requests wait during an exchange: they may go on only after the promotion.
        with ExitStack() as after_promotion:
            load.to_close = [await self._make_engine(load, load.directory, after_promotion)]
            load.to_close = self._finish(load, load.to_close[0])

    async def _make_engine(self, load: Load, directory: Directory, after_promotion: ExitStack) -> "Engine":
        """Load, verify, assemble and warm, in a thread."""
        attempt, factory, run = load.attempt, await self._get_factory(load), self._thread.run
        control = attempt.control
        assert control is not None  # it is made with the attempt of a load
        control.check()
        planned = await run(attempt, factory.plan, directory, attempt.key.digest, control)
        if await run(attempt, factory.lacks, planned):
            await self._closer.free_warm()
            old = load.alias.serving
            if old is not None and await self._exchanger.is_needed(factory, load.alias, attempt, planned, old):
                return await self._exchanger.exchange(
                    factory, load.alias, attempt, directory, planned, old, after_promotion
                )
        engine = await run(attempt, factory.build, directory, planned, control)
        attempt.begin_warming()
        self._changes.fire()
        try:
            await run(attempt, factory.warm, engine, control)
            control.check()
        except BaseException:
            await self._closer.close(engine)
            raise
        return engine

    async def _get_factory(self, load: Load) -> "EngineFactory":
        """Return the factory; the first load imports torch for it. A load that is abandoned does not wait for that."""
        while self.factory is None:
            if self._making is None:
                self._making = self._bridge.begin("import", self._make_factory)
            await asyncio.wait([self._making.future], timeout=CHECK_SECONDS)
            if self._making.future.done():
                made, self._making = self._making, None
                self.factory = made.future.result()
            elif load.abandoned:
                raise Abandoned
        return self.factory

    def _renew_reader(self) -> None:
        if self.factory is not None:
            self.factory.device.reader.renew()

    def _finish(self, load: Load, engine: "Engine") -> "list[Engine]":
        """Promote a warmed engine, with no await from the check of the wish to the assignment. Return the
        engines to close: one whose equal serves already, or the one that released its memory."""
        attempt, replaced = load.attempt, self._engines.being_exchanged
        resident = self._engines.resident(attempt.key)
        # After an exchange the only way back is another one, except when something else serves now, or nothing.
        if load.abandoned and (replaced is None or load.alias.serving is not replaced):
            raise Abandoned
        if resident is None:
            self._engines.admit(attempt.key, engine)
        else:
            resident.engine.plan = engine.plan  # the same bytes, verified in files that were written again
        self.preparation.note_promoted(attempt.key)
        with attempt.control.phase("promote") if attempt.control is not None else nullcontext():
            load.alias.promote(attempt)
        self._changes.fire()
        to_close = [] if resident is None else [engine]
        if replaced is not None:
            to_close.append(self._engines.free(replaced.key))
        return to_close

    def _load_ended(self, task: asyncio.Task[None]) -> None:
        self.running = self._task = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("finishing a load failed unexpectedly", exc_info=error)
        self._wake()
        self._changes.fire()

    # --- the list of attempts

    def _new_attempt(self, alias: Alias, key: VersionKey, way: LoadWay, *, fallback: bool = False) -> Attempt:
        attempt = Attempt(alias.name, key, way, fallback=fallback)
        self.latest.appendleft(attempt)
        if not fallback:
            alias.attempt = attempt
        return attempt

    def _end(self, attempt: Attempt) -> None:
        for listener in [] if attempt.running else self.on_end:
            listener(attempt)
