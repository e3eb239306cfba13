"""What is refused: other models, other quantizations, files that are not whole; each with what was found and what to do."""

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.importing.layouts import make
from zwatch.deploy.header import ITEM_BITS, TensorInfo
from zwatch.errors import Rejection
from zwatch.importing.layouts import merge, recognise
from zwatch.importing.layouts.lora import Lora


def refused(names, metadata=None):
    """Return why a file with tensors of these names, shapes and dtypes is refused."""
    table = {
        name: TensorInfo(*(what if isinstance(what[0], str) else ("BF16", what)), 0, 10**6)
        for name, what in names.items()
    }
    with pytest.raises(Rejection) as caught:
        recognise(table, metadata or {})
    assert caught.value.code == "weights_mismatch"
    return caught.value.reason


OTHERS = {
    "a checkpoint of Stable Diffusion": ["conditioner.embedders.0.transformer.text_model.x", "model.diffusion_model.input_blocks.0.0.weight"],
    "the U-Net of Stable Diffusion": ["model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.out.0.weight"],
    "U-Net": ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.weight"],
    "FLUX": ["double_blocks.0.img_attn.norm.key_norm.scale", "single_blocks.0.linear1.weight"],
    "Stable Diffusion 3": ["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"],
    "Qwen-Image": ["transformer_blocks.0.img_mod.1.weight", "img_in.weight"],
    "Wan": ["blocks.0.cross_attn.k.weight", "patch_embedding.weight"],
    "HunyuanVideo": ["txt_in.individual_token_refiner.blocks.0.norm1.weight"],
    "LTX-Video": ["model.diffusion_model.patchify_proj.weight"],
    "T5": ["encoder.block.0.layer.0.SelfAttention.q.weight"],
    "CLIP": ["text_model.encoder.layers.0.mlp.fc1.weight"],
    "Qwen-VL": ["visual.blocks.0.attn.qkv.weight", "model.embed_tokens.weight"],
    "Z-Image-Omni or Z-Image-Edit": ["siglip_embedder.0.weight", "cap_embedder.1.weight"],
    "TAESD": ["decoder.layers.1.weight"],
    "optimizer": ["state.0.exp_avg", "state.0.exp_avg_sq"],
    "adapters that are not merged": ["layers.0.attention.to_q.base_layer.weight", "layers.0.attention.to_q.lora_A.default.weight"],
    "not recognised: 2 tensors": ["a", "b"],
}  # fmt: skip


@pytest.mark.parametrize("title", OTHERS)
def test_other_models_are_refused_by_name(title):
    reason = refused(dict.fromkeys(OTHERS[title], (8, 8)))
    assert title in reason
    assert "expected Z-Image's transformer" in reason


QUANTIZED = {
    "nunchaku's SVDQuant": {"layers.0.attention.to_qkv.qweight": ("I8", (8, 8)), "layers.0.attention.to_qkv.wscales": (8,)},
    "bitsandbytes (nf4": {"layers.0.attention.to_q.weight": ("U8", (8, 1)), "layers.0.attention.to_q.weight.absmax": (8,), "layers.0.attention.to_q.weight.quant_state.bitsandbytes__nf4": ("U8", (8,))},
    "bitsandbytes (int8": {"layers.0.attention.to_q.weight": ("I8", (8, 8)), "layers.0.attention.to_q.SCB": ("F32", (8,))},
    "GPTQ": {"layers.0.attention.to_q.qweight": ("I32", (8, 8)), "layers.0.attention.to_q.g_idx": ("I32", (8,))},
    "AWQ": {"layers.0.attention.to_q.qweight": ("I32", (8, 8)), "layers.0.attention.to_q.qzeros": ("I32", (8, 8))},
    "compressed-tensors": {"layers.0.attention.to_q.weight_packed": ("I32", (8, 8))},
    "NVFP4": {"layers.0.attention.qkv.weight": ("U8", (8, 8)), "layers.0.attention.qkv.weight_scale_2": ("F32", ())},
    "int8": {"layers.0.attention.qkv.weight": ("I8", (8, 8)), "layers.0.attention.qkv.weight_scale": ("F32", ())},
    "quantized as bytes": {"layers.0.attention.qkv.weight": ("U8", (8, 8))},
    "MXFP8": {"layers.0.attention.qkv.weight": ("F8_E4M3", (96, 32)), "layers.0.attention.qkv.weight_scale": ("F8_E8M0", (96, 1))},
    "a scale for each block": {"model.layers.0.mlp.up_proj.weight": ("F8_E4M3", (128, 128)), "model.layers.0.mlp.up_proj.weight_scale_inv": (1, 1)},
    "scales for blocks are not read": {"layers.0.attention.qkv.weight": ("F8_E4M3", (96, 32)), "layers.0.attention.qkv.weight_scale": ("F32", (3, 1))},
    "torchao or quanto": {"layers.0.attention.to_q.weight._data": ("I8", (8, 8)), "layers.0.attention.to_q.weight._scale": (8, 1)},
    "HQQ or SDNQ": {"layers.0.attention.to_q.W_q": ("U8", (8, 8))},
}  # fmt: skip


