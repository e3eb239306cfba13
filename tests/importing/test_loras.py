"""Several LoRAs are merged in one pass and recorded in their order; one that does not fit is refused by its name."""

import pytest
import torch
from safetensors.torch import save_file

from tests.importing.layouts import make
from tests.importing.published import provenance, weights
from zwatch.deploy.verifying import check_directory

TARGETS = {"ink": ("layers.0.attention.to_q", "layers.0.attention.to_k"), "paper": ("layers.0.attention.to_q",)}


@pytest.fixture
def loras(pipeline, tmp_path):
    """Two LoRAs, of which both change one matrix; their tensors by name."""
    own, made = weights(pipeline, "transformer"), {}
    for number, (name, modules) in enumerate(TARGETS.items()):
        torch.manual_seed(number)
        made[name] = make.lora({module: tuple(own[f"{module}.weight"].shape) for module in modules}, alpha=4)
        save_file(made[name], tmp_path / f"{name}.safetensors")
    return made


def changed(own, loras, scales):
    """The transformer with the LoRAs in it, added up in float32 and rounded once."""
    merged = {name: tensor.float() for name, tensor in own.items()}
    for name, scale in scales.items():
        for module in TARGETS[name]:
            down, up = (loras[name][f"transformer.{module}.lora_{part}.weight"] for part in "AB")
            merged[f"{module}.weight"] += scale * (up @ down)
    return {name: tensor.to(torch.bfloat16) for name, tensor in merged.items()}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0.01, atol=0.002)


def recorded(version):
    return [(one["name"], one["scale"]) for one in provenance(version)["loras"]]


def test_two_loras_are_merged_in_one_pass_and_recorded(pipeline, importing, loras, tmp_path):
    importing(pipeline, "v1")
    options = ["--base", "v1", "--lora", "0.5", "--lora", f"{tmp_path / 'paper.safetensors'}:-2"]
    version = importing(tmp_path / "ink.safetensors", "v2", *options)
    own = weights(pipeline, "transformer")
    same(weights(version, "transformer"), changed(own, loras, {"ink": 0.5, "paper": -2}))
    assert recorded(version) == [("ink.safetensors", 0.5), ("paper.safetensors", -2.0)]
    assert list(provenance(version)["source"]["files"]) == ["ink.safetensors"]
    assert provenance(version)["source"]["kind"] == "lora"
    assert check_directory(version, "v2") == []


def test_loras_are_merged_into_a_sources_own_transformer(pipeline, importing, loras, tmp_path):
    paths = {name: tmp_path / f"{name}.safetensors" for name in loras}
    version = importing(pipeline, "v1", f"--lora={paths['ink']}", "--lora", f"{paths['paper']}:0.25")
    own = weights(pipeline, "transformer")
    same(weights(version, "transformer"), changed(own, loras, {"ink": 1.0, "paper": 0.25}))
    assert recorded(version) == [("ink.safetensors", 1.0), ("paper.safetensors", 0.25)]
    assert provenance(version)["source"]["kind"] == "diffusers"
    assert not {"ink.safetensors", "paper.safetensors"} & set(provenance(version)["source"]["files"])


def test_what_an_environment_says_counts_too(pipeline, importing, loras, tmp_path, monkeypatch):
    monkeypatch.setenv("ZWATCH_IMPORT_LORA", f"{tmp_path / 'ink.safetensors'}:0.5,{tmp_path / 'paper.safetensors'}")
    assert recorded(importing(pipeline, "v1")) == [("ink.safetensors", 0.5), ("paper.safetensors", 1.0)]


def test_one_that_does_not_fit_is_refused_by_its_name(pipeline, importing, loras, tmp_path):
    importing(pipeline, "v1")
    save_file(make.lora({"layers.99.attention.to_q": (64, 64)}), tmp_path / "other.safetensors")
    more = f"--lora={tmp_path / 'other.safetensors'}"
    error = importing.refused(tmp_path / "ink.safetensors", "v2", "--base", "v1", more)
    assert f"{tmp_path / 'other.safetensors'}: the LoRA does not fit the base" in error


def test_what_is_none_or_given_twice_is_refused(pipeline, importing, loras, tmp_path):
    importing(pipeline, "v1")
    ink = tmp_path / "ink.safetensors"
    vae = pipeline / "vae/diffusion_pytorch_model.safetensors"
    assert "and it is no LoRA" in importing.refused(ink, "v2", "--base", "v1", f"--lora={vae}")
    assert "is given twice" in importing.refused(ink, "v2", "--base", "v1", f"--lora={ink}")
    assert "--base VERSION" in importing.refused(ink, "v2", f"--lora={tmp_path / 'paper.safetensors'}")


def test_a_transformer_in_another_layout_is_to_be_imported_first(pipeline, importing, loras, tmp_path):
    importing(pipeline, "v1")
    save_file(make.comfy_transformer(weights(pipeline, "transformer")), tmp_path / "z.safetensors")
    more = f"--lora={tmp_path / 'ink.safetensors'}"
    assert "import it alone first" in importing.refused(tmp_path / "z.safetensors", "v2", "--base", "v1", more)


@pytest.mark.parametrize("given", [["--lora", "0.5", "--lora", "1"], ["--lora=nowhere.safetensors"], ["--lora=0"]])
def test_a_wrong_call_is_status_2(given, pipeline, importing):
    importing(pipeline, "v2", *given, status=2)


def test_another_lora_is_part_of_what_an_interrupted_import_goes_on_from(pipeline, importing, loras, tmp_path):
    paths = [tmp_path / f"{name}.safetensors" for name in loras]
    first = importing(pipeline, "v1", f"--lora={paths[0]}")
    second = importing(pipeline, "v2", f"--lora={paths[0]}", f"--lora={paths[1]}")
    assert not torch.equal(
        weights(first, "transformer")["layers.0.attention.to_q.weight"],
        weights(second, "transformer")["layers.0.attention.to_q.weight"],
    )
