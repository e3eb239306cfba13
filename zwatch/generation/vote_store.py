"""Votes on pictures, in a database of the state directory: one vote a client and picture, and what they come to.

The totals are counted as votes are given, and stay when a picture or a vote's details are gone: deleting pictures must not change how
a trial ends. What can no longer be done then is to take such a vote back.
"""

import logging
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

from blake3 import blake3

from zwatch.deploy.durable import clear_place, make_directory, put_aside

T = TypeVar("T")

_log = logging.getLogger(__name__)

MOST_VOTES = 200_000
"""Votes of which the client is known; beyond them the oldest can no longer be taken back. About 40 MB."""
MOST_TOTALS = 10_000
"""Totals of a version, share and trial; beyond them the oldest are forgotten."""
_AT_A_TIME = 500  # names in one statement: SQLite allows 999 question marks everywhere
_SCHEMA = 1
_TABLES = """
    CREATE TABLE IF NOT EXISTS votes (
        picture TEXT NOT NULL, client BLOB NOT NULL, vote INTEGER NOT NULL, total INTEGER NOT NULL, PRIMARY KEY (picture, client)
    );
    CREATE TABLE IF NOT EXISTS totals (
        id INTEGER PRIMARY KEY, version TEXT NOT NULL, digest TEXT NOT NULL, share TEXT NOT NULL, trial TEXT NOT NULL,
        up INTEGER NOT NULL DEFAULT 0, down INTEGER NOT NULL DEFAULT 0, UNIQUE (version, digest, share, trial)
    );
"""
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


class Drawn(NamedTuple):
    """What a vote counts for: who drew the picture, by which share ("" if by none), and during which trial ("" if in none)."""

    version: str
    digest: str
    share: str = ""
    trial: str = ""


class Votes(NamedTuple):
    """The votes on a picture; `mine` is the asking client's own, 0 if it has none."""

    up: int = 0
    down: int = 0
    mine: int = 0


class Total(NamedTuple):
    """What all votes for one `Drawn` come to."""

    drawn: Drawn
    up: int
    down: int


