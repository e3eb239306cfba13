"""The supervisor: looks, decides one action at a time, and carries it out while requests go on.

Everything here runs on the event loop; what blocks goes through the bridge. The decisions themselves are in `policy`,
what is known of each alias is in `alias`, and the life of an attempt is in `attempt`.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from zwatch.bridge import Bridge, NoAnswer, Pulse
from zwatch.deploy.look import Look, Looker
from zwatch.deploy.looking import QuickLooker, log_news
from zwatch.errors import FatalError, Rejection
from zwatch.rollout import policy
from zwatch.rollout.alias import Alias
from zwatch.rollout.attempt import AttemptRunner
from zwatch.rollout.device_judge import DeviceJudge
from zwatch.rollout.engines import EngineCloser, EngineRegistry
from zwatch.rollout.first_image import FirstImageJudge
from zwatch.rollout.gate import Gate
from zwatch.rollout.lifecycle import Attempt, VersionKey
from zwatch.rollout.link_book import LinkBook
from zwatch.rollout.load import AbandonReason
from zwatch.rollout.load_thread import LoadLimits
from zwatch.rollout.previous_run import begin_run
from zwatch.rollout.records import Records
from zwatch.rollout.refusals import BACKOFF_FIRST
from zwatch.rollout.saved import Failure
from zwatch.rollout.state import StateFile, StateKeeper
from zwatch.rollout.traffic import Traffic
from zwatch.rollout.withdrawal import Withdrawal
from zwatch.shadow.control import LoadControl
from zwatch.shadow.faults import described

if TYPE_CHECKING:
    from zwatch.engine.factory import EngineFactory

_log = logging.getLogger(__name__)

TICK = 0.25
"""Seconds between two looks when nothing calls `ring`: the cost of a lost event."""


class Supervisor:
    """Brings into service what the followed aliases ask for.

    `first_pause` is the seconds before the first retry of a version that failed for lack of memory or on a device error,
    `policy_file` that of `--require-signature`.
    """

    failure: FatalError | None = None
    """Why the service has to stop, see `fail`."""
    fault: str | None = None
    """Why the links could not be looked at or followed the last time; None if they were."""
    previous_run: Failure | None = None
    """How the run before ended; None if there was none."""

    def __init__(
        self,
        root: Path,
        aliases: Sequence[str],
        *,
        strict_links: bool,
        bridge: Bridge,
        engines: EngineRegistry,
        state_file: StateFile,
        make_factory: Callable[[LoadControl], "EngineFactory"],
        first_pause: float = BACKOFF_FIRST,
        policy_file: Path | None = None,
        limits: LoadLimits = LoadLimits(),  # noqa: B008 (frozen)
    ) -> None:
        self.root = root
        self.gate = Gate(policy_file)
        make = partial(Alias, engines=engines, first_pause=first_pause, needs_signature=self.gate.needs_signature)
        self.records = Records(aliases, make, engines)
        self.traffic, self.changes, self.seen = Traffic(self.records, engines), Pulse(), Look()
        """The latest look."""
        self.state = StateKeeper(bridge, state_file, self.changes.fire)
        self._bridge, self._engines, self._closer = bridge, engines, EngineCloser(bridge, engines)
        self._make_looker = partial(QuickLooker, partial(Looker, root, aliases, strict_links=strict_links))
        self._looker = self._make_looker()
        self.device_judge = DeviceJudge(
            bridge, lambda: None if self.factory is None else self.factory.device, self.fail
        )
        bridge.on_error, self.judge = self.device_judge.note, self.device_judge.judge
        self.runner = AttemptRunner(
            root,
            self.records,
            bridge=bridge,
            engines=engines,
            closer=self._closer,
            state=self.state,
            changes=self.changes,
            wake=self.ring,
            make_factory=make_factory,
            fail=self.fail,
            judge=self.judge,
            limits=limits,
            gate=self.gate,
        )
        self._book = LinkBook(self.records, self.state, self.runner)
        self.first_images = FirstImageJudge(bridge, engines, self.records, self.runner)
        self.withdrawal = Withdrawal(self.records, engines, self.runner, self.state, self.ring)
        self.attempts, self.on_end = self.runner.latest, self.runner.on_end
        self._ringing, self._looked, self._looks = asyncio.Event(), Pulse(), 0
        self._stopping = self.is_paused = False  # paused: requests that wait for a load go on waiting
        self.has_failed, self.is_restored, self._begun = asyncio.Event(), asyncio.Event(), time.monotonic()

    # --- what others ask

    def ring(self) -> None:
        """Look again now. From another thread, go through the bridge."""
        self._ringing.set()

    async def look_now(self) -> None:
        """Return after a look that began after this call."""
        # The running look may have begun before this call; the one after it did not.
        for _ in range(2):
            self.ring()
            await self._looked.wait()

    @property
    def aliases(self) -> tuple[str, ...]:
        """The aliases that are followed now, those that were named at the start first."""
        return self.records.aliases

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the aliases, then those that the links of their shares have now."""
        return (*self.aliases, *(share.name for share in self.records.shares if share.share is not None))

    def attempt(self, alias: str) -> Attempt | None:
        """Return the last attempt to bring in what the alias asks for."""
        return self.records[alias].attempt

    def wish(self, alias: str) -> VersionKey | None:
        """Return what the alias asks for, as last seen."""
        return self.records[alias].wish

    def refusal(self, alias: str) -> Rejection | None:
        """Return why what the alias asks for was rejected, if it was."""
        refusal = self.records[alias].refusals.find(self.wish(alias))
        return None if refusal is None else refusal.rejection

    def is_unloaded(self, model: str) -> bool:
        """Say whether an operator unloaded an alias or a share, and its link was not made again since."""
        record = self.traffic.record(model)
        return record is not None and record.is_unloaded

    def is_coming(self, model: str) -> bool:
        """Say whether an alias or a version is being loaded or about to be; before the first look everything may be."""
        if self.is_stopping:
            return self.is_paused  # whoever takes over may load it
        views, load = self._views()
        record = self.traffic.record(model)
        expected = [(record is not None and record.key == view.name, policy.expected(view, load)) for view in views]
        return not self._looks or any(key is not None and (is_it or key.version == model) for is_it, key in expected)

    def previous(self, alias: str) -> VersionKey | None:
        """Return what the alias served before what it serves now, also across a restart."""
        return self.records[alias].previous

    @property
    def factory(self) -> "EngineFactory | None":
        """The engine factory, once the first load has made it."""
        return self.runner.factory

    @property
    def settled_once(self) -> bool:
        """Whether the first wishes have been decided: they serve, or they were refused."""
        return self._looks > 0 and self.runner.running is None and self._next_action() is None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is resident, loads, or is being closed."""
        return not self._engines.residents and self.runner.running is None and not self._closer.is_closing

    @property
    def is_stopping(self) -> bool:
        """Whether nothing is decided any more: the service stops, or has to."""
        return self._stopping or self.failure is not None

    def fail(self, error: FatalError, hung: VersionKey | None = None) -> None:
        """Decide nothing more: what failed cannot be repeated in this process. The first error stays. `hung` is the version
        whose generation did not come back."""
        if self.failure is None:
            self.failure = error
            self.runner.keeps_trying = error.is_crash
            self.state.note_failure(Failure(error.ending, str(error), hung))
            if error.status == 1 and error.__cause__ is not None:
                _log.error("the service stops: %s", error, exc_info=error.__cause__)
            self.has_failed.set()
            self.changes.fire()

    # --- start, loop, stop

    async def start(self) -> None:
        """Read the saved state; to be called before `run`."""
        saved = await self.state.read()
        self._looker = self._make_looker(refused=saved.refused, known=self.records.known(saved))
        self.records.restore(saved)
        self.runner.distrusted = saved.crashed_with()
        self.previous_run = begin_run(saved)
        self.is_restored.set()
        await self.state.save()

    async def run(self) -> None:
        """Look and act until cancelled."""
        while True:
            try:
                self._note_fault(await self.step())
            except Exception as error:
                if self.fault is None:
                    _log.exception("supervisor iteration failed; retrying")
                # Without this the loop would end, and links would silently not be followed any more.
                self._note_fault(f"links are not followed: {described(error)}")
                await asyncio.sleep(TICK)
            try:
                # Not wait_for: before Python 3.12 it can swallow a cancellation, and this loop would never end.
                async with asyncio.timeout(TICK):
                    await self._ringing.wait()
            except TimeoutError:
                pass

    def _note_fault(self, fault: str | None) -> None:
        if fault != self.fault:
            self.fault = fault
            self.changes.fire()

    async def step(self) -> str | None:
        """Look once, and carry out all actions that follow; return why the look was not possible, or None."""
        fault = await self._look()
        self.gate.watch(self._bridge, self.changes.fire)
        await self._act()
        self.withdrawal.refresh()
        await self.state.save_links()
        if not self.is_stopping:
            self.runner.prepare()
        return fault

    async def stop(self) -> None:
        """End everything, as `pause`."""
        await self.pause()
        self.is_paused = False
        self.runner.leave()

    async def resume(self) -> None:
        """Decide again, after a `pause`."""
        self._stopping = self.is_paused = False
        self.runner.resume()
        self.state.resume()
        await self.state.save()
        self.ring()

    async def pause(self) -> None:
        """Abandon the running load and save that this run did not crash, unless it failed in a way that counts as one."""
        self._stopping = self.is_paused = True
        self.state.stop_keeping()
        await self.runner.pause()
        if self.failure is None or not self.failure.is_crash:
            self.state.saved.end_run()
        await self.state.save()

    # --- look

    async def _look(self) -> str | None:
        """Look once; return why that was not possible, or None."""
        # Cleared before the look: a ring while it runs is for what it may have missed.
        self._ringing.clear()
        waiting = [refusal for alias in self.records.values() for refusal in alias.refusals.awaiting()]
        awaited = [refusal.awaited for refusal in waiting if refusal.awaited is not None]
        try:
            seen, before = await self._bridge.run("look", self._looker.look, awaited), self.seen
        except NoAnswer as error:  # what was decided is still carried out, by what was seen last
            fault = f"links cannot be looked at: {error.strerror}"
            if self.fault is None:
                _log.error("%s", fault)
            self._looked.fire()
            return fault
        log_news(seen, before)
        for position in seen.changed:
            waiting[position].note_change()
            if waiting[position].awaits_seal:
                self.state.saved.note_sealed(waiting[position].key)
        self.seen = seen
        self._book.note(seen)
        self._looks += 1
        self._looked.fire()
        if list(seen.refused) != self.state.saved.refused:
            self.state.saved.refused = list(seen.refused)
            await self.state.save()
        await self._note_good()
        if self._looks == 1 or seen.shown != before.shown:
            self.changes.fire()
        return None

    async def _note_good(self) -> None:
        """Save which versions have proved themselves since."""
        if self._book.note_good(time.monotonic()):
            await self.state.save()
        if not self._stopping:
            self.state.keep()

    # --- decide

    def _next_action(self) -> policy.Action | None:
        if self.is_stopping:
            return None
        views, load = self._views()
        return policy.decide(views, self._engines.views(), load)

    def _views(self) -> tuple[list[policy.AliasView], policy.LoadView | None]:
        """Return the facts that the policy decides by."""
        now, load = time.monotonic(), self.runner.running
        attempt = None if load is None else load.attempt
        aliases = [alias.view(attempt, self._fallbacks(alias, now), now) for alias in self.records.values()]
        return aliases, None if load is None else load.view

    def _fallbacks(self, alias: Alias, now: float) -> list[VersionKey]:
        """Return what serves while an alias's wish cannot, in the order to try it."""
        if not alias.may_fall_back:
            return []
        saved = self.state.saved
        resorts = saved.last_resorts(alias.key).items()
        return saved.fallbacks(alias.key, alias.wish) + [key for key, pause in resorts if now >= self._begun + pause]

    # --- act

    async def _act(self) -> None:
        while (action := self._next_action()) is not None:
            match action:
                case policy.Abandon(yields):
                    self.runner.abandon(AbandonReason.YIELDING if yields else AbandonReason.SUPERSEDED)
                case policy.Promote(name, key):
                    await self.runner.promote_resident(self.records[name], key)
                case policy.Load(name, key, fallback):
                    self.runner.begin_load(self.records[name], key, fallback=fallback)
                case policy.Retreat():
                    self.withdrawal.retreat(action)
                case policy.Keep(key):
                    self._engines.keep(key)
                case policy.Free(key):
                    await self._closer.free(key)
            self.changes.fire()
