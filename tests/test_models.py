"""The models in the repository: sealed, small, sharing files, and generating the expected images. What users add beside them,
and what they deploy, does not matter here.
"""

import asyncio
import itertools
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.harness import Server, golden
from zwatch.deploy.verifying import check_directory

REPOSITORY = Path(__file__).parent.parent
MODELS = REPOSITORY / "models"
VERSIONS = ("v1", "v2")
GOLDEN = Path(__file__).parent / "golden"
PROMPT, SEED = "a cat wearing sunglasses", 42
SIDE = 256
LIMIT = 20_000_000
TOLERANCE = 2.0
"""Mean difference of pixel values (of 255) that other builds of torch and other processors may cause."""


@pytest.fixture(scope="module")
def images():
    return {name: golden(MODELS / name, [(PROMPT, SEED)])[PROMPT, SEED] for name in VERSIONS}


def as_pixels(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8).reshape(SIDE, SIDE, 3).astype(np.float32)


@pytest.mark.parametrize("name", VERSIONS)
def test_a_version_is_verified(name):
    assert check_directory(MODELS / name, name) == []


def git(repository, *arguments):
    found = subprocess.run(["git", "-C", repository, *arguments], capture_output=True, text=True, check=True)
    return found.stdout.strip()


needs_git = pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="this is not a git repository")


@needs_git
def test_current_points_to_v1_in_a_fresh_clone():
    assert git(REPOSITORY, "show", ":models/current") == "v1"


def test_both_versions_together_are_small():
    files = [path for name in VERSIONS for path in (MODELS / name).rglob("*") if path.is_file()]
    assert 0 < sum(path.stat().st_size for path in files) <= LIMIT


@pytest.mark.parametrize("folder", ["text_encoder", "vae", "tokenizer", "scheduler"])
def test_a_flip_loads_only_the_transformer(folder):
    for path in (MODELS / "v1" / folder).iterdir():
        assert path.read_bytes() == (MODELS / "v2" / folder / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", VERSIONS)
def test_a_version_generates_its_golden_image(images, name):
    with Image.open(GOLDEN / f"{name}.png") as known:
        difference = np.abs(as_pixels(images[name]) - np.asarray(known.convert("RGB"), np.float32)).mean()
    assert difference < TOLERANCE


def test_v2_is_more_saturated_than_v1(images):
    spread = {name: np.ptp(as_pixels(data), axis=2).mean() for name, data in images.items()}
    assert spread["v2"] > 1.3 * spread["v1"]


async def test_served_images_equal_those_of_diffusers_before_and_after_a_flip(images, tmp_path):
    models = tmp_path / "models"
    for name in VERSIONS:
        shutil.copytree(MODELS / name, models / name)
    (models / "current").symlink_to("v1")
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


@pytest.fixture
def clone(tmp_path):
    """A clone of this repository whose service was started once; its models are not needed here, but for the link."""
    for name in ("Makefile", ".gitignore"):
        shutil.copy(REPOSITORY / name, tmp_path)
    for name in VERSIONS:
        (tmp_path / "models" / name).mkdir(parents=True)
        (tmp_path / "models" / name / "model_index.json").write_text("{}")
    (tmp_path / "models" / "current").symlink_to("v1")
    git(tmp_path, "init", "--quiet", "--initial-branch=main")
    git(tmp_path, "config", "user.email", "test@example.org")
    git(tmp_path, "config", "user.name", "test")
    git(tmp_path, "add", "--all")
    git(tmp_path, "commit", "--quiet", "--message=first")
    subprocess.run(["make", "--silent", "-C", tmp_path, "keep-link"], check=True)
    return tmp_path


@needs_git
@pytest.mark.parametrize(
    "commands",
    [
        ["stash"], ["stash --include-untracked"], ["checkout -- ."], ["checkout HEAD -- models/v1", "restore ."], ["reset --hard"],
        ["clean -fd"], ["switch --create other", "switch main"], ["commit --all --allow-empty --message=x", "reset --hard"],
    ],
)  # fmt: skip
def test_git_does_not_deploy(clone, commands):
    current = clone / "models" / "current"
    shutil.copytree(clone / "models" / "v2", clone / "models" / "v3")
    current.unlink()
    current.symlink_to("v3")
    (clone / "models" / "v1" / "model_index.json").write_text("{ }")
    (clone / "notes").write_text("")
    for command in commands:
        git(clone, *command.split())
    assert os.readlink(current) == "v3"
    assert (clone / "models" / "v3" / "model_index.json").exists()


@needs_git
def test_git_does_not_report_what_is_deployed_as_a_change(clone):
    shutil.copytree(clone / "models" / "v2", clone / "models" / "v3")
    (clone / "models" / "current").unlink()
    (clone / "models" / "current").symlink_to("v3")
    assert git(clone, "status", "--short") == ""
