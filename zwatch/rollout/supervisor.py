"""The supervisor: looks, decides one action at a time, and carries it out while requests go on.

Everything here runs on the event loop; what blocks goes through the bridge. The decisions themselves are in `policy`.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from zwatch.bridge import Bridge, Pulse
from zwatch.deploy.look import Awaited, Look, Looker, await_files, open_version
from zwatch.deploy.resolving import Directory, LinkStamp, Target
from zwatch.errors import Abandoned, Rejection
from zwatch.rollout import policy
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.exchange import Exchanger
from zwatch.rollout.lifecycle import Attempt, EngineState, VersionKey
from zwatch.rollout.prepare import Preparation
from zwatch.rollout.refusals import Refusals
from zwatch.rollout.state import SavedState, StateFile, serialise

if TYPE_CHECKING:
    from zwatch.engine.factory import EngineFactory
    from zwatch.engine.pipeline import Engine

_log = logging.getLogger(__name__)

TICK = 0.25
"""Seconds between two looks when no event asks for one: the cost of a lost event."""
KEPT_ATTEMPTS = 100
GOOD_IMAGES = 3
GOOD_SECONDS = 60.0


@dataclass(eq=False)
class _Loading:
    attempt: Attempt
    task: asyncio.Task[None]
    forced: bool
    abandoned: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a wish ended, for whoever waits: it serves, or it does not and `attempt` or `message` says why."""

    serves: bool
    message: str
    version: str | None = None
    attempt: Attempt | None = None


@dataclass(frozen=True, slots=True)
class Moment:
    """What was asked for at one moment: how many loads at somebody's word, and each alias's link stamp."""

    loads: int
    links: tuple[LinkStamp, ...]


@dataclass(eq=False)
class _AliasState:
    """What the supervisor knows of one alias beside what the engines and the memory know."""

    attempt: Attempt | None = None
    forced: bool = False
    served: VersionKey | None = None
    """What it served before an unload, or in the run before this one."""
    refusals: Refusals = field(default_factory=Refusals)