@pytest.mark.parametrize("title", QUANTIZED)
def test_other_quantizations_are_refused_by_name(title):
    reason = refused(QUANTIZED[title])
    assert title in reason
    assert "take the file in bf16" in reason


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        ({"format": "int8_tensorwise"}, "int8_tensorwise"), ({"format": "float8_e4m3fn", "convrot": True}, "convrot"),
        ("float8_e4m3fn", "known are"), (None, "known are"), ({}, "known are"),
    ],
)  # fmt: skip
def test_what_the_header_says_of_a_layer_is_checked(layer, said):
    state = make.fp8(make.diffusers("transformer"), "rows")
    metadata = {
        "_quantization_metadata": json.dumps({"format_version": "1.0", "layers": {"layers.0.attention.to_q": layer}})
    }
    with pytest.raises(Rejection, match=said):
        recognise(make.header(state), metadata)
    good = {"layers": {"layers.0.attention.to_q": {"format": "float8_e4m3fn", "full_precision_matrix_mult": True}}}
    recognise(make.header(state), {"_quantization_metadata": json.dumps(good)})


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"layers": []}', "[" * 2000])
def test_a_header_that_is_not_comfyuis_is_refused(text):
    state = make.fp8(make.diffusers("transformer"), "rows")
    with pytest.raises(Rejection, match="_quantization_metadata"):
        recognise(make.header(state), {"_quantization_metadata": text})


@pytest.mark.parametrize(
    "text", ['{"format": "float8_e4m3fn", "convrot": true}', '{"format": "mxfp8"}', "x", "[" * 2000]
)
def test_what_a_tensor_says_of_its_layer_is_checked_when_it_is_read(text):
    state = make.fp8(make.diffusers("transformer"), "comfy_quant")
    state["layers.1.feed_forward.w1.comfy_quant"] = torch.tensor(list(text.encode()), dtype=torch.uint8)
    [translation] = recognise(make.header(state), {})
    with pytest.raises(Rejection, match="quantized as"):
        make.carried_out(translation, state)


def test_a_file_that_is_not_whole_is_refused_with_the_list_of_what_differs():
    state = make.comfy_transformer(make.diffusers("transformer"))
    del state["layers.1.attention.out.weight"]
    state["layers.0.feed_forward.w2.weight"] = torch.ones(64, 171)
    state["layers.0.extra.weight"] = torch.ones(1)
    with pytest.raises(Rejection) as caught:
        recognise(make.header(state), {})
    assert caught.value.reason == (
        "recognised as Z-Image's transformer, but 3 tensors differ: 'layers.0.extra.weight' [1] is not known; "
        "'layers.0.feed_forward.w2.weight' has the shape [64, 171], expected [64, 170]; 'layers.1.attention.to_out.0.weight' is missing"
    )


