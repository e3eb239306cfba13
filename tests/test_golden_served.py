"""Golden images on a real server: what they catch, what is checked beside requests, and what a restart repeats."""

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from tests import goldens
from tests.harness import Server
from zwatch import cli

MODELS = Path(__file__).parent.parent / "models"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A models root with v1 as it is, v2 with golden images, and v2-int8, quantized, with the same ones. Copy before changing."""
    root = tmp_path_factory.mktemp("drawn") / "models"
    shutil.copytree(MODELS, root, symlinks=True)
    goldens.add(root, "v2")
    assert cli.main(["quantize", "v2", "v2-int8", "--to", "int8", "--models", str(root)]) == 0
    return root


@pytest.fixture
def root(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path / "models", symlinks=True)
    return tmp_path / "models"


def link(root, name):
    (root / "next").symlink_to(name)
    (root / "next").rename(root / "current")


FAULTS = {
    "quantized wrongly": ("v2-int8", goldens.mix_scales),
    "another scheduler config": ("v2", goldens.change_shift),
    "another VAE": ("v2", goldens.change_vae),
}


async def test_what_only_pictures_show_is_caught_by_golden_images_and_is_not_without_them(root, tmp_path):
    for number, (source, harm) in enumerate(FAULTS.values()):
        for new, has_golden in ((f"golden-{number}", True), (f"plain-{number}", False)):
            harm(version := goldens.copied(root, source, new, has_golden=has_golden))
            goldens.seal(version)
    async with Server(root, tmp_path / "state") as server:
        await server.serves("v1")
        for number, what in enumerate(FAULTS):
            link(root, f"golden-{number}")

            async def rejected(name=f"golden-{number}"):
                attempt = (await server.status())["aliases"]["current"]["attempt"]
                return attempt if attempt["version"] == name and attempt["state"] == "REJECTED" else None

            attempt = await server.until(rejected, f"{what} is rejected")
            assert attempt["code"] == "golden_mismatch", what
            assert attempt["reason"].startswith('golden/1.png ("a cat wearing sunglasses", seed 42): PSNR is '), what
            assert " and SSIM 0." in attempt["reason"]
            assert attempt["phases"]["golden"] > 0
            assert (await server.status())["serving"]["version"] == "v1"
            link(root, f"plain-{number}")
            await server.serves_current(f"plain-{number}")
            link(root, "v1")
            await server.serves_current("v1")


async def test_a_right_version_and_a_right_quantization_pass_and_the_rest_is_checked_beside_requests(root, tmp_path):
    async with Server(root, tmp_path / "state") as server:
        await server.serves("v1")
        for name in ("v2", "v2-int8"):
            link(root, name)
            await server.serves_current(name)

            async def checked(name=name):
                [engine] = [one for one in (await server.status())["engines"] if one["version"] == name]
                return engine["golden"] if engine["golden"]["checked"] == 3 else None

            assert await server.until(checked, "all golden images are checked") == {"checked": 3, "of": 3, "missed": 0}
        async with server.http.get(f"{server.url}/metrics") as response:
            text = await response.text()
        [passed] = [
            line
            for line in text.splitlines()
            if "zwatch_golden_images{" in line and 'result="passed"' in line and 'version="v2-int8"' in line
        ]
        assert passed.endswith(" 3.0")
        [plain] = [one for one in (await server.status())["engines"] if one["version"] == "v1"] or [{"golden": None}]
        assert plain["golden"] is None


async def test_a_restart_checks_only_what_was_not_checked(root, tmp_path):
    link(root, "v2")
    async with Server(root, tmp_path / "state") as server:
        await server.until(lambda: checked_of(server, 3), "all are checked")
        await server.until(lambda: remembered(tmp_path / "state/prepared") == [3], "that is remembered")
    for _ in range(2):
        async with Server(root, tmp_path / "state") as server:
            await server.serves("v2")
            attempt = (await server.status())["aliases"]["current"]["attempt"]
            assert "golden" not in attempt["phases"]
            assert await checked_of(server, 3)
    goldens.add(root, "v2", "--force", prompts=("a dog",))
    async with Server(root, tmp_path / "state") as server:
        await server.serves("v2")
        assert (await server.status())["aliases"]["current"]["attempt"]["phases"]["golden"] > 0


def remembered(folder):
    """Return how many golden images are known to be good, of each version."""
    return [json.loads(file.read_bytes()[64:])["golden"] for file in folder.glob("*.proven")]


async def checked_of(server, count):
    engines = [one for one in (await server.status())["engines"] if one["version"] == "v2"]
    return bool(engines) and engines[0]["golden"]["checked"] == count


async def test_golden_images_for_what_serves_deploy_it_again_without_moving_a_weight(root, tmp_path):
    async with Server(root, tmp_path / "state") as server:
        await server.serves("v1")
        first = (await server.status())["serving"]["digest"]
        await asyncio.to_thread(goldens.add, root, "v1", "--steps", "2", prompts=("a cat",))

        async def served():
            serving = (await server.status())["serving"]
            return serving["version"] == "v1" and serving["digest"] != first

        await server.until(served, "the new seal serves")
        attempt = (await server.status())["aliases"]["current"]["attempt"]
        assert sorted(attempt["shared"]) == ["text_encoder", "transformer", "vae"]
        assert attempt["bytes"] == 0