class Supervisor:
    """Brings into service what the followed aliases ask for."""

    def __init__(
        self,
        root: Path,
        aliases: Sequence[str],
        *,
        strict_links: bool,
        bridge: Bridge,
        engines: EngineRegistry,
        state_file: StateFile,
        make_factory: Callable[[], "EngineFactory"],
    ) -> None:
        self._root = root
        self.aliases = tuple(aliases)
        self.changes = Pulse()
        self.attempts: deque[Attempt] = deque(maxlen=KEPT_ATTEMPTS)
        self.on_end: list[Callable[[Attempt], None]] = []
        """Called with each attempt at its end, however it ended."""
        self.seen = Look()
        self.factory: EngineFactory | None = None
        self._make_looker = partial(Looker, root, aliases, strict_links=strict_links)
        self._looker = self._make_looker()
        self._bridge = bridge
        self._engines = engines
        self._state_file = state_file
        self._make_factory = make_factory
        self._memory = SavedState()
        self._preparation = Preparation(bridge, engines, self.changes.fire)
        self._exchanger = Exchanger(self.aliases, bridge, engines, self._preparation, self.changes)
        self._states = {alias: _AliasState() for alias in aliases}
        self._loading: _Loading | None = None
        self._closing = 0
        self._loads_asked = 0
        self._remembered = True
        self._bell = asyncio.Event()
        self._looks = 0
        self._looked = Pulse()
        self._stopping = False

    # --- what others ask

    def ring(self) -> None:
        """Look again now. From another thread, go through the bridge."""
        self._bell.set()

    def attempt(self, alias: str) -> Attempt | None:
        """Return the last attempt that the alias's wish has led to."""
        return self._states[alias].attempt

    def wish(self, alias: str) -> VersionKey | None:
        """Return what the alias asks for, as last seen."""
        target = self.seen.targets.get(alias)
        return None if target is None else VersionKey(target.version, target.digest)

    def is_unloaded(self, alias: str) -> bool:
        """Say whether the alias was unloaded by hand, and not linked anew since."""
        unloaded = self._memory.alias(alias).unloaded
        target = self.seen.targets.get(alias)
        return unloaded is not None and (target is None or target.link_stamp == unloaded)

    def _link_stamp(self, alias: str) -> LinkStamp:
        """Return the stamp of the alias's link, wherever it leads."""
        seen = self.seen.targets.get(alias) or self.seen.faults.get(alias)
        return _NO_LINK if seen is None or seen.link_stamp is None else seen.link_stamp

    def previous(self, alias: str) -> VersionKey | None:
        """Return what the alias served before what it serves now, also across a restart."""
        return self._engines.previous(alias) or self._memory.alias(alias).previous

    @property
    def settled_once(self) -> bool:
        """Whether the first wishes have been decided, one way or the other."""
        return self._looks > 0 and self._loading is None and self._next_action() is None

    # --- the loop

    async def start(self) -> None:
        """Read what is remembered; to be called before `run`."""
        self._memory = await self._bridge.run("state", self._state_file.read)
        self._looker = self._make_looker(refused=self._memory.refused)
        for alias in self.aliases:
            self._states[alias].served = self._memory.alias(alias).serving
        crashed = self._memory.begin_run()
        if crashed:
            _log.warning("the last run ended without a word while %s served or was tried", _names(crashed))
        for alias in self.aliases:
            previous = self._memory.alias(alias).previous
            if previous is not None:
                self._engines.remember_previous(alias, previous)
        await self._remember()

    async def run(self) -> None:
        """Look and act, for ever."""
        while True:
            try:
                await self._look()
                await self._act()
                self._prepare()
            except Exception:
                # A supervisor that dies would leave the link unfollowed without a word.
                _log.exception("the supervisor stumbled; it looks again at the next tick")
                await asyncio.sleep(TICK)
            try:
                # Not wait_for: before Python 3.12 it can swallow a cancellation, and this loop would never end.
                async with asyncio.timeout(TICK):
                    await self._bell.wait()
            except TimeoutError:
                pass

    async def stop(self) -> None:
        """Abandon what is loading and note that this run ended by itself."""
        self._stopping = True
        if self._loading is not None:
            self._abandon()
            await asyncio.wait([self._loading.task])
        self._preparation.cancel()
        self._memory.end_run()
        await self._remember()

    def stop_at_once(self) -> None:
        """Note, blocking, that this run ends by somebody's hand and not by a crash; the process exits next."""
        self._memory.end_run()
        try:
            self._state_file.write(serialise(self._memory))
        except OSError as error:
            _log.warning("the state directory could not be written: %s", error.strerror)

    async def _look(self) -> None:
        self._bell.clear()
        waiting = [refusal for state in self._states.values() for refusal in state.refusals.awaiting()]
        awaited = [refusal.awaited for refusal in waiting if refusal.awaited is not None]
        seen = await self._bridge.run("look", self._looker.look, awaited)
        for note in seen.notes:
            _log.warning("%s", note)
        for position in seen.changed:
            waiting[position].note_change()
        for alias, fault in seen.faults.items():
            if self.seen.faults.get(alias) != fault:
                _log.warning("%s", fault.message)
        for stray in seen.strays:
            if stray not in self.seen.strays:
                _log.warning("%s -> %s was not followed: %s", stray.path, stray.text, stray.reason)
        news = (seen.targets, seen.faults, seen.strays) != (self.seen.targets, self.seen.faults, self.seen.strays)
        self.seen = seen
        for alias, target in seen.targets.items():
            self._note_link(alias, target)
        if list(seen.refused) != self._memory.refused:
            self._memory.refused = list(seen.refused)
            await self._remember()
        self._looks += 1
        self._looked.fire()
        await self._note_good()
        if news or self._looks == 1:
            self.changes.fire()

    def _note_link(self, alias: str, target: Target) -> None:
        """A link made anew, or a version sealed anew, clears what was remembered against it."""
        memory = self._memory.alias(alias)
        self._states[alias].refusals.keep_only(VersionKey(target.version, target.digest), target.link_stamp)
        if memory.unloaded is not None and memory.unloaded != target.link_stamp:
            memory.unloaded = None

    async def _act(self) -> None:
        while (action := self._next_action()) is not None:
            match action:
                case policy.Abandon():
                    self._abandon()
                case policy.Promote(alias, key):
                    await self._promote_resident(alias, key)
                case policy.Load(alias, key, fallback):
                    self._begin_load(alias, key, fallback)
                case policy.Keep(key):
                    self._engines.keep(key)
                case policy.Free(key):
                    await self._free(key)
            self.changes.fire()

    def _next_action(self) -> policy.Action | None:
        if self._stopping:
            return None
        now = time.monotonic()
        views = [self._view(alias, now) for alias in self.aliases]
        engines = [
            policy.EngineView(
                resident.key,
                resident.state,
                resident.leases,
                self._engines.wanted(resident.key),
                self._engines.is_usable(resident),
            )
            for resident in self._engines.residents
        ]
        loading = None
        if self._loading is not None:
            attempt = self._loading.attempt
            loading = policy.LoadView(
                attempt.alias, attempt.key, attempt.fallback, self._loading.forced, self._loading.abandoned
            )
        return policy.decide(views, engines, loading)

    def _view(self, alias: str, now: float) -> policy.AliasView:
        state = self._states[alias]
        serving, wish = self._engines.serving(alias), self.wish(alias)
        refusal = state.refusals.find(wish)
        running = None if self._loading is None else self._loading.attempt
        fallback_loads = running is not None and running.alias == alias and running.fallback
        fallback = None
        if serving is None:
            usable = (
                key
                for key in self._memory.fallbacks(alias)
                if (refused := state.refusals.find(key, fallback=True)) is None or refused.due(now)
            )
            fallback = next(usable, None)
        return policy.AliasView(
            name=alias,
            wish=wish,
            serving=None if serving is None else serving.key,
            held=self.is_unloaded(alias),
            # Last-known-good that is on its way in is not given up for another try of what was just rejected.
            refused=refusal is not None and not state.forced and (fallback_loads or not refusal.due(now)),
            forced=state.forced,
            fallback=fallback,
        )

    # --- actions

    def _abandon(self) -> None:
        assert self._loading is not None  # the policy abandons only what is loading
        self._loading.abandoned = True
        if self._loading.attempt.control is not None:
            self._loading.attempt.control.abandon()
        self.changes.fire()  # an exchange may be waiting for a request that takes long

    async def _promote_resident(self, alias: str, key: VersionKey) -> None:
        attempt = self._new_attempt(alias, key, "resident")
        attempt.warming()
        self._promote(attempt)
        self._ended(attempt)
        await self._remember()

    def _begin_load(self, alias: str, key: VersionKey, fallback: bool) -> None:
        attempt = self._new_attempt(alias, key, "device", fallback)
        state = self._states[alias]
        task = asyncio.create_task(self._load(attempt), name=f"load {key.version}")
        self._loading = _Loading(attempt, task, state.forced)
        state.forced = False
        task.add_done_callback(self._load_ended)

    def _load_ended(self, task: asyncio.Task[None]) -> None:
        self._loading = None
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("a load ended in a way nobody thought of", exc_info=error)
        self.ring()
        self.changes.fire()

    def _prepare(self) -> None:
        if self._loading is None and not self._stopping and self.factory is not None:
            self._preparation.begin(self.factory.device)

    async def _free(self, key: VersionKey) -> None:
        engine = self._engines.free(key)
        self._closing += 1
        try:
            await self._bridge.run("close", engine.close)
        finally:
            self._closing -= 1
        _log.info("%s is freed", key.version)

    async def _load(self, attempt: Attempt) -> None:
        """Walk one attempt from its directory to its promotion or its end."""
        alias, key = attempt.alias, attempt.key
        target = self.seen.targets.get(alias)
        stamp = None if target is None or attempt.fallback else target.link_stamp
        directory: Directory | None = None
        awaited: Awaited | None = None
        leftover: list[Engine] = []
        _log.info("loading %s for %s", key.version, alias)
        try:
            if not attempt.fallback and self._memory.is_set_aside(key, stamp):
                raise Rejection("set_aside", f"{key.version} served or was tried at two crashes in a row; link it anew")
            if target is not None and not attempt.fallback:
                directory = target.directory.duplicate()
            else:
                directory = await self._bridge.run("look", _open_fallback, self._root, key)
            awaited = await self._bridge.run("look", await_files, directory)
            await self._remember_trying(attempt, stamp)
            with ExitStack() as held:
                leftover.append(await self._make_engine(attempt, directory, held))
                leftover = self._finish(attempt, leftover[0])
        except Abandoned:
            attempt.abandoned()
            _log.info("%s is abandoned after %.2f s: a newer wish came", key.version, attempt.seconds)
        except Rejection as rejection:
            self._refuse(attempt, rejection, stamp, awaited)
        except Exception as error:  # without an end it would be begun again at once, for ever
            _log.exception("a load ended in a way nobody thought of")
            self._refuse(attempt, Rejection("internal_error", f"{type(error).__name__}: {error}"), stamp, awaited)
        finally:
            self._ended(attempt)
            for engine in leftover:
                await self._bridge.run("close", engine.close)
            if directory is not None:
                directory.close()
            self._memory.alias(alias).trying = None
            await self._remember()

    async def _make_engine(self, attempt: Attempt, directory: Directory, held: ExitStack) -> "Engine":
        """Load, verify, assemble and warm, in a thread. What requests wait for meanwhile is in `held`."""
        if self.factory is None:
            self.factory = await self._bridge.run("load", self._make_factory)
        factory, control = self.factory, self.factory.control(lambda: self._bridge.post(self.changes.fire))
        attempt.control = control
        if self._abandoned:
            raise Abandoned
        planned = await self._bridge.run("load", factory.plan, directory, attempt.key.digest)
        if await self._bridge.run("load", factory.lacks, planned):
            await self._free_warm()
            old = self._engines.serving(attempt.alias)
            if old is not None and await self._exchanger.is_needed(factory, attempt, planned, old):
                return await self._exchanger.exchange(factory, attempt, directory, planned, old, held)
        engine = await self._bridge.run("load", factory.build, directory, planned, control)
        attempt.warming()
        self.changes.fire()
        try:
            await self._bridge.run("load", factory.warm, engine, control)
            control.check()
        except BaseException:
            await self._bridge.run("close", engine.close)
            raise
        return engine

    async def _free_warm(self) -> None:
        """Give up warm engines: a new version needs their memory more than a flip back does."""
        for resident in self._engines.residents:
            if resident.state is EngineState.WARM and resident.leases == 0:
                await self._free(resident.key)

    def _finish(self, attempt: Attempt, engine: "Engine") -> list["Engine"]:
        """Promote a warmed engine, with no await from the check of the wish to the assignment. Return what is to be
        closed: an engine whose equal serves already, or what gave its memory away."""
        resident, leaving = self._engines.resident(attempt.key), self._engines.leaving
        # After an exchange there is no way back but another one, except when by now something else serves, or nothing.
        if self._abandoned and (leaving is None or self._engines.serving(attempt.alias) is not leaving):
            raise Abandoned
        if resident is None:
            self._engines.admit(attempt.key, engine)
        else:
            resident.engine.plan = engine.plan  # the same bytes, verified in files that were written anew
        self._preparation.note_promoted(attempt.key)
        with attempt.control.phase("promote") if attempt.control is not None else nullcontext():
            self._promote(attempt)
        leftover = [] if resident is None else [engine]
        if leaving is not None:
            leftover.append(self._engines.free(leaving.key))
        return leftover

    @property
    def _abandoned(self) -> bool:
        return self._loading is not None and self._loading.abandoned

    def _promote(self, attempt: Attempt) -> None:
        alias, key = attempt.alias, attempt.key
        state, memory = self._states[alias], self._memory.alias(alias)
        first = self._engines.serving(alias) is None
        self._engines.promote(alias, key)
        if first:  # since the start or an unload: what it served before that is the version before
            before = next((known for known in (state.served, memory.previous) if known not in (None, key)), None)
            self._engines.remember_previous(alias, before)
        attempt.promoted()
        state.refusals.forget(key, fallback=attempt.fallback)
        memory.serving, memory.previous = key, self._engines.previous(alias)
        target = self.seen.targets.get(alias)
        memory.stamp = None if target is None else target.link_stamp
        _log.info("%s serves %s (%s, %.2f s)", alias, key.version, attempt.way, attempt.seconds)
        self.changes.fire()

    def _refuse(self, attempt: Attempt, rejection: Rejection, stamp: LinkStamp | None, awaited: Awaited | None) -> None:
        # A copy: the one that was raised holds on to frames, and through them to the buffers of the failed load.
        rejection = Rejection(rejection.code, rejection.reason)
        attempt.rejected(rejection)
        refusals = self._states[attempt.alias].refusals
        refusals.add(attempt.key, rejection, stamp, awaited, fallback=attempt.fallback)
        _log.warning("%s is rejected (%s): %s", attempt.key.version, rejection.code, rejection.reason)

    def _ended(self, attempt: Attempt) -> None:
        for listener in [] if attempt.running else self.on_end:
            listener(attempt)

    def _new_attempt(self, alias: str, key: VersionKey, way: str, fallback: bool = False) -> Attempt:
        attempt = Attempt(alias, key, way, fallback=fallback)
        self.attempts.appendleft(attempt)
        if not fallback:
            self._states[alias].attempt = attempt
        return attempt

    # --- what is remembered

    async def _remember(self) -> None:
        try:
            await self._bridge.run("state", self._state_file.write, serialise(self._memory))
        except OSError as error:
            if self._remembered:
                _log.warning("the state directory could not be written, trying on: %s", error.strerror)
            self._remembered = False
        else:
            self._remembered = True

    async def _remember_trying(self, attempt: Attempt, stamp: LinkStamp | None) -> None:
        """Before the first byte is loaded: if this version kills the process, the next run must know."""
        memory = self._memory.alias(attempt.alias)
        memory.trying = attempt.key
        memory.stamp = stamp or memory.stamp
        await self._remember()

    async def _note_good(self) -> None:
        now = time.monotonic()
        news = False
        for alias in self.aliases:
            serving = self._engines.serving(alias)
            if serving is None:
                continue
            if serving.images >= GOOD_IMAGES or now - serving.serving_from >= GOOD_SECONDS:
                news |= self._memory.note_good(alias, serving.key)
        if news or not self._remembered:
            await self._remember()

    # --- at somebody's word

    async def look_now(self) -> None:
        """Return after a look that began after this call."""
        # The look under way may have begun before; the one after it has not.
        for _ in range(2):
            self.ring()
            await self._looked.wait()

    async def outcome(self, alias: str, version: str, stamp: LinkStamp) -> Outcome:
        """Wait until the wish that a link of this stamp expresses is decided."""
        await self.look_now()
        while True:
            target = self.seen.targets.get(alias)
            if target is None or target.link_stamp != stamp:
                return Outcome(False, f"superseded: {alias} was linked anew before {version} was decided")
            decided = self._decided(alias)
            if decided is not None:
                return decided
            await self.changes.wait()

    async def load(self, alias: str) -> Outcome:
        """Load what the alias asks for, also after a rejection, an unload, or if it serves but its files changed."""
        memory, state = self._memory.alias(alias), self._states[alias]
        memory.unloaded = None
        self._loads_asked += 1
        self.changes.fire()
        state.refusals.clear()
        await self.look_now()
        serving, wish = self._engines.serving(alias), self.wish(alias)
        if serving is not None and serving.key == wish and await self._files_changed(alias, serving.engine):
            state.forced = True
            self.ring()
        while True:
            if alias in self.seen.faults:
                return Outcome(False, self.seen.faults[alias].message)
            decided = self._decided(alias)
            if decided is not None and (not state.forced or self.is_unloaded(alias)):
                return decided
            await self.changes.wait()

    def moment(self) -> Moment:
        """Note what is asked for now, to see later whether somebody asked for something newer."""
        return Moment(self._loads_asked, tuple(self._link_stamp(alias) for alias in self.aliases))

    async def moment_of_call(self) -> Moment:
        """Note what is asked for now, a link included that was made before this call though no look has seen it yet. One
        made since then is newer: it is left out, so that `moment` differs."""
        called, before = time.time_ns(), self.moment()
        await self.look_now()
        seen = zip(before.links, self.moment().links, strict=True)
        return Moment(before.loads, tuple(new if new.ctime_ns <= called else old for old, new in seen))

    async def unload(self, asked: Moment | None = None) -> bool:
        """Serve nothing and free everything, until a load is asked for or a link is made anew. Requests that hold a
        lease finish first; the caller has seen to it that no others wait. Return False if somebody asked for a load, or
        linked anew, after `asked` (else after this call): that is the newer wish."""
        asked = asked or self.moment()
        if self.moment() != asked:
            return False
        for alias in self.aliases:
            memory, serving = self._memory.alias(alias), self._engines.serving(alias)
            memory.unloaded = self._link_stamp(alias)
            if serving is not None:
                self._states[alias].served = serving.key
            memory.serving = None  # a crash from now on is not its fault
            self._states[alias].forced = False
            self._engines.withdraw(alias)
        if self._loading is not None:
            self._abandon()  # at once: it may end before the next action is decided
        await self._remember()
        self.ring()
        while self._engines.residents or self._loading is not None or self._closing:
            if self.moment() != asked:
                return False
            self.ring()
            await self.changes.wait()
        return True

    def _decided(self, alias: str) -> Outcome | None:
        """Return how the alias's present wish ended, or None while that is open."""
        serving, wish, state = self._engines.serving(alias), self.wish(alias), self._states[alias]
        if self.is_unloaded(alias):
            return Outcome(False, f"{alias} was unloaded meanwhile")
        if self._loading is not None and self._loading.attempt.alias == alias and not self._loading.attempt.fallback:
            return None
        if wish is not None and (refusal := state.refusals.find(wish)) is not None:
            return Outcome(False, refusal.rejection.reason, wish.version, state.attempt)
        if serving is not None and serving.key == wish:
            return Outcome(True, f"{serving.key.version} is serving", serving.key.version, state.attempt)
        return None

    async def _files_changed(self, alias: str, engine: "Engine") -> bool:
        target = self.seen.targets[alias]
        stamps = await self._bridge.run("look", target.directory.file_stamps, list(engine.plan.stamps))
        return stamps != engine.plan.stamps


_NO_LINK = LinkStamp(0, 0, 0)
"""Stands for the stamp of a link that was not there when its alias was unloaded."""


def _open_fallback(root: Path, key: VersionKey) -> Directory:
    try:
        return open_version(root, key.version)
    except OSError as error:
        raise Rejection("io_error", f"{key.version}: {error.strerror}") from None


def _names(keys: Sequence[VersionKey]) -> str:
    return " and ".join(key.version for key in keys)
