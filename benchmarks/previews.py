"""The cost of previews: the same images with and without a follower, in turn.

    python benchmarks/previews.py [--models DIR] [--pairs 60] [--side PIXELS] [--out FILE]

The seconds that the device's thread took for an image, and the median of the pairs' ratios, which other programs on the
machine affect least.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
from contextlib import aclosing
from pathlib import Path

from common import Json, machine, now, packages

from zwatch.app import Running, running
from zwatch.config import Config
from zwatch.generation.job_events import Stepped
from zwatch.generation.request import parse_generate

WARM = 6


async def image(service: Running, seed: int, side: int | None, *, followed: bool) -> tuple[float, int]:
    """Make one image; return its seconds without those in the queue and in files, and how many previews were seen."""
    size = {} if side is None else {"width": side, "height": side}
    request = parse_generate({"prompt": "a red fish", "seed": seed, **size})
    job = service.services.queue.submit(request, attended=False)
    seen = 0
    if followed:
        async with aclosing(job.follow(60.0)) as events:
            async for event in events:
                seen += isinstance(event, Stepped) and event.preview is not None
    timings = (await job.result()).timings
    return timings["encode"] + timings["denoise"] + timings["decode"], seen


async def measure(models: Path, pairs: int, side: int | None) -> Json:
    """Return the figures."""
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            models=models, aliases=("current",), strict_links=True, device="auto", memory_budget=None,
            state_dir=Path(folder), host="127.0.0.1", port=0, token=None, insecure_no_token=False, allowed_hosts=(),
            queue=64, timeout=600.0, max_work=600.0, history=False, output_dir=Path(folder), history_max_images=None,
            history_max_bytes=None, log="text",
        )  # fmt: skip
        async with running(config) as service:
            while service.services.engines.serving("current") is None:
                await service.services.supervisor.changes.wait()
            for number in range(WARM):
                await image(service, number, side, followed=bool(number % 2))
            times: dict[bool, list[float]] = {False: [], True: []}
            previews = 0
            for number in range(pairs):
                for followed in (bool(number % 2), not number % 2):
                    seconds, seen = await image(service, number, side, followed=followed)
                    times[followed].append(seconds)
                    previews += seen
    ratios = [with_ / without for without, with_ in zip(times[False], times[True], strict=True)]
    return {
        "benchmark": "previews", "started": now(), "machine": machine(models),
        "versions": packages("torch", "diffusers", "transformers"), "pairs": pairs, "side": side,
        "ms_without": round(1000 * statistics.median(times[False]), 2),
        "ms_with": round(1000 * statistics.median(times[True]), 2),
        "previews_an_image": round(previews / pairs, 2), "median_ratio": round(statistics.median(ratios), 4),
    }  # fmt: skip


def main() -> None:
    """Measure, and print or write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models"), help="the models root (%(default)s)")
    parser.add_argument("--pairs", type=int, default=60, help="(%(default)s)")
    parser.add_argument("--side", type=int, help="width and height, pixels (the version's own)")
    parser.add_argument("--out", type=Path, help="where the result is written besides")
    options = parser.parse_args()
    result = json.dumps(asyncio.run(measure(options.models, options.pairs, options.side)), indent=2)
    print(result)
    if options.out:
        options.out.write_text(result + "\n")


if __name__ == "__main__":
    main()
