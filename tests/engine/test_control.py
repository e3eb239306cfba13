"""A control image guides a picture as `ZImageControlNetPipeline` has it, in each version of the published ControlNet."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import ZImageControlNetPipeline
from PIL import Image

from tests.controlnets import KINDS, write_controlled
from tests.deploy.loras import write_lora
from tests.engine.editing import build, edit_json, edit_tensors, parameters, rejection_of, seal_again
from tests.engine.test_dtype import psnr
from tests.engine.test_pipeline import pixels
from zwatch.deploy.loras import LoraRoot
from zwatch.deploy.sealing import write_seal
from zwatch.engine.factory import EngineFactory
from zwatch.engine.networks.controlnet import context_of
from zwatch.engine.parameters import ControlImage, UsedLora
from zwatch.engine.precision import Precision, adapt
from zwatch.shadow.device import Device
from zwatch.shadow.loader import LoadControl

WEIGHTS = "controlnet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def factory():
    return EngineFactory(Device("cpu"))


@pytest.fixture(scope="module")
def versions(tiny_versions, tmp_path_factory):
    """A models root with v1 and a version for each kind of ControlNet."""
    root = tmp_path_factory.mktemp("controlled")
    shutil.copytree(tiny_versions / "v1", root / "v1")
    for kind in KINDS:
        write_controlled(root, kind, kind=kind)
    return root


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def engine(factory, versions, kind):
    return build(factory, versions, kind)


@pytest.fixture(scope="module")
def library(versions, kind):
    pipeline = ZImageControlNetPipeline.from_pretrained(
        versions / kind, torch_dtype=torch.bfloat16, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.text_encoder, pipeline.transformer, pipeline.vae, pipeline.controlnet):
        adapt(module, torch.device("cpu"))  # as zwatch computes on this processor
    return pipeline


def drawing(width=80, height=56):
    """Return a control image: its sizes are not those that are drawn."""
    image = Image.new("RGB", (width, height), "black")
    image.paste((255, 255, 255), (10, 8, 40, 44))
    image.paste((200, 30, 90), (44, 20, 70, 30))
    return image


def controlled(*arguments, scale=0.75, **changes):
    """Return the parameters of a small image that a control image guides."""
    return replace(parameters(*arguments, **changes), control=ControlImage(drawing(), scale, "0" * 64))


@pytest.mark.parametrize(
    "wanted",
    [
        controlled(),
        controlled("a dog", 7, width=96, height=48, scale=1.5),
        controlled("两条鱼 🐟", 2**63 - 1, width=32, height=64, steps=3),
        controlled("a cat", 3, guidance_scale=3.5),
        controlled("a cat", 3, guidance_scale=3.5, negative_prompt="blurry, dark, " * 20),
    ],
    ids=["plain", "wide and strong", "tall", "guided", "prompts of two lengths"],
)
def test_a_guided_image_equals_diffusers_own_pixel_for_pixel(engine, library, wanted):
    expected = library(
        prompt=wanted.prompt, negative_prompt=wanted.negative_prompt, width=wanted.width, height=wanted.height,
        num_inference_steps=wanted.steps, guidance_scale=wanted.guidance_scale, control_image=wanted.control.picture,
        controlnet_conditioning_scale=wanted.control.scale, generator=torch.Generator().manual_seed(wanted.seeds[0]),
    ).images[0]  # fmt: skip
    made = pixels(engine.generate(wanted).images[0])
    assert np.array_equal(made, pixels(expected))
    assert not np.array_equal(made, pixels(engine.generate(replace(wanted, control=None)).images[0]))


def test_without_a_control_image_a_version_draws_what_it_would_draw_without_a_controlnet(factory, versions, engine):
    assert np.array_equal(
        pixels(engine.generate(parameters()).images[0]),
        pixels(build(factory, versions, "v1").generate(parameters()).images[0]),
    )


def test_with_a_scale_of_0_nothing_is_guided(engine):
    assert np.array_equal(
        pixels(engine.generate(controlled(scale=0.0)).images[0]), pixels(engine.generate(parameters()).images[0])
    )


@pytest.mark.parametrize(
    "changes", [{}, {"guidance_scale": 1.0, "negative_prompt": "blurry, dark, " * 20}], ids=["", "guided"]
)
def test_the_fast_way_draws_nearly_the_same(engine, changes):
    wanted = controlled(**changes)
    exact = engine.generate(wanted).images[0]
    with engine.other_way():
        assert psnr(pixels(engine.generate(wanted).images[0]), pixels(exact)) >= 45


# --- what a version with one is


@pytest.fixture
def changed(versions, tmp_path):
    """A models root with a version 2.1 that a test may change."""
    shutil.copytree(versions / "2.1", tmp_path / "2.1")
    return tmp_path


def again(versions):
    """Seal the same ControlNet in a version of another name."""
    shutil.copytree(versions / "2.1", versions / "again", dirs_exist_ok=True)
    (versions / "again/BLAKE3SUMS").unlink()
    write_seal(versions / "again", "again")


def test_it_counts_in_the_memory_plan_and_is_shared_by_versions_that_have_the_same(factory, versions):
    again(versions)
    first, second, without = (build(factory, versions, name) for name in ("2.1", "again", "v1"))
    parts = [{part.key.component: part for part in engine.components} for engine in (first, second, without)]
    assert parts[0]["controlnet"] is parts[1]["controlnet"]
    assert parts[0]["transformer"] is not parts[1]["transformer"]
    assert "controlnet" not in parts[2]
    assert first.nbytes - without.nbytes == parts[0]["controlnet"].nbytes > 0
    assert (first.has_control, without.has_control) == (True, False)


def test_a_version_that_cannot_use_it_is_refused(factory, changed):
    version = changed / "2.1"

    def refused(change):
        shutil.copytree(version, changed / "kept")
        change()
        seal_again(version)
        found = rejection_of(lambda: build(factory, changed, "2.1"))
        shutil.rmtree(version)
        (changed / "kept").rename(version)
        return found

    config, weights = version / "controlnet/config.json", version / WEIGHTS
    code, reason = refused(lambda: edit_json(config, lambda found: found.update(control_layers_places=[0, 2])))
    assert (code, "control_layers_places: found [0, 2], expected numbers below n_layers" in reason) == (
        "config_invalid",
        True,
    )
    code, reason = refused(
        lambda: edit_tensors(
            weights, lambda tensors: tensors.pop("control_layers.1.after_proj.bias") is None or tensors
        )
    )
    assert (code, "controlnet: the weights lack 'control_layers.1.after_proj.bias'" in reason) == (
        "weights_mismatch",
        True,
    )
    code, reason = refused(
        lambda: edit_json(
            version / "model_index.json", lambda index: index.update(controlnet=["diffusers", "FluxControlNetModel"])
        )
    )
    assert (code, "only diffusers.ZImageControlNetModel is allowed" in reason) == ("class_not_allowed", True)
    code, reason = refused(config.unlink)
    assert (code, "controlnet/config.json: the seal does not name it" in reason) == ("file_missing", True)
    code, reason = refused(
        lambda: edit_json(version / "transformer/config.json", lambda found: found.update(a_new_field=1))
    )
    assert (code, "has fields that only its library knows" in reason) == ("config_invalid", True)


def test_the_warm_up_finds_weights_that_are_not_usable(factory, changed):
    edit_tensors(
        changed / "2.1" / WEIGHTS,
        lambda tensors: {
            **tensors,
            "control_layers.0.after_proj.bias": torch.full((64,), torch.nan, dtype=torch.bfloat16),
        },
    )
    seal_again(changed / "2.1")
    engine = build(factory, changed, "2.1")
    code, reason = rejection_of(lambda: factory.warm(engine, LoadControl()))
    assert (code, "the weights are not usable" in reason) == ("bad_image", True)
    assert engine.generate(parameters()).finite


def test_a_lora_changes_the_hints_too(engine, versions, kind, tmp_path, factory):
    write_lora(tmp_path, "ink", versions / kind / "transformer", 4, 0)
    opened = LoraRoot(tmp_path).open_lora("ink")
    view = factory.loras.load(engine.pipeline.transformer, [opened])
    network, control = engine.pipeline.transformer, engine.pipeline.controlnet
    with torch.inference_mode():
        torch.manual_seed(1)
        given = [torch.randn(16, 1, 8, 8).bfloat16()], torch.tensor([0.3]), [torch.randn(20, 32).bfloat16()]
        context = context_of(control, torch.randn(16, 1, 8, 8).bfloat16())
        plain = control(network, *given, context, 1.0)
        with_lora = control(view.scaled([1.0]), *given, context, 1.0)
        without = control(view.scaled([0.0]), *given, context, 1.0)
    assert all(torch.equal(plain[place], without[place]) for place in plain)
    assert not torch.equal(plain[0], with_lora[0])
    wanted = replace(controlled(), loras=(UsedLora("ink", 0.8, opened.digest),))
    exact = pixels(engine.generate(wanted, adapted=view).images[0])
    with engine.other_way():
        assert psnr(pixels(engine.generate(wanted, adapted=view).images[0]), exact) >= 40
    assert not np.array_equal(exact, pixels(engine.generate(controlled()).images[0]))


def test_quantized_it_draws_nearly_the_same(versions, engine, kind):
    smaller = build(EngineFactory(Device("cpu"), precision=Precision(quantize="int8")), versions, kind)
    assert smaller.nbytes < engine.nbytes
    exact = pixels(engine.generate(controlled()).images[0])
    assert psnr(pixels(smaller.generate(controlled()).images[0]), exact) >= 25
