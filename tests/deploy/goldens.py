"""Golden images for versions that nothing draws."""

import io
import json
from pathlib import Path

from PIL import Image

PICTURE = {
    "prompt": "a cat", "seed": 1, "width": 64, "height": 64, "steps": 2, "image": "golden/1.png", "min_psnr": 40.0,
    "min_ssim": 0.98,
}  # fmt: skip


def text(*changes: dict) -> str:
    """Return a golden.json with one image for each dictionary of changes, numbered."""
    images = [{**PICTURE, "image": f"golden/{number}.png", **change} for number, change in enumerate(changes, 1)]
    return json.dumps({"images": images})


def png(width: int = 64, height: int = 64, mode: str = "RGB", **options) -> bytes:
    """Return a PNG of one colour."""
    file = io.BytesIO()
    Image.new(mode, (width, height)).save(file, "png", **options)
    return file.getvalue()


def add(version: Path, *changes: dict) -> None:
    """Write a golden.json and its images into a version."""
    written = text(*(changes or ({},)))
    (version / "golden.json").write_text(written)
    for image in json.loads(written)["images"]:
        path = version / image["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image["width"], image["height"]))
