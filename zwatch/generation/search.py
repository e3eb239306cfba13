"""The search in the history: it keeps its index up to date in the background, and answers queries."""

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress

from zwatch.bridge import Bridge, NoAnswer, Pulse
from zwatch.generation.search_index import Query, SearchIndex

_SLICE, _PAUSE = 0.02, 0.06
"""Seconds of reading images and of rest: reading holds Python's lock, for which a generation waits."""
_CATCH_UP = 0.3
"""Seconds for which a query reads the images that were added since."""
_RETRY = 60.0


class Search:
    """The index of the images, called from the event loop."""

    def __init__(self, bridge: Bridge, index: SearchIndex) -> None:
        self._bridge = bridge
        self._index = index
        self._changes = Pulse()

    def note(self, added: Mapping[str, int], removed: Iterable[str]) -> None:
        """Note that images, given with their bytes, were added, or that images were removed. Any thread may call this."""
        self._index.note(added, removed)
        self._bridge.post(self._changes.fire)

    def lend(self, lent: bool) -> None:
        """As `SearchIndex.lend`, in its thread."""
        self._index.lend(lent=lent)
        self._bridge.post(self._changes.fire)

    def reopen(self) -> None:
        """As `SearchIndex.reopen`, in its thread."""
        self._index.reopen()
        self._bridge.post(self._changes.fire)

    async def run(self) -> None:
        """Read all images that were added into the index, until it is cancelled; then begin to close the index."""
        try:
            while True:
                coming = self._changes.next()
                try:
                    is_behind = await self._bridge.run("search", self._index.update, _SLICE)
                except NoAnswer:
                    await asyncio.sleep(_RETRY)
                    continue
                if is_behind:
                    await asyncio.sleep(_PAUSE)
                else:
                    await asyncio.shield(coming)
        finally:
            # Not awaited: a disk that does not answer holds up no stop.
            with suppress(NoAnswer):
                self._bridge.begin("search", self._index.close)

    async def find(self, query: Query) -> tuple[set[str], float]:
        """Return the names that a query finds, some of which may be removed by now, and how much of the directory was searched, from
        0 to 1.

        Raises:
            NoAnswer: the disk with the index does not answer.
        """
        return await self._bridge.run("search", self._index.find, query, _CATCH_UP)
