"""Every layout that people have becomes a version which draws what diffusers draws from the same source."""

import json
import shutil

import numpy as np
import pytest
import torch
from diffusers import ZImagePipeline
from safetensors.torch import save_file

from tests.engine.editing import build, parameters
from tests.importing import published
from tests.importing.layouts import make
from tests.importing.published import COMMIT, REPOSITORY, STEMS, provenance, tree, weights
from zwatch.deploy.header import read_header
from zwatch.deploy.verifying import check_directory
from zwatch.engine.factory import EngineFactory
from zwatch.engine.precision import Precision, adapt
from zwatch.shadow.device import Device

WANTED = parameters(steps=2)


@pytest.fixture(scope="module")
def factory():
    """Computes in bf16 what is stored in fp16 or fp32, whatever the processor is."""
    return EngineFactory(Device("cpu"), precision=Precision("bf16"))


def drawn(factory, version):
    [image] = build(factory, version.parent, version.name).generate(WANTED).images
    return np.asarray(image)


def drawn_by_diffusers(directory, dtype=torch.bfloat16, **options):
    pipeline = ZImagePipeline.from_pretrained(directory, torch_dtype=dtype, local_files_only=True, **options)
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.text_encoder, pipeline.transformer, pipeline.vae):
        adapt(module, torch.device("cpu"))
    return np.asarray(
        pipeline(
            prompt=WANTED.prompt, width=64, height=64, num_inference_steps=2, guidance_scale=0.0,
            generator=torch.Generator().manual_seed(42),
        ).images[0]
    )  # fmt: skip


def stamps(version):
    found = []
    for path in sorted((version / "transformer").glob("*.safetensors")):
        with open(path, "rb") as file:
            found.append(read_header(file.fileno(), str(path)).version)
    return found


def in_one_dtype(pipeline, target, dtype):
    shutil.copytree(pipeline, target)
    published.rewritten(target, dtype)
    return target


DIRECTORIES = {
    "as saved": shutil.copytree,
    "as published": published.published,
    "downloaded to a directory": published.local_dir,
    "cached by the hub": published.hub,
    "cached by the hub, its snapshot": lambda pipeline, target: published.hub(pipeline, target) / "snapshots" / COMMIT,
    "cached by ModelScope": published.modelscope,
    "all in fp32": lambda pipeline, target: in_one_dtype(pipeline, target, torch.float32),
    "all in fp16": lambda pipeline, target: in_one_dtype(pipeline, target, torch.float16),
    "with a variant beside it": published.variants,
    "the variant alone": published.only_variant,
    "the variant alone, as older releases name it": lambda pipeline, target: published.only_variant(pipeline, target, late=True),
}  # fmt: skip


