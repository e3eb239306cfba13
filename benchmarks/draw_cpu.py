"""A picture on a processor: plain diffusers, the exact way and the fast way, with the repository's trained models.

    python benchmarks/draw_cpu.py [--models DIR] [--versions v1 v2] [--size 256] [--rounds 12] [--threads N] [--out FILE]

All are called in turns, in one process and with the same weights, so that other work on the machine meets each of them. `cpu` is
the time of all threads of the process, which waits for other processes do not lengthen; `ms` is the time that passes. Both are the
least of all rounds, beside the median, in milliseconds; ratios are medians of the pairs in a round, over diffusers. Without the time
to write the file, which is measured apart. `precisions.py` compares the pictures of both ways over many prompts.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import RESULTS, ROOT, Json, machine, now, packages
from precisions import PROMPTS, loaded, psnr

from zwatch.engine.computing import EXACT
from zwatch.engine.fast.computing import FastComputing
from zwatch.engine.fast.operations import ProcessorOperations
from zwatch.engine.sampling import Pipeline, image_of
from zwatch.generation.png import write_png
from zwatch.shadow.device import Device

STEPS = 8
WAYS = {"exact": EXACT, "fast": FastComputing(ProcessorOperations())}
CPU = torch.device("cpu")


def in_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """Return the milliseconds that passed and those of all threads, of each call in each round."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            begun, used = time.perf_counter(), time.process_time()
            call()
            times[name].append(((time.perf_counter() - begun) * 1000, (time.process_time() - used) * 1000))
    return times


def summary(times: list[tuple[float, float]]) -> Json:
    """Return least and median of both times."""
    found: Json = {}
    for name, values in zip(("ms", "cpu"), zip(*times, strict=True), strict=True):
        found |= {name: round(min(values), 1), f"{name}_median": round(statistics.median(values), 1)}
    return found


def ratio(times: list[tuple[float, float]], others: list[tuple[float, float]], which: int) -> float:
    """Return the median ratio of a time to that of another call in the same round."""
    return round(statistics.median(one[which] / two[which] for one, two in zip(times, others, strict=True)), 3)


def drawn(pipeline: Pipeline, size: int) -> np.ndarray:
    """Return a picture of shape (size, size, 3), uint8."""
    embedding = pipeline.encode(PROMPTS[0], CPU).embedding
    return np.asarray(image_of(pipeline.decode(denoised(pipeline, size, embedding))))


def denoised(pipeline: Pipeline, size: int, embedding: torch.Tensor) -> torch.Tensor:
    """Return a picture's latents."""
    noise = pipeline.noise(size, size, torch.Generator().manual_seed(0))
    timeline = pipeline.timeline(noise, STEPS)
    return pipeline.denoise(noise, timeline, [embedding], 0.0, lambda number, before, after: None)


def diffusers_call(directory: Path, dtype: torch.dtype, size: int) -> Callable[[], np.ndarray]:
    """Return what makes the same picture with diffusers alone."""
    from diffusers import ZImagePipeline

    pipeline = ZImagePipeline.from_pretrained(directory, dtype=dtype)
    pipeline.set_progress_bar_config(disable=True)

    def call() -> np.ndarray:
        made = pipeline(
            PROMPTS[0], height=size, width=size, num_inference_steps=STEPS, guidance_scale=0.0,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        return np.asarray(made.images[0])

    return call


def parts(pipelines: dict[str, Pipeline], size: int) -> dict[str, Callable[[], Any]]:
    """Return the parts of a picture, each way."""
    calls: dict[str, Callable[[], Any]] = {}
    for way, pipeline in pipelines.items():
        embedding = pipeline.encode(PROMPTS[0], CPU).embedding
        latents = denoised(pipeline, size, embedding)
        calls |= {
            f"encode {way}": lambda pipeline=pipeline: pipeline.encode(PROMPTS[0], CPU),
            f"denoise {way}": lambda pipeline=pipeline, embedding=embedding: denoised(pipeline, size, embedding),
            f"decode {way}": lambda pipeline=pipeline, latents=latents: pipeline.decode(latents),
        }
    image = image_of(pipelines["exact"].decode(latents))
    return calls | {"write the file": lambda: write_png(image)}


def measured(options: argparse.Namespace, version: str) -> Json:
    """Return all figures of one version."""
    plain = loaded(options.models, version, Device("cpu"), "exact").pipeline
    pipelines = {way: replace(plain, computing=computing) for way, computing in WAYS.items()}
    calls: dict[str, Callable[[], Any]] = {
        "diffusers": diffusers_call(options.models / version, plain.transformer.dtype, options.size)
    }
    calls |= {way: lambda pipeline=pipeline: drawn(pipeline, options.size) for way, pipeline in pipelines.items()}
    pictures = {name: call() for name, call in calls.items()}
    times = in_turns(calls, options.rounds)
    found: Json = {"exact_is_diffusers": bool(np.array_equal(pictures["exact"], pictures["diffusers"]))}
    found["whole"] = {
        name: summary(one)
        | {f"{kind}_ratio": ratio(one, times["diffusers"], at) for at, kind in enumerate(("ms", "cpu"))}
        for name, one in times.items()
    }
    found["parts"] = {
        name: summary(one) for name, one in in_turns(parts(pipelines, options.size), options.rounds).items()
    }
    found["fast_gives_the_same_bytes_again"] = bool(np.array_equal(pictures["fast"], calls["fast"]()))
    found["fast_psnr"] = round(psnr(pictures["fast"], pictures["exact"]), 1)
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--versions", nargs="+", default=["v1", "v2"])
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS / "draw_cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found: Json = {
        "when": now(), "machine": machine(options.models), "packages": packages("torch", "diffusers", "transformers"),
        "size": options.size, "steps": STEPS, "threads": options.threads, "rounds": options.rounds,
    }  # fmt: skip
    with torch.inference_mode():
        found["versions"] = {version: measured(options, version) for version in options.versions}
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    for version, rows in found["versions"].items():
        for name, row in (rows["whole"] | rows["parts"]).items():
            print(version, f"{name:<16}", *(f"{key} {value}" for key, value in row.items()))
        print(version, *(f"{key}: {value}" for key, value in rows.items() if key not in ("whole", "parts")))


if __name__ == "__main__":
    main()
