"""Withdrawing a version that fails while it is new to its requests: its alias serves the other one again, its share ends.

What is decided is in `trials` and `policy`. On the event loop only, as everything that changes what serves.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from zwatch.deploy.shares import alias_of_key, share_key
from zwatch.rollout import policy
from zwatch.rollout.alias import Alias
from zwatch.rollout.attempt import AttemptRunner
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.lifecycle import Attempt, AttemptState, LoadWay, VersionKey
from zwatch.rollout.saved import Probation
from zwatch.rollout.state import StateKeeper
from zwatch.rollout.trials import PROBATION, Checked, Outcomes, is_on_trial, is_to_be_withdrawn

_log = logging.getLogger(__name__)

_RENAME_SECONDS = 5.0  # in which the looks have seen all of a rename


Side = tuple[str, VersionKey]
"""The key of an alias or share, and a version that draws its requests."""


@dataclass(frozen=True, slots=True)
class Trial:
    """A version on trial, by a share or after its promotion by an alias; `other` is what its requests go to if it is withdrawn, None
    if there is nothing."""

    record: Alias
    key: VersionKey
    other: VersionKey | None

    @property
    def own_side(self) -> Side:
        """What its requests are noted under."""
        return self.record.key, self.key

    @property
    def other_side(self) -> Side | None:
        """What those of the other version are noted under: they come by the alias."""
        return None if self.other is None else (alias_of_key(self.record.key) or self.record.key, self.other)


class Withdrawal:
    """Notes what becomes of requests, and withdraws what fails. `records` are the aliases and shares, `wake` is called after a
    withdrawal."""

    def __init__(
        self,
        records: Mapping[str, Alias],
        engines: EngineRegistry,
        runner: AttemptRunner,
        state: StateKeeper,
        wake: Callable[[], None],
        *,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._records, self._engines, self._runner, self._state = records, engines, runner, state
        self._wake, self._clock, self._wall_clock = wake, clock, wall_clock
        self.probation = PROBATION
        """Seconds for which a version is on trial after its promotion."""
        self._outcomes: dict[Side, Outcomes] = {}
        self._promoted: dict[str, tuple[VersionKey, float]] = {}  # by alias: what, and when by `clock`
        self._shared: dict[tuple[str, VersionKey], float] = {}  # what shares of aliases serve or served, and until when
        self._saving: asyncio.Task[None] | None = None
        runner.on_end.append(self._attempt_ended)

    # --- what others ask

    def is_watched(self, key: VersionKey, by: str) -> bool:
        """Say whether a version is on trial by an alias or a share, and another one can serve its requests."""
        return self.other(key, by) is not None

    def other(self, key: VersionKey, by: str) -> VersionKey | None:
        """Return the version that serves instead of one on trial by an alias or a share, if that is withdrawn."""
        side = self._side(key, by)
        return next((trial.other for trial in self._trials() if trial.own_side == side), None)

    def reason(self, name: str) -> str | None:
        """Return why what an alias or share asks for was withdrawn, if it was."""
        withdrawn = self._records[name].withdrawn
        return None if withdrawn is None else withdrawn.reason

    def problems(self) -> list[str]:
        """Return the sentences about versions on trial that fail, and serve on because there is no other."""
        found = []
        for trial in self._trials():
            outcomes = self._outcomes.get(trial.own_side)
            if trial.other is None and outcomes is not None and outcomes.is_failing:
                found.append(
                    f"{trial.record.name} serves {trial.key.version}, which fails: {outcomes.described}; there is no other "
                    "version to go back to"
                )
        return found

    def note(self, key: VersionKey, fault: str | None, by: str | None = None) -> None:
        """Note a request at its end: with which fault of a version, None if it went well. `by` is the key of the alias or share
        that it came by: only trials of that one count it. Requests that say nothing about a version, such as those that their
        clients cancelled, are not noted."""
        self._note(key, lambda outcomes: outcomes.add(fault), by)

    def note_golden(self, key: VersionKey, fault: str | None) -> None:
        """Note a golden image that was checked, and the fault, None if it is as it should be: for all trials of its version."""
        if (resident := self._engines.resident(key)) is not None:
            golden = resident.engine.golden
            checked = Checked(golden.checked, len(golden.pictures), golden.missed)
            self._note(key, lambda outcomes: outcomes.add_golden(checked, fault))

    def _note(self, key: VersionKey, add: Callable[[Outcomes], None], by: str | None = None) -> None:
        trials = list(self._trials())
        sides = {
            side
            for trial in trials
            for side in (trial.own_side, trial.other_side)
            if side is not None and side[1] == key
        }
        if by is not None:
            sides &= {self._side(key, by)}
        if not sides:
            return
        for side in sides:
            add(self._outcomes.setdefault(side, Outcomes()))
        for trial in trials:
            own = self._outcomes.get(trial.own_side)
            if trial.other_side is None or own is None:
                continue
            if is_to_be_withdrawn(own, self._outcomes.get(trial.other_side, Outcomes())):
                self._withdraw(trial, own)
        self._forget()

    def _side(self, key: VersionKey, by: str) -> Side:
        """Return what a request is noted under. One that came by a share whose version the alias serves by now, such as after its
        promotion, is the alias's."""
        alias = alias_of_key(by)
        serving = None if alias is None else self._engines.serving(alias)
        return (by if alias is None or serving is None or serving.key != key else alias), key

    def blame(self, key: VersionKey) -> None:
        """Note that a version drew when this run failed: if it is on trial, it is to blame, whatever it did before."""
        failure = self._state.saved.failure
        is_watched = any(trial.key == key and trial.other is not None for trial in self._trials())
        if failure is not None and failure.hung in (None, key) and is_watched:
            self._state.note_failure(replace(failure, hung=key, on_trial=True))

    # --- what the supervisor tells

    def refresh(self) -> None:
        """Note what shares serve now: a version that is promoted from a share keeps its outcomes, also if one look sees the end of
        the share and the next one the alias."""
        now = self._clock()
        self._shared = {one: until for one, until in self._shared.items() if now - until < _RENAME_SECONDS}
        for key, record in self._records.items():
            if (alias := alias_of_key(key)) is not None and record.serving is not None:
                self._shared[alias, record.serving.key] = now

    def retreat(self, action: policy.Retreat) -> None:
        """Let an alias serve another resident engine than the one that was withdrawn. Its signature, where one is required, was
        verified when it was promoted."""
        record, resident = self._records[action.alias], self._engines.resident(action.key)
        assert resident is not None  # the policy has just seen it
        attempt = self._runner.new_attempt(record, action.key, LoadWay.RESIDENT, fallback=True)
        attempt.signer = resident.signer
        attempt.begin_warming()
        record.promote(attempt)
        self._runner.end(attempt)

    # --- trials

    def _trials(self) -> Iterator[Trial]:
        for name, record in self._records.items():
            if (serving := record.serving) is None or record.is_withdrawn:
                continue
            alias = alias_of_key(name)
            since = self._promoted.get(name)
            ago = self._clock() - since[1] if since is not None and since[0] == serving.key else None
            if is_on_trial(by_share=alias is not None, promoted_ago=ago, probation=self.probation):
                yield Trial(record, serving.key, self._other(record, alias, serving.key))

    def _other(self, record: Alias, alias: str | None, key: VersionKey) -> VersionKey | None:
        if alias is not None:
            beside = self._engines.serving(alias)
            return None if beside is None or beside.key == key else beside.key
        retreats = record.retreats(self._state.saved.fallbacks(record.key, record.wish))
        return next((other for other in retreats if other != key), None)

    def _attempt_ended(self, attempt: Attempt) -> None:
        if attempt.state is not AttemptState.PROMOTED or attempt.alias not in self._records:
            return
        name, key, record = attempt.alias, attempt.key, self._records[attempt.alias]
        before = self._promoted.get(name)
        if attempt.fallback:
            self._promoted.pop(name, None)
        elif before is None or before[0] != key:  # else its first image was judged, and it serves on
            self._outcomes.pop((name, key), None)
            if (name, key) in self._shared and (share_key(name), key) in self._outcomes:
                self._outcomes[name, key] = self._outcomes.pop((share_key(name), key))
            self._promoted[name] = key, self._clock() - self._promoted_ago(record, key, is_first=before is None)
        self.refresh()

    def _promoted_ago(self, record: Alias, key: VersionKey, *, is_first: bool) -> float:
        """Return how many seconds ago a version was promoted: a restart does not begin its probation again."""
        saved, now = record.saved.probation, self._wall_clock()
        if is_first and saved is not None and saved.key == key:
            return max(0.0, now - saved.begun)
        record.saved.probation = Probation(key, now)
        return 0.0

    def _forget(self) -> None:
        """Forget the outcomes of what is not resident any more."""
        self._outcomes = {
            side: one for side, one in self._outcomes.items() if self._engines.resident(side[1]) is not None
        }

    # --- the withdrawal

    def _withdraw(self, trial: Trial, outcomes: Outcomes) -> None:
        record, serving = trial.record, trial.record.serving
        if serving is None or serving is self._engines.being_exchanged:
            return  # it is about to leave anyway
        reason = f"{trial.key.version} was withdrawn from {record.name}: {outcomes.described}"
        self._outcomes.pop(trial.own_side, None)
        attempt = self._runner.begin_again(record)
        record.withdraw(attempt, reason)
        self._runner.end(attempt)
        view = record.view(None, self._state.saved.fallbacks(record.key, record.wish), self._clock())
        if (action := policy.retreat([view], self._engines.views())) is not None:
            self.retreat(action)
        self._saving = asyncio.create_task(self._state.save(), name="save a withdrawal")
        self._wake()
