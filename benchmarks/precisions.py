"""What drawing fast and quantizing cost: pictures drawn fast, in fp8 and in int8 beside diffusers' own, and the bytes on the device.

    python benchmarks/precisions.py [--models DIR] [--versions v1 v2] [--device cpu] [--size 256] [--out FILE]

The same 100 prompts and seeds by four engines of one process: exact, which has diffusers' bits, fast, and fast with weights that
are quantized at the load. PSNR in dB over the 8-bit pixels, SSIM of the means of the channels in windows of 8 x 8, 4 apart (Wang et
al. 2004, with its constants); both are of each against exact. Seconds a picture are medians in turns; on a CPU they say nothing about
a GPU.
"""

import argparse
import itertools
import json
import math
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from common import RESULTS, ROOT, Json, machine, now, packages
from numpy.lib.stride_tricks import sliding_window_view

from zwatch.deploy.look import open_version
from zwatch.deploy.seal import read_seal
from zwatch.engine.acceleration import kind_of
from zwatch.engine.computing import EXACT
from zwatch.engine.factory import EngineFactory
from zwatch.engine.parameters import GenerationParameters
from zwatch.engine.pipeline import Engine
from zwatch.engine.precision import Precision
from zwatch.shadow.control import LoadControl
from zwatch.shadow.device import Device

FIRST = (
    "a red cat in a forest", "two green frogs on the beach", "一只戴墨镜的猫", "a blue house in the snow",
    "a penguin with a hat under water", "a rocket in the night sky", "three yellow stars", "a brown bear on mountains",
    "a white rabbit with a crown in a meadow", "a purple cup in the city", "an owl with headphones in the desert", "a pink pig",
)  # fmt: skip
SUBJECTS = ("cat", "dog", "frog", "owl", "bear", "rocket", "house", "tree", "cup", "fish", "rabbit")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white", "orange", "grey")
PLACES = (
    "in a forest",
    "on the beach",
    "in the snow",
    "under water",
    "in the night sky",
    "in the city",
    "in the desert",
)
PROMPTS = FIRST + tuple(
    f"a {colour} {subject} {PLACES[number % len(PLACES)]}"
    for number, (subject, colour) in enumerate(itertools.product(SUBJECTS, COLOURS))
)
WAYS: dict[str, tuple[bool, str | None]] = {
    "exact": (True, None), "fast": (False, None), "fp8": (False, "fp8"), "int8": (False, "int8")
}  # fmt: skip
"""Whether diffusers' bits are wanted, and how weights are quantized."""


def loaded(models: Path, version: str, device: Device, way: str) -> Engine:
    """Load a version, and wait until it draws in this way."""
    exact, quantize = WAYS[way]
    factory = EngineFactory(device, exact=exact, precision=Precision("auto", quantize))
    opened = open_version(models, version)
    try:
        engine = factory.build(opened, factory.plan(opened, read_seal(opened.fd).digest), LoadControl())
    finally:
        opened.close()
    engine.prepare()
    for thread in device.preparing:
        thread.join()
    assert exact or factory.acceleration.computing(kind_of(engine.pipeline)) is not EXACT
    return engine


def psnr(found: np.ndarray, exact: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio in dB of pictures of shape (height, width, 3), uint8."""
    error = float(((found.astype(float) - exact.astype(float)) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(found: np.ndarray, exact: np.ndarray) -> float:
    """Return the structural similarity of pictures of shape (height, width, 3), uint8."""
    one, two = (sliding_window_view(picture.mean(2), (8, 8))[::4, ::4] for picture in (found, exact))
    means, variances = [side.mean((2, 3)) for side in (one, two)], [side.var((2, 3)) for side in (one, two)]
    both = (one * two).mean((2, 3)) - means[0] * means[1]
    luminance, contrast = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    above = (2 * means[0] * means[1] + luminance) * (2 * both + contrast)
    below = (means[0] ** 2 + means[1] ** 2 + luminance) * (variances[0] + variances[1] + contrast)
    return float((above / below).mean())


def measured(models: Path, version: str, device: Device, size: int) -> Json:
    """Return what the ways cost for one version."""
    engines = {way: loaded(models, version, device, way) for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    likeness: dict[str, list[tuple[float, float]]] = {way: [] for way in WAYS}
    for seed, prompt in enumerate(PROMPTS):
        pictures = {}
        for way, engine in engines.items():
            begun = time.monotonic()
            image = engine.serve(GenerationParameters(prompt, "", size, size, 8, 0.0, (seed,))).images[0]
            seconds[way].append(time.monotonic() - begun)
            pictures[way] = np.asarray(image)
        for way, picture in pictures.items():
            likeness[way].append((psnr(picture, pictures["exact"]), ssim(picture, pictures["exact"])))
    found: Json = {}
    for way, engine in engines.items():
        row: Json = {
            "precision": engine.precision,
            "bytes": engine.nbytes,
            "seconds": round(statistics.median(seconds[way]), 3),
        }
        if way != "exact":
            ratios, similar = zip(*likeness[way], strict=True)
            row |= {"psnr": round(statistics.median(ratios), 1), "least_psnr": round(min(ratios), 1)}
            row |= {"of_45_db": sum(ratio >= 45 for ratio in ratios)}
            row |= {"ssim": round(statistics.median(similar), 4), "least_ssim": round(min(similar), 4)}
        found[way] = row
    return found


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--versions", nargs="+", default=["v1", "v2"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--cache", type=Path, help="where compiled kernels are kept (nowhere)")
    parser.add_argument("--out", type=Path, default=RESULTS / "precisions.json")
    options = parser.parse_args()
    found: Json = {
        "when": now(),
        "machine": machine(options.models),
        "packages": packages("torch", "numpy"),
        "size": options.size,
        "prompts": len(PROMPTS),
    }
    with tempfile.TemporaryDirectory() as temporary:
        device = Device(options.device, cache=options.cache or Path(temporary))
        found["versions"] = {
            version: measured(options.models, version, device, options.size) for version in options.versions
        }
    options.out.write_text(json.dumps(found, indent=2) + "\n")
    for version, rows in found["versions"].items():
        for kind, row in rows.items():
            print(version, kind, *(f"{name} {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
