"""A control image guides a picture as `ZImageControlNetPipeline` has it, in each version of the published ControlNet."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import ZImageControlNetPipeline
from PIL import Image

from tests.controlnets import KINDS, write_controlled
from tests.engine.editing import build, parameters
from tests.engine.test_dtype import psnr
from tests.engine.test_pipeline import pixels
from zwatch.engine.factory import EngineFactory
from zwatch.engine.parameters import ControlImage
from zwatch.engine.precision import adapt
from zwatch.shadow.device import Device

WEIGHTS = "controlnet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def factory():
    return EngineFactory(Device("cpu"))


@pytest.fixture(scope="module")
def versions(tiny_versions, tmp_path_factory):
    """A models root with v1 and a version for each kind of ControlNet."""
    root = tmp_path_factory.mktemp("controlled")
    shutil.copytree(tiny_versions / "v1", root / "v1")
    for kind in KINDS:
        write_controlled(root, kind, kind=kind)
    return root


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def engine(factory, versions, kind):
    return build(factory, versions, kind)


@pytest.fixture(scope="module")
def library(versions, kind):
    pipeline = ZImageControlNetPipeline.from_pretrained(
        versions / kind, torch_dtype=torch.bfloat16, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.text_encoder, pipeline.transformer, pipeline.vae, pipeline.controlnet):
        adapt(module, torch.device("cpu"))  # as zwatch computes on this processor
    return pipeline


def drawing(width=80, height=56):
    """Return a control image: its sizes are not those that are drawn."""
    image = Image.new("RGB", (width, height), "black")
    image.paste((255, 255, 255), (10, 8, 40, 44))
    image.paste((200, 30, 90), (44, 20, 70, 30))
    return image


def controlled(*arguments, scale=0.75, **changes):
    """Return the parameters of a small image that a control image guides."""
    return replace(parameters(*arguments, **changes), control=ControlImage(drawing(), scale, "0" * 64))


@pytest.mark.parametrize(
    "wanted",
    [
        controlled(),
        controlled("a dog", 7, width=96, height=48, scale=1.5),
        controlled("两条鱼 🐟", 2**63 - 1, width=32, height=64, steps=3),
        controlled("a cat", 3, guidance_scale=3.5),
        controlled("a cat", 3, guidance_scale=3.5, negative_prompt="blurry, dark, " * 20),
    ],
    ids=["plain", "wide and strong", "tall", "guided", "prompts of two lengths"],
)
def test_a_guided_image_equals_diffusers_own_pixel_for_pixel(engine, library, wanted):
    expected = library(
        prompt=wanted.prompt, negative_prompt=wanted.negative_prompt, width=wanted.width, height=wanted.height,
        num_inference_steps=wanted.steps, guidance_scale=wanted.guidance_scale, control_image=wanted.control.picture,
        controlnet_conditioning_scale=wanted.control.scale, generator=torch.Generator().manual_seed(wanted.seeds[0]),
    ).images[0]  # fmt: skip
    made = pixels(engine.generate(wanted).images[0])
    assert np.array_equal(made, pixels(expected))
    assert not np.array_equal(made, pixels(engine.generate(replace(wanted, control=None)).images[0]))


def test_without_a_control_image_a_version_draws_what_it_would_draw_without_a_controlnet(factory, versions, engine):
    assert np.array_equal(
        pixels(engine.generate(parameters()).images[0]),
        pixels(build(factory, versions, "v1").generate(parameters()).images[0]),
    )


def test_with_a_scale_of_0_nothing_is_guided(engine):
    assert np.array_equal(
        pixels(engine.generate(controlled(scale=0.0)).images[0]), pixels(engine.generate(parameters()).images[0])
    )


@pytest.mark.parametrize(
    "changes", [{}, {"guidance_scale": 1.0, "negative_prompt": "blurry, dark, " * 20}], ids=["", "guided"]
)
def test_the_fast_way_draws_nearly_the_same(engine, changes):
    wanted = controlled(**changes)
    exact = engine.generate(wanted).images[0]
    with engine.other_way():
        assert psnr(pixels(engine.generate(wanted).images[0]), pixels(exact)) >= 45
