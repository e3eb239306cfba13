"""Pictures in a terminal: what it can show, by its own answers, and the bytes that show a picture.

The protocols: https://sw.kovidgoyal.net/kitty/graphics-protocol/, https://iterm2.com/documentation-images.html, and sixels as DEC's VT340
had them (https://vt100.net/docs/vt3xx-gp/chapter14.html).
"""

import base64
import contextlib
import fcntl
import io
import os
import re
import select
import struct
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

_ASK_KITTY = b"\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\"
"""A picture of one pixel that is not shown: a terminal with the protocol answers OK."""
_ASK_NAME = b"\x1b[>0q"
_ASK_ATTRIBUTES = b"\x1b[c"
"""Every terminal answers this, so nothing comes after its answer."""
_ATTRIBUTES = re.compile(rb"\x1b\[\?([0-9;]*)c")
_NAME = re.compile(rb"\x1bP>\|([^\x1b]*)\x1b\\")
_KITTY_OK = b"\x1b_Gi=31;OK\x1b\\"
_SIXEL = b"4"
"""Among the attributes: sixels."""
_PATIENCE = 1.0
"""Seconds for the answers: longer than most lines to another continent take."""
_INLINE_NAMES = ("iterm2", "wezterm", "mintty")
"""Beginnings of the names, as terminals answer or claim them, that have iTerm2's inline images."""
_CHUNK = 4096
"""Most characters of base64 in one of kitty's escape codes."""
_CELL = (8, 16)
"""Pixels of a character where the terminal does not tell."""
_COLOURS = 255
_SIXEL_ROWS = 6


