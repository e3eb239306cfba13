"""What a version is computed in, whatever it is stored in."""

import numpy as np
import pytest
import torch

from tests.engine.editing import (
    TEXT_ENCODER,
    TRANSFORMER,
    VAE,
    build,
    edit_tensors,
    parameters,
    rejection_of,
    seal_again,
)
from zwatch.deploy.look import open_version
from zwatch.deploy.seal import read_seal
from zwatch.engine import precision
from zwatch.engine.factory import EngineFactory
from zwatch.engine.precision import Conversion, Precision, conversion_of
from zwatch.shadow.device import Device
from zwatch.shadow.loader import LoadControl

CPU = torch.device("cpu")
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture(params=[True, False], ids=["with bf16", "without bf16"])
def has_bf16(request, monkeypatch):
    """A device with or without instructions for bfloat16."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: request.param)
    return request.param


def stored_as(models, name, dtype, *paths):
    """Store a version's weights in another dtype."""
    for path in paths:
        edit_tensors(models / name / path, lambda tensors: {name: tensor.to(dtype) for name, tensor in tensors.items()})
    seal_again(models / name)


def factory(dtype="auto", **device):
    return EngineFactory(Device("cpu", **device), precision=Precision(dtype))


def pixels(engine):
    return np.asarray(engine.generate(parameters(steps=8)).images[0])


def dtypes(engine):
    """Return the dtypes that each component with weights has."""
    networks = {component.key.component: component.module for component in engine.components if component.buffers}
    return {name: {parameter.dtype for parameter in network.parameters()} for name, network in networks.items()}


def psnr(found, expected):
    error = float(((found.astype(float) - expected.astype(float)) ** 2).mean())
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


@pytest.mark.parametrize(
    ("stored", "asked", "with_bf16", "without"),
    [
        ({"BF16"}, "auto", None, None),
        ({"F32"}, "auto", Conversion(BF16, BF16), None),
        ({"F16"}, "auto", Conversion(BF16, BF16), Conversion(F32, F32)),
        ({"F64"}, "auto", Conversion(BF16, BF16), Conversion(F32, F32)),
        ({"F32", "BF16", "I64"}, "auto", Conversion(BF16, BF16), Conversion(F32, F32)),
        ({"BF16"}, "fp32", Conversion(F32, F32), Conversion(F32, F32)),
        ({"F32"}, "fp32", None, None),
        ({"F32"}, "bf16", Conversion(BF16, BF16), Conversion(BF16, BF16)),
        ({"BF16"}, "fp16", Conversion(F32, F16), Conversion(F32, F16)),
        ({"F16"}, "fp16", Conversion(F32, F16), Conversion(F32, F16)),
        ({"F8_E4M3", "F32"}, "fp32", None, None),
        ({"I64"}, "fp32", None, None),
    ],
)
def test_what_is_computed_depends_on_the_device_and_on_what_was_asked_for(has_bf16, stored, asked, with_bf16, without):
    assert conversion_of("transformer", stored, Precision(asked), CPU) == (with_bf16 if has_bf16 else without)


def test_a_gpu_without_bfloat16_computes_in_float32(has_bf16):
    found = conversion_of("transformer", {"BF16"}, Precision(), torch.device("cuda", 0))
    assert found == (None if has_bf16 else Conversion(F32, F32))


def test_the_vae_is_never_computed_in_float16():
    assert conversion_of("vae", {"BF16"}, Precision("fp16"), CPU) == Conversion(F32, F32)


def test_a_version_stored_in_float32_is_computed_in_bfloat16_with_the_bits_of_one_stored_so(models, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: True)
    expected = pixels(build(factory(), models, "v1"))
    stored_as(models, "v1", F32, TRANSFORMER, VAE, TEXT_ENCODER)
    control = LoadControl()
    engine = build(factory(), models, "v1", control)
    assert set(map(frozenset, dtypes(engine).values())) == {frozenset({BF16})}
    assert np.array_equal(pixels(engine), expected)
    assert "convert" in control.phases
    assert engine.nbytes < 1.2 * sum(path.stat().st_size for path in (models / "v1").rglob("*.safetensors")) / 2


def test_by_default_a_processor_without_bfloat16_computes_what_is_stored(models, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: False)
    stored_as(models, "v1", F32, TRANSFORMER)
    found = dtypes(build(factory(), models, "v1"))
    assert found == {"transformer": {F32}, "vae": {BF16}, "text_encoder": {BF16}}


@pytest.mark.parametrize(("asked", "least"), [("fp32", 30), ("fp16", 30)])
def test_pictures_in_another_dtype_are_the_same_within_rounding(models, asked, least):
    exact = pixels(build(factory("fp32"), models, "v1"))
    engine = build(factory(asked), models, "v1")
    assert psnr(pixels(engine), exact) > least
    assert psnr(pixels(build(factory(), models, "v1")), exact) > 20


