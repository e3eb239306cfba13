"""From `ln` to promotion: how long a flip of the link takes, compared with the time watchdog alone needs to notice it.

    python benchmarks/flip.py [--flips 200] [--models models]

One process serves copies of the repository's v1 and v2 on the CPU. Four rows, each the milliseconds from the return of
the rename to the moment in which new requests get the other version:

- bare watchdog: a separate observer on a separate directory; rename to callback. The shortest possible time.
- resident: the other version is warm, so nothing is read.
- resident, busy: the same while images are made without a pause.
- load: the other version is not resident (it is sealed again before each flip): read, verify, build, warm, promote.

The last row's peer is what a server without zwatch has to do at best: build a second pipeline with diffusers'
from_pretrained and make the same warm-up image, in a process that has imported everything already.
"""

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import tempfile
import threading
import time
from pathlib import Path

from common import cpu_model, packages, quantile
from watchdog.events import FileSystemEvent, FileSystemEventHandler
from watchdog.observers import Observer

from zwatch.app import Running, running
from zwatch.config import Config
from zwatch.deploy.sealing import write_seal
from zwatch.logs import set_up


def flip(models: Path, version: str) -> float:
    """Repoint current atomically; return the time when it was done."""
    (models / "next").symlink_to(version)
    os.replace(models / "next", models / "current")
    return time.perf_counter()


class _Bell(FileSystemEventHandler):
    def __init__(self) -> None:
        self.rung = threading.Event()
        self.at = 0.0

    def on_moved(self, event: FileSystemEvent) -> None:
        self.at = time.perf_counter()
        self.rung.set()


def bare_watchdog(flips: int) -> list[float]:
    """Return seconds from a rename to watchdog's callback."""
    bell, spent = _Bell(), []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("v1", "v2"):
            (root / name).mkdir()
        observer = Observer()
        observer.schedule(bell, folder, recursive=True)
        observer.start()
        for number in range(flips):
            bell.rung.clear()
            begun = flip(root, f"v{number % 2 + 1}")
            if not bell.rung.wait(5):
                raise RuntimeError("watchdog missed a rename")
            spent.append(max(0.0, bell.at - begun))
            time.sleep(0.02)
        observer.stop()
        observer.join()
    return spent


async def promoted(service: Running, digest_before: str | None) -> float:
    """Return the time when another engine serves."""
    supervisor, engines = service.services.supervisor, service.services.engines
    while (found := engines.serving("current")) is None or found.key.digest == digest_before:
        await supervisor.changes.wait()
    return time.perf_counter()


def digest(service: Running) -> str | None:
    """Return the digest of the serving version."""
    found = service.services.engines.serving("current")
    return None if found is None else found.key.digest


async def resident_flips(service: Running, models: Path, flips: int) -> list[float]:
    """Return seconds from a rename to the promotion of a version that is warm."""
    spent = []
    for number in range(flips):
        before = digest(service)
        waiting = asyncio.create_task(promoted(service, before))
        begun = await asyncio.to_thread(flip, models, f"v{2 - number % 2}")
        spent.append(max(0.0, await waiting - begun))
        await asyncio.sleep(0.02)
    return spent


async def loading_flips(service: Running, models: Path, flips: int) -> list[float]:
    """Return seconds from a rename to the promotion of a version that must be loaded: only its transformer differs."""
    spent = []
    for number in range(flips):
        name = f"fresh{number}"
        await asyncio.to_thread(shutil.copytree, models / "v2", models / name)
        await asyncio.to_thread(write_seal, models / name, name)
        await asyncio.sleep(0.3)
        waiting = asyncio.create_task(promoted(service, digest(service)))
        begun = await asyncio.to_thread(flip, models, name)
        spent.append(await waiting - begun)
        await asyncio.sleep(0.1)
    return spent


