"""Votes on pictures of the history, called from the event loop; the database is used in a thread."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from zwatch.bridge import Bridge, NoAnswer
from zwatch.errors import RequestError
from zwatch.generation.history import History
from zwatch.generation.kept_image import KeptImage, VotesView
from zwatch.generation.vote_store import Drawn, Total, Votes, VoteStore
from zwatch.rollout.lifecycle import VersionKey

T = TypeVar("T")

_log = logging.getLogger(__name__)

FILE = "votes.sqlite"
"""In the state directory: unlike what is in its folder `history`, votes cannot be made again."""


class Voting:
    """The votes on the pictures of a history."""

    def __init__(self, bridge: Bridge, file: Path, history: History) -> None:
        self.goes_on: Callable[[str, VersionKey], bool] = lambda trial, key: False
        """Says whether the trial of this id goes on, and a version takes part in it."""
        self.totals: list[Total] = []
        """What all votes come to, as known after the last one."""
        self._bridge = bridge
        self._store = VoteStore(file)
        self._history = history
        self._forgetting: set[asyncio.Task[None]] = set()  # the event loop keeps only weak references
        history.on_remove = self._forget

    async def open(self) -> None:
        """Read the totals. A file that cannot be used is logged; the next vote tries again."""
        try:
            self.totals = await self._bridge.run("votes", self._store.totals)
        except (sqlite3.Error, OSError) as error:
            _log.warning("%s: the votes cannot be read: %s", self._store.file, error)

    async def vote(self, name: str, client: str, vote: int) -> KeptImage:
        """Set a client's vote on a picture: 1, -1, or 0 to take it back. Return the picture with its votes.

        Raises:
            RequestError: 404, there is no picture of that name; 500, the vote cannot be kept.
        """
        row = await self._history.find(name)
        key = VersionKey(row["version"] or "", row["digest"])
        trial = row["trial"] or ""  # what another program wrote into the file counts in no trial but one that goes on
        drawn = Drawn(key.version, key.digest or "", row["share"] or "", trial if self.goes_on(trial, key) else "")
        try:
            votes, self.totals = await self._bridge.run("votes", self._voted, name, client, vote, drawn)
        except NoAnswer:
            raise
        except (sqlite3.Error, OSError) as error:
            _log.warning("%s: a vote cannot be kept: %s", self._store.file, error)
            raise RequestError("internal_error", f"the vote cannot be kept: {error}") from None
        return {**row, "votes": _view(votes)}

    async def add_to(self, rows: Sequence[KeptImage], client: str) -> None:
        """Add the votes to pictures in a list; nothing if they cannot be read."""
        try:
            found = await self._bridge.run("votes", self._store.votes, [row["name"] for row in rows], client)
        except (sqlite3.Error, OSError) as error:
            _log.warning("%s: the votes cannot be read: %s", self._store.file, error)
            return
        for row in rows:
            row["votes"] = _view(found.get(row["name"], Votes()))

    def _voted(self, name: str, client: str, vote: int, drawn: Drawn) -> tuple[Votes, list[Total]]:
        return self._store.vote(name, client, vote, drawn), self._store.totals()

    def _forget(self, names: Iterable[str]) -> None:
        task = asyncio.get_running_loop().create_task(self._forgotten(list(names)), name="forget votes")
        self._forgetting.add(task)
        task.add_done_callback(self._forgetting.discard)

    async def _forgotten(self, names: list[str]) -> None:
        try:
            await self._bridge.run("votes", self._store.forget, names)
        except (sqlite3.Error, OSError) as error:
            _log.warning("%s: votes on deleted pictures cannot be deleted: %s", self._store.file, error)


def _view(votes: Votes) -> VotesView:
    return {"up": votes.up, "down": votes.down, "mine": votes.mine}
