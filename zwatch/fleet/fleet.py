"""The fleet of a service: connecting to Ray, and finding or beginning the replicas."""

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from zwatch.errors import FatalError
from zwatch.fleet.cluster import Actor, Call, Cluster, Gone
from zwatch.fleet.joining import Joining
from zwatch.fleet.keeping import Keeper
from zwatch.fleet.local import LocalClusters
from zwatch.fleet.member import Member
from zwatch.fleet.messages import ReplicaSettings, Sign
from zwatch.fleet.roster import Roster
from zwatch.fleet.settings import FleetSettings, Place

if TYPE_CHECKING:
    from zwatch.shadow.control import LoadControl

_log = logging.getLogger(__name__)

_WAIT_SECONDS = 0.1


class Fleet:
    """Opens and closes a fleet. Its methods block. `waiting` returns how many requests wait."""

    def __init__(self, settings: FleetSettings, waiting: Callable[[], int] = lambda: 0) -> None:
        self.settings = settings
        self.roster = Roster(settings)
        self._waiting = waiting
        self._folder = settings.state_dir / "fleet"
        self._local = LocalClusters(self._folder) if settings.devices is not None else None
        self._joining = Joining(self.roster)
        self._keeper: Keeper | None = None

    def open(self, control: "LoadControl") -> None:
        """Connect to the cluster, which is begun if it is the local one, and find or begin the replicas.

        Raises:
            FatalError: Ray is not installed, there is no such cluster, or it has no device.
        """
        if self.roster.connected is None:
            control.begin("connecting to Ray", is_slow=True)
            self.roster.connected = Cluster(self._address())
        members = self._taken_over()
        for number, place in enumerate(self._places()):
            name = f"r{number}"
            if name not in members:
                members[name] = self._member(name, place)
        self.roster.members = [*members.values()]
        for member in members.values():
            self._joining.begin(member)
        self._keeper = Keeper(self.roster, self._joining, self._member, self._waiting)
        self._keeper.begin()

    def _address(self) -> str:
        asked = self.settings
        if self._local is None:
            assert asked.address is not None  # one of both was asked for
            return asked.address
        self._local.hold()
        os.environ.update(self._local.token())
        found = self._local.found()
        assert asked.devices is not None
        if found is not None and found.devices != asked.devices:
            self._local.end()
            found = None
        return (found or self._local.begin(asked.devices, self.roster.limits.orphaned)).address

    def _prefix(self) -> str:
        """Return what the names of this service's replicas begin with: kept in the state directory, for the next controller."""
        file = self._folder / "name"
        with contextlib.suppress(OSError):
            if name := file.read_text().strip():
                return f"{name}/"
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"zwatch-{secrets.token_hex(6)}"
        file.write_text(name)
        return f"{name}/"

    def _places(self) -> list[Place]:
        """Return where replicas are to run, one each.

        Raises:
            FatalError: there is no device for one.
        """
        asked, cluster = self.settings, self.roster.cluster
        if asked.places:
            return list(asked.places)
        if asked.devices is not None and asked.devices[0] != "all":
            return [Place() for _ in asked.devices]
        there = cluster.gpus() if self.roster.is_gpu else cluster.nodes()
        if asked.devices is not None:
            if not there:
                raise FatalError("--devices all: this machine has no CUDA device; give --devices cpu,cpu", status=2)
            return [Place() for _ in range(there)]
        assert asked.count is not None
        return [
            Place() for _ in range(max(asked.count.least, there) if asked.count.follows_cluster else asked.count.least)
        ]

    def _taken_over(self) -> dict[str, Member]:
        """Return the replicas that an earlier controller left and that this one can use as they are; others are ended."""
        roster, places = self.roster, dict(enumerate(self._places()))
        found = roster.cluster.found(self._prefix())
        calls: dict[Call, tuple[str, Actor, Place]] = {}
        for name, actor in found.items():
            number = int(name.removeprefix("r"))
            with contextlib.suppress(Gone):
                place = places.get(number, Place())
                is_wanted = number in places or (self.settings.count is not None and number < self.settings.count.most)
                if is_wanted:
                    calls[actor.call("greet", self._replica_settings(name, place))] = name, actor, place
        taken: dict[str, Member] = {}
        waiting, end = set(calls), time.monotonic() + roster.limits.silent
        while waiting and time.monotonic() < end:
            for call in roster.cluster.done(waiting, _WAIT_SECONDS):
                waiting.discard(call)
                name, actor, place = calls[call]
                with contextlib.suppress(Gone):
                    if isinstance(sign := call.result(), Sign):
                        member = taken[name] = Member(name, actor, place, sign=sign, is_open=sign.device is not None)
                        _log.info(
                            "%s is taken over from an earlier controller, with %d versions",
                            member.where,
                            len(sign.held),
                        )
        for name, actor in found.items():
            if name not in taken:
                actor.end(for_good=True)
        return dict(sorted(taken.items(), key=lambda one: int(one[0].removeprefix("r"))))

    def _member(self, name: str, place: Place) -> Member:
        """Begin a replica."""
        settings, roster = self._replica_settings(name, place), self.roster
        gpus, cpus = (1.0, 0.0) if roster.is_gpu else (0.0, 0.0 if self._local is not None or place.resources else 1.0)
        actor = roster.cluster.begin(
            f"{self._prefix()}{name}", settings, gpus=gpus, cpus=cpus, resources=place.resources
        )
        return Member(name, actor, place)

    def _replica_settings(self, name: str, place: Place) -> ReplicaSettings:
        asked = self.settings
        threads = None
        if not self.roster.is_gpu and asked.devices is not None:
            threads = max(1, (os.cpu_count() or 1) // len(asked.devices))
        return ReplicaSettings(
            name, place.host, "cuda" if self.roster.is_gpu else "cpu", _absolute(place.models or asked.models),
            _absolute(place.loras or asked.loras), _absolute(asked.state_dir / "prepared"), asked.memory_budget, asked.exact, asked.dtype,
            asked.quantize, asked.text_encoder, threads,
        )  # fmt: skip

    # --- the end

    def close(self, *, ends_replicas: bool) -> None:
        """End, with all replicas; else they are left for the next controller."""
        if self._keeper is not None:
            self._keeper.end()
        if self.roster.connected is not None:
            if ends_replicas:
                for member in self.roster.members:
                    member.actor.end(for_good=True)
            self.roster.connected.close()
        if self._local is not None:
            if ends_replicas:
                self._local.end()
            self._local.let_go()


def _absolute(path: Path) -> str:
    return str(path.absolute())