def test_in_fp16_only_matrices_are_float16_and_nothing_overflows(models):
    """Activations beyond float16's largest number, 65,504, made what diffusers draws in float16 black."""

    def loud(tensors):
        for name in ("layers.0.feed_forward.w1.weight", "layers.0.feed_forward.w3.weight"):
            tensors[name] *= 3000
        return tensors

    edit_tensors(models / "v1" / TRANSFORMER, loud)
    seal_again(models / "v1")
    exact = pixels(build(factory("fp32"), models, "v1"))
    engine = build(factory("fp16"), models, "v1")
    found = dtypes(engine)
    assert found == {"transformer": {F16, F32}, "text_encoder": {F16, F32}, "vae": {F32}}
    assert psnr(pixels(engine), exact) > 30


def test_a_weight_that_float16_cannot_hold_is_refused_by_name(models):
    name = "layers.0.attention.to_q.weight"

    def large(tensors):
        tensors[name][0, 0] = 1e6
        return tensors

    edit_tensors(models / "v1" / TRANSFORMER, large)
    seal_again(models / "v1")
    code, reason = rejection_of(lambda: build(factory("fp16"), models, "v1"))
    assert code == "weights_mismatch"
    assert reason.startswith(f"{TRANSFORMER}: {name!r} has the number ")
    assert reason.endswith("give --dtype fp32")


def test_converted_weights_are_hashed_again_by_verify(models):
    engine = build(factory("fp32"), models, "v1")
    assert engine.verify_resident() == (engine.nbytes, [])
    parameter = next(engine.pipeline.transformer.parameters())
    with torch.no_grad():
        parameter.view(-1)[3] += 1
    count, (problem,) = engine.verify_resident()
    assert count == engine.nbytes
    assert problem == f"{TRANSFORMER}: the converted copy of its tensors on the device has changed"


def test_versions_share_converted_components_and_give_their_memory_back(models):
    made = factory("fp32", budget=2**30)
    one, two = build(made, models, "v1"), build(made, models, "v2")
    parts = [{component.key.component: component for component in engine.components} for engine in (one, two)]
    assert parts[0]["text_encoder"] is parts[1]["text_encoder"]
    assert parts[0]["transformer"] is not parts[1]["transformer"]
    assert made.device.weights_bytes < one.nbytes + two.nbytes
    del parts
    one.close()
    two.close()
    assert made.device.weights_bytes == 0


def test_files_and_what_is_made_of_them_need_not_fit_at_once(models):
    expected = build(factory("fp32", budget=2**30), models, "v1")
    made = factory("fp32", budget=expected.nbytes)
    engine = build(made, models, "v1")
    assert engine.verify_resident() == (expected.nbytes, [])
    assert engine.sizes == [buffer.size for buffer in engine.device_buffers]
    assert np.array_equal(pixels(engine), pixels(expected))
    assert made.device.weights_bytes == expected.nbytes


def test_too_little_memory_for_what_is_made_is_told_before_anything_is_loaded(models):
    whole = build(factory("fp32", budget=2**30), models, "v1").nbytes
    code, reason = rejection_of(
        lambda: build(
            EngineFactory(Device("cpu", budget=whole - 1), precision=Precision("fp32"), text_encoder="device"),
            models,
            "v1",
        )
    )
    assert code == "insufficient_memory"
    assert f"v1 needs {whole} bytes" in reason
    assert f"{whole - 1} of {whole - 1} are free" in reason
    assert "--text-encoder host" in reason


def test_an_exchange_keeps_converted_weights(models):
    budget = build(factory("fp32", budget=2**30), models, "v1").nbytes
    made = factory("fp32", budget=2 * budget)
    old = build(made, models, "v1")
    made.device.budget = budget
    before = pixels(old)
    directory = open_version(models, "v2")
    try:
        planned = made.plan(directory, read_seal(directory.fd).digest)
        assert made.lacks(planned)
        assert made.fits_instead(planned, old, [])
        staged = made.stage(directory, planned, LoadControl(), old, [])
        new = made.exchange(old, [], staged, LoadControl())
    finally:
        directory.close()
    assert new.verify_resident() == (new.nbytes, [])
    assert not np.array_equal(pixels(new), before)
    assert made.device.weights_bytes <= budget


@pytest.mark.gpu
@pytest.mark.parametrize("asked", ["auto", "fp16"])
def test_on_a_gpu_pictures_in_another_dtype_are_the_same_within_rounding(models, asked):
    stored_as(models, "v1", F32, TRANSFORMER, VAE, TEXT_ENCODER)
    exact, engine = (
        build(EngineFactory(Device("cuda"), precision=Precision(dtype)), models, "v1") for dtype in ("fp32", asked)
    )
    assert engine.verify_resident() == (engine.nbytes, [])
    assert dtypes(engine)["transformer"] == {"auto": {BF16}, "fp16": {F16, F32}}[asked]
    assert psnr(pixels(engine), pixels(exact)) > 20
