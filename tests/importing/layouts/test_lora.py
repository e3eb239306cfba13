"""Merging LoRAs: the same weights as diffusers' reading of the file and W + scale * alpha / rank * (B @ A) give."""

import importlib.util
import json

import pytest
import torch
from diffusers import ZImagePipeline

from tests.importing.layouts import make
from zwatch.errors import Rejection
from zwatch.importing.layouts import merge, recognise
from zwatch.importing.layouts.lora import Lora

MODULES = {
    "layers.0.attention.to_q": (64, 64), "layers.1.attention.to_k": (64, 64), "layers.1.attention.to_v": (64, 64),
    "layers.0.attention.to_out.0": (64, 64), "layers.0.feed_forward.w1": (170, 64), "layers.0.feed_forward.w2": (64, 170),
    "noise_refiner.0.adaLN_modulation.0": (256, 64), "context_refiner.0.feed_forward.w3": (170, 64),
}  # fmt: skip
TRAINERS = ["diffusers", "ai-toolkit", "default", "kohya", "dots"]


def merged(base, *states, scale=1.0, **more):
    return merge(make.header(base), [Lora(make.header(state), scale=scale, **more) for state in states])


def reference(base, state, scale):
    """Return the merged weights, from the file as diffusers reads it: names in its own layout, alpha in the factors."""
    made = {name: tensor.double() for name, tensor in base.items()}
    read = ZImagePipeline.lora_state_dict(dict(state))
    # With an alpha it puts the prefix before names that have it.
    read = {name.removeprefix("transformer.").removeprefix("transformer."): tensor for name, tensor in read.items()}
    for name, down in read.items():
        if ".lora_A" in name:
            weight = name.replace(".lora_A.weight", ".weight")
            made[weight] += scale * read[name.replace(".lora_A", ".lora_B")].double() @ down.double()
    return made


