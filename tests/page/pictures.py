"""Pictures for the history, written as zwatch writes them, without a model."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from PIL import Image

from zwatch.generation.image_details import Details
from zwatch.generation.image_files import encode
from zwatch.generation.request import ImageFormat

FIRST = datetime(2026, 1, 1, tzinfo=UTC)


def write_picture(
    directory: Path,
    number: int,
    version: str = "v1",
    prompt: str = "a harbour",
    side: int = 16,
    seed: int | None = None,
) -> str:
    """Write picture `number`, `number` seconds after the first; its seed is its number if none is given. Return its name."""
    seed = number if seed is None else seed
    request = {
        "prompt": prompt, "negative_prompt": "", "width": side, "height": side, "steps": 8, "guidance_scale": 0.0,
        "seed": seed, "format": "png", "quality": 92, "model": "current",
    }  # fmt: skip
    parameters = (
        f"{prompt}\nSteps: 8, Sampler: Euler, CFG scale: 0.0, Seed: {seed}, Size: {side}x{side}, Model: {version}"
    )
    digest = version.encode().hex().ljust(64, "0")
    image = Image.new("RGB", (side, side), (number % 256, number // 7 % 256, 128))
    name = f"{FIRST + timedelta(seconds=number):%Y%m%d_%H%M%S}_seed{seed}.png"
    directory.mkdir(exist_ok=True)
    (directory / name).write_bytes(encode(image, Details(parameters, version, digest, request), ImageFormat.PNG, 92))
    return name
