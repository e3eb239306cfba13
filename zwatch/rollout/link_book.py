"""What a look says about the followed links, noted where it belongs: in their records, in the saved state, for the running load."""

from collections.abc import Sequence

from zwatch.deploy.look import Look
from zwatch.deploy.resolving import LinkStamp
from zwatch.deploy.shares import alias_of_key
from zwatch.rollout.alias import Alias
from zwatch.rollout.attempt import AttemptRunner
from zwatch.rollout.lifecycle import VersionKey
from zwatch.rollout.load import AbandonReason
from zwatch.rollout.records import Records
from zwatch.rollout.state import StateKeeper


class LinkBook:
    """Notes what looks see. On the event loop, without an await: nothing acts on a half of it."""

    def __init__(self, records: Records, state: StateKeeper, runner: AttemptRunner) -> None:
        self._records = records
        self._state = state
        self._runner = runner

    def note(self, seen: Look) -> None:
        """Note where the links lead; what was linked or sealed anew is not set aside any more."""
        saved = self._state.saved
        gone = self._records.follow(seen, saved)
        links: dict[VersionKey, frozenset[LinkStamp | None]] = {}
        for key, record in self._records.items():
            if record.is_share:
                self._note_share(record, seen)
            sealed_again = record.note_look(seen.targets.get(key), seen.faults.get(key))
            if (wish := record.wish) is not None:
                links[wish] = links.get(wish, frozenset()) | {record.link_stamp}
                if sealed_again:
                    saved.note_sealed(wish)
        saved.note_links(links)
        for record in self._records.values():
            record.refusals.forget_set_aside(saved.is_set_aside)
        self._end_load(gone)

    def _note_share(self, record: Alias, seen: Look) -> None:
        """Note the link of a share, also that it was only renamed."""
        share = seen.shares.get(alias_of_key(record.key) or "")
        if share is None:
            return  # while the models root is away
        if share.renamed_from is not None and share.mark is not None:
            record.restamp(share.renamed_from, share.mark.stamp)
            self._state.saved.restamp(share.renamed_from, share.mark.stamp)
        record.note_share(share)

    def _end_load(self, gone: Sequence[Alias]) -> None:
        """Abandon the running load if its link is gone: unless that took the name of an alias, which asks for the same version."""
        load = self._runner.running
        if load is None or load.abandoned is not None or load.alias not in gone:
            return
        alias = self._records.alias_of(load.alias)
        if alias is not None and alias.wish == load.attempt.key and not alias.is_unloaded:
            load.move_to(alias)
        else:
            self._runner.abandon(AbandonReason.SUPERSEDED)

    def note_good(self, now: float) -> bool:
        """Note which versions have proved themselves since, at a time of the monotonic clock; return whether there are any."""
        news = False
        for key, record in self._records.items():
            if (proved := record.proved(now)) is not None:
                news |= self._state.saved.note_good(key, proved)
        return news
