"""The search index: what images can be found by, in a database that can always be made again from the images.

A search reads the whole table. SQLite does that without holding Python's lock, in less than a tenth of a second for 100,000
prompts, and finds parts of words in every script; its indexes of words and of three letters find no Chinese word of two.
"""

import logging
import sqlite3
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TypeVar

from zwatch.deploy.durable import clear_place, make_directory, put_aside
from zwatch.generation.kept_image import read_kept_image

T = TypeVar("T")

_log = logging.getLogger(__name__)

_DAMAGED = "damaged"
_BESIDE = ("-wal", "-shm", "-journal")
"""What SQLite adds to the name of a database for files beside it."""
_SCHEMA = 1
_TABLE = """
    CREATE TABLE images (name TEXT PRIMARY KEY, size INTEGER NOT NULL, version TEXT, seed INTEGER, prompt TEXT NOT NULL)
    WITHOUT ROWID
"""
_BATCH = 25
"""Images that are read between two commits, and two looks at the clock."""
_FEW = 500
_UNUSABLE = {
    sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOLFS, sqlite3.SQLITE_NOMEM,
}  # fmt: skip
"""Errors that another file would have as well."""
_YOUNG_SECONDS = 60.0
"""A file of this age without details may not be complete yet: another program writes it."""
_AGAIN_SECONDS = 30.0

_Row = tuple[str, int, str | None, int | None, str]


@dataclass(frozen=True, slots=True)
class Query:
    """What is searched for: images whose prompt contains every word, of a version, of a seed."""

    words: tuple[str, ...] = ()
    version: str | None = None
    seed: int | None = None

    @classmethod
    def of(cls, text: str, version: str | None, seed: int | None) -> "Query":
        """Return the query for a text as people type it."""
        return cls(tuple(dict.fromkeys(folded(text).split())), version or None, seed)

    def __bool__(self) -> bool:
        return self != Query()

    def sql(self) -> tuple[str, list[str | int]]:
        """Return the statement that finds the names, and its parameters."""
        terms: list[tuple[str, str | int]] = [("instr(prompt, ?)", word) for word in self.words]
        if self.seed is not None:
            terms.insert(0, ("seed = ?", self.seed))
        if self.version is not None:
            terms.insert(0, ("version = ?", _encodable(self.version)))
        where = " AND ".join(term for term, _ in terms) or "1"
        return f"SELECT name FROM images WHERE {where}", [value for _, value in terms]  # noqa: S608 (only question marks)


