"""Sheets of pairs of pictures with their differences: one PNG, or one HTML file that needs no other."""

import base64
import html
import io
import math
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from zwatch.engine.likeness import psnr

_FACTORS = (16, 8, 4, 2, 1)
"""By how much a difference is shown brighter than it is: small ones would look black. The largest that leaves 99 of 100 values unclipped."""
_SIDE = 384  # most pixels of a picture's longer side in a PNG sheet
_GAP, _TEXT_SIZE, _LINE = 12, 16, 22
_MOST_LINES = 4  # of a prompt
_PAPER, _INK, _PALE = (255, 255, 255), (20, 20, 20), (110, 110, 110)
_FONTS = ("NotoSansCJK-Regular.ttc", "NotoSansSC-Regular.otf", "wqy-zenhei.ttc", "wqy-microhei.ttc", "DejaVuSans.ttf")
"""Fonts with more scripts than the library's own has, as systems install them."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two pictures of one prompt, as PNG files, and the absolute difference of their values, `factor` times as bright. Without a
    difference their sizes are not the same."""

    prompt: str
    versions: tuple[str, str]
    files: tuple[bytes, bytes]
    difference: bytes | None
    psnr: float | None
    """Decibels; infinite if they are equal."""
    factor: int = 1

    @property
    def is_same(self) -> bool:
        """Whether every pixel is equal."""
        return self.psnr == math.inf

    @property
    def finite_psnr(self) -> float | None:
        """The same, for JSON, which has no infinity: null if they are equal."""
        return None if self.psnr is None or self.is_same else round(self.psnr, 2)

    @property
    def verdict(self) -> str:
        """The line about the difference."""
        if self.psnr is None:
            return "different sizes"
        bright = "" if self.factor == 1 else f" x {self.factor}"
        return "equal" if self.is_same else f"difference{bright}, PSNR {self.psnr:.1f} dB"


def make_pair(prompt: str, versions: tuple[str, str], files: tuple[bytes, bytes]) -> Pair:
    """Return the pair of two image files.

    Raises:
        OSError: one is no image.
    """
    first, second = (_pixels(file) for file in files)
    if first.shape != second.shape:
        return Pair(prompt, versions, files, None, None)
    difference = np.abs(first.astype(np.int16) - second.astype(np.int16))
    most = float(np.percentile(difference, 99))
    factor = next(factor for factor in _FACTORS if most * factor <= 255)
    shown = Image.fromarray(np.minimum(difference * factor, 255).astype(np.uint8))
    written = io.BytesIO()
    shown.save(written, "PNG")
    return Pair(prompt, versions, files, written.getvalue(), psnr(first, second), factor)


class Sheet:
    """A file that is complete or not there: it is written beside its place, and gets its name at the end of the block."""

    most_pairs: ClassVar[int]

    def __init__(self, path: Path, models: tuple[str, str], seed: int) -> None:
        self.path, self.models, self.seed = path, models, seed
        self._temporary: Path | None = None

    def add(self, pair: Pair) -> None:
        """Add a pair below those that are there."""
        raise NotImplementedError

    def _begin(self) -> None:
        """Begin the file."""

    def _end(self) -> None:
        """Write what is left."""

    def __enter__(self) -> Self:
        descriptor, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
        self._temporary = Path(name)
        self.file = open(descriptor, "wb")
        self._begin()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._temporary is not None  # entered
        try:
            with self.file:
                if kind is None:
                    self._end()
            if kind is None:
                umask = os.umask(0)
                os.umask(umask)
                self._temporary.chmod(0o666 & ~umask)  # as any program would have made it
                self._temporary.replace(self.path)
        finally:
            self._temporary.unlink(missing_ok=True)