class VoteStore:
    """The votes in a `file`. Every method blocks and raises `sqlite3.Error` or `OSError` if the file cannot be used; one thread at a
    time may call them. Another process may use the file at the same time, as during a takeover."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._database: sqlite3.Connection | None = None
        self._known: tuple[int, int] | None = None  # which file it is

    def vote(self, picture: str, client: str, vote: int, drawn: Drawn) -> Votes:
        """Set a client's vote on a picture: 1, -1, or 0 to take it back. Return the votes on the picture."""

        def change(database: sqlite3.Connection) -> Votes:
            key = _hashed(client)
            found = database.execute("SELECT vote, total FROM votes WHERE picture = ? AND client = ?", (picture, key))
            if (before := found.fetchone()) is not None:
                _count(database, before[1], before[0], -1)
                database.execute("DELETE FROM votes WHERE picture = ? AND client = ?", (picture, key))
            if vote:
                total = _total(database, drawn)
                _count(database, total, vote, 1)
                database.execute("INSERT INTO votes VALUES (?, ?, ?, ?)", (picture, key, vote, total))
            _limit(database)
            return _votes(database, [picture], key).get(picture, Votes())

        return self._changed(change)

    def votes(self, pictures: Sequence[str], client: str) -> dict[str, Votes]:
        """Return the votes on those of the pictures that have any."""
        found: dict[str, Votes] = {}
        for start in range(0, len(pictures), _AT_A_TIME):
            some = pictures[start : start + _AT_A_TIME]
            found |= self._used(partial(_votes, pictures=some, client=_hashed(client)))
        return found

    def totals(self) -> list[Total]:
        """Return all totals, also of pictures that are deleted."""
        statement = "SELECT version, digest, share, trial, up, down FROM totals ORDER BY id"
        rows = self._used(lambda database: database.execute(statement).fetchall())
        return [Total(Drawn(*row[:4]), *row[4:]) for row in rows]

    def forget(self, pictures: Iterable[str]) -> None:
        """Forget who voted on pictures that are deleted. The totals stay."""
        rows = [(picture,) for picture in pictures]
        self._changed(lambda database: database.executemany("DELETE FROM votes WHERE picture = ?", rows))

    def close(self) -> None:
        """Close the database."""
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def _changed(self, change: Callable[[sqlite3.Connection], T]) -> T:
        def use(database: sqlite3.Connection) -> T:
            with database:
                database.execute("BEGIN IMMEDIATE")  # else two processes could both read and then count the same vote
                return change(database)

        return self._used(use)

    def _used(self, use: Callable[[sqlite3.Connection], T]) -> T:
        """Use the database; one that is damaged is put aside, and another one begun."""
        try:
            return use(self._opened())
        except sqlite3.DatabaseError as error:
            self.close()
            if getattr(error, "sqlite_errorcode", 0) & 0xFF not in _DAMAGED:
                raise
            aside = put_aside(self.file, "damaged")
            _log.warning("%s: the votes are damaged: %s; they begin anew, see %s", self.file, error, aside)
            return use(self._opened())

    def _opened(self) -> sqlite3.Connection:
        if self._database is not None and self._identity() == self._known:
            return self._database
        self.close()  # the file was removed, or another put in its place: what is written to the old one would be lost
        make_directory(self.file.parent)
        clear_place(self.file, "damaged")
        # The lane's one thread may be replaced by another.
        database = sqlite3.connect(self.file, timeout=5.0, check_same_thread=False, isolation_level=None)
        try:
            database.execute("PRAGMA synchronous = FULL")
            [schema] = database.execute("PRAGMA user_version").fetchone()
            if schema > _SCHEMA:
                raise sqlite3.NotSupportedError(f"{self.file} is of a newer zwatch: its format is {schema}")
            if schema < _SCHEMA:
                database.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {_SCHEMA}; COMMIT;")
        except BaseException:
            database.close()
            raise
        self._database, self._known = database, self._identity()
        return database

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self.file)
        except OSError:
            return None
        return found.st_dev, found.st_ino


def _hashed(client: str) -> bytes:
    """Return what is kept of a client's key: enough to know it again, not its address."""
    return blake3(client.encode("utf-8", "surrogatepass")).digest(length=16)


def _votes(database: sqlite3.Connection, pictures: Sequence[str], client: bytes) -> dict[str, Votes]:
    marks = ", ".join("?" * len(pictures))
    columns = "picture, sum(vote > 0), sum(vote < 0), sum(CASE client WHEN ? THEN vote ELSE 0 END)"
    statement = f"SELECT {columns} FROM votes WHERE picture IN ({marks}) GROUP BY picture"  # noqa: S608 (only question marks)
    return {row[0]: Votes(*row[1:]) for row in database.execute(statement, (client, *pictures))}


def _total(database: sqlite3.Connection, drawn: Drawn) -> int:
    """Return the id of a total, which is made if it is not there."""
    database.execute("INSERT OR IGNORE INTO totals (version, digest, share, trial) VALUES (?, ?, ?, ?)", drawn)
    statement = "SELECT id FROM totals WHERE version = ? AND digest = ? AND share = ? AND trial = ?"
    return int(database.execute(statement, drawn).fetchone()[0])


def _count(database: sqlite3.Connection, total: int, vote: int, by: int) -> None:
    column = "up" if vote > 0 else "down"
    database.execute(f"UPDATE totals SET {column} = {column} + ? WHERE id = ?", (by, total))  # noqa: S608 (one of two words)


def _limit(database: sqlite3.Connection) -> None:
    for table, most in (("votes", MOST_VOTES), ("totals", MOST_TOTALS)):
        count = database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 (one of two words)
        if count > most:
            oldest = f"SELECT rowid FROM {table} ORDER BY rowid LIMIT ?"  # noqa: S608
            database.execute(f"DELETE FROM {table} WHERE rowid IN ({oldest})", (count - most,))  # noqa: S608
