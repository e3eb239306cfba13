"""What a file of weights is recognised as, and that each of its tensors becomes what diffusers' own converters make of it."""

import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import (
    convert_ldm_vae_checkpoint,
    convert_z_image_transformer_checkpoint_to_diffusers,
)

from tests.importing.layouts import make
from zwatch.errors import Rejection
from zwatch.importing.layouts import recognise


def translated(state, metadata=None):
    [translation] = recognise(make.header(state), metadata or {})
    return translation


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name].view(torch.uint8), tensor.contiguous().view(torch.uint8)), name


PREFIXES = (
    "", "model.diffusion_model.", "diffusion_model.", "transformer.", "module.", "_orig_mod.", "module._orig_mod.",
    "model.", "_fsdp_wrapped_module.", "ema_model.module.", "state_dict.model.transformer.", "pipe.dit.",
)  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_transformer_in_comfyuis_layout_becomes_what_diffusers_makes_of_it(prefix):
    state = make.comfy_transformer(make.diffusers("transformer"))
    translation = translated(make.prefixed(state, prefix))
    assert translation.component == "transformer"
    assert "ComfyUI" in translation.layout
    made = make.carried_out(translation, make.prefixed(state, prefix))
    same(made, convert_z_image_transformer_checkpoint_to_diffusers(dict(state)))
    assert all(one.compute is None for one in translation.made), "nothing is computed, bytes are moved"


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("component", ["transformer", "text_encoder", "vae"])
def test_a_component_in_its_own_layout_stays_as_it_is(component, prefix):
    state = make.diffusers(component, dtype=torch.float16)
    if component != "transformer" and prefix in ("model.diffusion_model.", "diffusion_model.", "transformer."):
        return
    translation = translated(make.prefixed(state, prefix))
    assert translation.component == component
    same(make.carried_out(translation, make.prefixed(state, prefix)), state)
    assert translation.notes == ()


def test_what_torch_compile_and_fsdp_wrap_within_a_model_is_taken_away():
    state = make.diffusers("transformer")
    wrapped = {
        name.replace(".attention.", "._fsdp_wrapped_module._orig_mod.attention."): tensor
        for name, tensor in state.items()
    }
    same(make.carried_out(translated(wrapped), wrapped), state)


def test_counters_of_averages_are_left_out_and_said():
    state = make.diffusers("transformer")
    saved = make.prefixed(state, "module.") | {"n_averaged": torch.tensor(7)}
    translation = translated(saved)
    same(make.carried_out(translation, saved), state)
    assert "'n_averaged'" in translation.notes[0]


def test_a_model_beside_its_average_is_refused():
    state = make.diffusers("transformer")
    with pytest.raises(Rejection, match=r"'ema\.' and 'model\.': a model and its average"):
        recognise(make.header(make.prefixed(state, "model.") | make.prefixed(state, "ema.")), {})


def test_pad_tokens_without_their_first_dimension_get_it():
    state = make.diffusers("transformer")
    flat = state | {name: state[name].flatten() for name in ("x_pad_token", "cap_pad_token")}
    same(make.carried_out(translated(flat), flat), state)


def test_a_weight_that_the_original_code_does_not_use_is_left_out_and_said():
    state = make.comfy_transformer(make.diffusers("transformer")) | {"norm_final.weight": torch.ones(64)}
    assert "'norm_final.weight'" in translated(state).notes[0]


@pytest.mark.parametrize(
    "prefix", ["model.", "transformer.model.", "text_encoders.qwen3_4b.transformer.model.", "", "text_encoder."]
)
@pytest.mark.parametrize("head", [False, True])
def test_a_text_encoder_loses_its_prefix_and_the_language_head(prefix, head):
    state = make.diffusers("text_encoder")
    saved = make.prefixed(state, prefix)
    if head:
        saved[prefix.removesuffix("model.") + "lm_head.weight"] = state["embed_tokens.weight"]
    translation = translated(saved)
    assert translation.component == "text_encoder"
    same(make.carried_out(translation, saved), state)
    assert len(translation.notes) == head


VAE_CONFIG = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}


