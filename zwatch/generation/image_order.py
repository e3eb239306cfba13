"""The order of the images in the output directory, in memory: by time for the list, by addition for the limits.

Names carry the second, and the files' modification times the moment within it. Clocks jump. So there are eras: an image that is
saved when the clock stands before the newest name begins a new one, and everything of an earlier era is older, whatever its name
says. While the clock is right there is one era.
"""

import bisect
import re
from collections import OrderedDict
from collections.abc import Collection, Container, Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice

NAME = r"([0-9]{8}_[0-9]{6})_seed([0-9]{1,19})(?:_([1-9][0-9]{0,8}))?\.(png|jpg|webp)"
"""The pattern of a complete file name."""
_STAMP = "%Y%m%d_%H%M%S"
_STEP = timedelta(seconds=60)
"""A clock that is set back by less keeps the era: names then repeat the newest time until the clock has passed it."""
_LINE = re.compile(rf"([0-9]{{1,9}}) ({NAME})")
_NEAR_NS = 3600 * 10**9
"""A file whose modification time is farther from its name's was copied: the time does not tell when the image was made."""
_REMOVED = 1000
"""Removed images whose place is remembered, for pages that continue after them."""

_Key = tuple[str, int, int, str]
_Entry = tuple[int, str, int, _Key, str]
"""Era, second, moment, and what orders images of the same moment: the key, and the name."""


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
        self._by_name: dict[str, _Entry] = {}
        self._found: list[_Entry] = []
        """Those that were not saved here since the start."""
        self._saved: dict[str, None] = {}
        """Those that were, in the order in which they were saved."""
        self._removed: OrderedDict[str, _Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def stamp(self, moment: datetime) -> str:
        """Return the time for the name of an image that is saved now. It may begin a new era."""
        stamp = moment.astimezone(UTC).strftime(_STAMP)
        newest = self._newest_of_era()
        if newest is None or newest[1] <= stamp:
            return stamp
        shown = created(newest[-1])
        if shown is not None and shown - moment < _STEP:
            return newest[1]
        for era, *_, name in self._entries:
            self._eras[name] = era
        self.era += 1
        return stamp

    def moment(self, stamp: str, moment: datetime) -> int:
        """Return the modification time, in nanoseconds, for an image that is saved now under a name of that time: later than that
        of all others of the same second, so that they are in the order in which they were made."""
        now = round(moment.timestamp() * 10**9)
        newest = self._newest_of_era()
        return now if newest is None or newest[1] != stamp else max(now, newest[2] + 1)

    def moments(self) -> dict[str, int]:
        """Return the moment of each image."""
        return {name: entry[2] for name, entry in self._by_name.items()}

    def add_saved(self, name: str, moment: int) -> None:
        """Add an image that was saved now; `moment` is its modification time in nanoseconds."""
        entry = self._entry(name, self.era, moment)
        self._by_name[name] = entry
        self._saved[name] = None
        bisect.insort(self._entries, entry)

    def add_found(self, moments: Mapping[str, int]) -> None:
        """Add images that were found in the directory, of an earlier run or of another program, given with their modification
        times in nanoseconds."""
        new = [self._entry(name, self._eras.get(name, self.era), moment) for name, moment in moments.items()]
        self._by_name.update((entry[-1], entry) for entry in new)
        for entries in (self._entries, self._found):
            if len(new) > 100:
                entries[:] = sorted([*entries, *new])
            else:
                for entry in new:
                    bisect.insort(entries, entry)

    def remove(self, names: set[str]) -> None:
        """Remove images."""
        gone = [entry for name in names if (entry := self._by_name.pop(name, None)) is not None]
        for entry in gone:
            name = entry[-1]
            self._eras.pop(name, None)
            self._saved.pop(name, None)
            self._removed[name] = entry
        while len(self._removed) > _REMOVED:
            self._removed.popitem(last=False)
        for entries in (self._entries, self._found):
            if len(gone) > 100:
                entries[:] = [entry for entry in entries if entry[-1] not in names]
            else:
                for entry in gone:
                    place = bisect.bisect_left(entries, entry)
                    if entries[place : place + 1] == [entry]:
                        del entries[place]

    def page(self, limit: int, before: str | None, among: Container[str] | None = None, offset: int = 0) -> list[str]:
        """Return up to `limit` names that are older than `before`, newest first, without the first `offset` of them; `before` need
        not be there any more. With `among`, only names that are in it."""
        end = self._older(before)
        if among is None:
            end = max(0, end - offset)
            return [entry[-1] for entry in self._entries[max(0, end - limit) : end][::-1]]
        newest_first = (self._entries[place][-1] for place in range(end - 1, -1, -1))
        return list(islice((name for name in newest_first if name in among), offset, offset + limit))

    def count(self, among: Collection[str] | None = None, before: str | None = None) -> int:
        """Return how many images there are, of those `among`, that are older than `before`."""
        end = self._older(before)
        if among is None:
            return end
        newer = self._entries[end] if end < len(self._entries) else None
        known = (self._by_name.get(name) for name in among)
        return sum(entry is not None and (newer is None or entry < newer) for entry in known)

    def oldest(self, limit: int) -> list[str]:
        """Return the `limit` names that were added first: those that were found, by time, then those saved, as saved."""
        names = [entry[-1] for entry in self._found[:limit]]
        for name in self._saved:
            if len(names) >= limit:
                break
            names.append(name)
        return names

    def text(self) -> str:
        """Return what a later run needs to know besides the files: which of them are of earlier eras."""
        return "".join(f"{era} {name}\n" for era, *_, name in self._entries if era < self.era)

    def _newest_of_era(self) -> _Entry | None:
        return self._entries[-1] if self._entries and self._entries[-1][0] == self.era else None

    def _older(self, before: str | None) -> int:
        """Return how many images are older than a name, all if it is None. Of a name that is not known, its second."""
        if before is None or order(before) is None:
            return len(self._entries)
        entry = self._by_name.get(before) or self._removed.get(before)
        return bisect.bisect_left(self._entries, entry or self._entry(before, self._eras.get(before, self.era), 0))

    @staticmethod
    def _entry(name: str, era: int, moment: int) -> _Entry:
        key = order(name)
        assert key is not None  # no other names are added
        shown = created(name)
        is_near = shown is not None and abs(moment - round(shown.timestamp()) * 10**9) < _NEAR_NS
        return era, key[0], moment if is_near else 0, key, name