class SearchIndex:
    """The index of the images in one directory, in a `file`, or in memory if it is None or cannot be used.

    Every method blocks; only one thread at a time may call them, except `note`. `sizes` returns the bytes of every image by its
    name; any thread may call it.
    """

    def __init__(self, images: Path, file: Path | None, sizes: Callable[[], Mapping[str, int]]) -> None:
        self._images = images
        self._file = self._given = file
        self._sizes = sizes
        self._changes: SimpleQueue[tuple[dict[str, int], list[str]]] = SimpleQueue()
        self._pending: dict[str, int] = {}
        """Images that have to be read, with their bytes; the last one is the next."""
        self._again: list[tuple[float, str, int]] = []
        """Images to read a second time, and when, on the monotonic clock."""
        self._database: sqlite3.Connection | None = None
        self._is_tidy = False
        self._is_replaced = False
        self._is_lent = False
        """Whether another process has the file."""
        self._last: tuple[Query, set[str]] | None = None
        """The last search; None after a change."""

    def note(self, added: Mapping[str, int], removed: Iterable[str]) -> None:
        """Note that images, given with their bytes, were added, or that images were removed. Any thread may call this."""
        self._changes.put((dict(added), list(removed)))

    def update(self, seconds: float) -> bool:
        """Read images for about this long, the newest first; return whether there are more."""
        if self._is_lent:
            return False
        end = time.monotonic() + seconds
        self._guarded(self._take_changes)
        while self._pending and time.monotonic() < end:
            self._guarded(self._read_batch)
        if not self._pending and not self._is_tidy:
            self._guarded(self._tidy)
        return bool(self._pending)

    def find(self, query: Query, seconds: float) -> tuple[set[str], float]:
        """Return the names that a query finds, some of which may be removed by now, and how much of the directory was searched, from
        0 to 1. Images that were added since are read first, for at most about so many seconds."""
        if self._is_lent:
            return set(), 0.0
        self.update(seconds)
        if self._last is None or self._last[0] != query:
            statement, values = query.sql()
            rows = self._guarded(lambda database: database.execute(statement, values).fetchall())
            if rows is None:  # there is another database now
                self.update(seconds)
                rows = self._guarded(lambda database: database.execute(statement, values).fetchall())
            self._last = query, {name for (name,) in rows or ()}
        return self._last[1], 1.0 - min(1.0, len(self._pending) / max(1, len(self._sizes())))

    def lend(self, *, lent: bool) -> None:
        """Leave the file to another process, or use it again; what changed meanwhile is looked for then."""
        self._is_lent = lent
        if lent:
            self.close()
        else:
            self._is_tidy = False
            self.note(self._sizes(), [])

    def reopen(self) -> None:
        """Use the file again, after its directory was not there."""
        self._file, self._is_replaced = self._given, False
        if not self._is_lent:
            self.close()
            self.lend(lent=False)

    def close(self) -> None:
        """Close the database."""
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def _guarded(self, use: Callable[[sqlite3.Connection], T]) -> T | None:
        """Use the database; if it fails, begin another one. None after a failure."""
        try:
            if self._database is None:
                self._database = self._opened()
            return use(self._database)
        except sqlite3.Error as error:
            self._replace(error)
            return None

    def _opened(self) -> sqlite3.Connection:
        # The lane's one thread may be replaced by another.
        if self._file is None:
            database = sqlite3.connect(":memory:", check_same_thread=False)
        else:
            with suppress(OSError):
                make_directory(self._file.parent)
            for suffix in ("", *_BESIDE):
                clear_place(Path(f"{self._file}{suffix}"), _DAMAGED)
            database = sqlite3.connect(self._file, timeout=1.0, check_same_thread=False)
        try:
            # Exclusive: without memory that is shared between processes, which not every file system has.
            for setting in (
                "locking_mode = EXCLUSIVE",
                "journal_mode = WAL",
                "synchronous = NORMAL",
                "secure_delete = ON",
            ):
                database.execute(f"PRAGMA {setting}")
            if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise sqlite3.DatabaseError("quick_check failed")
            if database.execute("PRAGMA user_version").fetchone() != (_SCHEMA,):
                with database:
                    database.execute("DROP TABLE IF EXISTS images")
                    database.execute(_TABLE)
                    database.execute(f"PRAGMA user_version = {_SCHEMA}")
        except BaseException:
            database.close()
            raise
        return database

    def _replace(self, error: sqlite3.Error) -> None:
        """Begin another database: a new file if this one is damaged; memory, until the next start, if no file can be used, or this
        is the second."""
        self.close()
        is_damaged = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF not in _UNUSABLE
        if self._file is not None:
            _log.warning(
                "%s: the search index %s: %s; it is made again from the images%s", self._file,
                "is damaged" if is_damaged else "cannot be used", error, "" if is_damaged else ", in memory",
            )  # fmt: skip
            if not is_damaged or self._is_replaced or not _put_aside(self._file):
                self._file = None
            self._is_replaced = True
        self._last = None
        self._is_tidy = True  # it is empty
        self._add_pending(self._sizes(), {})

    def _take_changes(self, database: sqlite3.Connection) -> None:
        gone: list[str] = []
        while not self._changes.empty():
            added, removed = self._changes.get_nowait()
            for name in removed:
                self._pending.pop(name, None)
            gone += removed
            self._add_pending(added, _stored(database, added))
        if gone:
            self._last = None
            with database:
                database.executemany("DELETE FROM images WHERE name = ?", [(name,) for name in gone])
        while self._again and self._again[0][0] <= time.monotonic():
            _, name, size = self._again.pop(0)
            with database:
                database.execute("DELETE FROM images WHERE name = ?", (name,))
            self._pending[name] = size

    def _add_pending(self, added: Mapping[str, int], stored: Mapping[str, int]) -> None:
        for name in sorted(added):
            self._pending.pop(name, None)
            if stored.get(name) != added[name]:
                self._pending[name] = added[name]

    def _read_batch(self, database: sqlite3.Connection) -> None:
        batch = [self._pending.popitem() for _ in range(min(_BATCH, len(self._pending)))]
        rows = [row for name, size in batch for row in self._read(name, size)]
        if rows:
            self._last = None
            with database:
                database.executemany("INSERT OR REPLACE INTO images VALUES (?, ?, ?, ?, ?)", rows)

    def _read(self, name: str, size: int) -> list[_Row]:
        """Return the row of an image; nothing if it was removed."""
        image = read_kept_image(self._images / name)
        if image is None:
            return []
        if image["prompt"] is None and self._is_young(name):
            self._again.append((time.monotonic() + _AGAIN_SECONDS, name, size))
        version = None if image["version"] is None else _encodable(image["version"])
        return [(name, size, version, image["seed"], folded(image["prompt"] or ""))]

    def _is_young(self, name: str) -> bool:
        try:
            return abs(time.time() - (self._images / name).lstat().st_mtime) < _YOUNG_SECONDS
        except OSError:
            return False

    def _tidy(self, database: sqlite3.Connection) -> None:
        """Once a start, delete the rows of images that were removed before it."""
        self._is_tidy = True
        known = self._sizes()
        if not known:  # perhaps the directory is not mounted
            return
        if database.execute("SELECT count(*) FROM images").fetchone() == (len(known),):
            return
        gone = [(name,) for (name,) in database.execute("SELECT name FROM images") if name not in known]
        with database:
            database.executemany("DELETE FROM images WHERE name = ?", gone)


def _stored(database: sqlite3.Connection, names: Mapping[str, int]) -> dict[str, int]:
    """Return the bytes, as stored, of at least these images."""
    if len(names) > _FEW:
        return dict(database.execute("SELECT name, size FROM images"))
    return dict(
        row for name in names for row in database.execute("SELECT name, size FROM images WHERE name = ?", (name,))
    )


def folded(text: str) -> str:
    """Return a text in the form in which texts are compared: without case, and without the difference between full and half width."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", _encodable(text)).casefold())


def _encodable(text: str) -> str:
    """Return a text without halves of surrogate pairs, which a file's JSON may contain."""
    return text.encode("utf-8", "replace").decode()


def _put_aside(file: Path) -> bool:
    """Rename a damaged database; return whether a new one can take its place."""
    for suffix in _BESIDE:
        with suppress(OSError):
            Path(f"{file}{suffix}").unlink(missing_ok=True)
    return put_aside(file, _DAMAGED) is not None
