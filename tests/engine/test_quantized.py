"""Weights in fp8 or int8: quantized when a version is loaded, or stored so."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.editing import (
    TEXT_ENCODER,
    TRANSFORMER,
    build,
    edit_tensors,
    parameters,
    rejection_of,
    seal_again,
)
from tests.engine.test_dtype import psnr
from zwatch.deploy.contents import scale_of
from zwatch.deploy.look import open_version
from zwatch.deploy.seal import read_seal
from zwatch.engine.factory import EngineFactory
from zwatch.engine.precision import Precision, name_of
from zwatch.engine.scaled import QuantizedLinear, Scaled, quantized_dtype
from zwatch.shadow.device import Device
from zwatch.shadow.loader import LoadControl
from zwatch.shadow.quantized import KINDS, Rows, is_quantizable

MODELS = Path(__file__).parents[2] / "models"
KIND = pytest.mark.parametrize("kind", KINDS)
CLOSE = {"fp8": 0.04, "int8": 0.01}
"""Relative difference of a product, root mean square: fp8 has 3 bits behind its first, int8 7 for the largest of a row."""


def factory(quantize=None, device="cpu", *, exact=None, **options):
    return EngineFactory(Device(device, **options), precision=Precision("auto", quantize), exact=exact)


def pixels(engine, *given, **changes):
    return np.asarray(engine.generate(parameters(*given, steps=8, **changes)).images[0])


def store_quantized(models, name, kind, *paths):
    """Store a version's weights as they are when they are quantized at a load."""

    def quantize(tensors):
        found = {}
        for key, tensor in tensors.items():
            if is_quantizable(key, tuple(tensor.shape)):
                rows = Rows.of(tensor, KINDS[kind])
                found |= {key: rows.values, scale_of(key): rows.scales}
            else:
                found[key] = tensor
        return found

    for path in paths:
        edit_tensors(models / name / path, quantize)
    seal_again(models / name)


@KIND
def test_numbers_come_back_within_the_step_of_their_row(kind):
    x = torch.randn(5, 64) * torch.logspace(-6, 6, 5)[:, None]
    rows = Rows.of(x, KINDS[kind])
    assert rows.values.dtype is KINDS[kind]
    assert rows.scales.shape == (5, 1)
    step = x.abs() * 2**-4 + rows.scales * 2**-9 if kind == "fp8" else rows.scales / 2
    assert ((rows.values.float() * rows.scales - x).abs() <= step * 1.0001).all()


@KIND
@pytest.mark.parametrize("value", [0.0, 1e-30])
def test_rows_of_nothing_have_a_scale(kind, value):
    rows = Rows.of(torch.full((2, 3), value), KINDS[kind])
    assert torch.isfinite(rows.scales).all()
    assert (rows.values.float() == 0).all()


@KIND
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_product_is_the_exact_one_within_rounding(kind, dtype, has_bias):
    torch.manual_seed(3)
    weight, x, bias = torch.randn(48, 32), torch.randn(2, 7, 32).to(dtype), torch.randn(48)
    linear = QuantizedLinear.of(weight, KINDS[kind])
    if has_bias:
        linear.bias = torch.nn.Parameter(bias, requires_grad=False)
    exact = torch.nn.functional.linear(x.float(), weight, bias if has_bias else None)
    found = linear(x)
    assert (found.dtype, found.shape) == (dtype, exact.shape)
    assert float((found.float() - exact).norm() / exact.norm()) < CLOSE[kind]


def test_a_product_takes_fp8_rows_too():
    weight, x = torch.randn(48, 32), torch.randn(2, 7, 32)
    linear = QuantizedLinear.of(weight.bfloat16())
    found = linear(Scaled.of(x))
    exact = torch.nn.functional.linear(x, weight)
    assert found.dtype is torch.bfloat16
    assert float((found.float() - exact).norm() / exact.norm()) < 0.06


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("layers.29.attention.to_q.weight", True),
        ("layers.0.attention.to_out.0.weight", True),
        ("noise_refiner.1.feed_forward.w2.weight", True),
        ("context_refiner.0.feed_forward.w3.weight", True),
        ("layers.35.self_attn.k_proj.weight", True),
        ("model.layers.0.mlp.down_proj.weight", True),
        ("layers.0.adaLN_modulation.0.weight", False),
        ("t_embedder.mlp.0.weight", False),
        ("cap_embedder.1.weight", False),
        ("all_final_layer.2-1.linear.weight", False),
        ("embed_tokens.weight", False),
        ("layers.0.attention.norm_q.weight", False),
        ("decoder.mid_block.attentions.0.to_q.weight", False),
    ],
)
def test_the_matrices_of_the_blocks_are_quantized_and_nothing_else(name, expected):
    assert is_quantizable(name, (8, 8)) == expected
    assert not is_quantizable(name, (8,))


