"""The new process of a handover: it loads and warms beside the one that serves, and then takes its place."""

import asyncio
import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zwatch import __version__
from zwatch.bridge import Begun, Bridge
from zwatch.config import Config
from zwatch.deploy.following import Rule
from zwatch.errors import Rejection
from zwatch.handover.beside import Beside
from zwatch.handover.channel import PROTOCOL, Channel, Message, connect
from zwatch.handover.described import Body
from zwatch.rollout.inheritance import Warmed
from zwatch.rollout.state import LOCK
from zwatch.shadow.control import LoadControl

if TYPE_CHECKING:
    from zwatch.engine.factory import EngineFactory

_log = logging.getLogger(__name__)

_HELLO_SECONDS = 5.0
_ROOM_SECONDS = 60.0
_EXCHANGE_SECONDS = 180.0
"""For the old process to end the load that runs, and to save its state."""
_JOBS_SECONDS = 60.0
_AGAIN_SECONDS = 0.2
_MOST_ROUNDS = 5
"""How often this process loads what serves by then in the other one; after that it takes over all the same."""


@dataclass(slots=True)
class Taken:
    """What one process got of another: nothing where none ran. The service that is started with it owns all of it."""

    factory: "EngineFactory | None" = None
    warmed: dict[str, Warmed] = field(default_factory=dict)
    channel: Channel | None = None
    """To the old process, which waits for the word that this one serves; None if it ended by itself."""
    beats: bool = False
    """Whether the old process sends signs of life."""
    lock: int | None = None
    sockets: list[socket.socket] = field(default_factory=list)
    address: tuple[str, int] | None = None
    """The host and the port that the old process was told to listen on."""
    jobs: list[Message] = field(default_factory=list)
    connections: list[socket.socket] = field(default_factory=list)


