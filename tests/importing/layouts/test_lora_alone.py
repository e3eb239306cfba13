"""A LoRA without a base: what it adds to each weight is what a merge of the same file adds."""

import pytest
import torch

from tests.importing.layouts import make
from tests.importing.layouts.test_lora import MODULES, TRAINERS, reference
from zwatch.errors import Rejection
from zwatch.importing.layouts.lora import Lora
from zwatch.importing.layouts.lora_alone import alone

PEFT_CONFIG = {"peft_type": "LORA", "lora_alpha": 8, "r": 4}


def kept(state, **more):
    return make.carried_out(alone(Lora(make.header(state), **more)), state)


def added(made):
    """Return what a LoRA of the root's layout adds, by weight."""
    products = {}
    for name, down in made.items():
        if name.endswith(".lora_A.weight"):
            weight = name.replace(".lora_A.weight", ".weight")
            products[weight] = made[name.replace(".lora_A.", ".lora_B.")].double() @ down.double()
    assert 2 * len(products) == len(made)
    return products


def expected(state, scale=1.0):
    """Return what a merge adds, as diffusers reads the file."""
    zeros = {name: torch.zeros(tensor.shape) for name, tensor in make.diffusers("transformer").items()}
    return {name: tensor for name, tensor in reference(zeros, state, scale).items() if tensor.any()}


def close(found, wanted, tolerance=1e-6):
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("alpha", [None, 4.0, 2.0, 16.0])
@pytest.mark.parametrize("names", TRAINERS)
def test_it_adds_what_a_merge_adds(names, alpha):
    if names == "default" and alpha is not None:
        return  # diffusers does not find the alpha of such names
    state = make.lora(MODULES, names=names, alpha=alpha)
    close(added(kept(state)), expected(state))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_dtype_stays_and_is_rounded_once(dtype):
    state = make.lora(MODULES, alpha=3.0, dtype=dtype)
    made = kept(state)
    assert {tensor.dtype for tensor in made.values()} == {dtype}
    name = "layers.0.attention.to_q"
    up = state[f"transformer.{name}.lora_B.weight"].float() * (3.0 / 4.0)
    assert torch.equal(made[f"{name}.lora_B.weight"], up.to(dtype))
    assert torch.equal(made[f"{name}.lora_A.weight"], state[f"transformer.{name}.lora_A.weight"])


def test_fp8_becomes_bf16_and_mixed_dtypes_the_widest():
    fp8 = make.lora(MODULES, dtype=torch.float8_e4m3fn)
    made = kept(fp8)
    assert {tensor.dtype for tensor in made.values()} == {torch.bfloat16}
    name = "layers.0.attention.to_q.lora_A.weight"
    assert torch.equal(made[name].float(), fp8[f"transformer.{name}"].float())
    mixed = make.lora(MODULES)
    mixed = {name: tensor.half() if "lora_A" in name else tensor for name, tensor in mixed.items()}
    assert {tensor.dtype for tensor in kept(mixed).values()} == {torch.float32}


@pytest.mark.parametrize("names", ["ai-toolkit", "kohya"])
def test_a_fused_attention_becomes_its_three_parts(names):
    state = make.lora(
        {"layers.0.attention.qkv": (192, 64), "context_refiner.0.attention.qkv": (192, 64)}, names=names, alpha=2
    )
    made = kept(state)
    [down, up, *_] = [tensor for name, tensor in state.items() if "alpha" not in name]
    for number, part in enumerate("qkv"):
        name = f"layers.0.attention.to_{part}"
        assert torch.equal(made[f"{name}.lora_A.weight"], down)
        assert torch.equal(made[f"{name}.lora_B.weight"], up[64 * number : 64 * (number + 1)] * 0.5)


def test_every_matrix_of_the_transformer_has_its_name():
    own = {name.removesuffix(".weight"): tuple(tensor.shape) for name, tensor in make.diffusers("transformer").items() if tensor.dim() == 2 and name.endswith(".weight")}  # fmt: skip
    for names in ("diffusers", "kohya"):
        assert {name.rpartition(".lora_")[0] for name in kept(make.lora(own, names=names))} == set(own)


