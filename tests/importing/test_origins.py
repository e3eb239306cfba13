"""What an import takes from where, and what `zwatch.json` says of it: only what is so."""

import json
import os
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import save_file

from tests.importing import published
from tests.importing.layouts import make
from tests.importing.published import COMMIT, REPOSITORY, provenance, weights
from zwatch import cli
from zwatch.deploy.sealing import write_seal
from zwatch.deploy.verifying import check_directory

STATED = {
    "default_size": 48,
    "licence": "cc-by-nc-4.0",
    "note": "for portraits",
    "source": {"kind": "hub", "name": "x", "repository": "owner/tuned", "revision": COMMIT},
    "loras": [{"name": "first.safetensors", "blake3": "0" * 64, "scale": 0.5}],
}


@pytest.fixture
def v1(root, pipeline):
    """A sealed version that says a lot of itself."""
    shutil.copytree(pipeline, root / "v1")
    (root / "v1/zwatch.json").write_text(json.dumps(STATED))
    write_seal(root / "v1", "v1")
    return root / "v1"


def changed(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_a_config_without_weights_beside_it_is_taken_and_the_rest_of_the_base_is_named(v1, pipeline, importing, tmp_path):  # fmt: skip
    source = shutil.copytree(pipeline, tmp_path / "source")
    changed(source / "vae/config.json", scaling_factor=0.5)
    for component in ("vae", "transformer"):
        (source / component / "diffusion_pytorch_model.safetensors").unlink()
    version = importing(source, "v2", "--base", "v1")
    assert json.loads((version / "vae/config.json").read_text())["scaling_factor"] == 0.5
    assert "vae: diffusion_pytorch_model.safetensors of v1, the rest of the source" in importing.error
    assert "transformer: weights of v1, the rest of the source" in importing.error


@pytest.mark.parametrize("lacking", ["tokenizer_config.json", "the vocabulary"])
def test_a_part_of_a_tokenizer_is_completed(lacking, v1, pipeline, importing, tmp_path):
    source = shutil.copytree(pipeline, tmp_path / "source")
    names = [path for path in (source / "tokenizer").iterdir() if (path.name == "tokenizer_config.json") == (lacking == "tokenizer_config.json")]  # fmt: skip
    for path in names:
        path.unlink()
    for path in (source / "tokenizer").glob("*.json"):
        path.write_text(path.read_text() + "\n")
    version = importing(source, "v2", "--base", "v1")
    for path in (source / "tokenizer").iterdir():
        assert (version / "tokenizer" / path.name).read_bytes() == path.read_bytes()
    assert "of v1, the rest of the source" in importing.error


def test_the_files_of_two_vocabularies_do_not_mix(v1, pipeline, importing, tmp_path):
    source = shutil.copytree(pipeline, tmp_path / "source")
    for path in (source / "tokenizer").iterdir():
        path.unlink()
    (source / "tokenizer/vocab.json").write_text("{}")
    assert "tokenizer/tokenizer.json: it is not there" in importing.refused(source, "v2", "--base", "v1")


def test_a_base_that_gave_nothing_is_not_recorded(v1, pipeline, importing):
    found = provenance(importing(pipeline, "v2", "--base", "v1"))
    assert not {"base", "default_size", "licence"} & found.keys()
    assert "nothing comes from v1" in importing.error


def test_what_a_version_says_of_itself_goes_on_with_an_import_and_a_quantization(v1, importing, root):
    importing(v1, "imported")
    assert cli.main(["quantize", "v1", "quantized", "--models", str(root)]) == 0
    for name in ("imported", "quantized"):
        found = provenance(root / name)
        for key in ("default_size", "licence", "loras"):
            assert found[key] == STATED[key], name
        assert found["source"]["repository"] == "owner/tuned"
        assert found["source"]["revision"] == COMMIT
        assert "for portraits" in found["note"]


def test_what_a_base_says_of_itself_goes_on_with_a_lora(v1, importing, tmp_path):
    save_file(make.lora({"layers.0.attention.to_q": weights(v1, "transformer")["layers.0.attention.to_q.weight"].shape}), tmp_path / "ink.safetensors")  # fmt: skip
    found = provenance(importing(tmp_path / "ink.safetensors", "v2", "--base", "v1"))
    assert [one["name"] for one in found["loras"]] == ["first.safetensors", "ink.safetensors"]
    assert (found["licence"], found["default_size"]) == ("cc-by-nc-4.0", 48)
    assert "v1: for portraits" in found["note"]
    assert f"v1: from owner/tuned at {COMMIT}" in found["note"]


def test_a_transformer_that_is_not_the_bases_has_none_of_its_loras(v1, pipeline, importing, tmp_path):
    save_file(make.comfy_transformer(weights(pipeline, "transformer")), tmp_path / "z.safetensors")
    assert "loras" not in provenance(importing(tmp_path / "z.safetensors", "v2", "--base", "v1"))
    assert "loras" not in provenance(importing(pipeline / "transformer", "v3", "--base", "v1"))


def test_the_licences_of_source_and_base_are_both_named(v1, pipeline, importing, tmp_path):
    source = published.published(pipeline, tmp_path / "source")
    shutil.rmtree(source / "vae")
    assert provenance(importing(source, "v2", "--base", "v1"))["licence"] == "apache-2.0 and cc-by-nc-4.0"


def test_a_base_under_another_name_than_its_headers_is_refused(v1, pipeline, importing, root):
    shutil.copytree(v1, root / "copied")
    error = importing.refused(pipeline / "vae", "v2", "--base", "copied")
    assert f"{root}/copied: transformer/" in error
    assert "has version 'v1', the directory is 'copied'" in error


@pytest.mark.parametrize("part", ["transformer", "vae", "a link"])
def test_a_part_of_a_snapshot_and_a_link_to_it_say_the_repository(part, v1, pipeline, importing, tmp_path):
    snapshot = published.hub(pipeline, tmp_path / "cache") / "snapshots" / COMMIT
    (tmp_path / "link").symlink_to(snapshot)
    source = tmp_path / "link" if part == "a link" else snapshot / part
    found = provenance(importing(source, "v2", "--base", "v1"))
    assert (found["source"]["repository"], found["source"]["revision"]) == (REPOSITORY, COMMIT)
    assert found["licence"].startswith("apache-2.0")


def git(directory, *arguments):
    who = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    names = {f"GIT_{role}_{key}": "a@b" for role in ("AUTHOR", "COMMITTER") for key in ("NAME", "EMAIL")}
    return subprocess.run(["git", "-C", directory, *arguments], env={**os.environ, **who, **names}, check=True, capture_output=True, text=True).stdout.strip()  # fmt: skip


def test_a_clone_of_a_local_directory_has_no_repository_and_a_packed_one_has_its_commit(pipeline, importing, tmp_path):
    origin = tmp_path / "people" / "model"
    shutil.copytree(pipeline, origin)
    git(origin, "init", "-q")
    git(origin, "add", ".")
    git(origin, "commit", "-qm", "all")
    git(tmp_path, "clone", "-q", origin, "clone")
    git(tmp_path / "clone", "pack-refs", "--all")
    found = provenance(importing(tmp_path / "clone", "v2"))["source"]
    assert "repository" not in found
    assert found["revision"] == git(origin, "rev-parse", "HEAD")


@pytest.mark.parametrize(
    ("url", "repository"),
    [
        (f"https://huggingface.co/{REPOSITORY}", REPOSITORY),
        (f"https://user@www.modelscope.cn/models/{REPOSITORY}.git/", REPOSITORY),
        (f"git@hf.co:{REPOSITORY}.git", REPOSITORY),
        (f"ssh://git@hf.co:22/{REPOSITORY}", REPOSITORY),
        ("https://example.org/group/below/model", None),
        ("/srv/people/model", None),
        ("../people/model", None),
        ("people/model", None),
        ("file:///people/model", None),
        ("file://host/people/model", None),
    ],
)
def test_a_remote_names_a_repository_only_where_it_has_a_host(url, repository, tmp_path):
    from zwatch.importing import caches

    (tmp_path / ".git").mkdir()
    (tmp_path / ".git/config").write_text(f'[remote "origin"]\n\turl = {url}\n')
    assert caches.origin(tmp_path).repository == repository


@pytest.mark.parametrize("folder", ["mod els/large", "people/model"])
def test_modelscopes_notes_in_a_directory_that_is_no_cache_name_no_repository(folder, pipeline, importing, tmp_path):
    source = tmp_path / folder
    shutil.copytree(pipeline, source)
    (source / ".msc").write_bytes(b"\x80\x04]\x94.")
    found = provenance(importing(source, "v2"))["source"]
    assert (found["kind"], found.get("repository")) == ("modelscope", None)


def test_a_name_that_cannot_be_written_down_is_refused_before_anything_is_written(pipeline, importing, tmp_path, monkeypatch):  # fmt: skip
    monkeypatch.setattr("zwatch.importing.run.carry_out", lambda *given: pytest.fail("it was begun"))
    for name, shown in [(os.fsdecode(b"bad\xff"), r"bad\xff"), ("two\nlines", r"two\nlines")]:
        source = shutil.copytree(pipeline, tmp_path / name)
        error = importing.refused(source, "v2")
        assert shown in error
        assert "rename it" in error


def test_a_lora_of_any_name_inside_a_source_is_refused(pipeline, importing, tmp_path):
    for path in ("transformer/style.safetensors", "loras/ink.safetensors"):
        source = shutil.copytree(pipeline, tmp_path / path.replace("/", "-"))
        (source / path).parent.mkdir(exist_ok=True)
        save_file(make.lora({"layers.0.attention.to_q": (64, 64)}), source / path)
        assert f"{source / path}: this is a LoRA" in importing.refused(source, "v2")
        assert f"`zwatch import {source / path} NAME --base VERSION`" in importing.error


@pytest.mark.parametrize("path", ["tokenizer/tokenizer.json", "scheduler/scheduler_config.json", "vae/config.json"])
def test_what_is_named_json_and_is_none_is_neither_imported_nor_sealed(path, pipeline, importing, tmp_path, capsys):
    source = shutil.copytree(pipeline, tmp_path / "source")
    (source / path).write_text('{"tokenizer":')
    error = importing.refused(source, "v2")
    assert str(source) in error
    assert f"{path}: not JSON" in error
    assert cli.main(["seal", str(source), "--version", "v2"]) == 1
    assert f"{path}: not JSON" in capsys.readouterr().err
    assert not (source / "BLAKE3SUMS").exists()


@pytest.mark.parametrize("options", [["current"], ["live", "--alias", "live"]])
def test_a_version_cannot_have_the_name_of_an_alias(options, pipeline, importing):
    importing(pipeline, *options, status=2)
    assert not list(importing.root.iterdir())


def mixed(pipeline, target, *dtypes):
    """A pipeline whose transformer is stored in several dtypes."""
    shutil.copytree(pipeline, target)
    names = list(weights(target, "transformer").items())
    published.write_weights(
        target, "transformer", {name: one.to(dtypes[number % len(dtypes)]) for number, (name, one) in enumerate(names)}
    )
    return target


@pytest.mark.parametrize(("option", "dtype", "name"), [("fp16", torch.float16, "F16"), ("bf16", torch.bfloat16, "BF16")])  # fmt: skip
def test_several_dtypes_become_what_dtype_says_and_only_that_is_recorded(option, dtype, name, pipeline, importing, tmp_path):  # fmt: skip
    source = mixed(pipeline, tmp_path / "source", torch.bfloat16, torch.float16, torch.float32)
    version = importing(source, "v2", "--dtype", option)
    stored = weights(source, "transformer")
    found = weights(version, "transformer")
    assert all(torch.equal(one, stored[key].to(dtype)) for key, one in found.items())
    others = " and ".join(one for one in ("BF16", "F16", "F32") if one != name)
    assert provenance(version)["conversions"] == [{"component": "transformer", "from": others, "to": name}]


def test_fp8_becomes_what_dtype_says(pipeline, v1, importing, tmp_path):
    stored = make.fp8(weights(pipeline, "transformer"), "scaled_fp8")
    save_file(stored, tmp_path / "z.safetensors")
    version = importing(tmp_path / "z.safetensors", "v2", "--base", "v1", "--dtype", "fp16")
    assert {one.dtype for one in weights(version, "transformer").values()} == {torch.float16}
    assert provenance(version)["conversions"][-1] == {"component": "transformer", "from": "BF16", "to": "F16"}


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_a_conversion_that_makes_a_number_infinite_is_refused_by_the_tensors_name(stored, pipeline, importing, tmp_path):  # fmt: skip
    source = mixed(pipeline, tmp_path / "source", stored, torch.float32)
    tensors = weights(source, "transformer")
    name = sorted(name for name in tensors if tensors[name].dtype == stored)[3]
    tensors[name].reshape(-1)[-1] = 1e6
    published.write_weights(source, "transformer", tensors)
    error = importing.refused(source, "v2", "--dtype", "fp16")
    assert f"{name} has the value " in error
    assert "which F16 cannot hold" in error
    assert check_directory(importing(source, "v2"), "v2") == []


def test_a_lora_that_makes_numbers_infinite_is_refused(pipeline, importing, tmp_path):
    source = mixed(pipeline, tmp_path / "source", torch.float16)
    importing(source, "v1")
    shape = weights(source, "transformer")["layers.0.attention.to_q.weight"].shape
    save_file({name: tensor * 1e4 for name, tensor in make.lora({"layers.0.attention.to_q": shape}).items()}, tmp_path / "ink.safetensors")  # fmt: skip
    error = importing.refused(tmp_path / "ink.safetensors", "v2", "--base", "v1")
    assert "layers.0.attention.to_q.weight would have infinite values in transformer/" in error


def test_what_does_not_fit_is_refused_with_the_path_of_the_source(pipeline, importing, tmp_path):
    source = shutil.copytree(pipeline, tmp_path / "source")
    tensors = weights(source, "transformer")
    published.write_weights(source, "transformer", tensors | {"foo.bar": torch.zeros(1, dtype=torch.bfloat16)})
    assert f"{source}: the weights do not fit" in importing.refused(source, "v2")


@pytest.mark.parametrize("command", ["seal", "verify"])
def test_what_is_said_of_an_empty_directory_names_it(command, tmp_path, capsys):
    assert cli.main([command, str(tmp_path)]) == 1
    assert str(tmp_path) in "".join(capsys.readouterr())
