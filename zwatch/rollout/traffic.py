"""Which engine a request gets: the one that its alias serves, or that of the alias's share.

On the event loop only, as everything that changes what serves.
"""

from collections.abc import Collection, Mapping

from zwatch.deploy.shares import alias_of_key, parse_share, share_key, side_of
from zwatch.rollout.alias import Alias
from zwatch.rollout.engines import EngineRegistry, Lease
from zwatch.rollout.lifecycle import Resident, VersionKey


class Traffic:
    """Leases engines to requests. `records` are the followed aliases and their shares, by key. A name is `in` it if it is that of
    an alias or of a share: those serve another version after a deploy."""

    def __init__(self, records: Mapping[str, Alias], engines: EngineRegistry) -> None:
        self._records = records
        self._engines = engines

    def __contains__(self, model: object) -> bool:
        return isinstance(model, str) and self.record(model) is not None

    def record(self, model: str) -> Alias | None:
        """Return the record of an alias, or of the share whose link has this name now."""
        link = parse_share(model)
        if link is None:
            record = self._records.get(model)
            return record if record is not None and record.name == model else None
        share = self._records.get(share_key(link.alias))
        return share if share is not None and share.name == model else None

    def lease(self, model: str, client: str | None, avoided: Collection[VersionKey] = ()) -> Lease | None:
        """Return a lease on the engine for a request; None if nothing can serve it now.

        `model` is an alias, a share's name or a resident version. A request without `client` is never moved to a share. What is
        `avoided` is not leased: instead of a share its alias is, and instead of what an alias serves what it served before,
        if that is resident. A share gets no requests of the alias's side, and is not replaced where a request names it.
        """
        resident, record = self._find(model, client, avoided)
        lease = None if resident is None else self._engines.lease_of(resident)
        if lease is not None and record is not None:
            lease.by, lease.by_share = record.key, record.name if record.is_share else None
        return lease

    def find(self, model: str, client: str | None = None, avoided: Collection[VersionKey] = ()) -> Resident | None:
        """Return what a request would lease now."""
        return self._find(model, client, avoided)[0]

    def _find(
        self, model: str, client: str | None, avoided: Collection[VersionKey]
    ) -> tuple[Resident | None, Alias | None]:
        """Return what a request would lease now, and the record of the alias or share by which it would."""
        record = self.record(model)
        if record is None:
            found = None if alias_of_key(model) is not None else self._engines.find(model)
            return (found if found is not None and found.key not in avoided else None), None
        for side in self._sides(record, client):
            if (resident := side.serving) is not None and resident.key not in avoided:
                return resident, side
        return (self._before(record, avoided) if avoided and not record.is_share else None), record

    def _sides(self, record: Alias, client: str | None) -> list[Alias]:
        """Return by what a request may be served, the client's own side first."""
        share = None if record.is_share else self._records.get(share_key(record.name))
        if client is None or share is None or not self.takes(share):
            return [record]
        return [share, record] if side_of(client, record.name) < share.percent else [record]

    def takes(self, share: Alias) -> bool:
        """Say whether a share takes requests now."""
        resident = share.serving
        if resident is None or share.percent == 0 or share.is_withdrawn:
            return False
        return self._engines.is_usable(resident)

    def _before(self, record: Alias, avoided: Collection[VersionKey]) -> Resident | None:
        """Return what an alias served before, if that can serve."""
        found = None if record.previous is None else self._engines.resident(record.previous)
        return found if found is not None and found.key not in avoided and self._engines.is_usable(found) else None