@dataclass(frozen=True)
class Screen:
    """A terminal that shows pictures: how, its size in characters, and the size of a character in pixels."""

    protocol: str
    columns: int
    rows: int
    cell: tuple[int, int] = _CELL

    def fitted(self, width: int, height: int) -> tuple[int, int]:
        """Return the size at which a picture of `width` x `height` pixels is shown, in pixels: its own, or what fits beside the
        line of the prompt."""
        scale = min(1.0, self.columns * self.cell[0] / width, max(1, self.rows - 2) * self.cell[1] / height)
        return max(1, int(width * scale)), max(1, int(height * scale))

    def columns_for(self, width: int, height: int) -> int:
        """Return over how many characters a picture is shown."""
        return max(1, -(-self.fitted(width, height)[0] // self.cell[0]))


def find() -> Screen | None:
    """Return the terminal that standard output is if it shows pictures, else None.

    It is asked by escape codes, and answers as if somebody typed: what was typed before is lost. So this is done once, first.
    """
    if sys.stdout is None or not sys.stdout.isatty():
        return None
    with contextlib.suppress(OSError, ValueError, termios.error), _raw_terminal() as descriptor:
        return screen_of(_answers(descriptor), os.environ, _size(descriptor))
    return None


def screen_of(answers: bytes, environment: Mapping[str, str], size: tuple[int, int, int, int]) -> Screen | None:
    """Return the screen of a terminal with these answers; `size` is columns, rows, and both in pixels or 0."""
    columns, rows, width, height = size
    if columns < 1 or rows < 1:
        columns, rows = 80, 24
    cell = (width // columns, height // rows) if width >= columns and height >= rows else _CELL
    attributes, name = _ATTRIBUTES.search(answers), _NAME.search(answers)
    if name is not None:
        claimed = name[1].decode("ascii", "replace").lower()
    elif "TMUX" in environment or "STY" in environment:
        claimed = ""  # the variable is that of the terminal around the multiplexer, which does not pass pictures on
    else:
        claimed = environment.get("TERM_PROGRAM", "").lower().replace("iterm.app", "iterm2")
    if _KITTY_OK in answers:
        return Screen("kitty", columns, rows, cell)
    if claimed.startswith(_INLINE_NAMES):
        return Screen("iterm2", columns, rows, cell)
    if attributes is not None and _SIXEL in attributes[1].split(b";"):
        return Screen("sixel", columns, rows, cell)
    return None


def shown(screen: Screen, file: bytes) -> bytes:
    """Return the bytes that show a picture on a screen, with a line's end.

    Raises:
        OSError: the file is no picture.
    """
    from PIL import Image

    with Image.open(io.BytesIO(file)) as image:
        size, kind = image.size, image.format
        if screen.protocol == "kitty":
            return _kitty(file if kind == "PNG" else _png(image), screen.columns_for(*size), size, screen)
        if screen.protocol == "iterm2":
            return _inline(file, screen.columns_for(*size))
        return _sixels(image.convert("RGB").resize(screen.fitted(*size)))


def _kitty(file: bytes, columns: int, size: tuple[int, int], screen: Screen) -> bytes:
    """Return kitty's codes: PNG in pieces, shown at once (a=T), scaled to `columns` if it is larger, and not answered (q=2)."""
    text = base64.b64encode(file)
    scaled = b"" if screen.fitted(*size) == size else b"c=%d," % columns
    pieces = [text[begin : begin + _CHUNK] for begin in range(0, len(text), _CHUNK)]
    codes = []
    for number, piece in enumerate(pieces):
        first = b"a=T,f=100,q=2,%b" % scaled if number == 0 else b""
        codes.append(b"\x1b_G%bm=%d;%b\x1b\\" % (first, number < len(pieces) - 1, piece))
    return b"".join([*codes, b"\n"])


def _inline(file: bytes, columns: int) -> bytes:
    """Return iTerm2's code for a picture between the lines."""
    return b"\x1b]1337;File=inline=1;size=%d;width=%d;preserveAspectRatio=1:%b\x07\n" % (
        len(file),
        columns,
        base64.b64encode(file),
    )


def _png(image: "Image") -> bytes:
    out = io.BytesIO()
    image.convert("RGB").save(out, "PNG", compress_level=1)
    return out.getvalue()


def _sixels(image: "Image") -> bytes:
    """Return a picture as sixels: bands of six rows, and in each, for each colour of it, a character for each column."""
    import numpy as np

    indexed = image.quantize(_COLOURS)
    palette = (indexed.getpalette("RGB") or [])[: 3 * _COLOURS]
    pixels = np.asarray(indexed)
    height, width = pixels.shape
    out = [b'\x1bPq"1;1;%d;%d' % (width, height)]
    for number in range(len(palette) // 3):
        red, green, blue = (value * 100 // 255 for value in palette[3 * number : 3 * number + 3])  # in per cent
        out.append(b"#%d;2;%d;%d;%d" % (number, red, green, blue))
    for begin in range(0, height, _SIXEL_ROWS):
        band = pixels[begin : begin + _SIXEL_ROWS]
        weights = (1 << np.arange(len(band))).reshape(-1, 1)
        for colour in np.unique(band):
            characters = (((band == colour) * weights).sum(axis=0) + 63).astype(np.uint8).tobytes()
            out.append(b"#%d%b$" % (colour, _runs(characters)))
        out.append(b"-")
    return b"".join([*out, b"\x1b\\\n"])


def _runs(characters: bytes) -> bytes:
    """Return characters with four and more equal ones in a row as a count."""
    return re.sub(rb"(.)\1{3,}", lambda run: b"!%d%b" % (len(run[0]), run[1]), characters, flags=re.DOTALL)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[int]:
    """Yield a descriptor of the terminal that does not show what it answers.

    Raises:
        OSError: there is none, or this process is in the background.
    """
    descriptor = os.open(os.ttyname(sys.stdout.fileno()), os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        # Asking would stop this process if it were in the background; another terminal than the one that controls it is an error here.
        if os.tcgetpgrp(descriptor) != os.getpgrp():
            raise OSError("in the background")
        before = termios.tcgetattr(descriptor)
        quiet = [*before]
        quiet[3] = before[3] & ~(termios.ICANON | termios.ECHO)
        termios.tcsetattr(descriptor, termios.TCSADRAIN, quiet)
        try:
            yield descriptor
        finally:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
    finally:
        os.close(descriptor)


def _answers(descriptor: int) -> bytes:
    os.write(descriptor, _ASK_KITTY + _ASK_NAME + _ASK_ATTRIBUTES)
    found, end = b"", time.monotonic() + _PATIENCE
    while not _ATTRIBUTES.search(found) and (left := end - time.monotonic()) > 0:
        if select.select([descriptor], [], [], left)[0]:
            piece = os.read(descriptor, 4096)
            if not piece:
                break
            found += piece
    return found


def _size(descriptor: int) -> tuple[int, int, int, int]:
    """Return a terminal's columns, rows, and its width and height in pixels, each 0 if it is not known."""
    rows, columns, width, height = struct.unpack("4H", fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8)))
    return columns, rows, width, height
