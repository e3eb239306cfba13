"""The life of one attempt: from its version's directory to its promotion or its end."""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from zwatch.bridge import Begun, Bridge, Pulse
from zwatch.deploy.look import open_version
from zwatch.deploy.resolving import Directory
from zwatch.errors import Abandoned, FatalError, Rejection
from zwatch.rollout.alias import Alias
from zwatch.rollout.engines import EngineCloser, EngineRegistry
from zwatch.rollout.exchange import Exchanger
from zwatch.rollout.gate import Gate
from zwatch.rollout.lifecycle import Attempt, LoadWay, VersionKey
from zwatch.rollout.load import AbandonReason, Load
from zwatch.rollout.load_thread import CHECK_SECONDS, LoadLimits, LoadThread, rejection_of
from zwatch.rollout.neighbour import Neighbour
from zwatch.rollout.prepare import Preparation
from zwatch.rollout.state import StateKeeper
from zwatch.rollout.verdicts import Verdicts
from zwatch.shadow.control import LoadControl
from zwatch.shadow.prefetch import Prefetch

if TYPE_CHECKING:
    from zwatch.engine.factory import EngineFactory
    from zwatch.engine.pipeline import Engine

_log = logging.getLogger(__name__)

KEPT_ATTEMPTS = 100
_REOPEN_SECONDS = 1.0
_OF_THE_DEVICE = ("device_error", "out_of_memory", "internal_error", "bad_image", "golden_mismatch", "stalled")
"""Codes of rejections that a device may cause which does not work any more."""