def test_a_long_list_of_differences_ends_with_a_count():
    state = {name: tensor for name, tensor in make.diffusers("transformer").items() if "feed_forward" not in name}
    with pytest.raises(Rejection, match=r"12 tensors differ: .* and 4 more"):
        recognise(make.header(state), {})


@pytest.mark.parametrize(
    "lost", ["cap_embedder.1.weight", "layers.0.attention.norm_q.weight", "all_x_embedder.2-1.weight"]
)
def test_a_file_without_a_tensor_that_sizes_are_read_from_names_it(lost):
    state = {name: tensor for name, tensor in make.diffusers("transformer").items() if name != lost}
    with pytest.raises(Rejection, match=f"Z-Image's transformer, but the tensor '{lost}' is missing"):
        recognise(make.header(state), {})


def test_a_scale_that_is_no_number_is_refused_when_it_is_read():
    state = make.fp8(make.diffusers("transformer"), "scaled_fp8")
    state["layers.0.attention.to_q.scale_weight"].fill_(float("inf"))
    [translation] = recognise(make.header(state), {})
    with pytest.raises(Rejection, match="scale of a tensor is infinite"):
        make.carried_out(translation, state)


def test_one_of_several_shards_is_told_to_come_with_the_others():
    state = make.diffusers("transformer")
    half = dict(list(state.items())[: len(state) // 2])
    with pytest.raises(Rejection, match="several shards, import the directory"):
        recognise(make.header(half), {})
    with pytest.raises(Rejection, match="several shards, import the directory"):
        recognise(make.header({name: one for name, one in state.items() if name not in half}), {})


def test_a_model_that_shares_keys_is_refused():
    """Lumina-Image 2.0: the same names as Z-Image's original ones."""
    state = make.comfy_transformer(make.diffusers("transformer"))
    state["layers.0.attention.qkv.weight"] = torch.ones(64 + 2 * 16 - 1, 64)
    with pytest.raises(Rejection, match=r"Lumina-Image 2\.0"):
        recognise(make.header(state), {})


def test_two_names_of_one_tensor_are_refused():
    state = make.diffusers("transformer")
    state["x_embedder.weight"] = state["all_x_embedder.2-1.weight"]
    with pytest.raises(Rejection, match=r"'x_embedder\.weight'.*which is meant"):
        recognise(make.header(state), {})
    wrapped = make.diffusers("transformer")
    wrapped["_orig_mod.x_pad_token"] = wrapped["x_pad_token"]
    with pytest.raises(Rejection, match="are one tensor"):
        recognise(make.header(wrapped), {})


def test_stable_diffusions_vae_is_refused():
    state = make.ldm_vae()
    state |= {"decoder.conv_in.weight": torch.ones(8, 4, 3, 3), "encoder.conv_out.weight": torch.ones(8, 8, 3, 3)}
    with pytest.raises(Rejection, match="4 latent channels, Stable Diffusion's"):
        recognise(make.header(state), {})


def test_a_language_model_that_is_not_qwen3_is_refused():
    state = {name: tensor for name, tensor in make.diffusers("text_encoder").items() if "_norm.weight" not in name}
    with pytest.raises(Rejection, match=r"q_norm\.weight' is missing"):
        recognise(make.header(make.prefixed(state, "model.")), {})


def test_a_file_without_tensors_is_refused():
    assert "has no tensors" in refused({})
    assert "has no weights" in refused({"scaled_fp8": ("F8_E4M3", (2,))})


def test_a_name_that_no_module_has_is_refused():
    assert "a tensor's name of 2006 characters" in refused({f"{'layer.' * 333}weight.x": (1,)})


def test_whole_numbers_where_weights_are_expected_are_refused():
    state = make.diffusers("transformer") | {"cap_pad_token": torch.ones(1, 64, dtype=torch.int32)}
    with pytest.raises(Rejection, match="'cap_pad_token' is I32, expected one of BF16, F16, F32, or fp8"):
        recognise(make.header(state), {})


PARTS = (
    "layers", "noise_refiner", "0", "1", "99999999999999999999", "²", "attention", "qkv", "to_q", "to_out", "weight", "bias",
    "cap_embedder", "x_embedder", "all_x_embedder", "2-1", "norm_q", "lora_A", "lora_B", "lora_down", "alpha", "default", "model",
    "diffusion_model", "module", "_orig_mod", "vae", "encoder", "decoder", "down", "up", "block", "mid", "attn_1", "down_blocks",
    "resnets", "conv1", "conv_in", "text_encoders", "qwen3_4b", "transformer", "embed_tokens", "self_attn", "weight_scale",
    "scale_weight", "lokr_w1", "lokr_w2_a", "lokr_w2_b", "comfy_quant", "scaled_fp8", "input_scale", "norm", "step", "", "ema", "blk", "attn_q", "base_model",
)  # fmt: skip
SHAPES = st.lists(st.integers(0, 70) | st.sampled_from([2**40]), max_size=5).map(tuple)
TABLES = st.dictionaries(
    st.lists(st.sampled_from(PARTS), min_size=1, max_size=6).map(".".join) | st.text(max_size=10),
    st.builds(TensorInfo, st.sampled_from(sorted(ITEM_BITS)), SHAPES, st.integers(0, 9), st.integers(9, 99)),
    max_size=12,
)
METADATA = st.dictionaries(
    st.sampled_from(["_quantization_metadata", "lora_adapter_metadata", "format"]),
    st.text(max_size=5)
    | st.sampled_from(['{"layers": {"a": 1}}', '{"layers": 3}', '{"r": 1, "lora_alpha": 2}', "[]", "{}"]),
    max_size=2,
)
SHARED = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
WHOLE = [
    make.header(state)
    for state in (
        make.comfy_transformer(make.diffusers("transformer")), make.diffusers("text_encoder"), make.ldm_vae(), make.all_in_one(),
        make.fp8(make.diffusers("transformer"), "comfy_quant"), make.lora({"layers.0.attention.to_q": (64, 64)}, alpha=1),
    )
]  # fmt: skip


def reason_of(call):
    """Return why a call rejects, or None; any other exception is an error."""
    try:
        call()
    except Rejection as rejection:
        return rejection.reason
    return None


def check(table, metadata):
    def recognised():
        for translation in recognise(table, metadata):
            made = [one.name for one in translation.made]
            assert len(set(made)) == len(made)
            assert all(name in table for one in translation.made for name in one.sources)

    reason = reason_of(recognised)
    assert reason is None or 0 < len(reason) < 5000


@SHARED
@given(TABLES, METADATA)
def test_any_header_is_a_translation_or_a_rejection(table, metadata):
    check(table, metadata)


@SHARED
@given(st.sampled_from(WHOLE), TABLES, METADATA, st.data())
def test_any_change_of_a_good_header_is_a_translation_or_a_rejection(whole, more, metadata, data):
    names = data.draw(st.lists(st.sampled_from(sorted(whole)), max_size=3))
    infos = data.draw(
        st.lists(
            st.none() | TABLES.flatmap(lambda table: st.sampled_from([*table.values(), None])), min_size=3, max_size=3
        )
    )
    table = dict(whole)
    for name, info in zip(names, infos, strict=False):
        if info is None:
            table.pop(name, None)
        else:
            table[name] = info
    check(table | more if data.draw(st.booleans()) else table, metadata)


@SHARED
@given(TABLES, METADATA, st.floats())
def test_any_lora_is_merged_or_a_rejection(table, metadata, scale):
    base = make.header(make.diffusers("transformer"))
    good = make.header(make.lora({"layers.0.attention.to_q": (64, 64)}))
    for lora in (table, good | table):
        reason = reason_of(lambda lora=lora: merge(base, [Lora(lora, metadata, scale)]))
        assert reason is None or 0 < len(reason) < 5000
