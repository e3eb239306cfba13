"""LoRAs from a terminal and by agents: listed, drawn with, and named in what they made."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.deploy import loras
from tests.harness import pixels
from tests.mcp.test_server import called, connected, sentence
from tests.services import running


@pytest.fixture(scope="module")
def service(tiny_versions, tmp_path_factory):
    """A real service with v1 and the LoRAs ink and night."""
    root = tmp_path_factory.mktemp("service")
    shutil.copytree(tiny_versions, root / "models")
    (root / "models" / "current").symlink_to("v1")
    (root / "loras").mkdir()
    for seed, name in enumerate(("ink", "night")):
        loras.write_lora(root / "loras", name, root / "models" / "v1" / "transformer", 4, seed)
    with running(root / "models", root / "state") as found:
        yield found


def generated(service, directory, name, *options):
    """Return the line about a picture, and its pixels."""
    command = [sys.executable, "-m", "zwatch", "generate", "a cat", "-o", name, "--seed", "3", "--url", service.url]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    found = subprocess.run([*command, *options], cwd=directory, env=environment, capture_output=True, timeout=120)
    assert found.returncode == 0, found.stderr
    return found.stdout.decode(), pixels((directory / name).read_bytes())


async def test_an_agent_draws_with_the_loras_that_it_lists(service, tmp_path):
    async with connected(service.url, "--files", tmp_path) as client:
        listed, _ = await called(client, "list_loras")
        assert [(one["name"], one["problem"]) for one in listed["loras"]] == [("ink", None), ("night", None)]
        asked = {"prompt": "a cat", "seed": 3, "save_as": "cat.png", "loras": [{"name": "ink", "scale": 0.8}]}
        drawn, _ = await called(client, "generate_image", asked)
        assert drawn["loras"] == [{"name": "ink", "scale": 0.8, "digest": listed["loras"][0]["digest"]}]
        as_text = {**asked, "save_as": "text.png", "loras": json.dumps(asked["loras"])}
        assert (await called(client, "generate_image", as_text))[0]["loras"] == drawn["loras"], "some clients send text"
        assert "there is no LoRA 'x'" in await sentence(
            client, "generate_image", {"prompt": "a", "loras": [{"name": "x"}]}
        )
    line, same = generated(service, tmp_path, "same.png", "--lora", "ink:0.8")
    assert ": v1, ink x 0.8, seed 3, " in line
    assert pixels((tmp_path / "cat.png").read_bytes()) == pixels((tmp_path / "text.png").read_bytes()) == same


def test_loras_are_drawn_with_in_a_picture_that_is_changed_too(service, tmp_path):
    _, plain = generated(service, tmp_path, "cat.png")
    line, both = generated(service, tmp_path, "both.png", "--lora", "ink:0.8", "--lora", "night")
    assert {"ink x 0.8", "night x 1"} <= set(line.split(", "))
    line, changed = generated(service, tmp_path, "changed.png", "--image", "cat.png", "--lora", "ink:0.8")
    assert ": v1, ink x 0.8, seed 3, " in line, "in a form, beside a file"
    assert len({plain, both, changed}) == 3
