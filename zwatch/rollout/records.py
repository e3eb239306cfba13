"""The records of all followed aliases and of their shares, which come and go as their links do."""

from collections.abc import Callable, Iterator, Mapping, Sequence

from zwatch.deploy.followed import Known
from zwatch.deploy.following import Rule
from zwatch.deploy.look import Look
from zwatch.deploy.shares import alias_of_key, share_key
from zwatch.rollout.alias import Alias
from zwatch.rollout.engines import EngineRegistry
from zwatch.rollout.saved import SavedState


class Records(Mapping[str, Alias]):
    """One record for each followed alias, by its name, then one for the share of each, by its key: what comes first is loaded first.
    `make` makes a record. It is changed by `follow` alone, on the event loop."""

    def __init__(self, aliases: Sequence[str], make: Callable[[str], Alias], engines: EngineRegistry) -> None:
        self._rule = Rule.of(aliases)
        self._make = make
        self._engines = engines
        self._records = {name: make(name) for name in self._rule.named}

    def __getitem__(self, key: str) -> Alias:
        return self._records[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)

    @property
    def aliases(self) -> tuple[str, ...]:
        """The names of the followed aliases, those that were named at the start first."""
        return tuple(key for key, record in self._records.items() if not record.is_share)

    @property
    def shares(self) -> tuple[Alias, ...]:
        """The records of the shares, in the order of their aliases."""
        return tuple(record for record in self._records.values() if record.is_share)

    def share_of(self, alias: str) -> Alias | None:
        """Return the record of an alias's share, if there is one."""
        return self._records.get(share_key(alias))

    def alias_of(self, share: Alias) -> Alias | None:
        """Return the record of the alias that a share takes requests from."""
        return self._records.get(alias_of_key(share.key) or "")

    def may_follow(self, key: str) -> bool:
        """Say whether a link with this key may be followed when it is there."""
        return self._rule.may_follow(key)

    def restore(self, saved: SavedState) -> None:
        """Take over what the previous run saved of the aliases that are named, and of those that a pattern found then."""
        found = sorted(key for key in saved.aliases if self._rule.matches(key))
        self._records |= {key: self._make(key) for key in found}
        for key, record in self._records.items():
            record.restore(saved.alias(key))

    def known(self, saved: SavedState) -> Known:
        """Return what the previous run had seen of the links that may be followed."""
        return Known.before(self._rule, saved.marks())

    def adopt(self, key: str, saved: SavedState) -> Alias:
        """Return the record of a link that was not seen yet but is expected, making it; the next look decides whether it stays."""
        if key not in self._records:
            self._records[key] = self._made(key, saved)
        return self._records[key]

    def follow(self, seen: Look, saved: SavedState) -> list[Alias]:
        """Follow what a look saw, and return the records of the links that are gone: nothing is served for those any more, and
        nothing is saved of them, unless other links have names that are meant for a share."""
        if not seen.has_root:
            return []
        keys = [*dict.fromkeys((*self._rule.named, *seen.aliases))]
        keys += [
            share_key(alias)
            for alias in keys
            if (share := seen.shares.get(alias)) is not None
            and (share.link is not None or (share.is_ambiguous and share_key(alias) in self._records))
        ]
        before, self._records = self._records, {}
        for key in keys:
            self._records[key] = before.get(key) or self._made(key, saved)
        gone = [record for key, record in before.items() if key not in self._records]
        for record in gone:
            self._engines.withdraw(record.key)
            record.saved.serving = None
        kept = {*self._records, *(share_key(alias) for alias in seen.shares)}
        for key in [key for key in saved.aliases if key not in kept and self.may_follow(key)]:
            del saved.aliases[key]
        return gone

    def _made(self, key: str, saved: SavedState) -> Alias:
        record = self._make(key)
        record.restore(saved.alias(key))
        return record
