"""What cannot be imported is refused with a sentence that says what to do; nothing is left, and nothing is lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.importing import published
from tests.importing.layouts import make
from tests.importing.published import tree, weights
from tests.namespaces import Namespaces, Unavailable
from zwatch.deploy.verifying import check_directory

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\nsize 12345\n"


def copied(pipeline, target):
    return Path(shutil.copytree(pipeline, target))


def pointer(path):
    def change(source):
        (source / path).write_text(POINTER)

    return change


def removed(path):
    def change(source):
        (source / path).unlink()

    return change


def pickled(source):
    torch.save({}, source / "transformer" / "diffusion_pytorch_model.bin")
    (source / TRANSFORMER).unlink()


def truncated(source):
    os.truncate(source / TRANSFORMER, 1_000_000)


def lying(source):
    data = (source / TRANSFORMER).read_bytes()
    (source / TRANSFORMER).write_bytes((2**40).to_bytes(8, "little") + data[8:])


def fifo(source):
    (source / TRANSFORMER).unlink()
    os.mkfifo(source / TRANSFORMER)


def dangling(source):
    (source / TRANSFORMER).unlink()
    (source / TRANSFORMER).symlink_to("../../blobs/0123")


def a_shard_lacks(source):
    published.rewritten(source, None, ["transformer"], shards=3)
    (source / "transformer/diffusion_pytorch_model-00002-of-00003.safetensors").unlink()


def no_index(source):
    published.rewritten(source, None, ["transformer"], shards=3)
    (source / "transformer/diffusion_pytorch_model-00002-of-00003.safetensors").unlink()
    (source / "transformer/diffusion_pytorch_model.safetensors.index.json").unlink()


def downloading(source):
    path = source / ".cache/huggingface/download/transformer/abc.incomplete"
    path.parent.mkdir(parents=True)
    path.touch()


def other_pipeline(source):
    (source / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')


def odd_shard(source):
    published.rewritten(source, None, ["transformer"], shards=2)
    index = source / "transformer/diffusion_pytorch_model.safetensors.index.json"
    found = json.loads(index.read_text())
    first = found["weight_map"]["x_pad_token"]
    odd = "a\nb.safetensors"
    (source / "transformer" / first).rename(source / "transformer" / odd)
    found["weight_map"] = {key: odd if name == first else name for key, name in found["weight_map"].items()}
    index.write_text(json.dumps(found))


def outside(source):
    published.rewritten(source, None, ["transformer"], shards=2)
    index = source / "transformer/diffusion_pytorch_model.safetensors.index.json"
    found = json.loads(index.read_text())
    found["weight_map"] |= {"x_pad_token": "../vae/diffusion_pytorch_model.safetensors"}
    index.write_text(json.dumps(found))


def not_json(source):
    (source / "transformer/config.json").write_text("{")


def lora_beside(source):
    save_file({"a": torch.zeros(1)}, source / "pytorch_lora_weights.safetensors")


def wrong_provenance(source):
    (source / "zwatch.json").write_text('{"defualt_size": 64}')


def other_seal(source):
    (source / "BLAKE3SUMS").write_text(f"{'0' * 64}  {TRANSFORMER}\n")


SOURCES = {
    "a pointer of Git LFS": (pointer(TRANSFORMER), "git lfs pull"),
    "a tokenizer's pointer": (pointer("tokenizer/tokenizer.json"), "git lfs pull"),
    "a pickle": (pickled, "a pickle, which can run any code"),
    "a file cut short": (truncated, "is the copy complete?"),
    "a header that lies": (lying, "header says it is 1099511627776 bytes long"),
    "a FIFO": (fifo, "expected a regular file"),
    "a link to nothing": (dangling, "../../blobs/0123, which is not there"),
    "a shard that lacks": (a_shard_lacks, "names diffusion_pytorch_model-00002-of-00003.safetensors, which is not there"),
    "shards without index": (no_index, "is the download complete?"),
    "a download that goes on": (downloading, "abc.incomplete: a download goes on or was interrupted"),
    "no config": (removed("transformer/config.json"), "transformer/config.json"),
    "no tokenizer": (removed("tokenizer/tokenizer_config.json"), "lacks tokenizer"),
    "no index of the pipeline": (removed("model_index.json"), "lacks model_index.json; take what is lacking from a version: --base"),
    "another pipeline": (other_pipeline, "'StableDiffusionPipeline', expected 'ZImagePipeline'"),
    "a config that is no JSON": (not_json, "transformer/config.json"),
    "a shard with a line end in its name": (odd_shard, "has a control character"),
    "an index that leads outside": (outside, "names ../vae/diffusion_pytorch_model.safetensors, which is not there"),
    "a LoRA beside the transformer": (lora_beside, "pytorch_lora_weights.safetensors"),
    "an unknown key": (wrong_provenance, "defualt_size"),
    "other bytes than its own seal says": (other_seal, "the seal beside it says 0000"),
}  # fmt: skip


@pytest.mark.parametrize("what", SOURCES)
def test_a_directory_is_refused_with_what_to_do(what, pipeline, importing, tmp_path):
    change, expected = SOURCES[what]
    source = copied(pipeline, tmp_path / "source")
    change(source)
    assert expected in importing.refused(source, "v2")


def written(path):
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    return path


def odd(path):
    save_file({"a": torch.zeros(3)}, path / "odd.safetensors")
    return path / "odd.safetensors"


@pytest.mark.parametrize(
    ("make_source", "expected"),
    [
        (lambda path: path / "nothing", "no such file or directory"),
        (lambda path: Path("Tongyi-MAI/Z-Image-Turbo"), "run `hf download Tongyi-MAI/Z-Image-Turbo`"),
        (lambda path: path, "the directory is empty"),
        (lambda path: written(path / "model.ckpt"), "a pickle"),
        (lambda path: written(path / "model.bin"), "a pickle"),
        (lambda path: written(path / "notes.txt"), "expected a .safetensors file or a directory"),
        (lambda path: written(path / "empty.safetensors"), "too short for a safetensors header"),
        (lambda path: written(path / "notes.txt").parent, "found notes.txt"),
        (lambda path: written(path / "z.pt").parent, "a pickle"),
        (odd, "not recognised"),
        (lambda path: written(path / "blobs/a").parent.parent, "found blobs"),
        (lambda path: snapshots(path, 0), "no snapshot; run `hf download` again"),
        (lambda path: snapshots(path, 2), "found 2 snapshots and no refs/main"),
        (lambda path: snapshots(path, 1).parent, "a cache of several models; name one: models--a--b"),
    ],
)
def test_a_source_that_is_none_is_refused_with_what_to_do(make_source, expected, importing, tmp_path):
    place = tmp_path / "source"
    place.mkdir()
    assert expected in importing.refused(make_source(place), "v2")


def snapshots(path, count):
    model = path / "models--a--b"
    (model / "blobs").mkdir(parents=True)
    for number in range(count):
        (model / "snapshots" / f"{number}").mkdir(parents=True)
    return model


def test_weights_that_do_not_fit_are_refused_with_the_list_of_differences(pipeline, importing, tmp_path):
    source = copied(pipeline, tmp_path / "source")
    tensors = weights(source, "transformer")
    del tensors["x_pad_token"]
    tensors["layers.9.unknown"] = torch.zeros(1, dtype=torch.bfloat16)
    tensors["t_embedder.mlp.0.bias"] = torch.zeros(7, dtype=torch.bfloat16)
    published.write_weights(source, "transformer", tensors)
    error = importing.refused(source, "v2")
    assert "transformer: 1 missing: x_pad_token" in error
    assert "transformer: 1 unknown: layers.9.unknown" in error
    assert "transformer: 1 of another shape than the config says: t_embedder.mlp.0.bias [7] instead of [1024]" in error


def test_a_transformer_of_other_sizes_than_the_base_is_refused(pipeline, importing, tmp_path):
    importing(pipeline, "v1")
    tensors = make.comfy_transformer(weights(pipeline, "transformer"))
    wide = {name: tensor for name, tensor in tensors.items() if not name.startswith("layers.1.")}
    save_file(wide, tmp_path / "z.safetensors")
    error = importing.refused(tmp_path / "z.safetensors", "v2", "--base", "v1")
    assert "missing: layers.1." in error


def test_mixed_dtypes_need_a_conversion(pipeline, importing, tmp_path):
    source = copied(pipeline, tmp_path / "source")
    tensors = weights(source, "vae")
    name = next(iter(tensors))
    published.write_weights(source, "vae", tensors | {name: tensors[name].float()})
    assert "vae: has BF16 and F32" in importing.refused(source, "v2", "--keep-dtype")
    version = importing(source, "v2")
    assert {tensor.dtype for tensor in weights(version, "vae").values()} == {torch.bfloat16}


def test_a_lora_needs_a_base_and_a_switch_that_says_lora_needs_a_lora(pipeline, importing, tmp_path):
    save_file(make.lora({"layers.0.attention.to_q": (64, 64)}), tmp_path / "ink.safetensors")
    assert "merge it into a version, --base VERSION, or keep it for requests, `--lora` alone" in importing.refused(
        tmp_path / "ink.safetensors", "v2"
    )
    assert "it is no LoRA" in importing.refused(pipeline, "v2", "--lora")


@pytest.mark.parametrize("arguments", [["--lora", "0"], ["--lora=x"], ["--dtype", "fp8"], ["--models", "nowhere"]])
def test_a_wrong_call_is_status_2(arguments, pipeline, importing):
    importing(pipeline, "v2", *arguments, status=2)
    importing(pipeline, ".v2", status=2)


@pytest.mark.parametrize("there", ["a version", "an empty directory", "a file", "a link to nothing"])
def test_what_has_the_name_already_is_left_as_it_is(there, pipeline, importing, tmp_path):
    place = importing.root / "v2"
    if there == "a version":
        shutil.copytree(pipeline, place)
    elif there == "an empty directory":
        place.mkdir()
    elif there == "a file":
        place.write_text("mine")
    else:
        place.symlink_to("nothing")
    before = tree(importing.root), place.lstat().st_ino
    importing(pipeline, "v2", status=1)
    assert "exists already" in importing.error
    assert (tree(importing.root), place.lstat().st_ino) == before
    assert os.listdir(importing.root) == ["v2"]


def run(source, root, name, *options, prefix=(), **more):
    command = [*prefix, sys.executable, "-m", "zwatch", "import", source, name, "--models", root, *options]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, **more)


@pytest.mark.skipif(os.geteuid() != 0, reason="another user needs root")
def test_without_permission_the_error_names_the_path_and_nothing_is_left(pipeline, root, tmp_path):
    for path in [tmp_path, *tmp_path.parents]:
        if path.stat().st_uid == 0 and path.stat().st_mode & 0o001 == 0:
            path.chmod(path.stat().st_mode | 0o011)
    source = copied(pipeline, tmp_path / "source")
    for path in source.rglob("*.safetensors"):
        path.chmod(0o644)
    other = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    done = run(source, root, "v2", prefix=other, cwd="/")
    if "No module" in done.stderr or "can't open" in done.stderr:
        pytest.skip("another user cannot read this environment")
    assert (done.returncode, os.listdir(root)) == (1, []), done.stderr
    assert f"{root}: Permission denied: " in done.stderr
    assert "may not write there; import as root, or see --models" in done.stderr
    root.chmod(0o777)
    (root / ".v3.importing").mkdir(0o755)
    done = run(source, root, "v3", prefix=other, cwd="/")
    assert (done.returncode, os.listdir(root)) == (1, [".v3.importing"]), done.stderr
    assert f"{root}/.v3.importing: Permission denied: this was left by an import of root" in done.stderr
    assert f"go on as that user, or remove it: rm -r {root}/.v3.importing" in done.stderr
    (root / ".v3.importing").rmdir()
    (source / TRANSFORMER).chmod(0o600)
    done = run(source, root, "v2", prefix=other, cwd="/")
    assert (done.returncode, os.listdir(root)) == (1, [])
    assert f"{TRANSFORMER}: Permission denied: " in done.stderr
    assert "may not read it; let this user read it, or import as another" in done.stderr


@pytest.mark.parametrize("there", ["a file", "a link to nothing", "a directory as the lock"])
def test_what_is_in_the_way_is_named_with_what_to_do(there, pipeline, importing):
    hidden = importing.root / ".v2.importing"
    if there == "a file":
        hidden.write_text("mine")
    elif there == "a link to nothing":
        hidden.symlink_to("nothing")
    else:
        (hidden / ".lock").mkdir(parents=True)
    importing(pipeline, "v2", status=1)
    assert os.listdir(importing.root) == [".v2.importing"]
    assert "Errno" not in importing.error
    assert f"something else is there; remove it: rm -r {hidden}" in importing.error


def test_a_models_root_that_is_mounted_for_reading_is_named(pipeline, root):
    try:
        inside = Namespaces(setup=f"mount --bind {root} {root}; mount -o remount,bind,ro {root}")
    except Unavailable as error:
        pytest.skip(str(error))
    try:
        done = inside.run(sys.executable, "-m", "zwatch", "import", pipeline, "v2", "--models", root)
    finally:
        inside.close()
    assert done.returncode == 1
    assert (
        f"{root}: Read-only file system: no version can be made there; mount it for writing, or see --models"
        in done.stderr
    )


def test_json_is_all_that_standard_output_gets(pipeline, importing, tmp_path):
    source = published.published(pipeline, tmp_path / "source")
    version = importing(source, "v2", "--json")
    found = json.loads(importing.out)
    assert found["version"] == "v2"
    assert found["kept"] == 0
    assert found["files"] == len((version / "BLAKE3SUMS").read_text().splitlines())
    assert "transformer: F32 becomes BF16" in found["notes"]


@pytest.mark.parametrize("name", ["lock", "done.json", "_", "a" * 64])
def test_any_name_that_a_version_may_have_can_be_imported(name, pipeline, importing):
    assert check_directory(importing(pipeline, name), name) == []
    assert os.listdir(importing.root) == [name]


def test_what_is_left_out_is_named(pipeline, importing, tmp_path):
    importing(published.published(pipeline, tmp_path / "source"), "v2")
    assert "left out: .gitattributes, README.md, assets (1 file)" in importing.error
