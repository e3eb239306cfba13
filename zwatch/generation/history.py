"""The history: every generated image, stored in the output directory; the file operations run in threads."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from zwatch.bridge import Bridge, NoAnswer
from zwatch.deploy.durable import unmounted
from zwatch.errors import RequestError
from zwatch.generation.fields import invalid
from zwatch.generation.image_index import LOOK_SECONDS, ImageIndex
from zwatch.generation.image_order import order
from zwatch.generation.kept_image import HistoryPage, HistoryView, KeptImage, read_kept_image
from zwatch.generation.search import Search
from zwatch.generation.search_index import Query, SearchIndex
from zwatch.generation.thumbnails import NoThumbnail, Thumbnail, Thumbnails

_log = logging.getLogger(__name__)

THUMBNAILS, SEARCH_INDEX = "thumbnails", "search.sqlite"
"""Where they are in the cache."""
_BATCH = 500
"""Files deleted per batch when all are deleted; saves run between two batches."""


class History:
    """The image index, called from the event loop. If images cannot be stored, the request is still answered, and a warning
    is logged. In `cache` is what can be made again from the images."""

    def __init__(
        self,
        bridge: Bridge,
        directory: Path,
        max_images: int | None,
        max_bytes: int | None,
        cache: Path | None = None,
        *,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._fault: str | None = None
        self._cache_fault: str | None = None
        self._cache = cache
        self.on_change: Callable[[], object] = lambda: None
        """Called on the event loop after images were added or removed, also by other programs."""
        self.on_remove: Callable[[list[str]], object] = lambda names: None
        """Called on the event loop with the names of images that are gone, unless all are: perhaps their disk is not mounted."""
        self._deletions = 0
        self._bridge = bridge
        self._look_seconds = look_seconds
        self._index = ImageIndex(directory, max_images, max_bytes, look_seconds=look_seconds, on_change=self._note)
        self._thumbnails = Thumbnails(directory, None if cache is None else cache / THUMBNAILS)
        file = None if cache is None else cache / SEARCH_INDEX
        self._search = Search(bridge, SearchIndex(directory, file, self._index.sizes))
        self._removed: deque[str] = deque()
        """Images that are gone, whose thumbnails are not."""

    @property
    def fault(self) -> str | None:
        """Why the last images could not be stored, or old images not be deleted, or that the disk with what can be made again is
        not mounted; None if nothing is wrong."""
        return self._fault or self._cache_fault

    async def open(self) -> None:
        """Read the directory. Other calls wait until this is done."""
        fault = None
        try:
            await self._bridge.run("history", self._index.open)
            await self._bridge.run("history", self._index.keep_limits)
        except OSError as error:
            fault = self._describe("images cannot be kept", error)
        self._report(fault)
        with suppress(NoAnswer):
            await self._look_at_cache()
            await self._bridge.run("thumbnail", self._thumbnails.open, self._index.has)

    async def keep_current(self) -> None:
        """Keep the index for searches up to date, and notice what other programs change, until cancelled."""
        looking = asyncio.create_task(self._look_regularly(), name="look for changed images")
        try:
            await self._search.run()
        finally:
            looking.cancel()

    async def save(self, files: list[tuple[int, bytes]], suffix: str) -> list[str | None]:
        """Store the files, given as (seed, file); return the name of each, or None if it could not be stored."""
        names: list[str | None] = []
        fault: str | None = None
        for seed, file in files:
            try:
                names.append(await self._bridge.run("history", self._index.save, file, seed, suffix, datetime.now(UTC)))
            except OSError as error:
                fault = self._describe("images cannot be kept", error)
                names.append(None)
        try:
            if self._index.has_limits:
                await self._bridge.run("history", self._index.keep_limits)
        except OSError as error:  # the images that were just saved are unaffected
            fault = fault or self._describe("old images cannot be deleted", error)
        self._report(fault)
        self._begin_removal()
        return names

    def has(self, name: str | None) -> bool:
        """Return whether an image is there; of many that were saved together, some may be beyond the limits already."""
        return name is not None and self._index.has(name)

    async def look_now(self) -> None:
        """Notice at once what another program has changed; a directory that does not answer is ignored."""
        with suppress(OSError):
            await self._bridge.run("history", self._index.look)

    async def lend_index(self, *, lent: bool) -> None:
        """Leave the index for searches to another process, or use it again. Meanwhile a search finds nothing."""
        with suppress(NoAnswer):
            await self._bridge.run("search", self._search.lend, lent)

    async def read(self, name: str) -> bytes:
        """Return an image file.

        Raises:
            RequestError: 404, there is no image of that name.
        """
        file = await self._bridge.run("inspect", self._index.read, name)
        if file is None:
            raise missing(name)
        return file

    async def find(self, name: str) -> KeptImage:
        """Return an image as a list shows it.

        Raises:
            RequestError: 404, there is no image of that name.
        """
        rows = await self._bridge.run("inspect", self._rows, [name] if self._index.has(name) else [])
        if name not in rows:
            raise missing(name)
        return rows[name]

    async def thumbnail(self, name: str) -> Thumbnail:
        """Return the thumbnail of an image.

        Raises:
            RequestError: 404, there is no image of that name, or it cannot be decoded.
        """
        # Those that are there do not wait behind those that are being made.
        found = await self._bridge.run("inspect", self._thumbnails.cached, name)
        if found is None:
            try:
                found = await self._bridge.run("thumbnail", self._thumbnails.make, name)
            except NoThumbnail as error:
                raise RequestError(
                    "not_found", f"there is no thumbnail of {name}, which cannot be decoded: {error}"
                ) from None
        if found is None:
            raise missing(name)
        return found

    async def page(self, limit: int, before: str | None, query: Query | None = None, offset: int = 0) -> HistoryPage:
        """Return one page, newest first, of what a query finds, without the first `offset` images; its `next` is the `before` of
        the next page.

        Raises:
            RequestError: 400, `before` is not the name of an image.
        """
        if before is not None and order(before) is None:
            raise invalid("before", f"before must be the name of an image, got {before[:100]!r}")
        rows: list[KeptImage] = []
        among, indexed = None, 1.0
        if query:
            await self._bridge.run("history", self._index.look_again)
            among, indexed = await self._search.find(query)
        # One more than requested shows whether there is another page. If another program removed files, read more names.
        while True:
            wanted = limit + 1 - len(rows)
            names = await self._bridge.run("history", self._index.page, wanted, before, among, offset)
            found = await self._bridge.run("inspect", self._rows, names)
            gone = [name for name in names if name not in found]
            rows += found.values()
            if not gone:
                break
            await self._bridge.run("history", self._index.forget, gone)
            if len(names) < wanted:
                break
            before, offset = names[-1], 0
        self._begin_removal()
        after = rows[limit - 1]["name"] if len(rows) > limit else None
        first = rows[0]["name"] if rows else None
        newer, total = await self._bridge.run("history", self._index.place, first, among)
        found_page: HistoryPage = {"images": rows[:limit], "next": after, "offset": newer, "total": total}
        return found_page if among is None else {**found_page, "indexed": indexed}

    async def delete(self, name: str) -> None:
        """Delete an image.

        Raises:
            RequestError: 404, there is no image of that name; 500, it cannot be deleted.
        """
        try:
            with self._deleting():
                found = await self._bridge.run("history", self._index.delete, name)
        except OSError as error:
            raise _undeletable(error) from None
        await self._end_removal()
        if not found:
            raise missing(name)

    async def clear(self) -> int:
        """Delete all images that exist now; return how many were deleted.

        Raises:
            RequestError: 500, an image cannot be deleted.
        """
        deleted = 0
        try:
            await self._bridge.run("history", self._index.look)
            left = len(self._index)  # images that are saved during the deletion stay
            with self._deleting():
                while left > 0 and (
                    number := await self._bridge.run("history", self._index.delete_some, min(left, _BATCH))
                ):
                    deleted += number
                    left -= number
        except OSError as error:
            raise _undeletable(error) from None
        finally:
            await self._end_removal()
        return deleted

    def view(self) -> HistoryView:
        """Return the history's part of the status."""
        index = self._index
        return {
            "directory": str(index.directory),
            "images": len(index),
            "newest": index.newest,
            "bytes": index.bytes,
            "fault": self.fault,
        }

    async def _look_regularly(self) -> None:
        while True:
            await asyncio.sleep(self._look_seconds)
            try:
                await self._bridge.run("history", self._index.look_again)
                self._begin_removal()
                if await self._look_at_cache():
                    await self._bridge.run("thumbnail", self._thumbnails.open, self._index.has)
                    await self._bridge.run("search", self._search.reopen)
            except NoAnswer:
                pass  # the status says so
            except Exception:  # without this the looking would end for good
                _log.exception("looking for changed images failed; retrying")

    async def _look_at_cache(self) -> bool:
        """Note whether the disk with what can be made again is not mounted; return whether it is there again."""
        before, self._cache_fault = self._cache_fault, await self._bridge.run("thumbnail", self._cache_reason)
        if self._cache_fault != before:
            if self._cache_fault is not None:
                _log.warning("%s", self._cache_fault)
            self.on_change()
        return before is not None and self._cache_fault is None

    def _cache_reason(self) -> str | None:
        for place in () if self._cache is None else (self._cache, self._cache / THUMBNAILS):
            if (reason := unmounted(place)) is not None:
                return f"{place}: thumbnails and the search index are not kept: {reason}"
        return None

    def _describe(self, what: str, error: OSError) -> str:
        return f"{self._index.directory}: {what}: {error.strerror or error}"

    def _report(self, fault: str | None) -> None:
        if fault is not None and self._fault is None:
            _log.warning("%s; requests are still answered. See --output-dir and --no-history", fault)
        self._fault = fault

    def _note(self, added: Mapping[str, int], removed: Iterable[str]) -> None:
        """Note a change of the index; called in the thread that made it."""
        self._bridge.post(self.on_change)
        gone = list(removed)
        self._search.note(added, gone)
        self._removed.extend(gone)
        if gone and (self._deletions or len(self._index)):
            self._bridge.post(self.on_remove, gone)

    @contextmanager
    def _deleting(self) -> Iterator[None]:
        self._deletions += 1
        try:
            yield
        finally:
            self._deletions -= 1

    def _begin_removal(self) -> None:
        """Delete the thumbnails of images that are gone, without waiting for it: a generation may wait for the caller."""
        if self._removed:
            with suppress(NoAnswer):
                self._bridge.begin("thumbnail", self._remove_thumbnails)

    async def _end_removal(self) -> None:
        """Delete the thumbnails of images that are gone, unless their disk does not answer."""
        with suppress(NoAnswer):
            await self._bridge.run("thumbnail", self._remove_thumbnails)

    def _remove_thumbnails(self) -> None:
        with suppress(IndexError):
            while True:
                self._thumbnails.remove([self._removed.popleft()])

    def _rows(self, names: list[str]) -> dict[str, KeptImage]:
        rows: dict[str, KeptImage] = {}
        for name in names:
            row = read_kept_image(self._index.directory / name)
            if row is not None:
                rows[name] = row
        return rows


def missing(name: str) -> RequestError:
    """Return the error for an image that does not exist."""
    return RequestError("not_found", f"there is no picture {name[:100]!r}, see GET /history")


def _undeletable(error: OSError) -> RequestError:
    return RequestError("internal_error", f"a picture cannot be deleted: {error.strerror or error}")
