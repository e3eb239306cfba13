"""A fast PNG writer: numpy applies one filter to all rows, ISA-L compresses, and several threads share bands of rows.

Pillow tries five filters for each row, byte by byte, which takes longer than anything else between the model's last step and
the answer. For photographs and paintings the average filter is close to the best; flat or drawn images become up to three
times as large, but are small. `benchmarks/png_files.py` compares times and sizes.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import chain

import numpy as np
from isal import isal_zlib
from PIL import Image, PngImagePlugin

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_DEPTH, _TRUECOLOUR = 8, 2
_CHANNELS = 3
_AVERAGE = 3
_BAND = 3 * 2**17
"""Most bytes of rows that one thread handles at a time: few enough to stay in a core's cache between filter and compressor."""
_LEAST_BAND = 3 * 2**15
"""Least bytes of a band: enough that compressing each separately costs little."""
_THREADS = 4
"""Threads that all images share: an image of 1024 x 1024 has 8 bands, a smaller one as many as there are threads."""
_ZLIB_HEADER = b"\x78\x01"
"""A window of 32 KiB, the fastest compression."""


def write_png(image: Image.Image, text: PngImagePlugin.PngInfo | None = None, *, band: int | None = None) -> bytes:
    """Return an image as a PNG file, RGB with 8 bits a channel, with the text chunks before the pixels.

    `band` is the number of bytes that one thread filters and compresses at a time, by default what lets all threads work.
    """
    pixels = np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    if band is None:
        band = max(_LEAST_BAND, min(_BAND, pixels.nbytes // _THREADS))
    size = b"".join(side.to_bytes(4) for side in image.size)
    chunks = [(b"IHDR", [size + bytes([_DEPTH, _TRUECOLOUR, 0, 0, 0])])]
    chunks += [(kind, [data]) for kind, data, *_ in (text.chunks if text is not None else ())]
    chunks += [(b"IDAT", _compressed(pixels.reshape(image.height, -1), band)), (b"IEND", [])]
    # Joined once: each copy of some megabytes takes as long as filtering them.
    return b"".join([_SIGNATURE, *chain.from_iterable(_framed(kind, pieces) for kind, pieces in chunks)])


def _framed(kind: bytes, pieces: list[bytes]) -> list[bytes]:
    """Return the pieces of a chunk with what stands before and behind them."""
    checksum = isal_zlib.crc32(kind)
    for piece in pieces:
        checksum = isal_zlib.crc32(piece, checksum)
    return [sum(map(len, pieces)).to_bytes(4), kind, *pieces, checksum.to_bytes(4)]


def _compressed(rows: np.ndarray, band: int) -> list[bytes]:
    """Filter and compress rows, uint8, shape (height, width * 3); return the pieces of the stream."""
    height, width = rows.shape
    count = max(1, band // width)
    begins = range(0, height, count)
    deflate = partial(_deflated, rows, count)
    try:
        done = list((map if len(begins) == 1 else _threads().map)(deflate, begins))
    except RuntimeError:  # no thread can be started
        done = list(map(deflate, begins))
    checksum, pieces = 1, [_ZLIB_HEADER]
    for filtered, made in done:
        checksum = isal_zlib.adler32(filtered, checksum)
        pieces += made
    return [*pieces, checksum.to_bytes(4)]


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(_THREADS, len(os.sched_getaffinity(0))), thread_name_prefix="zwatch-png")


def _deflated(rows: np.ndarray, count: int, begin: int) -> tuple[np.ndarray, list[bytes]]:
    """Return up to `count` filtered rows from row `begin`, and the pieces of their part of the compressed stream."""
    filtered = _filtered(rows[begin : begin + count], rows[begin - 1] if begin else np.zeros_like(rows[0]))
    compressor = isal_zlib.compressobj(1, isal_zlib.DEFLATED, -isal_zlib.MAX_WBITS)
    ending = isal_zlib.Z_FINISH if begin + count >= len(rows) else isal_zlib.Z_SYNC_FLUSH
    return filtered, [compressor.compress(filtered), compressor.flush(ending)]


def _filtered(rows: np.ndarray, above: np.ndarray) -> np.ndarray:
    """Return each row's filter type and its differences from the rounded-down average of the pixel to the left and the pixel
    above; `above` is the row before the first. uint8, shape (rows, 1 + width * 3)."""
    upper = np.concatenate((above[np.newaxis], rows[:-1]))
    left = np.zeros_like(rows)
    left[:, _CHANNELS:] = rows[:, :-_CHANNELS]
    found = np.empty((rows.shape[0], 1 + rows.shape[1]), np.uint8)
    found[:, 0] = _AVERAGE
    # The average of two bytes without a ninth bit: the common bits, plus half of the differing bits.
    np.subtract(rows, (left & upper) + ((left ^ upper) >> 1), out=found[:, 1:])
    return found
