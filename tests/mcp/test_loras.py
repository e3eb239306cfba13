"""LoRAs and control images from a terminal and by agents: listed, drawn with, and named in what they made."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from tests.controlnets import add_control
from tests.deploy import loras
from tests.harness import pixels
from tests.mcp.test_server import called, connected, sentence
from tests.services import running
from zwatch.deploy.sealing import write_seal


@pytest.fixture(scope="module")
def service(tiny_versions, tmp_path_factory):
    """A real service with v1, which has a ControlNet, and the LoRAs ink and night."""
    root = tmp_path_factory.mktemp("service")
    (root / "models").mkdir()
    shutil.copytree(tiny_versions / "v1", root / "models/v1")
    add_control(root / "models/v1", "2.1")
    write_seal(root / "models/v1", "v1")
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


async def test_a_picture_guides_what_is_drawn_by_an_agent_and_from_a_terminal(service, tmp_path):
    Image.linear_gradient("L").resize((64, 48)).save(tmp_path / "depth.png")
    asked = {"prompt": "a cat", "seed": 3, "control_image": "depth.png", "control_scale": 1.5, "save_as": "guided.png"}
    async with connected(service.url, "--files", tmp_path) as client:
        drawn, _ = await called(client, "generate_image", asked)
        assert (drawn["width"], drawn["height"]) == (64, 48)
        both = {"prompt": "a cat", "image": "depth.png", "control_image": "depth.png"}
        assert "control_image" in await sentence(client, "edit_image", both)
    line, same = generated(service, tmp_path, "same.png", "--control", "depth.png", "--control-scale", "1.5")
    assert ", 64 x 48, " in line
    assert pixels((tmp_path / "guided.png").read_bytes()) == same
    _, weaker = generated(service, tmp_path, "weaker.png", "--control", "depth.png")
    assert weaker != same