def close(found, expected, dtype):
    """Check that each value is the exact one, rounded once: off by half a unit in the last place, or a hair more of float32."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        error = (found[name].double() - tensor).abs()
        assert found[name].dtype == dtype
        assert (error <= tensor.abs() * torch.finfo(dtype).eps * 0.502 + 1e-6).all(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
@pytest.mark.parametrize("alpha", [None, 2.0, 16.0])
@pytest.mark.parametrize("names", TRAINERS)
def test_a_lora_is_merged_as_diffusers_reads_it(names, alpha, dtype):
    if names == "default" and alpha is not None:
        return  # diffusers does not find the alpha of such names
    base = make.diffusers("transformer", dtype=dtype)
    state = make.lora(MODULES, names=names, alpha=alpha)
    translation = merged(base, state, scale=0.8)
    close(make.carried_out(translation, base, state), reference(base, state, 0.8), dtype)


def test_weights_that_a_lora_does_not_change_are_taken_as_they_are():
    base = make.diffusers("transformer")
    translation = merged(base, make.lora(MODULES))
    changed = {one.name for one in translation.made if one.compute is not None}
    assert changed == {f"{module}.weight" for module in MODULES}
    assert [one.name for one in translation.made] == list(base)
    assert "8 modules, rank 4" in translation.notes[0]


ORIGINAL = {"to_out.0": "out", "all_final_layer.2-1": "final_layer", "all_x_embedder.2-1": "x_embedder"}


def original(module):
    for new, old in ORIGINAL.items():
        module = module.replace(new, old)
    return module


@pytest.mark.parametrize("names", ["ai-toolkit", "kohya"])
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_a_lora_for_comfyuis_fused_attention_is_cut_in_three(names, alpha):
    base = make.diffusers("transformer", dtype=torch.float32)
    outer = {"all_final_layer.2-1.linear": (64, 64), "all_x_embedder.2-1": (64, 64), "cap_embedder.1": (64, 32)}
    state = make.lora(
        {"layers.1.attention.qkv": (192, 64), **MODULES, **outer}, names=names, alpha=alpha, transform=original
    )
    del_q = [name for name in state if "layers" in name and "1" in name and ("to_k" in name or "to_v" in name)]
    state = {name: tensor for name, tensor in state.items() if name not in del_q}
    made = make.carried_out(merged(base, state, scale=0.5), base, state)
    prefix = {"ai-toolkit": "diffusion_model.layers.1.attention.qkv", "kohya": "lora_unet_layers_1_attention_qkv"}[
        names
    ]
    down, up = ("lora_A", "lora_B") if names == "ai-toolkit" else ("lora_down", "lora_up")
    delta = 0.5 * (alpha or 4) / 4 * state[f"{prefix}.{up}.weight"] @ state[f"{prefix}.{down}.weight"]
    for part, rows in zip("qkv", delta.chunk(3), strict=True):
        name = f"layers.1.attention.to_{part}.weight"
        torch.testing.assert_close(made[name], base[name] + rows)
    for module in outer:
        assert not torch.equal(made[f"{module}.weight"], base[f"{module}.weight"])


def test_a_fused_attention_beside_its_three_parts_counts_once():
    base = make.diffusers("transformer", dtype=torch.float32)
    parts = {f"layers.0.attention.to_{part}": (64, 64) for part in "qkv"}
    alone = make.lora(parts, names="ai-toolkit")
    both = make.lora({"layers.0.attention.qkv": (192, 64)}, names="ai-toolkit", seed=9) | alone
    for state in (both, dict(reversed(both.items()))):
        close(make.carried_out(merged(base, state), base, state), reference(base, alone, 1), torch.float32)


def test_an_output_by_both_of_its_names_counts_once():
    """As some trainers write it; diffusers takes the same one."""
    base = make.diffusers("transformer", dtype=torch.float32)
    parts = {**{f"layers.0.attention.to_{part}": (64, 64) for part in "qkv"}, "layers.0.attention.to_out.0": (64, 64)}
    alone = make.lora(parts, names="dots")
    alone = {
        name.replace(".to_q.", ".to.q.").replace(".to_k.", ".to.k.").replace(".to_v.", ".to.v."): one
        for name, one in alone.items()
    }
    more = make.lora({"layers.0.attention.out": (64, 64), "layers.0.attention.qkv": (192, 64)}, names="dots", seed=9)
    for state in (alone | more, more | alone):
        close(make.carried_out(merged(base, state), base, state), reference(base, state, 1), torch.float32)


def test_a_fused_attention_beside_some_of_its_parts_is_refused():
    parts = {"layers.0.attention.to_q": (64, 64), "layers.0.attention.qkv": (192, 64)}
    with pytest.raises(Rejection, match="some of its three parts"):
        merged(make.diffusers("transformer"), make.lora(parts))


def test_two_names_of_one_module_are_refused():
    state = make.lora({"layers.0.attention.to_q": (64, 64)}) | make.lora(
        {"layers.0.attention.to_q": (64, 64)}, names="kohya"
    )
    with pytest.raises(Rejection, match="both change"):
        merged(make.diffusers("transformer"), state)


KRONECKER = {
    "layers.0.attention.to_q": (64, 64),
    "layers.1.feed_forward.w1": (170, 64),
    "context_refiner.0.attention.to_out.0": (64, 64),
}


def product(read, module, part):
    """Return one factor of a LoKr as diffusers reads the file, with alpha in it."""
    whole = read.get(f"{module}.lokr_{part}")
    return whole if whole is not None else read[f"{module}.lokr_{part}_a"] @ read[f"{module}.lokr_{part}_b"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("alpha", [None, 1.0, 16.0])
@pytest.mark.parametrize("form", ["", "w1", "w2", "w1w2"])
def test_a_lokr_is_merged_as_diffusers_reads_it(form, alpha, dtype):
    base = make.diffusers("transformer", dtype=dtype)
    state = make.lokr(KRONECKER, form, alpha)
    read = ZImagePipeline.lora_state_dict(dict(state))
    read = {name.removeprefix("transformer."): tensor.double() for name, tensor in read.items()}
    expected = {name: tensor.double() for name, tensor in base.items()}
    for module in KRONECKER:
        expected[f"{module}.weight"] += 0.6 * torch.kron(product(read, module, "w1"), product(read, module, "w2"))
    translation = merged(base, state, scale=0.6)
    close(make.carried_out(translation, base, state), expected, dtype)
    assert "a LoKr of 3 modules" in translation.notes[0]


def test_a_lokr_of_comfyuis_fused_attention_is_cut_in_three():
    base = make.diffusers("transformer", dtype=torch.float32)
    state = make.lokr({"layers.1.attention.qkv": (192, 64)}, "w2", 4.0, prefix="lycoris_")
    made = make.carried_out(merged(base, state), base, state)
    name = "lycoris_layers_1_attention_qkv"
    whole = 4 / 2 * torch.kron(state[f"{name}.lokr_w1"], state[f"{name}.lokr_w2_a"] @ state[f"{name}.lokr_w2_b"])
    for part, rows in zip("qkv", whole.chunk(3), strict=True):
        torch.testing.assert_close(
            made[f"layers.1.attention.to_{part}.weight"], base[f"layers.1.attention.to_{part}.weight"] + rows
        )


@pytest.mark.parametrize("form", ["", "w1", "w2", "w1w2"])
def test_a_lokr_that_does_not_fit_is_refused(form):
    state = make.lokr({"layers.0.attention.to_q": (64, 68)}, form)
    with pytest.raises(Rejection, match=r"do not make a matrix \[64, 64\]"):
        merged(make.diffusers("transformer"), state)


def test_two_loras_are_added_and_rounded_once():
    base = make.diffusers("transformer")
    one, two = (
        make.lora(MODULES, alpha=3.0),
        make.lora({"layers.0.attention.to_q": (64, 64)}, rank=2, names="kohya", seed=8),
    )
    made = make.carried_out(
        merge(make.header(base), [Lora(make.header(one), scale=0.3), Lora(make.header(two), scale=-1.5)]),
        base,
        one,
        two,
    )
    close(made, reference(reference(base, one, 0.3), two, -1.5), torch.bfloat16)


@pytest.mark.parametrize("root", [False, True])
def test_alpha_is_what_diffusers_wrote_into_the_header(root):
    base = make.diffusers("transformer", dtype=torch.float32)
    state = make.lora(MODULES)
    config = {"r": 4, "lora_alpha": 12, "alpha_pattern": {"layers.0.attention.to_q": 2}, "use_rslora": root}
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{name}": value for name, value in config.items()})}
    made = make.carried_out(merged(base, state, metadata=metadata), base, state)
    own = make.carried_out(merged(base, state, adapter_config=config), base, state)
    for module in MODULES:
        alpha = 2 if module == "layers.0.attention.to_q" else 12
        down, up = state[f"transformer.{module}.lora_A.weight"], state[f"transformer.{module}.lora_B.weight"]
        expected = base[f"{module}.weight"] + alpha / (2 if root else 4) * up @ down
        torch.testing.assert_close(made[f"{module}.weight"], expected)
        torch.testing.assert_close(own[f"{module}.weight"], expected)


def test_pefts_own_files_need_the_config_beside_them():
    base = make.diffusers("transformer", dtype=torch.float32)
    state = make.lora(MODULES, names="peft")
    with pytest.raises(Rejection, match=r"alpha is in adapter_config\.json"):
        merged(base, state)
    made = make.carried_out(merged(base, state, adapter_config={"r": 4, "lora_alpha": 4}), base, state)
    plain = make.lora(MODULES)
    close(made, reference(base, plain, 1), torch.float32)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"lora_alpha": 8, "use_dora": True}, "use_dora"), ({"lora_alpha": 8, "lora_bias": True}, "lora_bias"),
        ({"lora_alpha": 8, "init_lora_weights": "pissa_niter_4"}, "init_lora_weights = pissa"), ({"lora_alpha": 8, "peft_type": "LOHA"}, "'LOHA'"),
        ({"lora_alpha": "8"}, "expected numbers"), ({}, "expected numbers"), ({"lora_alpha": True}, "expected numbers"),
        ({"lora_alpha": 8, "alpha_pattern": {"a": float("nan")}}, "expected numbers"), ({"lora_alpha": 8, "alpha_pattern": 3}, "expected numbers"),
    ],
)  # fmt: skip
def test_a_configuration_that_is_not_understood_is_refused(config, reason):
    base = make.diffusers("transformer")
    with pytest.raises(Rejection, match=reason):
        merged(base, make.lora(MODULES), adapter_config=config)


@pytest.mark.parametrize("text", ["", "[]", "{", "3"])
def test_a_header_that_is_no_configuration_is_refused(text):
    with pytest.raises(Rejection, match="lora_adapter_metadata"):
        merged(make.diffusers("transformer"), make.lora(MODULES), metadata={"lora_adapter_metadata": text})


def test_a_lora_that_does_not_fit_is_refused_with_the_differences():
    base = make.diffusers("transformer")
    state = make.lora({**MODULES, "layers.7.attention.to_q": (64, 64), "layers.0.feed_forward.w3": (170, 32)})
    with pytest.raises(Rejection) as caught:
        merged(base, state)
    assert caught.value.reason == (
        "the LoRA does not fit the base, 2 differences: 'transformer.layers.7.attention.to_q' is no module of the base; "
        "'transformer.layers.0.feed_forward.w3.lora_A.weight' [4, 32] and "
        "'transformer.layers.0.feed_forward.w3.lora_B.weight' [170, 4] do not make a matrix [170, 64]"
    )


def test_a_lora_of_the_published_model_does_not_fit_a_small_base_and_the_list_is_short():
    base = make.diffusers("transformer")
    state = make.lora({f"layers.{i}.attention.to_q": (128, 128) for i in range(30)}, rank=1)
    with pytest.raises(Rejection, match=r"30 differences.*and 22 more"):
        merged(base, state)


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(scale):
    with pytest.raises(Rejection, match="finite"):
        merged(make.diffusers("transformer"), make.lora(MODULES), scale=scale)


@pytest.mark.parametrize("part", ["lora_A.weight", "lora_B.weight", "alpha"])
def test_values_that_are_no_numbers_are_refused_when_they_are_read(part):
    base = make.diffusers("transformer")
    state = make.lora(MODULES, alpha=1)
    state[f"transformer.layers.0.attention.to_q.{part}"].fill_(float("nan"))
    with pytest.raises(Rejection, match=r"layers\.0\.attention\.to_q' has values that are infinite or not numbers"):
        make.carried_out(merged(base, state), base, state)


RELATIVES = {
    "neither a factor nor an alpha": {"bundle_emb.word.qwen": torch.ones(4, 4)},
    "DoRA": {"transformer.layers.0.attention.to_q.dora_scale": torch.ones(64)},
    "a factor is missing": {"transformer.layers.1.attention.to_q.lokr_w1": torch.ones(4, 4)},
    "or one too many": {f"transformer.layers.1.attention.to_q.lokr_{one}": torch.ones(4, 4) for one in ("w1", "w1_a", "w2")},
    "lokr_t2": {"diffusion_model.layers.0.attention.to_q.lokr_t2": torch.ones(4, 4)},
    "LoHa": {"lycoris_layers_0_attention_to_q.hada_w1_a": torch.ones(4, 4)},
    "OFT": {"lora_unet_layers_0_attention_to_q.oft_blocks": torch.ones(4, 4, 4)},
    "Tucker": {"lora_unet_layers_0_attention_to_q.lora_mid.weight": torch.ones(4, 4)},
    "differences": {"diffusion_model.layers.0.attention.to_q.diff": torch.ones(64, 64)},
    "biases": {"transformer.layers.0.attention.to_q.lora_B.bias": torch.ones(64)},
    "text encoder": {"lora_te_layers_0_self_attn_q_proj.lora_down.weight": torch.ones(4, 4)},
    "a LoRA with 1 modules of which a factor is missing": {"transformer.layers.1.attention.to_q.lora_A.weight": torch.ones(4, 64)},
    "several LoRAs": {"layers.1.attention.to_q.lora_A.other.weight": torch.ones(4, 64), "layers.1.attention.to_q.lora_B.other.weight": torch.ones(64, 4)},
}  # fmt: skip


@pytest.mark.parametrize("title", RELATIVES)
def test_relatives_of_lora_are_refused_by_name(title):
    state = make.lora(MODULES) | RELATIVES[title]
    with pytest.raises(Rejection, match=title):
        recognise(make.header(state), {})
    with pytest.raises(Rejection, match=title):
        merged(make.diffusers("transformer"), state)


@pytest.mark.parametrize(
    ("modules", "title"),
    [
        ({"double_blocks.0.img_attn.qkv": (64, 64)}, "FLUX"),
        ({"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (64, 64)}, "Stable Diffusion"),
        ({"transformer_blocks.0.img_mod.1": (64, 64)}, "Qwen-Image"),
        ({"blocks.0.cross_attn.q": (64, 64)}, "Wan"),
        ({"something.else": (64, 64)}, "not for Z-Image's transformer"),
    ],
)
def test_loras_of_other_models_are_refused_by_name(modules, title):
    with pytest.raises(Rejection, match=title):
        recognise(make.header(make.lora(modules)), {})


@pytest.mark.parametrize("names", [*TRAINERS, "peft"])
def test_a_lora_is_recognised_as_one(names):
    [translation] = recognise(make.header(make.lora(MODULES, names=names, alpha=1)), {})
    assert (translation.component, translation.made) == ("lora", ())
    assert "8 modules, rank 4" in translation.layout


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")
@pytest.mark.parametrize("form", ["", "w2", "w1w2"])
def test_a_lokrs_weights_are_those_that_diffusers_fuses(tiny_versions, form):
    pipeline = ZImagePipeline.from_pretrained(tiny_versions / "v1", torch_dtype=torch.float32)
    base = {name: tensor.clone() for name, tensor in pipeline.transformer.state_dict().items()}
    square = {module: shape for module, shape in KRONECKER.items() if shape == (64, 64)}
    state = make.lokr(square, form, 4.0, first=(8, 8))  # as trainers factor it: diffusers loads no other
    pipeline.load_lora_weights(dict(state))
    pipeline.fuse_lora(lora_scale=0.7)
    pipeline.unload_lora_weights()
    made = make.carried_out(merged(base, state, scale=0.7), base, state)
    for name, tensor in pipeline.transformer.state_dict().items():
        torch.testing.assert_close(made[name], tensor, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="needs peft")
@pytest.mark.parametrize(
    ("names", "alpha"),
    [("diffusers", None), ("kohya", None), ("kohya", 2.0), ("ai-toolkit", None), ("ai-toolkit", 2.0)],
)
def test_the_weights_are_those_that_diffusers_fuses(tiny_versions, names, alpha):
    pipeline = ZImagePipeline.from_pretrained(tiny_versions / "v1", torch_dtype=torch.float32)
    base = {name: tensor.clone() for name, tensor in pipeline.transformer.state_dict().items()}
    state = make.lora(MODULES, names=names, alpha=alpha)
    pipeline.load_lora_weights(dict(state))
    pipeline.fuse_lora(lora_scale=0.7)
    pipeline.unload_lora_weights()
    made = make.carried_out(merged(base, state, scale=0.7), base, state)
    for name, tensor in pipeline.transformer.state_dict().items():
        torch.testing.assert_close(made[name], tensor, rtol=1e-6, atol=1e-6)
