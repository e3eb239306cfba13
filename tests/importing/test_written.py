"""What is written: no finite number becomes infinite, the name has room, and what the values refuse leaves nothing."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.importing import published
from tests.importing.layouts import make
from tests.importing.published import weights
from zwatch.deploy.sealing import prepare
from zwatch.deploy.verifying import check_directory


def with_value(pipeline, target, name, value, dtype, shards=1):
    """A copy of a pipeline, its transformer in this dtype with one value more somewhere in the middle of a tensor."""
    source = Path(shutil.copytree(pipeline, target))
    tensors = {key: tensor.to(dtype) for key, tensor in weights(source, "transformer").items()}
    tensors[name].view(-1)[5] = value
    published.write_weights(source, "transformer", tensors, shards=shards)
    return source


@pytest.mark.parametrize("name", ["layers.1.attention.to_k.weight", "x_pad_token"])
@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize(
    ("value", "dtype", "target"), [(1e6, torch.float32, "fp16"), (-1e300, torch.float64, "bf16"), (3.4e38, torch.float32, "bf16")]
)  # fmt: skip
def test_a_number_that_would_become_infinite_is_refused(
    name, shards, value, dtype, target, pipeline, importing, tmp_path
):
    source = with_value(pipeline, tmp_path / "source", name, value, dtype, shards)
    error = importing.refused(source, "v2", "--dtype", target)
    assert f"{source}/transformer/diffusion_pytorch_model" in error
    stored = "F16" if target == "fp16" else "BF16"
    assert (
        f": {name} has the value {value:g}, which {stored} cannot hold; import with --" in error
        or f": {name} would have infinite values" in error
    )


@pytest.mark.parametrize(("value", "dtype"), [(65519.0, torch.float32), (1e30, torch.bfloat16)])
def test_what_can_be_stored_is_not_refused(value, dtype, pipeline, importing, tmp_path):
    source = with_value(pipeline, tmp_path / "source", "x_pad_token", value, dtype)
    version = importing(source, "v2", "--dtype", "fp16" if value < 1e6 else "bf16")
    found = weights(version, "transformer")["x_pad_token"].view(-1)[5]
    assert float(found) == float(torch.tensor(value).to(found.dtype))


def test_a_lora_whose_values_cannot_be_used_is_named_and_nothing_is_left(pipeline, importing, tmp_path):
    importing(pipeline, "v1")
    lora = make.lora({"layers.0.attention.to_q": (64, 64)})
    name = next(name for name in lora if "lora_A" in name or "down" in name)
    lora[name].view(-1)[0] = float("nan")
    save_file(lora, tmp_path / "ink.safetensors")
    error = importing.refused(tmp_path / "ink.safetensors", "v2", "--base", "v1")
    assert f"\nzwatch: {tmp_path}/ink.safetensors and " in error
    assert "values that are infinite or not numbers" in error


def test_a_merge_that_makes_infinite_values_is_refused(pipeline, importing, tmp_path):
    importing(pipeline, "v1")
    lora = {
        name: torch.full_like(tensor, 1e30) for name, tensor in make.lora({"layers.0.attention.to_q": (64, 64)}).items()
    }
    save_file(lora, tmp_path / "ink.safetensors")
    assert "layers.0.attention.to_q.weight would have infinite values" in importing.refused(tmp_path / "ink.safetensors", "v2", "--base", "v1")  # fmt: skip


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", ["v", "n" * 63])
def test_a_header_has_room_for_every_later_name(name, shards, pipeline, importing, tmp_path):
    source = Path(shutil.copytree(pipeline, tmp_path / "source"))
    published.rewritten(source, torch.float32, ["transformer"], shards=shards)
    version = importing(source, name)
    assert check_directory(version, name) == []
    for later in ("w", "m" * 64):
        stamps = prepare(version, later).stamps
        assert len(stamps) == shards
        assert all(stamp.in_place for stamp in stamps.values())