@pytest.mark.parametrize("layout", DIRECTORIES)
def test_a_directory_becomes_a_version_that_draws_what_diffusers_draws_from_it(
    layout, pipeline, importing, factory, tmp_path
):
    source = DIRECTORIES[layout](pipeline, tmp_path / "source")
    before = tree(source)
    version = importing(source, "v2")
    assert check_directory(version, "v2") == []
    assert set(stamps(version)) == {"v2"}
    kept = {path.split("/")[0] for path in tree(version)}
    assert kept == {"model_index.json", "zwatch.json", "BLAKE3SUMS", "scheduler", "tokenizer", *STEMS}
    assert tree(source) == before
    readable = source / "snapshots" / COMMIT if (source / "snapshots").exists() else source
    options = {"variant": "bf16"} if "variant alone" in layout else {}
    assert (drawn(factory, version) == drawn_by_diffusers(readable, **options)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_keep_dtype_converts_nothing(dtype, pipeline, importing, tmp_path):
    source = in_one_dtype(pipeline, tmp_path / "source", dtype)
    version = importing(source, "v2", "--keep-dtype")
    assert {tensor.dtype for component in STEMS for tensor in weights(version, component).values()} == {dtype}
    assert "conversions" not in provenance(version)
    factory = EngineFactory(Device("cpu"), precision=Precision("fp32" if dtype is torch.float32 else "bf16"))
    difference = np.abs(drawn(factory, version).astype(int) - drawn_by_diffusers(source, dtype))
    # In fp32 the order of a sum depends on where a tensor begins in memory, also in diffusers alone.
    assert difference.max() <= (1 if dtype is torch.float32 else 0)


def test_what_was_fp32_is_said_and_recorded(pipeline, importing, tmp_path):
    version = importing(published.published(pipeline, tmp_path / "source"), "v2")
    assert "transformer: F32 becomes BF16" in importing.error
    assert provenance(version)["conversions"] == [{"component": "transformer", "from": "F32", "to": "BF16"}]
    found = {component: {one.dtype for one in weights(version, component).values()} for component in STEMS}
    assert set().union(*found.values()) == {torch.bfloat16}
    total = sum(one.numel() * 2 for one in weights(version, "transformer").values())
    index = json.loads((version / "transformer/diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == total


def test_dtype_fp16_makes_that_of_fp32(pipeline, importing, tmp_path):
    version = importing(published.published(pipeline, tmp_path / "source"), "v2", "--dtype", "fp16")
    assert {one.dtype for one in weights(version, "transformer").values()} == {torch.float16}
    assert {one.dtype for one in weights(version, "text_encoder").values()} == {torch.bfloat16}


def test_weights_that_stay_keep_their_bytes(pipeline, importing, tmp_path):
    source = published.published(pipeline, tmp_path / "source")
    version = importing(source, "v2")
    for path in [*(source / "text_encoder").iterdir(), *(source / "vae").iterdir()]:
        found = (version / path.relative_to(source)).read_bytes()
        assert found == path.read_bytes() or json.loads(found) == json.loads(path.read_bytes())


@pytest.mark.parametrize(
    ("build_source", "kind", "repository", "revision"),
    [
        (published.hub, "hub", REPOSITORY, COMMIT),
        (published.modelscope, "modelscope", REPOSITORY, "master"),
        (published.local_dir, "diffusers", None, COMMIT),
        (published.published, "diffusers", None, None),
    ],
)
def test_the_provenance_says_where_it_came_from(
    build_source, kind, repository, revision, pipeline, importing, tmp_path
):
    found = provenance(importing(build_source(pipeline, tmp_path / "source"), "v2"))
    source = found["source"]
    assert (source["kind"], source.get("repository"), source.get("revision")) == (kind, repository, revision)
    assert found["licence"] == "apache-2.0"
    assert {"model_index.json", "vae/diffusion_pytorch_model.safetensors"} < source["files"].keys()


def test_the_provenance_has_the_hashes_of_what_was_read(pipeline, importing, tmp_path):
    from blake3 import blake3

    source = published.published(pipeline, tmp_path / "source")
    files = provenance(importing(source, "v2"))["source"]["files"]
    assert {path: blake3((source / path).read_bytes()).hexdigest() for path in files} == files


def test_a_clone_says_its_origin_and_commit(pipeline, importing, tmp_path):
    source = published.published(pipeline, tmp_path / "source")
    (source / ".git/refs/heads").mkdir(parents=True)
    (source / ".git/HEAD").write_text("ref: refs/heads/main\n")
    (source / ".git/refs/heads/main").write_text(f"{COMMIT}\n")
    (source / ".git/config").write_text(f'[remote "origin"]\n\turl = https://huggingface.co/{REPOSITORY}\n')
    found = provenance(importing(source, "v2"))["source"]
    assert (found["repository"], found["revision"]) == (REPOSITORY, COMMIT)


def test_the_default_size_of_the_source_is_kept(pipeline, importing, tmp_path):
    source = shutil.copytree(pipeline, tmp_path / "source")
    (source / "zwatch.json").write_text('{"default_size": 48}')
    assert provenance(importing(source, "v2"))["default_size"] == 48
    assert provenance(importing(importing.root / "v2", "v3"))["default_size"] == 48
    assert provenance(importing.root / "v3")["source"]["kind"] == "version"


def comfy(pipeline, target, component, prefix="", style=None):
    """One component as ComfyUI's files have it."""
    tensors = weights(pipeline, component)
    if component == "transformer":
        tensors = make.comfy_transformer(tensors)
    if style is not None:
        tensors = make.fp8(tensors, style)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({f"{prefix}{name}": tensor.contiguous() for name, tensor in tensors.items()}, target)
    return target


FILES = {
    "z_image_turbo_bf16": ("transformer", ""),
    "z_image_turbo_bf16 with its prefix": ("transformer", "model.diffusion_model."),
    "qwen_3_4b": ("text_encoder", "model."),
}


@pytest.mark.parametrize("layout", FILES)
def test_one_file_of_comfyui_and_a_base_draw_what_the_pipeline_draws(layout, pipeline, importing, factory, tmp_path):
    component, prefix = FILES[layout]
    other = shutil.copytree(pipeline, tmp_path / "other")
    changed = {name: tensor * 0.5 for name, tensor in weights(other, component).items()}
    published.write_weights(other, component, changed)
    importing(other, "v1")
    source = comfy(pipeline, tmp_path / f"{layout.split()[0]}.safetensors", component, prefix)
    version = importing(source, "v2", "--base", "v1")
    assert check_directory(version, "v2") == []
    assert (drawn(factory, version) == drawn_by_diffusers(pipeline)).all()
    assert provenance(version)["source"]["kind"] == "single_file"
    assert provenance(version)["base"]["version"] == "v1"


@pytest.mark.parametrize("style", ["cast", "scaled_fp8", "comfy_quant"])
def test_an_fp8_transformer_becomes_its_values_in_bf16(style, pipeline, importing, factory, tmp_path):
    importing(pipeline, "v1")
    source = comfy(pipeline, tmp_path / "z_image_turbo_fp8.safetensors", "transformer", style=style)
    version = importing(source, "v2", "--base", "v1")
    expected = shutil.copytree(pipeline, tmp_path / "expected")
    stored = make.fp8(make.comfy_transformer(weights(pipeline, "transformer")), style)
    values = make.dequantized(dict(stored.items()))
    own = {}
    for name, tensor in weights(pipeline, "transformer").items():
        layer, _, part = name.rpartition(".attention.to_")
        if part[:2] in ("q.", "k.", "v."):
            own[name] = values[f"{layer}.attention.qkv.weight"].chunk(3)["qkv".index(part[0])].contiguous()
        else:
            [own[name]] = make.comfy_transformer({name: tensor}).keys()
            own[name] = values[own[name]].contiguous()
    published.write_weights(expected, "transformer", own)
    assert (drawn(factory, version) == drawn_by_diffusers(expected)).all()
    assert "fp8" in provenance(version)["note"]


def test_a_checkpoint_of_all_three_gives_them_all(pipeline, importing, factory, tmp_path):
    importing(pipeline, "v1")
    save_file({name: tensor.contiguous() for name, tensor in make.all_in_one().items()}, tmp_path / "z_aio.safetensors")
    version = importing(tmp_path / "z_aio.safetensors", "v2", "--base", "v1")
    assert check_directory(version, "v2") == []
    for component in STEMS:
        found, before = weights(version, component), weights(pipeline, component)
        assert found.keys() == before.keys()
        assert any(not torch.equal(found[name], before[name]) for name in found)
    assert provenance(version)["source"]["files"].keys() == {"z_aio.safetensors"}
    assert drawn(factory, version).shape == (64, 64, 3)


def test_gguf_becomes_its_values_in_bf16(pipeline, importing, factory, tmp_path):
    gguf_files = pytest.importorskip("tests.importing.layouts.test_gguf")
    importing(pipeline, "v1")
    state = make.comfy_transformer(weights(pipeline, "transformer"))
    path = gguf_files.written(tmp_path / "z_image_turbo-Q8_0.gguf", state, "Q8_0")
    _, expected = gguf_files.made(path)
    version = importing(path, "v2", "--base", "v1")
    found = weights(version, "transformer")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert "GGUF" in provenance(version)["note"]
    assert drawn(factory, version).shape == (64, 64, 3)


def test_a_file_in_a_hubs_cache_says_its_repository(pipeline, importing, tmp_path):
    importing(pipeline, "v1")
    blob = comfy(pipeline, tmp_path / "models--Comfy-Org--z_image_turbo/blobs/ab12.safetensors", "transformer")
    link = tmp_path / f"models--Comfy-Org--z_image_turbo/snapshots/{COMMIT}/split_files/diffusion_models/z.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(blob.rename(blob.with_suffix("")))
    for number, source in enumerate([link, blob.parent.parent]):
        found = provenance(importing(source, f"new{number}", "--base", "v1"))["source"]
        assert (found["repository"], found["revision"]) == ("Comfy-Org/z_image_turbo", COMMIT)


def test_comfyuis_folders_are_taken_together(pipeline, importing, factory, tmp_path):
    importing(pipeline, "v1")
    folders = tmp_path / "ComfyUI/models"
    comfy(pipeline, folders / "diffusion_models/z_image_turbo_bf16.safetensors", "transformer")
    comfy(pipeline, folders / "text_encoders/qwen_3_4b.safetensors", "text_encoder", "model.")
    (folders / "vae").mkdir()
    save_file(make.ldm_vae(), folders / "vae/ae.safetensors")
    version = importing(tmp_path / "ComfyUI", "v2", "--base", "v1")
    assert check_directory(version, "v2") == []
    assert drawn(factory, version).shape == (64, 64, 3)
    assert len(provenance(version)["source"]["files"]) == 3
    importing(folders, "v3", "--base", "v1")
    assert tree(importing.root / "v3/vae") == tree(version / "vae")


def test_a_training_runs_transformer_and_a_base_draw_what_diffusers_draws(pipeline, importing, factory, tmp_path):
    importing(pipeline, "v1")
    tuned = shutil.copytree(pipeline, tmp_path / "tuned")
    changed = {name: tensor.float() * 1.01 for name, tensor in weights(tuned, "transformer").items()}
    published.write_weights(tuned, "transformer", changed, shards=2)
    for number, source in enumerate([tuned / "transformer", tmp_path / "run", tmp_path / "bare"]):
        if number:
            shutil.copytree(tuned / "transformer", source / "transformer")
        if number == 2:
            (source / "transformer/config.json").unlink()
        version = importing(source, f"tuned{number}", "--base", "v1")
        assert (drawn(factory, version) == drawn_by_diffusers(tuned)).all()
        assert provenance(version)["source"]["kind"] == "transformer"


@pytest.mark.parametrize("scale", [None, 0.5])
def test_a_lora_is_merged_into_the_base_and_recorded(scale, pipeline, importing, factory, tmp_path):
    importing(pipeline, "v1")
    own = weights(pipeline, "transformer")
    modules = {
        name.removesuffix(".weight"): tuple(tensor.shape)
        for name, tensor in own.items()
        if name.startswith("layers.0.attention.to_") and tensor.dim() == 2
    }
    lora = make.lora(modules, alpha=4)
    save_file(lora, tmp_path / "ink.safetensors")
    options = ["--lora"] if scale is None else ["--lora", scale]
    version = importing(tmp_path / "ink.safetensors", "v2", "--base", "v1", *options)
    merged = dict(own)
    for module in modules:
        down, up = (lora[f"transformer.{module}.lora_{part}.weight"] for part in "AB")
        merged[f"{module}.weight"] = (own[f"{module}.weight"].float() + (scale or 1.0) * (up @ down)).to(torch.bfloat16)
    found = weights(version, "transformer")
    for name, tensor in merged.items():
        torch.testing.assert_close(found[name], tensor, rtol=0.01, atol=0.002)
    [recorded] = provenance(version)["loras"]
    assert (recorded["name"], recorded["scale"]) == ("ink.safetensors", scale or 1.0)
    assert (drawn(factory, version) != drawn_by_diffusers(pipeline)).any()