class Taking:
    """One start with `--takeover`."""

    def __init__(self, config: Config, bridge: Bridge, make_factory: "Callable[[LoadControl], EngineFactory]") -> None:
        self._config = config
        self._bridge = bridge
        self._make_factory = make_factory
        self._making: Begun[EngineFactory] | None = None
        self._factory: EngineFactory | None = None
        self._beside = Beside(config.models, bridge, config.require_signature)
        self._said: str | None = None

    async def take_over(self) -> Taken:
        """Return once this process may start its service: the other one has handed over or ended, or there was none.

        Raises:
            FatalError: this process cannot serve: a library cannot be imported, or the device cannot be opened.
        """
        while True:
            connected = await self._bridge.run("state", connect, self._config.state_dir)
            if connected is not None:
                self._begin_opening()
                channel = Channel(connected)
                try:
                    taken = await self._meet(channel)
                except TimeoutError:
                    taken = None
                    self._say("the zwatch that uses the state directory does not answer; waiting for its end")
                except (KeyError, ValueError, TypeError) as error:
                    taken = None
                    self._say(
                        f"the zwatch that uses the state directory sent what is not understood ({error!r}); waiting for its end"
                    )
                except BaseException:
                    channel.close()
                    raise
                if taken is not None:
                    return taken
                channel.close()
            elif (free := await self._bridge.run("state", _lock_if_free, self._config.state_dir / LOCK)) is not None:
                return await self._without(free.lock)
            else:
                self._begin_opening()
                self._say("the zwatch that uses the state directory cannot hand over now; waiting for it")
            await asyncio.sleep(_AGAIN_SECONDS)

    def _say(self, what: str) -> None:
        if self._said != what:
            self._said = what
            _log.warning("%s", what)

    async def _without(self, lock: int | None) -> Taken:
        """Return what this process prepared for itself: the other one has ended. The lock is held by now: what was begun may take
        longer than a restart of the other one."""
        if self._making is None and self._factory is None:
            return Taken(lock=lock)
        if (factory := await self._opened()) is not None:
            self._share_budget(factory, 0)
            factory.device.peak_elsewhere = 0
        return Taken(factory, self._beside.warmed(), lock=lock)

    async def _meet(self, channel: Channel) -> Taken | None:
        """Talk to the process that serves; None if it ended, or will not hand over now.

        Raises:
            TimeoutError: it does not answer.
            FatalError: as `take_over`.
        """
        hello = {"protocol": PROTOCOL, "zwatch": __version__, "notify": os.environ.get("NOTIFY_SOCKET"), "beats": True}
        channel.send(hello)
        answer = await channel.receive(_HELLO_SECONDS)
        if answer is None:
            return None
        offer = answer.body
        if offer.get("protocol") != PROTOCOL:
            self._say(
                f"zwatch {offer.get('zwatch')} uses the state directory and has another protocol for handovers "
                f"({offer.get('protocol')}, expected {PROTOCOL}); waiting for its end"
            )
            return None
        if offer.get("busy"):
            self._say("another process takes over already; waiting for it")
            return None
        _log.info("beside zwatch %s, process %d: loading what it serves", offer.get("zwatch"), channel.peer[0])
        if beats := bool(offer.get("beats")):
            channel.beat()
        for number in range(_MOST_ROUNDS):
            await self._load(channel, offer)
            if channel.is_closed:
                return None
            asked = {"ask": "exchange", "served": offer["served"], "final": number == _MOST_ROUNDS - 1}
            channel.send(asked)
            answer = await channel.receive(_EXCHANGE_SECONDS)
            if answer is None:
                return None
            if "yours" in answer.body:
                return await self._received(channel, answer, beats=beats)
            offer = answer.body
        return None

    async def _load(self, channel: Channel, offer: Body) -> None:
        """Load what the other process serves, as far as memory holds it."""
        factory = await self._opened()
        if factory is None:
            return
        self._share_budget(factory, offer["weights"])
        factory.device.peak_elsewhere = max(1, int(offer.get("peak", 0)))  # 0 would say that there is no such process

        async def make_room() -> None:
            channel.send({"ask": "room"})
            with suppress(TimeoutError):
                if (answer := await channel.receive(_ROOM_SECONDS)) is not None:
                    assert factory is not None
                    self._share_budget(factory, answer.body["weights"])

        rule = Rule.of(self._config.followed)
        wanted = {alias: (version, digest) for alias, version, digest in offer["served"] if rule.may_follow(alias)}
        await self._beside.load(factory, wanted, make_room)

    def _share_budget(self, factory: "EngineFactory", elsewhere: int) -> None:
        """Leave of the budget what the weights of the other process take; `Following` ends that."""
        if (budget := self._config.memory_budget) is not None:
            factory.device.budget = max(0, budget - elsewhere)

    def _begin_opening(self) -> None:
        """Begin to import torch and to open the device, which takes the longest but for the weights."""
        if self._making is None and self._factory is None:
            self._making = self._bridge.begin("import", self._make_factory, LoadControl())

    async def _opened(self) -> "EngineFactory | None":
        """Return the engine factory; None if other programs hold the device: the service tries again."""
        self._begin_opening()
        if self._making is not None:
            made, self._making = self._making, None
            try:
                self._factory = await made.future
            except Rejection as rejection:
                _log.warning("the device cannot be opened beside the other process: %s", rejection.reason)
        return self._factory

    async def _received(self, channel: Channel, yours: Message, *, beats: bool) -> Taken:
        """Return what the other process gives."""
        given: dict[str, Any] = yours.body["yours"]
        taken = Taken(self._factory, self._beside.warmed(), channel, beats=beats)
        if given["lock"]:
            taken.lock = yours.fds.pop(0)
        taken.sockets = [socket.socket(fileno=fd) for fd in yours.fds]
        host, port = given["address"]
        taken.address = host, port
        end = time.monotonic() + _JOBS_SECONDS
        with suppress(TimeoutError):
            while (message := await channel.receive(max(0.0, end - time.monotonic()))) is not None:
                if message.body.get("jobs") == "told":
                    break
                taken.jobs.append(message)
        return taken


@dataclass(frozen=True, slots=True)
class _Free:
    """No process holds the lock of the state directory but this one, by the descriptor `lock`; None where there is no lock yet."""

    lock: int | None


def _lock_if_free(lock: Path) -> _Free | None:
    """Take the lock of a state directory; return None if a process holds it."""
    try:
        opened = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return _Free(None)  # not there; or the start says why it cannot be used
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(opened)
        return None if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN) else _Free(None)
    return _Free(opened)
