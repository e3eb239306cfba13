"""The history: every image that was made, kept in the output directory, behind the event loop."""

import logging
import re
from datetime import UTC, datetime
from pathlib import Path

from typing_extensions import TypedDict

from zwatch.bridge import Bridge
from zwatch.errors import RequestError
from zwatch.generation.fields import invalid
from zwatch.generation.image_details import Details, read_details
from zwatch.generation.image_index import Gallery, created, opened, order
from zwatch.generation.request import SEEDS

_log = logging.getLogger(__name__)

_DIGEST = re.compile(r"[0-9a-f]{64}")
_AT_ONCE = 500
"""Files deleted in one go when all are; saves go between."""


class KeptImage(TypedDict):
    """An image of the history. One that another program put into the directory may lack all but name and url."""

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
    """The gallery, called from the event loop. A gallery that cannot be written costs a warning, never an answer."""

    def __init__(self, bridge: Bridge, directory: Path, max_images: int | None, max_bytes: int | None) -> None:
        self.fault: str | None = None
        """Why the last images could not be kept, or older ones not be deleted for them; or None."""
        self._bridge = bridge
        self._gallery = Gallery(directory, max_images, max_bytes)

    async def open(self) -> None:
        """Learn what the directory has. Other calls wait for it."""
        fault = None
        try:
            await self._bridge.run("history", self._gallery.open)
            await self._bridge.run("history", self._gallery.keep_limits)
        except OSError as error:
            fault = self._in_words("images cannot be kept", error)
        self._tell(fault)

    async def save(self, files: list[tuple[int, bytes]], suffix: str) -> list[str | None]:
        """Keep the files of these seeds; return each one's name, or None if it could not be kept."""
        names: list[str | None] = []
        fault: str | None = None
        for seed, file in files:
            try:
                names.append(
                    await self._bridge.run("history", self._gallery.save, file, seed, suffix, datetime.now(UTC))
                )
            except OSError as error:
                fault = self._in_words("images cannot be kept", error)
                names.append(None)
        try:
            if self._gallery.has_limits:
                await self._bridge.run("history", self._gallery.keep_limits)
        except OSError as error:  # what was just saved is there all the same
            fault = fault or self._in_words("old images cannot be deleted", error)
        self._tell(fault)
        return names

    async def read(self, name: str) -> bytes:
        """Return an image file.

        Raises:
            RequestError: 404, there is none of that name.
        """
        file = await self._bridge.run("inspect", self._gallery.read, name)
        if file is None:
            raise missing(name)
        return file

    async def page(self, limit: int, before: str | None) -> HistoryPage:
        """Return one page, newest first, and the name that the next one begins before.

        Raises:
            RequestError: 400, `before` is no name.
        """
        if before is not None and order(before) is None:
            raise invalid("before", f"before must be the name of an image, got {before[:100]!r}")
        rows: list[KeptImage] = []
        # One more than wanted says whether there is another page. Files that somebody removed make another round.
        while True:
            wanted = limit + 1 - len(rows)
            names = await self._bridge.run("history", self._gallery.page, wanted, before)
            found = await self._bridge.run("inspect", self._rows, names)
            gone = [name for name in names if name not in found]
            rows += found.values()
            if len(names) < wanted or not gone:
                break
            await self._bridge.run("history", self._gallery.forget, gone)
            before = names[-1]
        more = len(rows) > limit
        return {"images": rows[:limit], "next": rows[limit - 1]["name"] if more else None, "total": len(self._gallery)}

    async def delete(self, name: str) -> None:
        """Delete an image.

        Raises:
            RequestError: 404, there is none of that name; 500, it cannot be deleted.
        """
        try:
            found = await self._bridge.run("history", self._gallery.delete, name)
        except OSError as error:
            raise _undeletable(error) from None
        if not found:
            raise missing(name)

    async def clear(self) -> int:
        """Delete all images; return how many there were.

        Raises:
            RequestError: 500, one cannot be deleted.
        """
        deleted = 0
        try:
            await self._bridge.run("history", self._gallery.look)
            left = len(self._gallery)  # images that are made meanwhile stay
            while left > 0 and (
                number := await self._bridge.run("history", self._gallery.delete_some, min(left, _AT_ONCE))
            ):
                deleted += number
                left -= number
        except OSError as error:
            raise _undeletable(error) from None
        return deleted

    def view(self) -> HistoryView:
        """Return its part of the status."""
        gallery = self._gallery
        return {
            "directory": str(gallery.directory),
            "images": len(gallery),
            "bytes": gallery.bytes,
            "fault": self.fault,
        }

    def _in_words(self, what: str, error: OSError) -> str:
        return f"{self._gallery.directory}: {what}: {error.strerror or error}"

    def _tell(self, fault: str | None) -> None:
        if fault is not None and self.fault is None:
            _log.warning("%s; requests are answered all the same. See --output-dir and --no-history", fault)
        self.fault = fault

    def _rows(self, names: list[str]) -> dict[str, KeptImage]:
        rows: dict[str, KeptImage] = {}
        for name in names:
            row = _row(self._gallery.directory / name)
            if row is not None:
                rows[name] = row
        return rows


def missing(name: str) -> RequestError:
    """Return the error for a picture that is not there."""
    return RequestError("not_found", f"there is no picture {name[:100]!r}, see GET /history")


def _row(path: Path) -> KeptImage | None:
    """Return what the list says of an image, from its file's head; None if it is gone."""
    try:
        with opened(path) as file:
            details = read_details(file)
    except FileNotFoundError:
        return None
    except Exception:  # whatever the library finds wrong in a file that another program wrote
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
    """Return what a file says where a number should stand; None if it says something else."""
    return value if type(value) is int and 0 <= value < SEEDS else None


def _undeletable(error: OSError) -> RequestError:
    return RequestError("internal_error", f"a picture cannot be deleted: {error.strerror or error}")
