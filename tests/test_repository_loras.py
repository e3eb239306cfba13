"""The LoRAs in the repository: sealed, small, for both versions, and visible in what is drawn with them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline
from safetensors.torch import load_file

from tests.deploy.loras import matrices
from zwatch.deploy.loras import WEIGHTS, LoraRoot
from zwatch.deploy.verifying import check_directory

REPOSITORY = Path(__file__).parent.parent
LORAS, MODELS = REPOSITORY / "loras", REPOSITORY / "models"
NAMES = ("ink", "night")
LIMIT = 1_000_000
PROMPT, SEED = "a cat wearing sunglasses", 42


@pytest.fixture(scope="module")
def pipeline():
    loaded = ZImagePipeline.from_pretrained(MODELS / "v1", torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def drawn(pipeline, name, scale):
    """Return the picture, float32 (256, 256, 3), with a LoRA merged in float32."""
    weights, factors = pipeline.transformer.state_dict(), load_file(LORAS / name / WEIGHTS)
    before = {key: tensor.clone() for key, tensor in weights.items()}
    for down, tensor in factors.items():
        if ".lora_A." in down:
            up = factors[down.replace(".lora_A.", ".lora_B.")].float()
            weights[down.replace(".lora_A.", ".")] += scale * up @ tensor.float()
    try:
        generator = torch.Generator().manual_seed(SEED)
        found = pipeline(PROMPT, height=256, width=256, num_inference_steps=8, guidance_scale=0.0, generator=generator)
    finally:
        pipeline.transformer.load_state_dict(before)
    return np.asarray(found.images[0], np.float32)


@pytest.mark.parametrize("name", NAMES)
def test_a_lora_is_verified_and_small(name):
    assert check_directory(LORAS / name, name) == []
    found = {one.name: one for one in LoraRoot(LORAS).look()}[name]
    assert found.problem is None
    assert sum(path.stat().st_size for path in (LORAS / name).iterdir()) < LIMIT


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("name", NAMES)
def test_a_lora_fits_both_versions(name, version):
    lora = LoraRoot(LORAS).open_lora(name)
    lora.close()
    own = matrices(MODELS / version / "transformer")
    assert {module: (one.rows, one.columns) for module, one in lora.matrices.items()}.items() <= own.items()


def test_ink_takes_the_colour_and_night_the_light(pipeline):
    plain, ink, night = (drawn(pipeline, name, scale) for name, scale in (("ink", 0.0), ("ink", 1.0), ("night", 1.0)))
    colour = {key: np.ptp(picture, axis=2).mean() for key, picture in (("plain", plain), ("ink", ink))}
    assert colour["ink"] < 0.6 * colour["plain"]
    assert ink.mean() > 1.1 * plain.mean()
    assert night.mean() < 0.6 * plain.mean()
    assert night[..., 2].mean() > 1.5 * night[..., 0].mean()


def test_half_the_scale_is_between(pipeline):
    dark = [drawn(pipeline, "night", scale).mean() for scale in (0.0, 0.5, 1.0)]
    assert dark[0] > dark[1] > dark[2]