def test_the_published_models_thirty_layers_are_known():
    state = make.lora({f"layers.{number}.attention.to_q": (8, 8) for number in range(30)}, names="kohya")
    assert len(kept(state)) == 60


def test_pefts_alpha_is_beside_its_file():
    state = make.lora(MODULES, names="peft")
    made = kept(state, adapter_config=PEFT_CONFIG)
    name = "layers.0.attention.to_q.lora_B.weight"
    assert torch.equal(made[name], 2 * state[f"base_model.model.{name}"])
    root = kept(state, adapter_config=PEFT_CONFIG | {"use_rslora": True})
    assert torch.equal(root[name], 4 * state[f"base_model.model.{name}"])
    with pytest.raises(Rejection, match="belongs beside it"):
        kept(state)


def test_the_same_by_two_names_is_taken_once():
    fused = make.lora({"layers.0.attention.qkv": (192, 64)}, names="ai-toolkit", seed=1)
    parts = make.lora({f"layers.0.attention.to_{part}": (64, 64) for part in "qkv"}, names="ai-toolkit", seed=2)
    close(added(kept({**fused, **parts})), added(kept(parts)))
    del parts["diffusion_model.layers.0.attention.to_v.lora_A.weight"]
    del parts["diffusion_model.layers.0.attention.to_v.lora_B.weight"]
    with pytest.raises(Rejection, match="some of its three parts by themselves"):
        kept({**fused, **parts})


@pytest.mark.parametrize("form", ["", "w2", "w1w2"])
def test_a_lokr_is_to_be_merged(form):
    with pytest.raises(Rejection, match=r"LoKr, which has no low rank; merge it into a version with --base"):
        kept(make.lokr({"layers.0.attention.to_q": (64, 64)}, form))


def test_another_models_and_an_unknown_module_are_refused():
    with pytest.raises(
        Rejection, match=r"'transformer\.layers\.0\.attention\.to_x' is no module of Z-Image's transformer"
    ):
        kept(make.lora({"layers.0.attention.to_x": (64, 64), "layers.0.attention.to_q": (64, 64)}))
    with pytest.raises(Rejection, match="not for Z-Image's transformer"):
        kept(make.lora({"double_blocks.0.img_attn.proj": (64, 64)}, names="ai-toolkit"))


def test_factors_that_do_not_fit_each_other_are_named_with_their_shapes():
    state = make.lora({"layers.0.attention.to_q": (64, 64)})
    state["transformer.layers.0.attention.to_q.lora_B.weight"] = torch.zeros(64, 5)
    with pytest.raises(
        Rejection, match=r"lora_A.weight' \[4, 64\] and .*lora_B.weight' \[64, 5\] do not fit each other"
    ):
        kept(state)
    with pytest.raises(Rejection, match="out of three equal parts"):
        kept(make.lora({"layers.0.attention.qkv": (64, 64)}, names="ai-toolkit"))


@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
def test_values_that_are_no_numbers_are_refused(factor):
    state = make.lora({"layers.0.attention.to_q": (64, 64)})
    state[f"transformer.layers.0.attention.to_q.{factor}.weight"][0, 0] = float("nan")
    with pytest.raises(Rejection, match="infinite or not numbers"):
        kept(state)


def test_an_alpha_that_the_dtype_cannot_hold_is_refused():
    state = make.lora({"layers.0.attention.to_q": (64, 64)}, alpha=3e6, dtype=torch.float16)
    with pytest.raises(Rejection, match="too large for float16"):
        kept(state)


def test_a_convolution_of_one_pixel_is_a_matrix():
    state = {
        name: tensor[:, :, None, None] for name, tensor in make.lora({"layers.0.attention.to_q": (64, 64)}).items()
    }
    assert all(tensor.dim() == 2 for tensor in kept(state).values())
