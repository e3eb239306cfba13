"""The warm-up lets a version serve only if it makes an image."""

import pytest
import torch

from tests.engine.editing import TRANSFORMER, VAE, build, edit_tensors, rejection_of, seal_again
from zwatch.engine.factory import EngineFactory
from zwatch.errors import Abandoned
from zwatch.shadow.device import Device
from zwatch.shadow.loader import LoadControl


@pytest.fixture(scope="module")
def factory():
    return EngineFactory(Device("cpu"))


@pytest.mark.parametrize("name", ["v1", "v2"])
def test_a_genuine_version_passes(factory, tiny_versions, name):
    control = LoadControl()
    factory.warm(build(factory, tiny_versions, name), control)
    assert "warm" in control.phases


def poisoned(value, part):
    def change(tensors):
        for name, tensor in tensors.items():
            if part in name:
                tensor.fill_(value)
        return tensors

    return change


@pytest.mark.parametrize(
    ("path", "change", "what"),
    [
        (TRANSFORMER, poisoned(torch.nan, "layers.0.attention"), "NaN or infinite"),
        (VAE, poisoned(torch.inf, "decoder.conv_out.weight"), "NaN or infinite"),
        (VAE, poisoned(0.0, "decoder.conv_out"), "one colour"),
        (VAE, poisoned(0.0, "decoder"), "one colour"),
    ],
    ids=["NaN transformer", "infinite VAE", "constant output", "zero decoder"],
)
def test_weights_that_make_no_image_are_rejected(factory, models, path, change, what):
    edit_tensors(models / "v1" / path, change)
    seal_again(models / "v1")
    engine = build(factory, models, "v1")
    code, reason = rejection_of(lambda: factory.warm(engine, LoadControl()))
    assert code == "bad_image"
    assert what in reason


def test_a_warm_up_that_is_no_longer_needed_is_abandoned(factory, tiny_versions):
    control = LoadControl()
    control.abandon()
    engine = build(factory, tiny_versions, "v1")
    with pytest.raises(Abandoned):
        factory.warm(engine, control)
