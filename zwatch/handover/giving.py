"""The old process of a handover: what it answers to one that wants to take over, and how it ends after that.

Until the other process serves, everything can be undone: then this one goes on as it was.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import cast

from aiohttp import web

from zwatch import __version__, systemd
from zwatch.api.answers import Handler
from zwatch.api.server import Runner, Server
from zwatch.api.services import Services
from zwatch.api.streams import CLOSING
from zwatch.bridge import NoAnswer
from zwatch.errors import RequestError, retry_after
from zwatch.handover.channel import PROTOCOL, Channel, Message
from zwatch.handover.described import Body
from zwatch.handover.jobs import JobTeller
from zwatch.handover.leaving import Leaving, ToProcess
from zwatch.handover.standstill import end_process
from zwatch.rollout.state import StateFile

_log = logging.getLogger(__name__)

HELLO_SECONDS = 5.0
LOAD_SECONDS = 60.0
"""How long a load that runs is waited for before the other process is told to ask again. After its last time the load is abandoned,
and begins again there."""
TELL_SECONDS = 0.05
"""How often the other process is told about jobs."""
SYNC_SECONDS = 1.0
_HELD_SECONDS = 30.0
"""How long a call that changes what serves waits for the end of the exchange."""
_END_SECONDS = 10.0
CHANGING = {
    ("POST", "/api/deploy"),
    ("POST", "/api/rollback"),
    ("POST", "/api/share"),
    ("POST", "/api/promote"),
    ("POST", "/api/load_model"),
    ("POST", "/api/unload_model"),
    ("DELETE", "/login"),
}
"""Calls that change what the other process owns from the exchange on."""
GIVEN = RequestError(
    "shutting_down", "another zwatch has taken over; a new connection reaches it", headers=retry_after(1)
)


class Giving:
    """Gives a running service to another process. On the event loop. `before_end` is called when the other process serves. One that
    is not heard of for `silence` seconds in the middle of that stands still."""

    def __init__(self, services: Services, state_file: StateFile, address: tuple[str, int], silence: float) -> None:
        self.runner: Runner
        """Set before anything else is called."""
        self.given = asyncio.Event()
        """Set once the other process serves: this one only ends what it has begun."""
        self.before_end: Callable[[], None] = lambda: None
        self._is_closed = False
        self._services = services
        self._state_file = state_file
        self._address = address
        self._silence = silence
        self._channel: Channel | None = None
        """To the process that takes over, from its first word on."""
        self._teller: JobTeller | None = None
        """From the exchange on."""
        self._decided = asyncio.Event()
        self._decided.set()
        self._notify: str | None = None
        self._changing = 0
        """How many calls run that change what serves."""
        self._synced, self._sync = 0, 0
        self._answered = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    # --- the conversation

    def meet(self, channel: Channel) -> None:
        """Talk to a process that may want to take over, in a task of its own."""
        self._keep(self._talk(channel), "handover")

    def _keep(self, talking: Coroutine[object, object, None], name: str) -> None:
        task = asyncio.create_task(talking, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _talk(self, channel: Channel) -> None:
        try:
            hello = await channel.receive(HELLO_SECONDS)
            if hello is None:
                return
            ours = {"protocol": PROTOCOL, "zwatch": __version__}
            if hello.body.get("protocol") != PROTOCOL or self._channel is not None or self.given.is_set():
                channel.send({**ours, "busy": self._channel is not None or self.given.is_set()})
                await channel.flushed(HELLO_SECONDS)
                return
            self._channel, self._notify = channel, hello.body.get("notify")
            _log.info("zwatch %s, process %d, wants to take over", hello.body.get("zwatch"), channel.peer[0])
            channel.send({**ours, "beats": True, **self._offer()})
            if beats := bool(hello.body.get("beats")):
                channel.beat()
            while (message := await self._next(channel, beats=beats)) is not None:
                await self._answer(channel, message)
        except TimeoutError:
            pass
        except Exception:
            _log.exception("a handover failed")
        finally:
            channel.close()
            if self._channel is channel and not self.given.is_set():
                await self._take_back()
                self._channel = None

    async def _next(self, channel: Channel, *, beats: bool) -> Message | None:
        """Return the next message; None if the other process ended, or stood still and is ended.

        Raises:
            TimeoutError: it stands still, and holds nothing of this one.
        """
        while beats and not self.given.is_set():
            try:
                return await channel.receive_of_living(self._silence)
            except TimeoutError:
                if self._teller is None:
                    raise
                beats = await end_process(channel.peer[0], "the zwatch that takes over")
        return await channel.receive()

    async def _answer(self, channel: Channel, message: Message) -> None:
        message.close()
        body = message.body
        match body.get("ask"):
            case "room":
                factory = self._services.supervisor.factory
                await self._services.supervisor.runner.neighbour.lend_room(None if factory is None else factory.device)
                channel.send(self._offer())
            case "exchange":
                await self._exchange(channel, body)
            case "accept" if not self._decided.is_set():
                self.runner.stop_accepting()
                channel.send({"accepting": False})
            case "end":
                self._give(channel, passes_on=bool(body.get("connections")))
        if "cancel" in body:
            with suppress(RequestError):
                self._services.queue.cancel(self._services.queue.jobs.find(body["cancel"]))
        if "watched" in body:
            with suppress(RequestError):
                self._services.queue.jobs.find(body["watched"]).note_poll()
        if "synced" in body:
            self._synced = max(self._synced, int(body["synced"]))
            self._answered.set()

    def _offer(self) -> Body:
        """Return what serves, and how many bytes of the device its weights and what is reserved take."""
        supervisor, engines = self._services.supervisor, self._services.engines
        device = None if supervisor.factory is None else supervisor.factory.device
        served = [
            [key, resident.key.version, resident.key.digest]
            for key in supervisor.records
            if (resident := engines.serving(key)) is not None
        ]
        weights, peak = (0, 0) if device is None else (device.weights_bytes + device.kept, device.request_peak)
        return {"served": served, "weights": weights, "peak": peak}

    # --- the exchange

    async def _exchange(self, channel: Channel, asked: Body) -> None:
        """Give everything away but the right to go on, unless something else serves by now than the other process knows."""
        supervisor = self._services.supervisor
        await self._settled()
        is_changing = (
            supervisor.runner.running is not None or self._changing > 0 or asked["served"] != self._offer()["served"]
        )
        is_leaving = supervisor.is_stopping or cast("Server", self.runner.server).is_leaving
        if is_leaving or (is_changing and not asked.get("final")):
            channel.send(self._offer())
            return
        self._decided.clear()
        await supervisor.pause()
        self._state_file.is_lent = True
        with suppress(NoAnswer):  # a write that has begun is over when this returns: the lane has one thread
            await self._services.bridge.run("state", int)
        if self._services.history is not None:
            await self._services.history.lend_index(lent=True)
        if asked["served"] != self._offer()["served"] and not asked.get("final"):
            await self._resume()
            channel.send(self._offer())
            return
        sockets = self.runner.listening_sockets
        lock = [] if self._state_file.lock is None else [self._state_file.lock]
        fds = [*lock, *(one.fileno() for one in sockets)]
        channel.send({"yours": {"lock": bool(lock), "address": list(self._address)}}, fds)
        # From here on requests tell of their jobs.
        self._teller = teller = JobTeller(self._services.queue.jobs, channel, self._services.bridge)
        await teller.tell()
        channel.send({"jobs": "told"})
        self._keep(self._keep_telling(channel, teller), "tell jobs")

    async def _settled(self) -> None:
        """Wait for the load that runs, and for calls that change what serves."""
        supervisor = self._services.supervisor
        with suppress(TimeoutError):
            async with asyncio.timeout(LOAD_SECONDS):
                while (supervisor.runner.running is not None or self._changing) and not supervisor.is_stopping:
                    await supervisor.changes.wait()

    async def _keep_telling(self, channel: Channel, teller: JobTeller) -> None:
        while not channel.is_closed:
            await teller.tell()
            await asyncio.sleep(TELL_SECONDS)

    async def _take_back(self) -> None:
        """Go on as before: the other process did not take over."""
        self._services.supervisor.runner.neighbour.end_lending()
        if not self._decided.is_set() and not self._is_closed:  # closed: the other process may own the directory
            await self._resume()
            _log.warning("the process that wanted to take over has ended before it served; this one goes on")

    async def _resume(self) -> None:
        """Undo an exchange."""
        services = self._services
        self._teller = None
        self.runner.accept_again()
        self._state_file.is_lent = False
        if services.history is not None:
            await services.history.lend_index(lent=False)
        if services.supervisor.failure is None:
            await services.supervisor.resume()
        self._decided.set()

    def _give(self, channel: Channel, *, passes_on: bool) -> None:
        """End, since the other process serves: accept nothing more, and let connections go over."""
        if self.given.is_set() or self._decided.is_set():
            return
        pid = channel.peer[0]
        _log.info("process %d has taken over; what has begun here ends here", pid)
        self._state_file.close()  # the other process holds the lock
        if (
            self._notify is not None
            and self._notify == os.environ.get("NOTIFY_SOCKET")
            and systemd.is_of_this_unit(pid)
        ):
            systemd.notify(f"MAINPID={pid}")
        self.given.set()
        self._decided.set()
        self.before_end()
        self.runner.stop_accepting()
        server = cast("Server", self.runner.server)
        server.is_leaving, server.passes_on = True, passes_on
        self.runner.app[CLOSING].set()
        self._services.queue.give_up_waiting(GIVEN)  # the other process draws their jobs
        self._services.supervisor.changes.fire()

    # --- the end

    async def drain(self, seconds: float) -> None:
        """Stop accepting, let every connection go over, and end what has begun, for `seconds` at most."""
        leaving = Leaving(self._services, self.runner, None if self._channel is None else ToProcess(self._channel))
        await leaving.drain(seconds)
        if self._teller is not None and self._channel is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_END_SECONDS):
                    await self._teller.tell()
            await self._channel.flushed(_END_SECONDS)

    async def is_given(self) -> bool:
        """Return whether another process serves; an exchange that has begun is waited for."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_HELD_SECONDS):
                await self._decided.wait()
        return self.given.is_set()

    async def close(self) -> None:
        """End the conversation; the other process notices."""
        self._is_closed = True
        if self._channel is not None:
            await self._channel.flushed(SYNC_SECONDS)
            self._channel.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- requests meanwhile

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Hold calls that change what serves during the exchange, and refuse them after it. A job that is accepted is known
        to the other process before its client is."""
        if (request.method, request.path) in CHANGING:
            with suppress(TimeoutError):
                async with asyncio.timeout(_HELD_SECONDS):
                    await self._decided.wait()
            if self.given.is_set() or not self._decided.is_set():
                raise GIVEN.with_traceback(None)
            self._changing += 1
            try:
                return await handler(request)
            finally:
                self._changing -= 1
                self._services.supervisor.changes.fire()
        response = await handler(request)
        if self._teller is not None and request.method == "POST":
            await self._tell_now()
        return response

    async def _tell_now(self) -> None:
        """Return when the other process knows all jobs, or does not answer."""
        channel, teller = self._channel, self._teller
        if channel is None or teller is None or channel.is_closed:
            return
        self._sync += 1
        wanted = self._sync
        with suppress(TimeoutError):
            async with asyncio.timeout(SYNC_SECONDS):
                await teller.tell()
                channel.send({"sync": wanted})
                while self._synced < wanted and not channel.is_closed and self._teller is teller:
                    self._answered.clear()
                    await self._answered.wait()
