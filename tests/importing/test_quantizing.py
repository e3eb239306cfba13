"""`zwatch quantize`: half the bytes, the pictures of `--quantize`, and everything else shared; and imports that are signed."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.editing import build, parameters
from tests.signing.made import allow, checked, write_key, write_policy
from zwatch import cli
from zwatch.deploy.provenance import parse
from zwatch.deploy.sealing import write_seal
from zwatch.deploy.verifying import check_directory
from zwatch.engine.factory import EngineFactory
from zwatch.engine.precision import Precision, name_of
from zwatch.shadow.device import Device

PLAIN = (torch.bfloat16, torch.float16, torch.float32)
KIND = pytest.mark.parametrize("kind", ["fp8", "int8"])
WEIGHTS = ("transformer/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors")


@pytest.fixture
def v1(root, pipeline):
    """A sealed version in the models root."""
    shutil.copytree(pipeline, root / "v1")
    write_seal(root / "v1", "v1")
    return root / "v1"


def quantize(v1, name, *options, status=0):
    assert cli.main(["quantize", v1.name, name, "--models", str(v1.parent), *map(str, options)]) == status
    return v1.parent / name


def load(version, quantized=None, dtype="auto"):
    return build(EngineFactory(Device("cpu"), precision=Precision(dtype, quantized)), version.parent, version.name)


def pixels(engine):
    return np.asarray(engine.generate(parameters(steps=4)).images[0])


@KIND
def test_a_quantized_version_draws_what_quantize_draws_at_a_load(v1, kind):
    made = quantize(v1, "small", "--to", kind)
    assert check_directory(made, "small") == []
    engine = load(made)
    assert name_of(engine.pipeline.transformer) == name_of(engine.pipeline.text_encoder) == kind
    assert np.array_equal(pixels(engine), pixels(load(v1, kind)))


@KIND
@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_what_is_not_quantized_is_in_the_dtype_that_is_asked_for(v1, kind, dtype):
    engine = load(quantize(v1, "small", "--to", kind), dtype=dtype)
    parts = engine.pipeline.transformer, engine.pipeline.text_encoder
    plain = {
        one.dtype
        for part in parts
        for name, one in part.named_parameters()
        if one.dtype in PLAIN and "_scale" not in name
    }
    assert plain == {"bf16": {torch.bfloat16}, "fp16": {torch.float16, torch.float32}, "fp32": {torch.float32}}[dtype]
    assert name_of(*parts) == kind
    assert np.array_equal(pixels(engine), pixels(load(v1, kind, dtype)))


@KIND
def test_it_stays_as_it_is_stored_whatever_quantize_says(v1, kind):
    other = "int8" if kind == "fp8" else "fp8"
    made = quantize(v1, "small", "--to", kind)
    assert name_of(load(made, other).pipeline.transformer) == kind


def test_it_is_smaller_shares_the_rest_and_says_what_it_is(v1, capsys):
    made = quantize(v1, "v1-fp8", "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["version"] == "v1-fp8"
    for path in WEIGHTS:
        assert (made / path).stat().st_size < 0.9 * (v1 / path).stat().st_size
    assert sum(told["shared"].values()) >= (v1 / "vae/diffusion_pytorch_model.safetensors").stat().st_size
    found = parse((made / "zwatch.json").read_bytes())
    assert (found.quantization, found.source.kind, found.base.version) == ("fp8", "version", "v1")
    assert [(one.component, one.before, one.after) for one in found.conversions] == [
        ("transformer", "BF16", "F8_E4M3"), ("text_encoder", "BF16", "F8_E4M3"),
    ]  # fmt: skip


def test_it_can_be_sealed_again(v1):
    made = quantize(v1, "v1-int8", "--to", "int8")
    assert cli.main(["seal", str(made)]) == 0
    assert check_directory(made, "v1-int8") == []
    assert name_of(load(made).pipeline.transformer) == "int8"


def test_what_is_stored_in_float32_becomes_bfloat16_beside_the_quantized_matrices(v1):
    path = v1 / WEIGHTS[0]
    save_file({name: tensor.float() for name, tensor in load_file(path).items()}, path)
    write_seal(v1, "v1")
    tensors = load_file(quantize(v1, "small") / WEIGHTS[0])
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float8_e4m3fn, torch.float32, torch.bfloat16}
    assert all(tensor.dtype != torch.float32 or name.endswith("_scale") for name, tensor in tensors.items())
    engine = load(v1.parent / "small")
    assert engine.pipeline.transformer.dtype is torch.bfloat16


def test_a_version_that_is_quantized_already_is_refused(v1, capsys):
    quantize(v1, "small")
    quantize(v1.parent / "small", "smaller", status=1)
    assert "its transformer is quantized already; quantize the version that it was made from" in capsys.readouterr().err
    assert not (v1.parent / "smaller").exists()


def test_a_damaged_version_is_refused_and_nothing_is_made(v1, capsys):
    path = v1 / WEIGHTS[0]
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    quantize(v1, "small", status=1)
    assert str(path) in capsys.readouterr().err
    assert sorted(one.name for one in v1.parent.iterdir()) == ["v1"]


@pytest.mark.parametrize(
    ("version", "name", "status"), [("v9", "small", 1), ("v1", "v1", 1), ("v1", "-x", 2), ("v1", "a b", 2)]
)
def test_a_wrong_call_makes_nothing(v1, version, name, status, capsys):
    assert cli.main(["quantize", "--models", str(v1.parent), version, "--", name]) == status
    assert capsys.readouterr().err.startswith("zwatch: ")
    assert sorted(one.name for one in v1.parent.iterdir()) == ["v1"]


def test_a_quantized_and_an_imported_version_can_be_signed(v1, pipeline, importing, tmp_path):
    key = write_key(tmp_path)
    policy = write_policy(tmp_path, allow(versions="*"))
    small = quantize(v1, "small", "--sign", key)
    imported = importing(pipeline, "v2", "--sign", key)
    assert "signed by key release.pem" in importing.out
    for version in (small, imported):
        assert checked(version, policy).startswith("key release.pub")
        assert check_directory(version, version.name) == []


def test_a_key_that_cannot_be_used_is_told_before_anything_is_written(v1, pipeline, importing, tmp_path):
    (tmp_path / "no.pem").write_text("no key")
    importing(pipeline, "v2", "--sign", tmp_path / "no.pem", status=2)
    assert "no.pem" in importing.error
    quantize(v1, "small", "--sign", tmp_path / "missing.pem", status=2)
    assert sorted(one.name for one in v1.parent.iterdir()) == ["v1"]
