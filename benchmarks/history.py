"""The speed of the history with 100,000 images: 256 x 256 PNG files, most of them hard links to a few files.

Run: python benchmarks/history.py [IMAGES].
"""

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from PIL import Image

from zwatch.bridge import Bridge
from zwatch.generation.history import History
from zwatch.generation.image_details import Details
from zwatch.generation.image_files import encode

REPEATS = 30
LINKS = 20_000
"""Hard links of one file; below the limit of file systems (ext4: 65,000)."""


def fill(directory: Path, count: int) -> tuple[bytes, list[str]]:
    """Put images into a directory, one a second; return a file's bytes and the names, oldest first."""
    request = {"prompt": "a cat", "seed": 1, "width": 256, "height": 256, "steps": 8}
    details = Details("a cat\nSteps: 8, Seed: 1", "v1", "ab" * 32, request)
    file = encode(Image.effect_noise((256, 256), 60).convert("RGB"), details, "png", 90)
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    names = [f"{begin + timedelta(seconds=number):%Y%m%d_%H%M%S}_seed{number}.png" for number in range(count)]
    for number, name in enumerate(names):
        if number % LINKS == 0:
            original = directory / name
            original.write_bytes(file)
        else:
            os.link(original, directory / name)
    return file, names


async def timed(what: str, call: Callable[[], Awaitable[object]], repeats: int = REPEATS) -> None:
    """Print how long a call takes."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        await call()
        times.append(1000 * (time.perf_counter() - begun))
    print(f"{what}: median {statistics.median(times):.1f} ms, longest {max(times):.1f} ms")


async def measure(count: int) -> None:
    """Print a line for each call."""
    bridge = Bridge()
    with tempfile.TemporaryDirectory() as folder:
        file, names = fill(Path(folder), count)
        history = History(bridge, Path(folder), None, None)
        await timed("learn what there is", history.open, 1)
        await timed("a page of 50, the newest", lambda: history.page(50, None))
        await timed("a page of 50, in the middle", lambda: history.page(50, names[count // 2]))
        await timed("save one", lambda: history.save([(1, file)], "png"))
        left = iter(names)
        await timed("delete one", lambda: history.delete(next(left)))
        await timed("delete all", history.clear, 1)
    bridge.close()


if __name__ == "__main__":
    asyncio.run(measure(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000))