def from_pretrained(directory: Path, times: int) -> list[float]:
    """Return the seconds that diffusers takes to load another pipeline and make its first image."""
    import torch
    from diffusers import ZImagePipeline

    from zwatch.engine.config_fields import WARM_SIZE
    from zwatch.engine.precision import adapt
    from zwatch.engine.warmup import PROMPT, SEED, STEPS

    spent = []
    for _ in range(times):
        begun = time.perf_counter()
        pipeline = ZImagePipeline.from_pretrained(directory, torch_dtype=torch.bfloat16, local_files_only=True)
        pipeline.set_progress_bar_config(disable=True)
        for module in (pipeline.text_encoder, pipeline.transformer, pipeline.vae):
            adapt(module, torch.device("cpu"))  # as zwatch computes on a processor without bfloat16
        generator = torch.Generator().manual_seed(SEED)
        sides = {"width": WARM_SIZE, "height": WARM_SIZE}
        pipeline(PROMPT, **sides, num_inference_steps=STEPS, guidance_scale=0.0, generator=generator)
        spent.append(time.perf_counter() - begun)
    return spent


async def keep_busy(service: Running, ended: asyncio.Event) -> None:
    """Generate images constantly."""
    from zwatch.generation.request import parse_generate

    queue = service.services.queue
    while not ended.is_set():
        await queue.submit(parse_generate({"prompt": "a cat"}), attended=False).result()


async def measure(source: Path, flips: int) -> dict[str, list[float]]:
    """Run every row."""
    rows = {"bare watchdog": bare_watchdog(flips)}
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder, "models")
        for name in ("v1", "v2"):
            shutil.copytree(source / name, models / name)
        (models / "current").symlink_to("v2")
        config = Config(
            models=models, aliases=("current",), strict_links=False, device="cpu", memory_budget=None,
            state_dir=Path(folder, "state"), host="127.0.0.1", port=0, token=None, insecure_no_token=False,
            allowed_hosts=(), queue=64, timeout=600.0, log="text",
            max_work=600.0, history=False, output_dir=Path(folder), history_max_images=None, history_max_bytes=None,
        )  # fmt: skip
        async with running(config) as service:
            before = await promoted(service, None) and digest(service)
            flip(models, "v1")
            await promoted(service, before)
            rows["resident"] = await resident_flips(service, models, 2 * (flips // 2))
            ended = asyncio.Event()
            busy = asyncio.create_task(keep_busy(service, ended))
            rows["resident, busy"] = await resident_flips(service, models, 2 * (flips // 2))
            ended.set()
            await busy
            rows["load"] = await loading_flips(service, models, max(5, flips // 20))
            rows["from_pretrained"] = await asyncio.to_thread(from_pretrained, models / "v2", max(5, flips // 20))
    return rows


def main() -> None:
    """Measure, print the table, and write the result next to this script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path(__file__).parent.parent / "models")
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "flip.json")
    options = parser.parse_args()
    set_up("text")
    rows = asyncio.run(measure(options.models, options.flips))
    machine = f"{os.cpu_count()} x {cpu_model()}, Linux {'.'.join(platform.release().split('.')[:2])}, Python {platform.python_version()}"
    versions = packages("torch", "diffusers", "watchdog")
    table = {
        name: {
            "n": len(spent),
            "median_ms": round(statistics.median(spent) * 1e3, 2),
            "p99_ms": round(quantile(spent, 0.99) * 1e3, 2),
        }
        for name, spent in rows.items()
    }
    ratios = {
        "resident / bare watchdog": round(
            table["resident"]["median_ms"] / max(table["bare watchdog"]["median_ms"], 1e-3), 2
        ),
        "load / from_pretrained": round(table["load"]["median_ms"] / table["from_pretrained"]["median_ms"], 2),
    }
    for name, row in table.items():
        print(f"{name:<18} n {row['n']:>4}   median {row['median_ms']:>9.2f} ms   p99 {row['p99_ms']:>9.2f} ms")
    for name, ratio in ratios.items():
        print(f"{name}: {ratio}")
    options.output.parent.mkdir(exist_ok=True)
    result = {"machine": machine, "packages": versions, "rows": table, "ratios": ratios}
    options.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
