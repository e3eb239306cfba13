"""The history: every generated image, stored in the output directory; the file operations run in threads."""

import logging
import re
from datetime import UTC, datetime
from pathlib import Path

from typing_extensions import TypedDict

from zwatch.bridge import Bridge
from zwatch.errors import RequestError
from zwatch.generation.fields import invalid
from zwatch.generation.image_details import Details, read_details
from zwatch.generation.image_index import ImageIndex, opened
from zwatch.generation.image_order import created, order
from zwatch.generation.request import SEEDS

_log = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")
_BATCH = 500
"""Files deleted per batch when all are deleted; saves run between two batches."""


class KeptImage(TypedDict):
    """An image in the history. If another program wrote the file, all fields but `name` and `url` may be null."""

    name: str
    url: str
    version: str | None
    digest: str | None
    seed: int | None
    prompt: str | None
    width: int | None
    height: int | None
    steps: int | None
    created: str | None


class HistoryPage(TypedDict):
    """A page of the history, newest first; `next` is the next page's `before`."""

    images: list[KeptImage]
    next: str | None
    total: int


class HistoryView(TypedDict):
    """The history's part of the status; `fault` says why images cannot be kept, or old ones not be deleted."""

    directory: str
    images: int
    bytes: int
    fault: str | None


class History:
    """The image index, called from the event loop. If images cannot be stored, the request is still answered, and a warning
    is logged."""

    def __init__(self, bridge: Bridge, directory: Path, max_images: int | None, max_bytes: int | None) -> None:
        self.fault: str | None = None
        """Why the last images could not be stored, or old images not be deleted; None if neither failed."""
        self._bridge = bridge
        self._index = ImageIndex(directory, max_images, max_bytes)

    async def open(self) -> None:
        """Read the directory. Other calls wait until this is done."""
        fault = None
        try:
            await self._bridge.run("history", self._index.open)
            await self._bridge.run("history", self._index.keep_limits)
        except OSError as error:
            fault = self._describe("images cannot be kept", error)
        self._report(fault)

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
        return names

    def has(self, name: str | None) -> bool:
        """Return whether an image is there; of many that were saved together, some may be beyond the limits already."""
        return name is not None and self._index.has(name)

    async def read(self, name: str) -> bytes:
        """Return an image file.

        Raises:
            RequestError: 404, there is no image of that name.
        """
        file = await self._bridge.run("inspect", self._index.read, name)
        if file is None:
            raise missing(name)
        return file

    async def page(self, limit: int, before: str | None) -> HistoryPage:
        """Return one page, newest first; its `next` is the `before` of the next page.

        Raises:
            RequestError: 400, `before` is not the name of an image.
        """
        if before is not None and order(before) is None:
            raise invalid("before", f"before must be the name of an image, got {before[:100]!r}")
        rows: list[KeptImage] = []
        # One more than requested shows whether there is another page. If another program removed files, read more names.
        while True:
            wanted = limit + 1 - len(rows)
            names = await self._bridge.run("history", self._index.page, wanted, before)
            found = await self._bridge.run("inspect", self._rows, names)
            gone = [name for name in names if name not in found]
            rows += found.values()
            if not gone:
                break
            await self._bridge.run("history", self._index.forget, gone)
            if len(names) < wanted:
                break
            before = names[-1]
        more = len(rows) > limit
        return {"images": rows[:limit], "next": rows[limit - 1]["name"] if more else None, "total": len(self._index)}

    async def delete(self, name: str) -> None:
        """Delete an image.

        Raises:
            RequestError: 404, there is no image of that name; 500, it cannot be deleted.
        """
        try:
            found = await self._bridge.run("history", self._index.delete, name)
        except OSError as error:
            raise _undeletable(error) from None
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
            while left > 0 and (
                number := await self._bridge.run("history", self._index.delete_some, min(left, _BATCH))
            ):
                deleted += number
                left -= number
        except OSError as error:
            raise _undeletable(error) from None
        return deleted

    def view(self) -> HistoryView:
        """Return the history's part of the status."""
        index = self._index
        return {
            "directory": str(index.directory),
            "images": len(index),
            "bytes": index.bytes,
            "fault": self.fault,
        }

    def _describe(self, what: str, error: OSError) -> str:
        return f"{self._index.directory}: {what}: {error.strerror or error}"

    def _report(self, fault: str | None) -> None:
        if fault is not None and self.fault is None:
            _log.warning("%s; requests are still answered. See --output-dir and --no-history", fault)
        self.fault = fault

    def _rows(self, names: list[str]) -> dict[str, KeptImage]:
        rows: dict[str, KeptImage] = {}
        for name in names:
            row = _row(self._index.directory / name)
            if row is not None:
                rows[name] = row
        return rows


def missing(name: str) -> RequestError:
    """Return the error for an image that does not exist."""
    return RequestError("not_found", f"there is no picture {name[:100]!r}, see GET /history")


def _row(path: Path) -> KeptImage | None:
    """Return the list's entry for an image, read from the start of its file; None if the file was removed."""
    try:
        with opened(path) as file:
            details = read_details(file)
    except FileNotFoundError:
        return None
    except Exception:  # the library raises many types for a broken file of another program
        details = Details("", "", "", {})
    moment, request, found = created(path.name), details.request, order(path.name)
    return {
        "name": path.name,
        "url": f"/history/{path.name}",
        "version": details.version or None,
        "digest": details.digest if _DIGEST.fullmatch(details.digest) else None,
        "seed": _whole(request.get("seed", found[1] if found else None)),
        "prompt": prompt if isinstance(prompt := request.get("prompt"), str) else None,
        "width": _whole(request.get("width")),
        "height": _whole(request.get("height")),
        "steps": _whole(request.get("steps")),
        "created": None if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _whole(value: object) -> int | None:
    """Return a valid whole number; None for any other value that a file contains."""
    return value if type(value) is int and 0 <= value < SEEDS else None


def _undeletable(error: OSError) -> RequestError:
    return RequestError("internal_error", f"a picture cannot be deleted: {error.strerror or error}")
