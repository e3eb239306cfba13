"""What a trial has shown so far: for each side the requests, the failures and how long drawing took, in memory of a fixed size.

A trial begins when an alias and its share serve two versions and the share takes requests, and ends when one of them serves another,
or the share is gone or its version withdrawn: then the counts stand still, until the next one begins. Renaming the share (`current@10`
to `current@50`) is the same trial; while the share takes no requests (`current@0`), nothing counts.

What a request counts in is decided when it gets its version: only then it was left to chance which one.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from zwatch.deploy.shares import share_key
from zwatch.generation.job import Job
from zwatch.generation.job_events import JobState
from zwatch.rollout.alias import Alias
from zwatch.rollout.lifecycle import VersionKey

MOST_SAMPLES = 1000
"""Seconds that are kept of a side: of more requests a random choice, in which each is as likely. Its median is known to a few hundredths."""
MOST_TRIALS = 32
"""Trials that are kept, the last one of each alias."""
FAULTS = frozenset({"generation_failed", "out_of_memory", "timeout"})
"""Codes of errors that are the version's or the device's, not the client's."""


@dataclass(eq=False)
class Side:
    """One of the two versions."""

    key: VersionKey
    requests: int = 0
    failures: int = 0
    seconds: list[float] = field(default_factory=list)
    """How long drawing took, without waiting: a sample of the requests that did not fail."""

    def drawn(self, seconds: float) -> None:
        """Count a request that was answered."""
        self.requests += 1
        good = self.requests - self.failures
        if len(self.seconds) < MOST_SAMPLES:
            self.seconds.append(round(seconds, 4))
        # Vitter, "Random sampling with a reservoir", 1985, algorithm R. The generator is seeded by the number, so that a restart changes nothing.
        elif (place := random.Random(good).randrange(good)) < MOST_SAMPLES:  # noqa: S311 (no secret)
            self.seconds[place] = round(seconds, 4)

    def failed(self) -> None:
        """Count a request that the version failed to draw, also if another drew it then."""
        self.requests += 1
        self.failures += 1


@dataclass(eq=False)
class Trial:
    """Two versions under one alias: `sides` are the alias's and the share's. `share` is the link's last name."""

    alias: str
    share: str
    sides: tuple[Side, Side]
    began: datetime
    ended: datetime | None = None

    @property
    def id(self) -> str:
        """What votes are counted under."""
        return f"{self.alias} {self.began.isoformat()}"

    def side(self, key: VersionKey | None) -> Side | None:
        """Return the side of a version."""
        return next((side for side in self.sides if side.key == key), None)


