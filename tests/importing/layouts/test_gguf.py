"""GGUF files: the same values as diffusers reads from them."""

import importlib.util
import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from diffusers import GGUFQuantizationConfig, ZImageTransformer2DModel
from diffusers.loaders.single_file_utils import convert_z_image_transformer_checkpoint_to_diffusers
from diffusers.models.model_loading_utils import load_gguf_checkpoint
from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor

from tests.importing.layouts import make
from zwatch.errors import Rejection
from zwatch.importing.layouts.gguf import read

TYPES = ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "BF16"]
LONG_ROWS = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"]
"""Types of 256 elements a block, which Python computes but does not make: blocks of random bytes stand for them."""


def written(path, state, kind, architecture="lumina2"):
    """Write a GGUF file as ComfyUI's tools do: matrices of blocks quantized, the rest in F32 or F16."""
    writer = gguf.GGUFWriter(path, architecture)
    generator = random.Random(3)
    for name, tensor in state.items():
        values = tensor.float().numpy()
        if kind in LONG_ROWS and tensor.dim() == 2 and tensor.shape[1] == 256:
            block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
            raw = np.array([[generator.randrange(60) for _ in range(size)]] * tensor.shape[0], dtype=np.uint8)
            assert block == 256
            writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
        elif kind in TYPES and tensor.dim() == 2 and tensor.shape[1] % 32 == 0 and ("layers" in name or "blk" in name):
            of = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(name, gguf.quants.quantize(values, of), raw_dtype=of)
        else:
            writer.add_tensor(name, values.astype(np.float16 if tensor.dim() == 2 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)


def made(path):
    """Carry out what a file becomes, from the bytes at the places that its table says."""
    opened = read(path)
    [translation] = opened.translations
    data = np.fromfile(path, dtype=np.uint8)
    state = {
        name: torch.from_numpy(data[info.begin : info.end].copy()).view(make.DTYPES[info.dtype]).reshape(info.shape)
        for name, info in opened.tensors.items()
    }
    return translation, make.carried_out(translation, state)


def as_diffusers_reads(path):
    state = {
        name: dequantize_gguf_tensor(one) if isinstance(one, GGUFParameter) else one
        for name, one in load_gguf_checkpoint(path).items()
    }
    return {name: torch.as_tensor(one).to(torch.bfloat16) for name, one in state.items()}


@pytest.mark.parametrize("kind", [*TYPES, *LONG_ROWS])
def test_a_transformer_becomes_the_values_that_diffusers_reads(tmp_path, kind):
    state = make.comfy_transformer(make.diffusers("transformer", dtype=torch.float32))
    path = written(tmp_path / "z.gguf", state, kind)
    translation, found = made(path)
    expected = convert_z_image_transformer_checkpoint_to_diffusers(as_diffusers_reads(path))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        # diffusers computes in half precision on the way.
        torch.testing.assert_close(found[name].to(torch.bfloat16), tensor, rtol=0.008, atol=2e-3, equal_nan=True)
    assert translation.component == "transformer"
    if kind != "BF16":
        assert f"GGUF {kind}" in translation.layout
    assert kind in translation.notes[0]


def test_a_text_encoder_with_llama_cpps_names_is_recognised(tmp_path):
    names = {
        "embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight", "layers.": "blk.",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    state = make.diffusers("text_encoder", dtype=torch.float32)
    renamed = {}
    for name, tensor in state.items():
        new = name
        for ours, theirs in names.items():
            new = theirs if new == ours else new.replace(ours, theirs) if not ours.endswith(".weight") else new
        renamed[new] = tensor
    translation, found = made(written(tmp_path / "q.gguf", renamed, "Q8_0", "qwen3"))
    assert translation.component == "text_encoder"
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        torch.testing.assert_close(found[name].float(), tensor, rtol=0.01, atol=0.05)


def test_a_file_of_plain_floats_is_moved_not_computed(tmp_path):
    state = make.comfy_transformer(make.diffusers("transformer", dtype=torch.float32))
    writer = gguf.GGUFWriter(tmp_path / "z.gguf", "lumina2")
    for name, tensor in state.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    translation, found = made(str(tmp_path / "z.gguf"))
    assert all(one.compute is None for one in translation.made)
    assert torch.equal(found["x_pad_token"], state["x_pad_token"])


@pytest.mark.parametrize("length", [0, 3, 4, 20, 100, 400, 5000])
def test_a_file_that_ends_early_is_refused(tmp_path, length):
    state = make.comfy_transformer(make.diffusers("transformer", dtype=torch.float32))
    path = written(tmp_path / "z.gguf", state, "Q8_0")
    with open(path, "r+b") as file:
        file.truncate(length)
    with pytest.raises(Rejection) as caught:
        read(path)
    assert caught.value.code == "header_invalid"
    assert path in caught.value.reason


def test_any_damage_of_the_tables_is_a_rejection_or_a_translation(tmp_path):
    state = make.comfy_transformer(make.diffusers("transformer", dtype=torch.float32))
    path = written(tmp_path / "z.gguf", state, "Q8_0")
    good = Path(path).read_bytes()
    generator = random.Random(1)
    for _ in range(60):
        bad = bytearray(good)
        for _ in range(generator.randrange(1, 4)):
            bad[generator.randrange(3000)] = generator.randrange(256)
        Path(path).write_bytes(bad)
        try:
            opened = read(path)
        except Rejection:
            continue
        assert all(0 <= info.begin <= info.end <= len(bad) for info in opened.tensors.values())


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (struct.pack("<IIQ", 9, 0, 2**60), "ends inside its tables"), (struct.pack("<IIQ", 9, 8, 2**60), "ends inside its tables"),
        (struct.pack("<IIQ", 9, 9, 1), "array of the type 9"), (struct.pack("<I", 77), "the type 77"),
        (struct.pack("<IQ", 8, 2**63), "ends inside its tables"),
    ],
)  # fmt: skip
def test_a_count_that_no_file_can_hold_ends_at_once(tmp_path, value, reason):
    pair = struct.pack("<Q", 3) + b"key" + value
    (tmp_path / "z.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair)
    with pytest.raises(Rejection, match=reason):
        read(str(tmp_path / "z.gguf"))


@pytest.mark.parametrize("counts", [(3, 2**40, 0), (3, 0, 2**40), (1, 0, 0), (9, 0, 0)])
def test_a_head_that_no_file_has_is_refused(tmp_path, counts):
    (tmp_path / "z.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", *counts))
    with pytest.raises(Rejection, match=r"version|limits"):
        read(str(tmp_path / "z.gguf"))


def test_another_models_file_is_refused_by_name(tmp_path):
    path = written(tmp_path / "flux.gguf", {"double_blocks.0.img_attn.qkv.weight": torch.ones(8, 8)}, "Q8_0", "flux")
    with pytest.raises(Rejection, match="FLUX"):
        read(path)


@pytest.mark.skipif(importlib.util.find_spec("accelerate") is None, reason="diffusers needs accelerate to load GGUF")
def test_the_pipelines_own_loading_of_gguf_gives_the_same_weights(tmp_path, tiny_versions):
    transformer = ZImageTransformer2DModel.from_pretrained(
        tiny_versions / "v1" / "transformer", torch_dtype=torch.float32
    )
    path = written(tmp_path / "z.gguf", make.comfy_transformer(transformer.state_dict()), "Q8_0")
    loaded = ZImageTransformer2DModel.from_single_file(
        path, config=str(tiny_versions / "v1" / "transformer"), torch_dtype=torch.bfloat16,
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.bfloat16),
    ).dequantize()  # fmt: skip
    _, found = made(path)
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(found[name].float(), tensor.float(), rtol=0.008, atol=1e-3)
