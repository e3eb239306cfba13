"""What previews cost: the same images with and without a follower, in turn, with the repository's models.

Run: python benchmarks/previews.py [PAIRS]. A line with the seconds that the device's thread took for an image, and the
median of the ratios pair by pair, which other programs on the machine disturb least.
"""

import asyncio
import statistics
import sys
import tempfile
from contextlib import aclosing
from pathlib import Path

from zwatch.app import Running, running
from zwatch.config import Config
from zwatch.service.jobs import Stepped
from zwatch.service.parameters import parse_generate

WARM = 6


async def image(service: Running, seed: int, *, followed: bool) -> tuple[float, int]:
    """Make one image; return its seconds without those in the queue and in files, and how many previews were seen."""
    request = parse_generate({"prompt": "a red fish", "seed": seed})
    job = service.services.queue.submit(request, attended=False)
    seen = 0
    if followed:
        async with aclosing(job.follow(60.0)) as events:
            async for event in events:
                seen += isinstance(event, Stepped) and event.preview is not None
    timings = (await job.result()).timings
    return timings["encode"] + timings["denoise"] + timings["decode"], seen


async def measure(models: Path, pairs: int) -> str:
    """Return the line of figures."""
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            models=models, aliases=("current",), strict_links=True, device="auto", memory_budget=None,
            state_dir=Path(folder), host="127.0.0.1", port=0, token=None, insecure_no_token=False, allowed_hosts=(),
            queue=64, timeout=600.0, max_work=600.0, history=False, output_dir=Path(folder), history_max_images=None,
            history_max_bytes=None, log="text",
        )  # fmt: skip
        async with running(config) as service:
            while service.services.gate.serving("current") is None:
                await service.services.supervisor.changes.wait()
            for number in range(WARM):
                await image(service, number, followed=bool(number % 2))
            times: dict[bool, list[float]] = {False: [], True: []}
            previews = 0
            for number in range(pairs):
                for followed in (bool(number % 2), not number % 2):
                    seconds, seen = await image(service, number, followed=followed)
                    times[followed].append(seconds)
                    previews += seen
    ratio = statistics.median(with_ / without for without, with_ in zip(times[False], times[True], strict=True))
    without, with_ = (1000 * statistics.median(times[followed]) for followed in (False, True))
    return (
        f"{pairs} pairs: {without:.1f} ms without, {with_:.1f} ms with previews ({previews / pairs:.1f} an image); "
        f"median of the ratios {ratio:.4f}"
    )


if __name__ == "__main__":
    print(asyncio.run(measure(Path("models"), int(sys.argv[1]) if len(sys.argv) > 1 else 60)))