@pytest.mark.parametrize("prefix", ["", "vae.", "first_stage_model."])
@pytest.mark.parametrize("preset", ["tiny", "uneven"])
def test_flux_vae_becomes_what_diffusers_makes_of_it(prefix, preset, monkeypatch):
    monkeypatch.setitem(make.PRESETS, "uneven", make.PRESETS["tiny"].__class__(
        **{**vars(make.PRESETS["tiny"]), "vae_channels": (8, 16, 24, 32), "vae_layers": 2}))  # fmt: skip
    state = make.ldm_vae(preset)
    translation = translated(make.prefixed(state, prefix))
    assert translation.component == "vae"
    made = make.carried_out(translation, make.prefixed(state, prefix))
    same(made, convert_ldm_vae_checkpoint(dict(state), VAE_CONFIG))
    config = {
        "block_out_channels": make.PRESETS[preset].vae_channels,
        "layers_per_block": make.PRESETS[preset].vae_layers,
    }
    model = AutoencoderKL(
        **VAE_CONFIG, **config, latent_channels=16, norm_num_groups=8, use_quant_conv=False, use_post_quant_conv=False
    )
    model.load_state_dict(made, strict=True)


def test_the_names_that_diffusers_gave_the_attention_of_a_vae_before_are_known():
    state = make.diffusers("vae")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    saved = dict(state)
    for new, before in old.items():
        saved = {name.replace(f"attentions.0.{new}.", f"attentions.0.{before}."): one for name, one in saved.items()}
    same(make.carried_out(translated(saved), saved), state)


def test_a_checkpoint_of_all_three_becomes_three_components():
    state = make.all_in_one()
    found = recognise(make.header(state), {})
    assert [one.component for one in found] == ["transformer", "text_encoder", "vae"]
    transformer, text_encoder, vae = (make.carried_out(one, state) for one in found)
    same(transformer, make.diffusers("transformer"))
    same(text_encoder, make.diffusers("text_encoder"))
    same(vae, convert_ldm_vae_checkpoint(make.ldm_vae(dtype=torch.bfloat16), VAE_CONFIG))


def test_what_stands_beside_the_components_of_a_checkpoint_is_refused():
    state = make.all_in_one() | {"clip_vision.x": torch.ones(3)}
    with pytest.raises(
        Rejection, match=r"beside its text_encoder, transformer, vae the file has 1 tensors.*'clip_vision\.x'"
    ):
        recognise(make.header(state), {})


def test_mixed_dtypes_are_left_to_the_conversion_and_it_is_said():
    state = make.diffusers("transformer", dtype=torch.float16)
    state["cap_embedder.0.weight"] = state["cap_embedder.0.weight"].float()
    translation = translated(state)
    same(make.carried_out(translation, state), state)
    assert translation.notes[0].startswith("stored as F16")


@pytest.mark.parametrize("style", ["cast", "scaled_fp8", "comfy_quant", "rows"])
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("layout", ["comfy", "diffusers", "text_encoder"])
def test_fp8_becomes_its_values_in_bf16(style, dtype, layout):
    state = make.diffusers("text_encoder" if layout == "text_encoder" else "transformer")
    if layout == "comfy":
        state = make.comfy_transformer(state)
    stored = make.fp8(state, style, dtype)
    translation = translated(stored)
    expected = make.dequantized(stored)
    if layout == "comfy":
        expected = convert_z_image_transformer_checkpoint_to_diffusers(expected)
    same(make.carried_out(translation, stored), expected)
    assert "fp8" in translation.layout
    assert "dequantized to bf16" in translation.notes[0]


def test_a_scale_of_a_layer_that_is_not_quantized_counts_too():
    state = make.diffusers("transformer") | {"cap_embedder.1.scale_weight": torch.tensor([0.5])}
    made = make.carried_out(translated(state), state)
    assert torch.equal(made["cap_embedder.1.weight"], state["cap_embedder.1.weight"] * 0.5)


@pytest.mark.parametrize("preset", ["tiny", "full"])
def test_every_tensor_of_a_model_is_made_once_with_its_shape(preset):
    """Of the published sizes too: names and shapes of 12 + 8 + 0.3 GB, without a weight."""
    shapes = make.models(preset)
    with torch.device("meta"):
        files = {
            "transformer": make.comfy_transformer(
                {name: torch.empty(shape) for name, shape in shapes["transformer"].items()}
            ),
            "text_encoder": {f"model.{name}": torch.empty(shape) for name, shape in shapes["text_encoder"].items()},
            "vae": {name: torch.empty(shape) for name, shape in make.ldm_vae_shapes(preset).items()},
        }
    for component, state in files.items():
        translation = translated(state)
        assert translation.component == component
        assert len({one.name for one in translation.made}) == len(translation.made)
        assert {one.name: one.shape for one in translation.made} == shapes[component]


def test_the_published_models_files_have_521_and_453_and_398_and_244_tensors():
    shapes = make.models("full")
    assert {name: len(table) for name, table in shapes.items()} == {"transformer": 521, "text_encoder": 398, "vae": 244}
    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in shapes["transformer"].items()}
    assert len(make.comfy_transformer(state)) == 521 - 2 * 34
