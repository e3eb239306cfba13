"""The resident engines: which one serves each alias, the leases that requests hold on them, and how they are freed."""

import logging
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from zwatch import heap
from zwatch.bridge import Bridge, NoAnswer
from zwatch.rollout import policy
from zwatch.rollout.lifecycle import EngineState, Resident, VersionKey

if TYPE_CHECKING:
    from zwatch.engine.pipeline import Engine

_log = logging.getLogger(__name__)


class Lease:
    """One request's hold on an engine. What the request says of its version comes from here, never from a global."""

    def __init__(self, resident: Resident, released: Callable[[], None]) -> None:
        self._resident: Resident | None = resident
        self._released = released
        self.engine = resident.engine
        self.key, self.signer = resident.key, resident.signer
        self.by_share: str | None = None
        """The share by which the request got this engine, such as `current@10`; None if it was not by one."""
        self.by: str | None = None
        """The key of the alias or share by which the request got this engine; None if it named the version."""
        resident.leases += 1

    def count_images(self, number: int) -> None:
        """Note that the engine made this many good images."""
        if self._resident is not None:
            self._resident.images += number

    def release(self) -> None:
        """End the lease; harmless when called again."""
        if self._resident is not None:
            self._resident.leases -= 1
            self._resident = None
            del self.engine
            self._released()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class EngineRegistry:
    """All resident engines and what each alias serves. Only the event loop calls it, so a promotion is one assignment
    between two requests. `changed` is called when a lease is released."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._serving: dict[str, Resident] = {}
        self._previous: dict[str, VersionKey] = {}
        self._residents: dict[VersionKey, Resident] = {}
        self._being_exchanged: Resident | None = None
        self._changed = changed

    @property
    def residents(self) -> list[Resident]:
        """Every engine that is not freed."""
        return list(self._residents.values())

    def views(self) -> list[policy.EngineView]:
        """Return the facts that the policy decides by."""
        return [
            policy.EngineView(one.key, one.state, one.leases, self.is_previous(one.key), self.is_usable(one))
            for one in self.residents
        ]

    def resident(self, key: VersionKey) -> Resident | None:
        """Return the resident engine of this key, if there is one."""
        return self._residents.get(key)

    def serving(self, alias: str) -> Resident | None:
        """Return what an alias serves."""
        return self._serving.get(alias)

    def previous(self, alias: str) -> VersionKey | None:
        """Return what an alias served before what it serves now."""
        return self._previous.get(alias)

    def remember_previous(self, alias: str, key: VersionKey | None) -> None:
        """Set what an alias served before, as known from an earlier run or from before an unload."""
        if key is None:
            self._previous.pop(alias, None)
        else:
            self._previous[alias] = key

    def is_previous(self, key: VersionKey) -> bool:
        """Say whether some alias served this just before what it serves now."""
        return key in self._previous.values()

    def lease(self, model: str) -> Lease | None:
        """Return a lease on what an alias serves, or on the resident version of that name; None if there is none, or if
        it is being exchanged (see `begin_exchange`)."""
        resident = self.find(model)
        return None if resident is None else self.lease_of(resident)

    def lease_of(self, resident: Resident) -> Lease | None:
        """Return a lease on an engine; None if it can take no requests."""
        return Lease(resident, self._changed) if self.is_usable(resident) else None

    def hold(self, resident: Resident) -> Lease:
        """Return a lease on a resident engine for what is no request; it ends as a request's does."""
        return Lease(resident, self._changed)

    def is_usable(self, resident: Resident) -> bool:
        """Say whether an engine can take requests: it has its memory, is not about to give it up, and its images are usable."""
        return resident is not self._being_exchanged and resident.engine.is_complete and not resident.is_bad

    def find(self, model: str) -> Resident | None:
        """Return what a request for this model would lease now."""
        return self._serving.get(model) or self._by_version(model)

    def begin_exchange(self, key: VersionKey) -> Lease:
        """Prepare to take the device memory of a resident engine: no request gets a new lease on it.

        Return the caller's own lease, which keeps the engine from being freed. End it with `end_exchange`.
        """
        lease = Lease(self._residents[key], self._changed)
        self._being_exchanged = self._residents[key]
        return lease

    def end_exchange(self) -> None:
        """End what `begin_exchange` began."""
        self._being_exchanged = None
        self._changed()

    @property
    def being_exchanged(self) -> Resident | None:
        """The engine whose memory another version is about to get: requests with a lease on it run first, all others
        wait."""
        return self._being_exchanged

    def admit(self, key: VersionKey, engine: "Engine") -> Resident:
        """Add an engine that was loaded and warmed; the caller promotes it without an await in between."""
        resident = self._residents[key] = Resident(key, engine)
        return resident

    def promote(self, alias: str, key: VersionKey, signer: str | None = None) -> None:
        """Make a resident engine the one that new leases on `alias` get, and drain what served before. `signer` signed it."""
        new, old = self._residents[key], self._serving.get(alias)
        new.signer = signer
        if old is new:
            return
        new.serve()
        self._serving[alias] = new
        if old is not None:
            self._previous[alias] = old.key
            self._drain_unless_serving(old)

    def withdraw(self, alias: str) -> None:
        """Serve nothing under an alias any more."""
        old = self._serving.pop(alias, None)
        self._previous.pop(alias, None)
        if old is not None:
            self._drain_unless_serving(old)

    def keep(self, key: VersionKey) -> None:
        """Keep a drained engine warm."""
        self._residents[key].keep()

    def free(self, key: VersionKey) -> "Engine":
        """Remove an engine that has no lease, and return it for closing."""
        resident = self._residents[key]
        resident.free()
        del self._residents[key]
        return resident.engine

    def _drain_unless_serving(self, resident: Resident) -> None:
        if resident not in self._serving.values():
            resident.drain()

    def _by_version(self, name: str) -> Resident | None:
        """Return the resident engine of a version; if two contents of it are resident, the one that serves."""
        found = [
            resident
            for resident in self._residents.values()
            if resident.key.version == name and self.is_usable(resident)
        ]
        return max(found, key=lambda resident: resident.state is EngineState.SERVING, default=None)


class EngineCloser:
    """Frees engines: removes them from the registry, and closes them in a thread."""

    def __init__(self, bridge: Bridge, engines: EngineRegistry) -> None:
        self._bridge = bridge
        self._engines = engines
        self._closing = 0

    @property
    def is_closing(self) -> bool:
        """Whether an engine that left the registry may still hold its memory."""
        return self._closing > 0

    async def free(self, key: VersionKey) -> None:
        """Free an engine that has no lease."""
        await self.close(self._engines.free(key))
        _log.info("%s is freed", key.version)

    async def free_warm(self) -> None:
        """Free all warm engines: a new version needs their memory more than a flip back does."""
        for resident in self._engines.residents:
            if resident.state is EngineState.WARM and resident.leases == 0:
                await self.free(resident.key)

    async def close(self, engine: "Engine") -> None:
        """Close an engine that is not in the registry."""
        self._closing += 1
        try:
            await self._bridge.run("close", _close, engine)
        except NoAnswer as error:
            _log.warning("%s does not release its memory (%s); going on without it", engine.version, error.strerror)
        except Exception:  # whether the device is lost is judged elsewhere
            _log.exception("%s could not be closed; going on without it", engine.version)
        finally:
            self._closing -= 1


def _close(engine: "Engine") -> None:
    engine.close()
    heap.give_back()
