"""The models in the repository: sealed, small, sharing files, and generating the expected images."""

import asyncio
import itertools
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.harness import Server, golden
from zwatch.deploy.seal import check_directory

MODELS = Path(__file__).parent.parent / "models"
GOLDEN = Path(__file__).parent / "golden"
PROMPT, SEED = "a cat wearing sunglasses", 42
SIDE = 256
LIMIT = 20_000_000
TOLERANCE = 2.0
"""Mean difference of pixel values (of 255) that other builds of torch and other processors may cause."""


@pytest.fixture(scope="module")
def images():
    return {name: golden(MODELS / name, [(PROMPT, SEED)])[PROMPT, SEED] for name in ("v1", "v2")}


def as_pixels(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8).reshape(SIDE, SIDE, 3).astype(np.float32)


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_a_version_is_verified(name):
    assert check_directory(MODELS / name, name) == []


def test_current_points_to_v1():
    assert os.readlink(MODELS / "current") == "v1"


def test_both_versions_together_are_small():
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) <= LIMIT


@pytest.mark.parametrize("folder", ["text_encoder", "vae", "tokenizer", "scheduler"])
def test_a_flip_loads_only_the_transformer(folder):
    for path in (MODELS / "v1" / folder).iterdir():
        assert path.read_bytes() == (MODELS / "v2" / folder / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_a_version_generates_its_golden_image(images, name):
    with Image.open(GOLDEN / f"{name}.png") as known:
        difference = np.abs(as_pixels(images[name]) - np.asarray(known.convert("RGB"), np.float32)).mean()
    assert difference < TOLERANCE


def test_v2_is_more_saturated_than_v1(images):
    spread = {name: np.ptp(as_pixels(data), axis=2).mean() for name, data in images.items()}
    assert spread["v2"] > 1.3 * spread["v1"]


async def test_served_images_equal_those_of_diffusers_before_and_after_a_flip(images, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(MODELS, models, symlinks=True)
    async with Server(models, tmp_path / "state") as server:
        await server.serves("v1")
        ended = asyncio.Event()
        seen = set()

        async def client() -> None:
            while not ended.is_set():
                version, _, made = await server.generate(PROMPT, SEED)
                assert made == images[version]
                seen.add(version)

        clients = asyncio.gather(client(), client())
        for version in itertools.islice(itertools.cycle(("v2", "v1")), 6):
            (models / "next").symlink_to(version)
            os.replace(models / "next", models / "current")
            await server.serves(version)
            await server.generate(PROMPT, SEED)
        ended.set()
        await clients
        assert seen == {"v1", "v2"}
        for width, height in ((192, 320), (512, 384)):
            assert (
                len((await server.generate("一只戴墨镜的猫", 1, width=width, height=height))[2]) == width * height * 3
            )
