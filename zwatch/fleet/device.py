"""The devices of all replicas together, where the service asks for its one device."""

from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import TYPE_CHECKING

from zwatch.fleet.following import STEP_SECONDS, STEP_SECONDS_ON_GPU
from zwatch.fleet.messages import Failure
from zwatch.fleet.stages import everywhere

if TYPE_CHECKING:
    from collections.abc import Callable

    from zwatch.fleet.member import Member
    from zwatch.fleet.roster import Roster


class FleetDevice:
    """Stands for `zwatch.shadow.device.Device` where the controller asks for it."""

    peak_elsewhere = 0
    request_peak = 0
    is_preparing = False

    def __init__(self, fleet: "Roster") -> None:
        self._fleet = fleet
        self.budget = fleet.settings.memory_budget
        self.torch_device = SimpleNamespace(type="cuda" if fleet.is_gpu else "cpu")
        self.step_seconds = fleet.settings.step_seconds or (STEP_SECONDS_ON_GPU if fleet.is_gpu else STEP_SECONDS)
        self.reader = SimpleNamespace(renew=lambda: None)

    @property
    def name(self) -> str:
        """What the replicas' devices are, such as `3 x CPU`."""
        devices = [
            one.sign.device for one in self._fleet.members if one.sign is not None and one.sign.device is not None
        ]
        kinds = {device.partition("(")[2].rstrip(")") for device in devices}
        return f"{len(self._fleet.members)} x {' and '.join(sorted(kinds)) or 'unknown device'}"

    def memory(self) -> tuple[int, int]:
        """Return (free, total) bytes of the replica that has the least free."""
        found = [one.sign.memory for one in self._fleet.members if one.sign is not None and one.sign.memory is not None]
        return min(found, default=(0, 0))

    def lost(self) -> str | None:
        """Return None: a replica whose device is lost begins again, and the others draw."""
        return None

    def reserve(self, sizes: list[int]) -> bool:
        """Allocate on all replicas what the next version will take. It is no fault if one cannot: its load is slower."""
        found = everywhere(self._fleet, self._open, "reserve", sizes)
        return not any(isinstance(one, Failure) for one in found.values())

    def has_room(self, sizes: list[int]) -> bool:
        """Return True: no version is exchanged in a fleet, and no host memory is kept for that."""
        return True

    def beside(self) -> AbstractContextManager[None]:
        """Return what does nothing: the replicas see to it themselves."""
        return nullcontext()

    def giving_way(self, check: "Callable[[], None]") -> AbstractContextManager[None]:
        """Return what does nothing, as `beside`."""
        return nullcontext()

    @property
    def _open(self) -> "list[Member]":
        return [one for one in self._fleet.members if one.is_open]
