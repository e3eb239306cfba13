"""The resident engines: which one serves each alias, and the leases that requests hold on them."""

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from zwatch.rollout.lifecycle import EngineState, Resident, VersionKey

if TYPE_CHECKING:
    from zwatch.engine.pipeline import Engine


class Lease:
    """One request's hold on an engine. What the request says of its version comes from here, never from a global."""

    def __init__(self, resident: Resident, released: Callable[[], None]) -> None:
        self._resident: Resident | None = resident
        self._released = released
        self.engine = resident.engine
        self.key = resident.key
        resident.leases += 1

    def count_images(self, number: int) -> None:
        """Note that the engine made this many good images."""
        if self._resident is not None:
            self._resident.images += number

    def release(self) -> None:
        """Give the hold back; harmless when called again."""
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
    between two requests. `changed` is called when a lease comes back."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self._serving: dict[str, Resident] = {}
        self._previous: dict[str, VersionKey] = {}
        self._residents: dict[VersionKey, Resident] = {}
        self._leaving: Resident | None = None
        self._changed = changed

    @property
    def residents(self) -> list[Resident]:
        """Every engine that is not freed."""
        return list(self._residents.values())

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
        """Take over from an earlier run, or from before an unload, what an alias served before."""
        if key is None:
            self._previous.pop(alias, None)
        else:
            self._previous[alias] = key

    def wanted(self, key: VersionKey) -> bool:
        """Say whether some alias served this just before."""
        return key in self._previous.values()

    def lease(self, model: str) -> Lease | None:
        """Return a lease on what an alias serves, or on the resident version of that name; None if there is none, or if
        it is on its way out (see `let_go`)."""
        resident = self.find(model)
        return None if resident is None or not self.is_usable(resident) else Lease(resident, self._changed)

    def is_usable(self, resident: Resident) -> bool:
        """Say whether an engine can take requests: it has its memory, and is not about to give that away."""
        return resident is not self._leaving and resident.engine.is_complete

    def find(self, model: str) -> Resident | None:
        """Return what a request for this model would lease now."""
        return self._serving.get(model) or self._by_version(model)

    def let_go(self, key: VersionKey) -> Lease:
        """Prepare to take the device's memory away from a resident engine: nobody else gets a lease on it any more.

        Return the caller's own lease, which keeps it from being freed. To be ended by `stay` or `promote`.
        """
        lease = Lease(self._residents[key], self._changed)
        self._leaving = self._residents[key]
        return lease

    def stay(self) -> None:
        """End what `let_go` began."""
        self._leaving = None
        self._changed()

    @property
    def leaving(self) -> Resident | None:
        """The engine that is on its way out: requests with a lease on it go first, all others wait."""
        return self._leaving

    def admit(self, key: VersionKey, engine: "Engine") -> Resident:
        """Take in an engine that was loaded and warmed; the caller promotes it without an await in between."""
        resident = self._residents[key] = Resident(key, engine)
        return resident

    def promote(self, alias: str, key: VersionKey) -> None:
        """Make a resident engine the one that new leases on `alias` get, and drain what served before."""
        new, old = self._residents[key], self._serving.get(alias)
        if old is new:
            return
        new.serve()
        self._serving[alias] = new
        if old is not None:
            self._previous[alias] = old.key
            self._drain_if_idle(old)

    def withdraw(self, alias: str) -> None:
        """Serve nothing under an alias any more."""
        old = self._serving.pop(alias, None)
        self._previous.pop(alias, None)
        if old is not None:
            self._drain_if_idle(old)

    def keep(self, key: VersionKey) -> None:
        """Keep a drained engine warm."""
        self._residents[key].keep()

    def free(self, key: VersionKey) -> "Engine":
        """Forget an engine that has no lease, and return it for closing."""
        resident = self._residents[key]
        resident.free()
        del self._residents[key]
        return resident.engine

    def _drain_if_idle(self, resident: Resident) -> None:
        if resident not in self._serving.values():
            resident.drain()

    def _by_version(self, name: str) -> Resident | None:
        """Return the resident engine of a version; of two contents of one version, the one that serves."""
        found = [
            resident
            for resident in self._residents.values()
            if resident.key.version == name and self.is_usable(resident)
        ]
        return max(found, key=lambda resident: resident.state is EngineState.SERVING, default=None)
