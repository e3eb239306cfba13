"""The order of the images in the output directory, in memory: by name for the list, by addition for the limits.

Names carry the time, and clocks jump. So there are eras: an image that is saved when the clock stands before the newest name
begins a new one, and everything of an earlier era is older, whatever its name says. While the clock is right there is one era.
"""

import bisect
import re
from collections import OrderedDict
from collections.abc import Container, Iterable
from datetime import UTC, datetime, timedelta
from itertools import islice

NAME = r"([0-9]{8}_[0-9]{6})_seed([0-9]{1,19})(?:_([1-9][0-9]{0,8}))?\.(png|jpg|webp)"
"""The pattern of a complete file name."""
_STAMP = "%Y%m%d_%H%M%S"
_STEP = timedelta(seconds=60)
"""A clock that is set back by less keeps the era: names then repeat the newest time until the clock has passed it."""
_LINE = re.compile(rf"([0-9]{{1,9}}) ({NAME})")
_REMOVED = 1000
"""Removed names whose era is remembered, for pages that continue after them."""

_Key = tuple[str, int, int, str]
_Entry = tuple[int, _Key, str]


def order(name: str) -> _Key | None:
    """Return the sort key of a name: second, seed, copy, suffix; None if it is not the name of an image."""
    found = re.fullmatch(NAME, name)
    if found is None:
        return None
    stamp, seed, copy, suffix = found.groups()
    return stamp, int(seed), int(copy or 1), suffix


def created(name: str) -> datetime | None:
    """Return the time, in UTC, from the name of an image; None if the name has no valid time."""
    # By hand: strptime takes longer than reading the image's details.
    day, second = name[:8], name[9:15]
    try:
        return datetime(
            int(day[:4]), int(day[4:6]), int(day[6:]), int(second[:2]), int(second[2:4]), int(second[4:]), tzinfo=UTC
        )
    except ValueError:
        return None


class ImageOrder:
    """The names of all images in order. `text` is what `ImageOrder.text` returned before a restart."""

    def __init__(self, text: str = "") -> None:
        lines = [found for line in text.splitlines() if (found := _LINE.fullmatch(line)) is not None]
        self._eras = {found[2]: int(found[1]) for found in lines}
        """The era of names before the present one, also of names that are not there."""
        self.era = 1 + max(self._eras.values(), default=-1)
        """The present era; names that are added belong to it."""
        self._entries: list[_Entry] = []
        self._found: list[_Entry] = []
        """Those that were not saved here since the start."""
        self._saved: dict[str, None] = {}
        """Those that were, in the order in which they were saved."""
        self._removed: OrderedDict[str, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def stamp(self, moment: datetime) -> str:
        """Return the time for the name of an image that is saved now. It may begin a new era."""
        stamp = moment.astimezone(UTC).strftime(_STAMP)
        newest = self._entries[-1][2] if self._entries and self._entries[-1][0] == self.era else None
        if newest is None or newest[:15] <= stamp:
            return stamp
        shown = created(newest)
        if shown is not None and shown - moment < _STEP:
            return newest[:15]
        for era, _, name in self._entries:
            self._eras[name] = era
        self.era += 1
        return stamp

    def add_saved(self, name: str) -> None:
        """Add an image that was saved now."""
        self._saved[name] = None
        bisect.insort(self._entries, self._entry(name, self.era))

    def add_found(self, names: Iterable[str]) -> None:
        """Add images that were found in the directory: of an earlier run, or of another program."""
        new = [self._entry(name, self._eras.get(name, self.era)) for name in names]
        for entries in (self._entries, self._found):
            if len(new) > 100:
                entries[:] = sorted([*entries, *new])
            else:
                for entry in new:
                    bisect.insort(entries, entry)

    def remove(self, names: set[str]) -> None:
        """Remove images."""
        gone = [self._entry(name, self._era_of(name)) for name in names]
        for era, _, name in gone:
            self._eras.pop(name, None)
            self._saved.pop(name, None)
            self._removed[name] = era
        while len(self._removed) > _REMOVED:
            self._removed.popitem(last=False)
        for entries in (self._entries, self._found):
            if len(gone) > 100:
                entries[:] = [entry for entry in entries if entry[2] not in names]
            else:
                for entry in gone:
                    place = bisect.bisect_left(entries, entry)
                    if entries[place : place + 1] == [entry]:
                        del entries[place]

    def page(self, limit: int, before: str | None, among: Container[str] | None = None) -> list[str]:
        """Return up to `limit` names that are older than `before`, newest first; `before` need not be there any more. With
        `among`, only names that are in it."""
        end = len(self._entries)
        if before is not None and order(before) is not None:
            end = bisect.bisect_left(self._entries, self._entry(before, self._era_of(before)))
        if among is None:
            return [name for _, _, name in self._entries[max(0, end - limit) : end][::-1]]
        newest_first = (self._entries[place][2] for place in range(end - 1, -1, -1))
        return list(islice((name for name in newest_first if name in among), limit))

    def oldest(self, limit: int) -> list[str]:
        """Return the `limit` names that were added first: those that were found, by name, then those saved, as saved."""
        names = [name for _, _, name in self._found[:limit]]
        for name in self._saved:
            if len(names) >= limit:
                break
            names.append(name)
        return names

    def text(self) -> str:
        """Return what a later run needs to know besides the names: which of them are of earlier eras."""
        return "".join(f"{era} {name}\n" for era, _, name in self._entries if era < self.era)

    def _era_of(self, name: str) -> int:
        return self._eras.get(name, self._removed.get(name, self.era))

    @staticmethod
    def _entry(name: str, era: int) -> _Entry:
        key = order(name)
        assert key is not None  # no other names are added
        return era, key, name
