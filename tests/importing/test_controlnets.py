"""The published ControlNet becomes a part of a version, and stays one."""

import json
import os
import shutil

import pytest
import torch
from diffusers import ZImageControlNetModel, ZImageControlNetPipeline, ZImagePipeline
from safetensors.torch import load_file, save_file

from tests.controlnets import KINDS, controlnet, write_checkpoint
from tests.deploy import goldens
from zwatch.deploy.verifying import check_directory

WEIGHTS = "controlnet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def based(pipeline, importing, tmp_path):
    """`zwatch import` into a models root that has v1, with golden images."""
    source = shutil.copytree(pipeline, tmp_path / "source")
    goldens.add(source, {})
    importing(source, "v1")
    return importing


def config_of(version):
    return json.loads((version / "controlnet/config.json").read_text())


@pytest.mark.parametrize("kind", KINDS)
def test_each_version_of_the_checkpoint_is_recognised_and_diffusers_loads_what_becomes_of_it(based, tmp_path, kind):
    file = write_checkpoint(tmp_path / "Z-Image-Turbo-Fun-Controlnet-Union.safetensors", kind)
    version = based(file, "v2", "--base", "v1")
    assert check_directory(version, "v2") == []
    found = config_of(version)
    assert {name: found[name] for name in KINDS[kind]} == KINDS[kind]
    loaded = ZImageControlNetModel.from_pretrained(version / "controlnet", torch_dtype=torch.bfloat16)
    expected = controlnet(kind).to(torch.bfloat16).state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(loaded.state_dict()[name], expected[name]) for name in expected)
    options = {"torch_dtype": torch.bfloat16, "local_files_only": True}
    guided = ZImageControlNetPipeline.from_pretrained(version, **options)
    assert guided.controlnet.config.add_control_noise_refiner == KINDS[kind]["add_control_noise_refiner"]
    assert "controlnet" not in ZImagePipeline.from_pretrained(version, **options).components


def test_what_the_base_gives_is_shared_and_its_golden_images_stay(based, root, tmp_path):
    version = based(write_checkpoint(tmp_path / "union.safetensors", "2.1"), "v2", "--base", "v1")
    same = [path for path in (version / "vae").iterdir() if os.path.samefile(path, root / "v1/vae" / path.name)]
    if not same:  # on a file system that shares blocks
        assert "of the base by reflink" in based.out
    assert (version / "golden.json").read_bytes() == (root / "v1/golden.json").read_bytes()
    assert json.loads((version / "zwatch.json").read_text())["base"]["version"] == "v1"


def test_a_fine_tune_keeps_the_controlnet_of_its_base_and_another_replaces_it(based, root, tmp_path, pipeline):
    based(write_checkpoint(tmp_path / "union.safetensors", "2.1"), "v2", "--base", "v1")
    tuned = shutil.copytree(pipeline / "transformer", tmp_path / "tuned/transformer").parent
    version = based(tuned, "v3", "--base", "v2")
    assert (version / WEIGHTS).read_bytes() == (root / "v2" / WEIGHTS).read_bytes()
    assert check_directory(version, "v3") == []
    version = based(write_checkpoint(tmp_path / "first.safetensors", "1.0"), "v4", "--base", "v3")
    assert config_of(version)["control_in_dim"] == 16
    assert len(load_file(version / WEIGHTS)) == len(controlnet("1.0").state_dict())


def test_a_directory_of_diffusers_brings_its_own_config(based, tmp_path):
    controlnet("2.1", control_layers_places=[0], norm_eps=1e-6).to(torch.bfloat16).save_pretrained(tmp_path / "control")
    found = config_of(based(tmp_path / "control", "v2", "--base", "v1"))
    assert (found["control_layers_places"], found["norm_eps"]) == ([0], 1e-6)


def test_a_quantized_version_keeps_it(based, root, tmp_path, capsys):
    from zwatch import cli

    based(write_checkpoint(tmp_path / "union.safetensors", "2.1"), "v2", "--base", "v1")
    assert cli.main(["quantize", "v2", "v2-int8", "--to", "int8", "--models", str(root)]) == 0
    assert (root / "v2-int8" / WEIGHTS).read_bytes() == (root / "v2" / WEIGHTS).read_bytes()


def test_without_a_base_it_is_refused(importing, tmp_path):
    file = write_checkpoint(tmp_path / "union.safetensors", "2.1")
    assert "take what is lacking from a version: --base VERSION" in importing.refused(file, "v2")


def changed(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("file", "found"),
    [
        (lambda path: write_checkpoint(path, "2.1", dim=32), "controlnet/config.json: dim: found 32, expected 64 as in transformer/config.json"),
        (
            lambda path: write_checkpoint(path, "1.0", control_layers_places=[0, 1, 2]),
            "a ControlNet of 3 layers for a transformer of 2: which of them get its hints is not known",
        ),
        (
            lambda path: changed(write_checkpoint(path, "2.1"), lambda tensors: tensors.pop("control_layers.1.after_proj.bias")),
            "recognised as a ControlNet for Z-Image, but 1 tensors differ: 'control_layers.1.after_proj.bias' is missing",
        ),
        (
            lambda path: changed(write_checkpoint(path, "2.1"), lambda tensors: tensors.update({"control_layers.0.before_proj.bias": torch.zeros(3)})),
            "'control_layers.0.before_proj.bias' has the shape [3], expected [64]",
        ),
    ],
    ids=["another model's", "more layers", "incomplete", "another shape"],
)  # fmt: skip
def test_one_that_does_not_fit_is_refused_with_names_and_shapes(based, tmp_path, file, found):
    assert found in based.refused(file(tmp_path / "union.safetensors"), "v2", "--base", "v1")


def test_the_published_ones_layers_are_known():
    from types import SimpleNamespace

    from zwatch.importing.controlnets import _config
    from zwatch.importing.layouts.controlnet import tensors
    from zwatch.importing.recipes import Made

    def config(count, refiner, hints, channels):
        sizes = {"dim": 3840, "head_dim": 128, "control_in_dim": channels, "n_control_layers": count, "n_refiner_layers": refiner, "refiner_hints": hints}  # fmt: skip
        made = [Made(name, "BF16", shape, (name,)) for name, shape in tensors(sizes).items()]
        return _config(SimpleNamespace(made=made), {"n_layers": 30, "n_refiner_layers": 2})

    first, second, third, lite = config(6, 2, 0, 16), config(15, 0, 0, 33), config(15, 2, 1, 33), config(3, 2, 1, 33)
    assert first["control_layers_places"] == [0, 5, 10, 15, 20, 25]
    assert second["control_layers_places"] == third["control_layers_places"] == list(range(0, 30, 2))
    assert lite["control_layers_places"] == [0, 14, 28]
    assert [one["control_refiner_layers_places"] for one in (first, second, third)] == [None, [0, 1], [0, 1]]
    kinds = [one["add_control_noise_refiner"] for one in (first, second, third, lite)]
    assert kinds == [None, "control_layers", "control_noise_refiner", "control_noise_refiner"]
    assert third["n_heads"] == 30
    assert ZImageControlNetModel.from_config(third | {"dim": 64, "n_heads": 2}).config.control_in_dim == 33
