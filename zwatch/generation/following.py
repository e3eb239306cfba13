"""Following what is being made: its present state, then every change, for as many followers as there are."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AbstractContextManager
from typing import Any, Protocol

from zwatch.errors import RequestError
from zwatch.generation.job_events import JobEvent, Quiet


class Followed(Protocol):
    """What can be followed: a job, or several that answer one request."""

    @property
    def state(self) -> Any:
        """Its state, with `is_final`."""

    @property
    def position(self) -> int:
        """How many jobs wait before it."""

    @property
    def step(self) -> int:
        """How many steps are done."""

    @property
    def previews(self) -> int:
        """How many previews there have been."""

    @property
    def lateness(self) -> str:
        """What an error says of it when it took too long, such as "it was not done"."""

    def note_timeout(self, error: RequestError) -> None:
        """Note that the client got this error because the time limit passed."""

    def followed(self) -> AbstractContextManager[None]:
        """Count as a follower inside the block."""

    def coming(self) -> "asyncio.Future[None]":
        """Return what is done at the next change. It may be waited for by several."""

    def event(self, previews: int) -> JobEvent:
        """Return the present state; with its preview if there have been more than `previews`."""


async def follow(one: Followed, heartbeat: float) -> AsyncGenerator[JobEvent, None]:
    """Yield the present state and every change until the end, and `Quiet` after each `heartbeat` seconds without a change. A slow
    consumer gets only the newest state, not every change.

    Use it within `contextlib.aclosing`: previews are made while the generator is open.
    """
    sent: object = None
    previews = 0
    with one.followed():
        while True:
            coming = one.coming()
            now = (one.state, one.position, one.step, one.previews)
            if now != sent:
                sent = now
                yield one.event(previews)
                if now[0].is_final:
                    return
                previews = now[3]
                continue  # the state may have changed during the yield
            try:
                async with asyncio.timeout(heartbeat):
                    await asyncio.shield(coming)
                quiet = False
            except TimeoutError:
                quiet = True
            if quiet:
                yield Quiet()
