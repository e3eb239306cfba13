"""`zwatch import FILE NAME --lora` without a base: a LoRA in the LoRA root, sealed, in one rename."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.importing.layouts import make
from tests.importing.published import provenance
from zwatch import cli
from zwatch.deploy.loras import LoraRoot
from zwatch.deploy.verifying import check_directory

MODULES = {"layers.0.attention.to_q": (64, 64), "layers.1.feed_forward.w1": (170, 64)}


@pytest.fixture
def loras(root):
    return root.parent / "loras"


@pytest.fixture
def kohya(tmp_path):
    state = make.lora(MODULES, names="kohya", alpha=2.0)
    save_file(state, tmp_path / "ink_v3.safetensors", {"ss_output_name": "ink"})
    return tmp_path / "ink_v3.safetensors"


def test_it_is_made_beside_the_models_root_and_found_there(importing, kohya, root, loras):
    importing(kohya, "ink", "--lora")
    [found] = LoraRoot(loras).look()
    assert (found.name, found.problem, found.rank, found.modules) == ("ink", None, 4, 2)
    assert found.digest in importing.out
    assert '"loras": [{"name": "ink", "scale": 1.0}]' in importing.error
    assert sorted(path.name for path in loras.iterdir()) == ["ink"]
    assert sorted(os.listdir(loras / "ink")) == ["BLAKE3SUMS", "lora.safetensors", "zwatch.json"]
    assert check_directory(loras / "ink", "ink") == []
    assert list(root.iterdir()) == []


def test_its_tensors_have_diffusers_names_and_alpha_in_b(importing, kohya, loras):
    importing(kohya, "ink", "--lora")
    made, state = load_file(loras / "ink/lora.safetensors"), load_file(kohya)
    assert set(made) == {f"{module}.lora_{kind}.weight" for module in MODULES for kind in "AB"}
    up = state["lora_unet_layers_0_attention_to_q.lora_up.weight"]
    assert torch.equal(made["layers.0.attention.to_q.lora_B.weight"], up * 0.5)


def test_its_provenance_says_what_it_was_made_of(importing, kohya, loras):
    importing(kohya, "ink", "--lora")
    found = provenance(loras / "ink")
    assert found["source"]["kind"] == "lora"
    assert list(found["source"]["files"]) == ["ink_v3.safetensors"]
    assert "loras" not in found
    assert "kohya's names" in found["conversions"][0]["from"]


def test_another_root_is_named_by_an_option_or_a_variable(importing, kohya, tmp_path, monkeypatch):
    importing(kohya, "ink", "--lora", "--loras", tmp_path / "a/styles")
    monkeypatch.setenv("ZWATCH_LORAS", str(tmp_path / "b"))
    importing(kohya, "ink", "--lora")
    assert [LoraRoot(tmp_path / root).look()[0].problem for root in ("a/styles", "b")] == [None, None]


def test_json_names_the_lora(importing, kohya):
    importing(kohya, "ink", "--lora", "--json")
    found = json.loads(importing.out)
    assert (found["lora"], found["files"]) == ("ink", 2)
    assert "version" not in found


def test_pefts_directory_is_a_lora_too(importing, tmp_path, loras):
    directory = tmp_path / "adapter"
    directory.mkdir()
    state = make.lora(MODULES, names="peft")
    save_file(state, directory / "adapter_model.safetensors")
    (directory / "adapter_config.json").write_text('{"peft_type": "LORA", "lora_alpha": 8, "r": 4}')
    importing(directory, "ink", "--lora")
    made = load_file(loras / "ink/lora.safetensors")
    name = "layers.0.attention.to_q.lora_B.weight"
    assert torch.equal(made[name], 2 * state[f"base_model.model.{name}"])


def test_one_of_the_lora_root_can_be_imported_under_another_name(importing, kohya, loras):
    importing(kohya, "ink", "--lora")
    importing(loras / "ink", "pen", "--lora")
    assert [found.problem for found in LoraRoot(loras).look()] == [None, None]
    first, second = (load_file(loras / name / "lora.safetensors") for name in ("ink", "pen"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_name_that_is_taken_is_refused_and_nothing_changes(importing, kohya, loras):
    importing(kohya, "ink", "--lora")
    before = (loras / "ink/BLAKE3SUMS").read_bytes()
    importing(kohya, "ink", "--lora", status=1)
    assert "exists already" in importing.error
    assert (loras / "ink/BLAKE3SUMS").read_bytes() == before


@pytest.mark.parametrize(("given", "status", "what"), [
    (["--lora", "0.5"], 2, "each request says its own"),
    (["--lora", "--deploy"], 2, "a LoRA is not deployed"),
    ([], 1, "or keep it for requests, `--lora` alone"),
])  # fmt: skip
def test_a_wrong_call_says_what_to_type(given, status, what, importing, kohya, loras, monkeypatch):
    monkeypatch.setattr(cli, "_check_service", lambda *_: None)
    importing(kohya, "ink", *given, status=status)
    assert what in importing.error
    assert not loras.exists()


def test_what_is_no_lora_or_one_that_is_not_low_rank_leaves_nothing(importing, pipeline, tmp_path, loras):
    importing(pipeline / "vae/diffusion_pytorch_model.safetensors", "vae", "--lora", status=1)
    assert "it is no LoRA" in importing.error
    save_file(make.lokr({"layers.0.attention.to_q": (64, 64)}, "w2"), tmp_path / "lokr.safetensors")
    importing(tmp_path / "lokr.safetensors", "lokr", "--lora", status=1)
    assert "merge it into a version with --base" in importing.error
    state = make.lora(MODULES)
    state["transformer.layers.0.attention.to_q.lora_A.weight"][0, 0] = float("inf")
    save_file(state, tmp_path / "inf.safetensors")
    importing(tmp_path / "inf.safetensors", "inf", "--lora", status=1)
    assert "infinite or not numbers" in importing.error
    assert not loras.exists() or list(loras.iterdir()) == []


def test_an_interrupted_one_goes_on_and_leaves_nothing_that_looks_like_a_lora(importing, kohya, loras, monkeypatch):
    from zwatch.importing.place import Place

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(Place, "publish", interrupted)
        importing(kohya, "ink", "--lora", status=130)
    assert "no LoRA was made" in importing.error
    assert LoraRoot(loras).look() == []
    importing(kohya, "ink", "--lora")
    assert "kept of an interrupted import" in importing.out
    assert [found.problem for found in LoraRoot(loras).look()] == [None]


def test_it_says_whether_it_fits_what_current_leads_to(importing, pipeline, kohya, tmp_path, root):
    importing(pipeline, "v1")
    importing(kohya, "before", "--lora")
    assert "fit" not in importing.error
    (root / "current").symlink_to("v1")
    importing(kohya, "ink", "--lora")
    assert f"it fits v1, which {root / 'current'} leads to" in importing.error
    modules = {
        "layers.0.attention.to_q": (64, 32),
        **{f"layers.{number}.attention.to_k": (64, 64) for number in range(5, 9)},
    }
    save_file(make.lora(modules), tmp_path / "other.safetensors")
    importing(tmp_path / "other.safetensors", "other", "--lora")
    assert "it does not fit v1" in importing.error
    assert "layers.0.attention.to_q is [64, 64], the LoRA is for [64, 32]" in importing.error
    assert "layers.5.attention.to_k is not there, the LoRA is for [64, 64]" in importing.error
    assert "and 2 more" in importing.error
