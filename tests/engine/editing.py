"""Versions damaged on purpose and sealed again, so that only the engine can find the damage."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.deploy.factory import seal_as_it_is, stamp_as_it_is
from zwatch.deploy.look import open_version
from zwatch.deploy.seal import read_seal
from zwatch.engine.factory import EngineFactory
from zwatch.engine.parameters import GenerationParameters
from zwatch.engine.pipeline import Engine
from zwatch.errors import Rejection
from zwatch.shadow.loader import LoadControl

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT_ENCODER = "text_encoder/model.safetensors"

Tensors = dict[str, torch.Tensor]


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    """Let `change` change a JSON object in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def edit_tensors(path: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Write what `change` makes of a weight file's tensors."""
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(change({name: tensor.clone() for name, tensor in load_file(path).items()}), path, metadata)


def seal_again(version: Path) -> None:
    """Seal a version as it is now."""
    stamp_as_it_is(version)
    seal_as_it_is(version)


def build(factory: EngineFactory, models: Path, name: str, control: LoadControl | None = None) -> Engine:
    """Load a version as the supervisor does, up to the warm-up."""
    directory = open_version(models, name)
    try:
        planned = factory.plan(directory, read_seal(directory.fd).digest)
        return factory.build(directory, planned, control or LoadControl())
    finally:
        directory.close()


def parameters(prompt: str = "a cat wearing sunglasses", *seeds: int, **changes) -> GenerationParameters:
    """Return the parameters of a small image."""
    values = {"negative_prompt": "", "width": 64, "height": 64, "steps": 2, "guidance_scale": 0.0} | changes
    return GenerationParameters(prompt, seeds=seeds or (42,), **values)


def rejection_of(call: Callable[[], object]) -> tuple[str, str]:
    """Return code and reason of the rejection that a call raises, and keep nothing of its frames alive."""
    try:
        call()
    except Rejection as rejection:
        return rejection.code, rejection.reason
    pytest.fail("it was not rejected")