class TrialResults:
    """The trials of all aliases. `records` are the followed aliases and their shares, by key; `takes` says whether a share takes
    requests now. Used on the event loop only."""

    def __init__(self, records: Mapping[str, Alias], takes: Callable[[Alias], bool]) -> None:
        self.is_changed = False
        """Whether there is something to save; whoever saves it resets this."""
        self._records, self._takes = records, takes
        self._trials: dict[str, Trial] = {}

    def find(self, alias: str) -> Trial | None:
        """Return the trial of an alias: the one that goes on, else the last one."""
        self.look()
        return self._trials.get(alias)

    def running(self) -> Iterator[Trial]:
        """Yield the trials that go on."""
        self.look()
        return iter([trial for trial in self._trials.values() if trial.ended is None])

    def goes_on(self, trial: str, key: VersionKey) -> bool:
        """Say whether the trial of this id goes on, and a version takes part in it."""
        return self._side(trial, key) is not None

    def trial_of(self, job: Job) -> str:
        """Return the id of the trial in which the end of a job that gets its version now counts; "" for none: its client may be on
        either side of a share that takes requests."""
        alias = job.request.model
        # A request without a client names the alias exactly and is never moved: it was not left to chance.
        if job.client is None or self._pair(alias) is None or not self._takes(self._records[share_key(alias)]):
            return ""
        trial = self.find(alias)
        return trial.id if trial is not None and trial.ended is None else ""

    def look(self) -> None:
        """Begin and end trials by what aliases and shares serve now. While one of them serves nothing, as during a restart, nothing
        changes; a share whose link is gone, or whose version is withdrawn, ends its trial."""
        for trial in self._trials.values():
            if trial.ended is None and self._has_ended(trial):
                self._end(trial)
        for alias in [alias for alias, record in self._records.items() if not record.is_share]:
            if (pair := self._pair(alias)) is None:
                continue
            own, tried, name = pair
            known = self._trials.get(alias)
            if known is None or known.ended is not None:
                if self._takes(self._records[share_key(alias)]):
                    self._begin(alias, own, tried, name)
            elif known.share != name:
                known.share, self.is_changed = name, True

    def job_ended(self, job: Job) -> None:
        """Count a request at its end. Cancelled ones and clients' mistakes say nothing."""
        side = self._side(job.trial, job.key)
        if side is None:
            return
        if job.state is JobState.DONE and job.finished is not None:
            side.drawn(max(0.0, job.finished.timings["total"] - job.finished.timings["queue"]))
        elif job.state is JobState.FAILED and job.error is not None and job.error.code in FAULTS:
            side.failed()
        else:
            return
        self.is_changed = True

    def failed(self, trial: str, key: VersionKey) -> None:
        """Count a failure of a version in a trial, given by its id, whose request another version draws; nothing if there is none."""
        if (side := self._side(trial, key)) is not None:
            side.failed()
            self.is_changed = True

    def _side(self, trial: str, key: VersionKey | None) -> Side | None:
        """Return the side of a version in the trial of this id, if that goes on."""
        return next((one.side(key) for one in self.running() if one.id == trial), None)

    def _pair(self, alias: str) -> tuple[VersionKey, VersionKey, str] | None:
        """Return what an alias and its share serve, and the share's name; None if not both serve, or the same."""
        record, share = self._records.get(alias), self._records.get(share_key(alias))
        if record is None or share is None or share.share is None:
            return None
        own, tried = record.serving, share.serving
        if own is None or tried is None or own.key == tried.key:
            return None
        return own.key, tried.key, share.name

    def _has_ended(self, trial: Trial) -> bool:
        record, share = self._records.get(trial.alias), self._records.get(share_key(trial.alias))
        own, tried = (side.key for side in trial.sides)
        if record is None or record.serving is None:
            return False
        if share is None or record.serving.key != own:
            return True
        if share.serving is not None:
            return share.serving.key != tried or share.is_withdrawn
        withdrawn = share.saved.withdrawn
        is_gone = share.target is None and share.fault is None
        return is_gone or (withdrawn is not None and withdrawn.key == tried)

    def _begin(self, alias: str, own: VersionKey, tried: VersionKey, name: str) -> None:
        self._trials.pop(alias, None)  # the newest is the last
        self._trials[alias] = Trial(alias, name, (Side(own), Side(tried)), datetime.now(UTC))
        while len(self._trials) > MOST_TRIALS:
            del self._trials[next(iter(self._trials))]
        self.is_changed = True

    def _end(self, trial: Trial) -> None:
        trial.ended, self.is_changed = datetime.now(UTC), True

    # --- across a restart

    def saved(self) -> dict[str, Any]:
        """Return all of it as JSON."""
        return {
            "schema": 1,
            "trials": [
                {
                    "alias": trial.alias, "share": trial.share, "began": trial.began.isoformat(),
                    "ended": None if trial.ended is None else trial.ended.isoformat(),
                    "sides": [
                        {
                            "version": side.key.version, "digest": side.key.digest, "requests": side.requests,
                            "failures": side.failures, "seconds": side.seconds.copy(),
                        }
                        for side in trial.sides
                    ],
                }
                for trial in self._trials.values()
            ],
        }  # fmt: skip

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over what `saved` returned; to be called before anything is counted.

        Raises:
            ValueError: it is not that.
        """
        try:
            if saved["schema"] != 1:
                raise ValueError(f"its schema is {saved['schema']!r}, expected 1")
            trials = [_trial(row) for row in saved["trials"]]
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"it is not what zwatch writes: {error!r}") from None
        # One that has begun meanwhile is of this run.
        self._trials = {**{trial.alias: trial for trial in trials[-MOST_TRIALS:]}, **self._trials}


def _trial(row: Mapping[str, Any]) -> Trial:
    first, second = (
        Side(
            VersionKey(str(side["version"]), None if side["digest"] is None else str(side["digest"])),
            int(side["requests"]),
            int(side["failures"]),
            [float(value) for value in side["seconds"]][:MOST_SAMPLES],
        )
        for side in row["sides"]
    )
    ended = row["ended"]
    return Trial(
        str(row["alias"]),
        str(row["share"]),
        (first, second),
        datetime.fromisoformat(row["began"]),
        None if ended is None else datetime.fromisoformat(ended),
    )