@KIND
def test_a_version_is_quantized_when_it_is_loaded(models, kind):
    exact = build(factory(), models, "v1")
    engine = build(factory(kind), models, "v1")
    for network in (engine.pipeline.transformer, engine.pipeline.text_encoder):
        assert quantized_dtype(network) is KINDS[kind]
        assert name_of(network) == kind
    assert quantized_dtype(engine.pipeline.vae) is None
    assert engine.verify_resident() == (engine.nbytes, [])
    assert engine.nbytes < 0.9 * exact.nbytes
    assert psnr(pixels(engine), pixels(exact)) > 20


@KIND
def test_a_version_stored_quantized_is_loaded_as_it_is_and_draws_the_same_picture(models, kind):
    expected = pixels(build(factory(kind), models, "v1"))
    before = sum(path.stat().st_size for path in (models / "v1").rglob("*.safetensors"))
    store_quantized(models, "v1", kind, TRANSFORMER, TEXT_ENCODER)
    assert sum(path.stat().st_size for path in (models / "v1").rglob("*.safetensors")) < 0.9 * before
    control = LoadControl()
    engine = build(factory(), models, "v1", control)
    assert "convert" not in control.phases
    assert np.array_equal(pixels(engine), expected)
    again = build(factory("fp8"), models, "v1")
    assert name_of(again.pipeline.transformer) == kind, "what is quantized is not quantized again"
    assert np.array_equal(pixels(again), expected)


@KIND
def test_the_trained_models_draw_what_they_draw_in_bf16(kind):
    exact, engine = build(factory(), MODELS, "v1"), build(factory(kind), MODELS, "v1")
    wanted = {"width": 256, "height": 256}
    assert (
        psnr(pixels(engine, "a red cat in a forest", **wanted), pixels(exact, "a red cat in a forest", **wanted)) > 25
    )


def test_fp8_is_computed_the_fast_way_from_fp8_rows(models):
    exact = pixels(build(factory("fp8"), models, "v1"))
    engine = build(factory("fp8", exact=False), models, "v1")
    assert psnr(pixels(engine), exact) > 20


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors, name: tensors.pop(scale_of(name)), "is torch.float8_e4m3fn, the first tensor"),
        (lambda tensors, name: tensors.update({scale_of(name): torch.ones(1)}), "has the shape [1], the config says"),
        (lambda tensors, name: tensors.update({"layers.0.nothing.weight_scale": torch.ones(1)}), "the config does not"),
        (lambda tensors, name: tensors.update({name: tensors[name].to(torch.float8_e5m2)}), "weight_scale"),
    ],
    ids=["no scales", "scales of another shape", "scales of nothing", "another fp8"],
)  # fmt: skip
def test_quantized_weights_that_do_not_fit_are_refused_by_name(models, change, said):
    store_quantized(models, "v1", "fp8", TRANSFORMER)
    path = models / "v1" / TRANSFORMER
    tensors = load_file(path)
    change(tensors, "layers.0.attention.to_q.weight")
    save_file(tensors, path, {"version": "v1"})
    seal_again(models / "v1")
    code, reason = rejection_of(lambda: build(factory(), models, "v1"))
    assert code == "weights_mismatch"
    assert said in reason


def test_an_exchange_quantizes_in_host_memory(models):
    budget = build(factory("int8"), models, "v1").nbytes
    made = factory("int8", budget=3 * budget)
    old = build(made, models, "v1")
    made.device.budget = budget
    directory = open_version(models, "v2")
    try:
        planned = made.plan(directory, read_seal(directory.fd).digest)
        staged = made.stage(directory, planned, LoadControl(), old, [])
        new = made.exchange(old, [], staged, LoadControl())
    finally:
        directory.close()
    assert new.verify_resident() == (new.nbytes, [])
    assert name_of(new.pipeline.transformer) == "int8"
    assert made.device.weights_bytes <= budget


@pytest.mark.gpu
@KIND
def test_on_a_gpu_quantized_versions_draw_what_bf16_draws(kind):
    exact, engine = build(factory(device="cuda"), MODELS, "v1"), build(factory(kind, "cuda"), MODELS, "v1")
    assert engine.verify_resident() == (engine.nbytes, [])
    assert psnr(pixels(engine, width=256, height=256), pixels(exact, width=256, height=256)) > 20
    assert np.array_equal(pixels(engine), pixels(engine))