class AttemptRunner:
    """Carries out attempts: promotions of resident engines immediately, loads one at a time in a separate task.

    `wake` is called when a load has ended, so that the next action is decided; `fail` when something failed for good;
    `judge`, after an error of the device, returns whether it is lost.
    """

    def __init__(
        self,
        root: Path,
        records: Mapping[str, Alias],
        *,
        bridge: Bridge,
        engines: EngineRegistry,
        closer: EngineCloser,
        state: StateKeeper,
        changes: Pulse,
        wake: Callable[[], None],
        make_factory: Callable[[LoadControl], "EngineFactory"],
        fail: Callable[[FatalError], None],
        judge: Callable[[], Awaitable[bool]],
        limits: LoadLimits,
        gate: Gate,
    ) -> None:
        self.running: Load | None = None
        self.factory: EngineFactory | None = None
        """Made by the first load; torch is imported then."""
        self.latest: deque[Attempt] = deque(maxlen=KEPT_ATTEMPTS)
        """The last attempts, newest first."""
        self.verdicts = Verdicts()
        self.on_end: list[Callable[[Attempt], None]] = [self.verdicts.note]
        """Called with each attempt at its end, however it ended."""
        self._root, self._records = root, records
        self._bridge = bridge
        self._engines = engines
        self._closer = closer
        self._state = state
        self._changes = changes
        self._wake, self._make_factory = wake, make_factory
        self._fail, self._judge, self._gate = fail, judge, gate
        self.keeps_trying = False
        """Whether what is being tried stays in the saved state: the end of this run counts as its crash."""
        self.distrusted: list[str] = []
        """Digests of versions with which the previous run crashed."""
        self._making: Begun[EngineFactory] | None = None
        self._opening = LoadControl()
        self._thread = LoadThread(bridge, limits, self._renew_reader)
        self.preparation = Preparation(bridge, engines, changes.fire)
        self.neighbour = Neighbour(records, bridge, closer, self.preparation)
        self._exchanger = Exchanger(records, self._thread, engines, self.preparation, changes)
        self._task: asyncio.Task[None] | None = None

    # --- what the supervisor and operators ask for

    async def promote_resident(self, alias: Alias, key: VersionKey) -> None:
        """Let an alias serve an engine that is resident."""
        attempt = self.new_attempt(alias, key, LoadWay.RESIDENT)
        if await self._gate.admits(alias, attempt, self._engines, self._bridge):
            if self._records.get(alias.key) is not alias:
                attempt.abandon("its link is gone")
            else:
                attempt.begin_warming()
                alias.promote(attempt)
        self._changes.fire()
        self.end(attempt)
        await self._state.save()

    def begin_load(self, alias: Alias, key: VersionKey, *, fallback: bool) -> None:
        """Start to load a version, as the alias's wish or as its fallback; no other load may be running."""
        attempt = self.new_attempt(alias, key, LoadWay.DEVICE, fallback=fallback)
        attempt.control = LoadControl(lambda: self._bridge.post(self._changes.fire))
        link_stamp = None if fallback or alias.target is None else alias.target.link_stamp
        self.running = Load(alias, attempt, alias.forced, link_stamp)
        alias.forced = False
        self._task = asyncio.create_task(self._run(self.running), name=f"load {key.version}")
        self._task.add_done_callback(self._load_ended)

    def begin_again(self, alias: Alias) -> Attempt:
        """Begin an attempt for what an alias serves already: whether it can make images is in doubt."""
        assert alias.serving is not None
        key = alias.serving.key
        attempt = self.new_attempt(alias, key, LoadWay.RESIDENT, fallback=key != alias.wish)
        attempt.control = LoadControl(lambda: self._bridge.post(self._changes.fire))
        attempt.signer = alias.serving.signer
        attempt.begin_warming()
        self._changes.fire()
        return attempt

    async def warm_again(self, attempt: Attempt, engine: "Engine") -> None:
        """Make the warm-up image of an engine that serves.

        Raises:
            Rejection, Abandoned: as `EngineFactory.warm`.
        """
        assert self.factory is not None
        assert attempt.control is not None  # it is made with the attempt
        await self._thread.run(attempt, self.factory.warm, engine, attempt.control)

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
        if self.running is None and self.factory is not None and not self.neighbour.needs_room:
            self.preparation.begin(self.factory.device)

    async def pause(self) -> None:
        """Abandon the running load, and wait for its end as long as `LoadLimits` says."""
        self._thread.is_stopping = True
        if self._task is not None:
            self.abandon(AbandonReason.STOPPING)
            await asyncio.wait([self._task])

    def resume(self) -> None:
        """Load again, after a `pause`."""
        self._thread.is_stopping = False

    def leave(self) -> None:
        """Wait for nothing more, after a `pause`."""
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
        except Exception as error:  # an attempt without an end would begin again at once, in an endless loop
            await self._refuse(load, error)
        finally:
            self.end(attempt)
            while load.to_close:
                await self._closer.close(load.to_close.pop())
            if load.directory is not None and not (attempt.control is not None and attempt.control.is_left):
                load.directory.close()  # else it is closed when the thread that uses it has ended
            load.directory = None
            if not self.keeps_trying:
                load.alias.saved.trying = None
            await self._state.save()

    async def _refuse(self, load: Load, error: Exception) -> None:
        rejection = rejection_of(load.attempt.key.version, error)  # here, where it is in none of the error's frames
        if rejection.code in _OF_THE_DEVICE:
            await self._judge()
        load.alias.refuse(load.attempt, self._thread.explained(rejection), load.link_stamp, load.awaited)

    async def _load_and_promote(self, load: Load) -> None:
        alias, attempt = load.alias, load.attempt
        if not attempt.fallback and self._state.saved.is_set_aside(attempt.key):
            raise Rejection("set_aside", self._state.saved.why_set_aside(alias.key, attempt.key, alias.name))
        if alias.target is not None and not attempt.fallback:
            load.directory = alias.target.directory.duplicate()
        else:
            load.directory = await self._thread.run(attempt, open_version, self._root, attempt.key.version)
        await self._gate.examine(load, self._thread)
        # Before the first byte is loaded: if this version kills the process, the next run must know.
        load.alias.saved.trying = attempt.key
        await self._state.save()
        # Requests wait during an exchange: they may go on only after the promotion.
        with ExitStack() as after_promotion:
            load.to_close = [await self._make_engine(load, load.directory, after_promotion)]
            load.to_close = self._finish(load, load.to_close[0])

    async def _make_engine(self, load: Load, directory: Directory, after_promotion: ExitStack) -> "Engine":
        """Load, verify, assemble and warm, in a thread."""
        attempt, run, control = load.attempt, self._thread.run, load.attempt.control
        assert control is not None  # it is made with the attempt of a load
        prefetch = Prefetch(directory) if self.factory is None else None
        try:
            factory = await self._get_factory(load, control)
        finally:
            if prefetch is not None:
                prefetch.end()
        control.check()
        planned = await run(attempt, factory.plan, directory, attempt.key.digest, control)
        if self.neighbour.is_leaving() and await run(attempt, factory.lacks, planned):
            await self.neighbour.wait_for_room(control)
        if await run(attempt, factory.lacks, planned):
            await self._closer.free_warm()
            old = load.alias.serving
            is_needed = old is not None and await self._exchanger.is_needed(factory, load.alias, attempt, planned, old)
            if old is not None and is_needed and load.alias.is_share:
                self._wake()  # what has no lease any more is freed then
                await self._exchanger.give_up(load.alias, attempt.key.version, old, control, self._closer)
            elif old is not None and is_needed:
                return await self._exchanger.exchange(
                    factory, load.alias, attempt, directory, planned, old, after_promotion
                )
        engine = await run(attempt, factory.build, directory, planned, control)
        attempt.begin_warming()
        self._changes.fire()
        try:
            # While nothing serves, requests wait: what was proved here before is judged by the first of them.
            if (
                load.alias.serving is not None
                or load.alias.is_share
                or not await run(attempt, factory.is_proven, engine)
            ):
                await run(attempt, factory.warm, engine, control)
            control.check()
        except BaseException:
            await self._closer.close(engine)
            raise
        return engine

    async def _get_factory(self, load: Load, control: LoadControl) -> "EngineFactory":
        """Return the factory; the first load imports torch for it. A load that is abandoned does not wait for that."""
        while self.factory is None:
            if self._making is None:
                self._opening = LoadControl()
                self._making = self._bridge.begin("import", self._make_factory, self._opening)
            await asyncio.wait([self._making.future], timeout=CHECK_SECONDS)
            control.activity = self._opening.activity
            if self._making.future.done():
                made, self._making = self._making, None
                if isinstance(made.future.exception(), Rejection) and self.neighbour.is_leaving():
                    await asyncio.sleep(_REOPEN_SECONDS)  # until the process that was taken over lets go of the device
                    control.check()
                    continue
                self.factory = made.future.result()
                for digest in self.distrusted:
                    self.factory.distrust(digest)
                control.add_phases(self._opening)
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

    def new_attempt(self, alias: Alias, key: VersionKey, way: LoadWay, *, fallback: bool = False) -> Attempt:
        """Begin an attempt, and list it."""
        attempt = Attempt(alias.key, key, way, fallback=fallback, linked_ns=None if fallback else alias.linked_ns)
        attempt.shown = alias.name
        self.latest.appendleft(attempt)
        if not fallback:
            alias.attempt = attempt
        return attempt

    def end(self, attempt: Attempt) -> None:
        """Tell the listeners that an attempt has ended, if it has."""
        for listener in [] if attempt.running else self.on_end:
            listener(attempt)
