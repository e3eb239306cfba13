"""Thumbnails: small copies of the images in the history, made when they are first asked for and kept in a bounded cache."""

import os
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps, features

from zwatch.deploy.durable import clear_place, make_directory
from zwatch.errors import ZwatchError
from zwatch.generation.image_files import saved
from zwatch.generation.image_index import opened
from zwatch.generation.image_order import order
from zwatch.generation.request import ImageFormat

SIDE = 320
"""Pixels of the longer side; a smaller image keeps its size."""
MAX_BYTES = 512 * 2**20
"""Bytes of the cache: some 40,000 thumbnails of photographs."""
_MOST_PIXELS = 2**26
"""An image of more pixels gets no thumbnail: decoding it would take over 200 MB."""
_QUALITY = 78
_PART = ".part"


class NoThumbnail(ZwatchError):
    """A file cannot be decoded, or is too large to be."""


@dataclass(frozen=True, slots=True)
class Thumbnail:
    """The file of a thumbnail."""

    file: bytes
    media_type: str


class Thumbnails:
    """The thumbnails of the images in one directory. Every method blocks; any thread may call it.

    Without a `cache` directory, or while it cannot be written, each thumbnail is made anew. Beyond `max_bytes`, those that were
    not asked for the longest are deleted.
    """

    def __init__(self, images: Path, cache: Path | None, max_bytes: int = MAX_BYTES) -> None:
        self._images = images
        self._cache = cache
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._sizes: OrderedDict[str, int] = OrderedDict()
        """Bytes of each thumbnail in the cache; the one that was asked for last is at the end."""
        self._bytes = 0

    def open(self, has: Callable[[str], bool]) -> None:
        """Read what is in the cache, and delete the thumbnails of images that are not there any more, according to `has`."""
        if self._cache is None:
            return
        with suppress(OSError):
            # The oldest images' first, so that they are the first to go.
            for file in sorted(os.listdir(self._cache)):
                name = file.removesuffix(_suffix())
                if name == file or order(name) is None or not has(name):
                    with suppress(OSError):
                        (self._cache / file).unlink()
                elif name not in self._sizes:
                    with suppress(OSError):
                        self._add(name, (self._cache / file).lstat().st_size)

    def cached(self, name: str) -> Thumbnail | None:
        """Return a thumbnail from the cache; None if there is none, or its image is not the one it was made from."""
        if self._cache is None or order(name) is None:
            return None
        try:
            moment = (self._images / name).lstat().st_mtime_ns
            with opened(self._path(name)) as file:
                if os.fstat(file.fileno()).st_mtime_ns != moment:
                    return None
                found = file.read()
        except OSError:
            return None
        with self._lock:
            if name in self._sizes:
                self._sizes.move_to_end(name)
        return Thumbnail(found, _format().media_type) if _is_whole(found) else None

    def make(self, name: str) -> Thumbnail | None:
        """Make a thumbnail, or return the one that was made since; None if there is no such image.

        Raises:
            NoThumbnail: the file is no image, is damaged, or has too many pixels.
        """
        if order(name) is None:
            return None
        if (found := self.cached(name)) is not None:
            return found
        try:
            with opened(self._images / name) as file:
                moment = os.fstat(file.fileno()).st_mtime_ns
                made = _small_copy(file)
        except FileNotFoundError:
            return None
        except NoThumbnail:
            raise
        except Exception as error:  # the library raises many types for a broken file of another program
            raise NoThumbnail(str(error) or type(error).__name__) from None
        self._keep(name, made, moment)
        return Thumbnail(made, _format().media_type)

    def remove(self, names: Iterable[str]) -> None:
        """Delete the thumbnails of images that were deleted. Call it after the images are gone: see `_keep`."""
        for name in names:
            with self._lock:
                self._bytes -= self._sizes.pop(name, 0)
            if self._cache is not None:
                with suppress(OSError):
                    self._path(name).unlink()

    def _keep(self, name: str, file: bytes, moment: int) -> None:
        if self._cache is None:
            return
        part = self._cache / f"{secrets.token_hex(8)}{_PART}"
        try:
            make_directory(self._cache.parent)
            make_directory(self._cache)
            clear_place(self._path(name))
            try:
                part.write_bytes(file)
                # The image's own time: of another image of the same name, this is not the thumbnail.
                os.utime(part, ns=(moment, moment))
                part.replace(self._path(name))
            finally:
                part.unlink(missing_ok=True)
        except OSError:  # full, or read-only: it is made again when it is asked for again
            return
        self._add(name, len(file))
        if not (self._images / name).exists():  # deleted meanwhile, perhaps before there was anything to remove
            self.remove([name])

    def _add(self, name: str, size: int) -> None:
        beyond = []
        with self._lock:
            self._bytes += size - self._sizes.pop(name, 0)
            self._sizes[name] = size
            left = self._bytes
            for other, bytes_of_other in self._sizes.items():
                if left <= self._max_bytes or other == name:
                    break
                beyond.append(other)
                left -= bytes_of_other
        self.remove(beyond)

    def _path(self, name: str) -> Path:
        assert self._cache is not None  # callers check
        return self._cache / f"{name}{_suffix()}"


def _small_copy(file: BinaryIO) -> bytes:
    with Image.open(file, formats=("PNG", "JPEG", "WEBP")) as image:
        if image.width * image.height > _MOST_PIXELS:
            raise NoThumbnail(f"it has {image.width} x {image.height} pixels, more than {_MOST_PIXELS}")
        # A palette's numbers cannot be averaged.
        small = image.convert("RGBA") if image.mode == "P" else image
        small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0)
        upright = ImageOps.exif_transpose(small)
    is_webp = _format() is ImageFormat.WEBP
    mode = "RGBA" if is_webp and upright.has_transparency_data else "RGB"
    return saved(upright.convert(mode), _format(), quality=_QUALITY)


def _is_whole(file: bytes) -> bool:
    """Return whether a file of the cache has its end: after a power failure it may be empty."""
    if _format() is ImageFormat.WEBP:
        return len(file) > 12 and file[:4] == b"RIFF" and int.from_bytes(file[4:8], "little") + 8 == len(file)
    return file[:2] == b"\xff\xd8" and file[-2:] == b"\xff\xd9"


@cache
def _format() -> ImageFormat:
    """Return the format of thumbnails: WebP, or JPEG where Pillow was built without WebP."""
    return ImageFormat.WEBP if features.check("webp") else ImageFormat.JPEG


def _suffix() -> str:
    return f".{_format().suffix}"