class PngSheet(Sheet):
    """One PNG image: a row a pair, the prompt above it."""

    most_pairs = 100

    def _begin(self) -> None:
        self._rows: list[Image.Image] = []

    def add(self, pair: Pair) -> None:
        """Add a pair below those that are there."""
        files = [*pair.files, *([] if pair.difference is None else [pair.difference])]
        pictures = [_reduced(file) for file in files]
        cell = max(160, *(one.width for one in pictures))
        captions = [*pair.versions, pair.verdict]
        width = 3 * cell + 4 * _GAP
        font = _font(pair.prompt)
        lines = _wrapped(pair.prompt, font, width - 2 * _GAP)
        top = _GAP + len(lines) * _LINE
        row = Image.new("RGB", (width, top + _LINE + max(one.height for one in pictures) + _GAP), _PAPER)
        draw = ImageDraw.Draw(row)
        for number, line in enumerate(lines):
            draw.text((_GAP, _GAP + number * _LINE), line, _INK, font)
        for number, caption in enumerate(captions):
            draw.text((_GAP + number * (cell + _GAP), top), caption, _PALE, _font(caption))
        for number, picture in enumerate(pictures):
            row.paste(picture, (_GAP + number * (cell + _GAP), top + _LINE))
        self._rows.append(row)

    def _end(self) -> None:
        head = f"{self.models[0]} and {self.models[1]}, seed {self.seed}"
        size = (max(row.width for row in self._rows), _GAP + _LINE + sum(row.height for row in self._rows))
        sheet = Image.new("RGB", size, _PAPER)
        ImageDraw.Draw(sheet).text((_GAP, _GAP), head, _INK, _font(head))
        y = _GAP + _LINE
        for row in self._rows:
            sheet.paste(row, (0, y))
            y += row.height
        sheet.save(self.file, "PNG")


_HEAD = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 2rem; font: 1rem/1.5 system-ui, sans-serif; }}
section {{ margin: 2rem 0; }}
h2 {{ font-size: 1rem; font-weight: 600; overflow-wrap: anywhere; white-space: pre-wrap; }}
.pair {{ display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 1rem; max-width: 100rem; }}
figure {{ margin: 0; }}
img {{ display: block; max-width: 100%; height: auto; }}
figcaption {{ opacity: .75; }}
</style>
<h1>{title}</h1>
"""


class HtmlSheet(Sheet):
    """One HTML file with the pictures inside, in their full size, that needs no script and nothing from elsewhere."""

    most_pairs = 10_000

    def _begin(self) -> None:
        title = html.escape(f"{self.models[0]} and {self.models[1]}, seed {self.seed}")
        self.file.write(_HEAD.format(title=title).encode())

    def add(self, pair: Pair) -> None:
        """Add a pair below those that are there."""
        figures = [
            _figure(file, f"{version}: {pair.prompt}", version)
            for version, file in zip(pair.versions, pair.files, strict=True)
        ]
        if pair.difference is None:
            figures.append(f"<figure><figcaption>{html.escape(pair.verdict)}</figcaption></figure>")
        else:
            figures.append(_figure(pair.difference, f"difference: {pair.prompt}", pair.verdict))
        row = f'<section>\n<h2>{html.escape(pair.prompt)}</h2>\n<div class="pair">\n{"".join(figures)}</div>\n</section>\n'
        self.file.write(row.encode("utf-8", "replace"))

    def _end(self) -> None:
        self.file.write(b"</html>\n")


SHEETS: dict[str, type[Sheet]] = {".png": PngSheet, ".html": HtmlSheet}
"""By the suffix of the file's name."""


def _figure(file: bytes, alt: str, caption: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(file).decode()}"
    return f'<figure><img src="{source}" alt="{html.escape(alt)}"><figcaption>{html.escape(caption)}</figcaption></figure>\n'


def _pixels(file: bytes) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"))


def _reduced(file: bytes) -> Image.Image:
    with Image.open(io.BytesIO(file)) as opened:
        image = opened.convert("RGB")
    image.thumbnail((_SIDE, _SIDE))
    return image


def _font(text: str) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    """Return a font for a text: the library's own has Latin letters only."""
    for name in _FONTS if any(ord(character) > 0x17F for character in text) else ():
        try:
            return ImageFont.truetype(name, _TEXT_SIZE)
        except OSError:
            continue
    return ImageFont.load_default(_TEXT_SIZE)


def _wrapped(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Return a text in lines of at most so many pixels: broken between words, and in words that are longer."""
    lines, line = [], ""
    for word in text.split():
        for part in _parts(word, font, width):
            longer = f"{line} {part}" if line else part
            if font.getlength(longer) <= width:
                line = longer
            else:
                lines.append(line)
                line = part
    lines.append(line)
    return lines if len(lines) <= _MOST_LINES else [*lines[: _MOST_LINES - 1], lines[_MOST_LINES - 1][:-1] + "…"]


def _parts(word: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: int) -> list[str]:
    parts, part = [], ""
    for character in word:
        if part and font.getlength(part + character) > width:
            parts.append(part)
            part = ""
        part += character
    return [*parts, part]
