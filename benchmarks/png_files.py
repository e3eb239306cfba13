"""The time and size of a PNG file, compared with Pillow's.

    python benchmarks/png_files.py [--models DIR] [--images DIR [--called WHAT]] [--sizes 256 1024] [--rounds 9] [--out FILE]

Pictures that a version makes itself, or all of a folder's (photographs, say) cut and scaled to squares of the sizes. Ways
take turns; milliseconds are the mean over the pictures of each one's median.
"""

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from common import RESULTS, ROOT, Json, machine, now, packages
from PIL import Image, ImageOps

from zwatch.deploy.look import open_version
from zwatch.deploy.seal import read_seal
from zwatch.engine.factory import EngineFactory
from zwatch.engine.parameters import GenerationParameters
from zwatch.generation.png import write_png
from zwatch.shadow.control import LoadControl
from zwatch.shadow.device import Device

PROMPTS = ("a red fish", "a cat wearing sunglasses", "a house by the sea", "一只猫")


def pillow(image: Image.Image, **options: int) -> bytes:
    """Return a PNG file of Pillow's."""
    file = io.BytesIO()
    image.save(file, "png", **options)
    return file.getvalue()


WAYS: dict[str, Callable[[Image.Image], bytes]] = {
    "zwatch": write_png,
    "Pillow": pillow,
    "Pillow, compress_level 1": partial(pillow, compress_level=1),
}


def made(models: Path, sizes: list[int]) -> dict[int, list[Image.Image]]:
    """Generate images of these sizes with a version."""
    factory = EngineFactory(Device("cpu"))
    opened = open_version(models, "v1")
    engine = factory.build(opened, factory.plan(opened, read_seal(opened.fd).digest), LoadControl())
    opened.close()
    return {
        size: [
            engine.generate(GenerationParameters(prompt, "", size, size, 8, 0.0, (number,))).images[0]
            for number, prompt in enumerate(PROMPTS)
        ]
        for size in sizes
    }


def found(folder: Path, sizes: list[int]) -> dict[int, list[Image.Image]]:
    """Cut and scale a folder's pictures."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg", ".jpeg", ".webp"))
    whole = [Image.open(path).convert("RGB") for path in paths]
    return {size: [ImageOps.fit(image, (size, size)) for image in whole] for size in sizes}


def measure(images: list[Image.Image], rounds: int) -> Json:
    """Return each way's milliseconds and bytes, and its ratios to Pillow's."""
    times: dict[str, list[list[float]]] = {name: [[] for _ in images] for name in WAYS}
    sizes = dict.fromkeys(WAYS, 0)
    for turn in range(rounds + 1):
        for number, image in enumerate(images):
            for name, way in WAYS.items():
                begun = time.perf_counter()
                file = way(image)
                spent = time.perf_counter() - begun
                if turn:  # the first one warms caches up
                    times[name][number].append(spent)
                else:
                    assert Image.open(io.BytesIO(file)).tobytes() == image.tobytes(), name
                    sizes[name] += len(file)
    ms = {name: 1e3 * statistics.mean(statistics.median(one) for one in all_) for name, all_ in times.items()}
    return {
        name: {
            "ms": round(ms[name], 2),
            "bytes": round(sizes[name] / len(images)),
            "time_beside_pillow": round(ms[name] / ms["Pillow"], 3),
            "bytes_beside_pillow": round(sizes[name] / sizes["Pillow"], 3),
        }
        for name in WAYS
    }


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / "models")
    parser.add_argument("--images", type=Path, help="a folder of images to use instead of generating some")
    parser.add_argument("--called", help="a description of the folder's images, for the result")
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS / "png_files.json")
    options = parser.parse_args()
    pictures = found(options.images, options.sizes) if options.images else made(options.models, options.sizes)
    result = {
        "benchmark": "png_files", "started": now(), "machine": machine(options.out.parent),
        "versions": packages("pillow", "isal", "numpy"), "pictures": options.called or ("a folder's" if options.images else "made by v1"),
        "sizes": {str(size): measure(images, options.rounds) for size, images in pictures.items()},
    }  # fmt: skip
    print(json.dumps(result["sizes"], indent=2))
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
