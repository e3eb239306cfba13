"""Engines draw exactly unless told otherwise; the fast way gives the same pictures beyond rounding, always with the same bytes."""

import math
import threading
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.engine.editing import build, parameters
from zwatch.engine import acceleration, kernels, sampling
from zwatch.engine.acceleration import Acceleration, kind_of
from zwatch.engine.computing import EXACT
from zwatch.engine.factory import EngineFactory
from zwatch.engine.fast.operations import TorchOperations
from zwatch.engine.kernels import Kernels, Kind
from zwatch.engine.networks.text_encoder import Qwen3Encoder
from zwatch.engine.precision import Precision
from zwatch.engine.prompt_cache import PromptCache
from zwatch.engine.sampling import EncodedText
from zwatch.errors import GenerationCancelled
from zwatch.shadow.device import Device

CPU = torch.device("cpu")


def factory(*, exact=None):
    return EngineFactory(Device("cpu"), exact=exact)


def pixels(engine, *prompt_and_seeds, **changes):
    return [np.asarray(image) for image in engine.serve(parameters(*prompt_and_seeds, **changes)).images]


@pytest.fixture
def plain(monkeypatch):
    """Kernels of torch, which any device has."""
    monkeypatch.setattr(kernels, "gpu_operations", TorchOperations)


def psnr(found, exact):
    error = float(((found.astype(float) - exact.astype(float)) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def test_on_a_processor_pictures_are_exact_unless_told_otherwise(models):
    assert acceleration.EXACT_BY_DEFAULT == {"cuda": False, "cpu": True}, "docs/operations.md and --exact say so"
    usual, exact = (build(factory(exact=exact), models, "v1") for exact in (None, True))
    assert Acceleration(Device("cpu")).computing(kind_of(usual.pipeline)) is EXACT
    assert np.array_equal(pixels(usual), pixels(exact))


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_trained_models_pictures_differ_by_less_than_can_be_seen(version):
    root = Path(__file__).parents[3] / "models"
    exact, fast = (build(factory(exact=exact), root, version) for exact in (True, False))
    prompt = "a red cat in a forest at night"
    given = {"width": 128, "height": 128, "steps": 8}
    assert psnr(pixels(fast, prompt, **given)[0], pixels(exact, prompt, **given)[0]) > 45


@pytest.mark.parametrize(
    "changes", [{}, {"guidance_scale": 3.0, "negative_prompt": "a " * 60}, {"width": 48, "height": 80}]
)
def test_the_same_request_gives_the_same_bytes_also_after_others(models, changes):
    engine = build(factory(exact=False), models, "v1")
    first = pixels(engine, "a cat", 7, **changes)
    pixels(engine, "a dog and a much longer prompt " * 4, 8)
    assert np.array_equal(pixels(engine, "a cat", 7, **changes), first)
    assert np.array_equal(pixels(engine, "a cat", 6, 7, **changes)[1], first[0])
    assert not np.array_equal(pixels(engine, "a cat", 8, **changes), first)


def test_two_versions_draw_at_once_with_what_they_share(models):
    made = factory(exact=False)
    engines = {name: build(made, models, name) for name in ("v1", "v2")}
    alone = {name: pixels(engine, "a cat", 1, 2) for name, engine in engines.items()}
    found = {name: [] for name in engines}

    def draw(name):
        for _ in range(4):
            found[name].append(np.array_equal(pixels(engines[name], "a cat", 1, 2), alone[name]))

    threads = [threading.Thread(target=draw, args=(name,)) for name in engines]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: [True] * 4 for name in engines}
    assert not np.array_equal(alone["v1"], alone["v2"])


def test_a_prompt_is_encoded_once_for_all_versions_with_that_text_encoder(models, monkeypatch):
    made = factory(exact=False)
    one, two = build(made, models, "v1"), build(made, models, "v2")
    expected = [pixels(build(factory(exact=False), models, name), "a cat", 3) for name in ("v1", "v2")]
    calls = []
    forward = Qwen3Encoder.angles
    monkeypatch.setattr(Qwen3Encoder, "angles", lambda *given: calls.append(1) or forward(*given))
    assert np.array_equal(pixels(one, "a cat", 3), expected[0])
    assert len(calls) == 1
    one.close()
    assert np.array_equal(pixels(two, "a cat", 3), expected[1])
    assert len(calls) == 1
    two.generate(parameters("a cat"))
    assert len(calls) == 2, "a warm-up proves that the version can encode"
    pixels(two, "a bird", guidance_scale=2.0, negative_prompt="a cat")
    assert len(calls) == 3


def test_prompts_are_encoded_again_after_resident_weights_were_found_to_be_changed(models):
    engine = build(factory(exact=False), models, "v1")
    weight = next(engine.pipeline.text_encoder.parameters())
    before = weight.clone()
    with torch.no_grad():
        weight.neg_()
    wrong = pixels(engine, "a cat", 3)
    assert engine.verify_resident()[1]
    with torch.no_grad():
        weight.copy_(before)
    assert not np.array_equal(pixels(engine, "a cat", 3), wrong)


def test_kept_prompts_take_bounded_memory_and_the_oldest_goes_first():
    cache = PromptCache(most_bytes=3 * 40)
    texts = [EncodedText(torch.randn(1, 10), is_truncated=bool(number % 2)) for number in range(4)]
    for number in range(3):
        cache.put(number, texts[number])
    assert cache.get(0, CPU) is not None  # used again, so that 1 is the oldest
    cache.put(3, texts[3])
    kept = [cache.get(number, CPU) for number in range(4)]
    assert [one is not None for one in kept] == [True, False, True, True]
    assert torch.equal(kept[3].embedding, texts[3].embedding)
    assert kept[3].is_truncated
    cache.put("too long", EncodedText(torch.randn(1, 31), is_truncated=False))
    assert cache.get("too long", CPU) is None
    assert cache.get(3, CPU) is not None


def test_kernels_are_compiled_with_the_networks_own_weights_and_without_touching_what_requests_use(models, plain):
    pipeline = build(factory(exact=False), models, "v1").pipeline
    made = Kernels(Device("cpu"))
    made.begin(pipeline, Kind.of(pipeline))
    for thread in made._device.preparing:
        thread.join()
    assert made.is_ready(Kind.of(pipeline))
    assert not pipeline.transformer._rotations
    mirrored = kernels._mirrored(pipeline.transformer)
    assert mirrored is not pipeline.transformer
    ours, theirs = (network.layers[0].attention.to_q.weight for network in (mirrored, pipeline.transformer))
    assert ours.data_ptr() == theirs.data_ptr()


def test_where_kernels_cannot_be_compiled_pictures_are_exact(models, caplog):
    pipeline = build(factory(), models, "v1").pipeline
    # A GPU that is not there.
    device = SimpleNamespace(
        torch_device=torch.device("cuda", 99), hasher=None, recorder=None, preparing=[], beside=nullcontext
    )
    made = Acceleration(device, exact=False)
    assert made.computing(kind_of(pipeline)) is EXACT
    made.prepare(pipeline)
    made.prepare(pipeline)
    assert len(device.preparing) == 1, "it is tried once"
    device.preparing[0].join()
    assert "the slower, exact way" in caplog.text
    assert made.computing(kind_of(pipeline)) is EXACT


def test_steps_are_launched_one_ahead_and_reported_when_they_are_done(models, monkeypatch):
    engine = build(factory(exact=False), models, "v1")
    happened = []

    class Finished:
        def __init__(self):
            self.number = sum(kind == "launched" for kind, _ in happened)
            happened.append(("launched", self.number))

        def wait(self):
            happened.append(("done", self.number))

    monkeypatch.setattr(sampling, "_runs_ahead", lambda computing, latents: True)
    monkeypatch.setattr(sampling, "Finished", Finished)
    found = engine.serve(parameters(steps=3), on_step=lambda done: happened.append(("reported", done)))
    assert happened == [
        ("launched", 0), ("launched", 1), ("done", 0), ("reported", 1), ("launched", 2), ("done", 1), ("reported", 2),
        ("done", 2), ("reported", 3),
    ]  # fmt: skip
    monkeypatch.undo()
    assert np.array_equal(found.images[0], engine.serve(parameters(steps=3)).images[0])


def test_a_cancelled_picture_launches_no_further_step(models, monkeypatch):
    engine = build(factory(exact=False), models, "v1")
    launched, reported = [], []
    monkeypatch.setattr(sampling, "_runs_ahead", lambda computing, latents: True)
    monkeypatch.setattr(sampling, "Finished", lambda: launched.append(1) or SimpleNamespace(wait=lambda: None))
    with pytest.raises(GenerationCancelled):
        engine.serve(parameters(steps=6), on_step=reported.append, cancelled=lambda: bool(reported))
    assert (len(launched), reported) == (2, [1])


@pytest.mark.parametrize("quantize", [None, "fp8", "int8"])
def test_the_next_start_makes_ready_what_this_one_compiled(models, tmp_path, plain, quantize):
    pipeline = build(EngineFactory(Device("cpu"), precision=Precision(quantize=quantize)), models, "v1").pipeline
    kind = Kind.of(pipeline)
    first = Kernels(Device("cpu"), tmp_path)
    assert not first.rehearse()
    first.begin(pipeline, kind)
    for thread in first._device.preparing:
        thread.join()
    following = Kernels(Device("cpu"), tmp_path)
    assert not following.is_ready(kind)
    assert following.rehearse()
    assert following.is_ready(kind)
    following.wait(kind, 60)
    following.begin(pipeline, kind)
    assert not following._device.preparing


def test_a_quantized_version_needs_other_kernels(models):
    kinds = {
        Kind.of(build(EngineFactory(Device("cpu"), precision=Precision(quantize=quantize)), models, "v1").pipeline)
        for quantize in (None, "fp8", "int8")
    }
    assert len(kinds) == 3


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"[1]", b'[{"text": {"size": 1}}]', b"\xff"])
def test_what_is_not_a_list_of_kinds_is_as_good_as_none(tmp_path, data):
    made = Kernels(Device("cpu"), tmp_path)
    made._files.write(made._name(), data)
    assert not made.rehearse()


def test_a_request_waits_for_early_kernels_only_while_they_are_loaded(models, tmp_path, plain, monkeypatch):
    pipeline = build(factory(), models, "v1").pipeline
    kind = Kind.of(pipeline)
    first = Kernels(Device("cpu"), tmp_path)
    first.begin(pipeline, kind)
    for thread in first._device.preparing:
        thread.join()
    made = Kernels(Device("cpu"), tmp_path)
    made.wait(kind, 600)  # nothing was begun

    def fail(*given):
        raise RuntimeError("the device has gone")

    monkeypatch.setattr(kernels, "try_networks", fail)
    with pytest.raises(RuntimeError, match="gone"):
        made.rehearse()
    made.wait(kind, 600)
    assert not made.is_ready(kind)


@pytest.mark.gpu
def test_on_a_gpu_requests_are_exact_until_the_kernels_are_compiled_and_then_fast(models, tmp_path):
    device = Device("cuda", cache=tmp_path)
    made = EngineFactory(device, tmp_path, exact=False)
    exact = pixels(build(EngineFactory(device, exact=True), models, "v1"), "a cat", 3)
    engine = build(made, models, "v1")
    assert np.array_equal(pixels(engine, "a cat", 3), exact)
    engine.prepare()
    for thread in device.preparing:
        thread.join()
    assert made.acceleration.computing(kind_of(engine.pipeline)).name.startswith("fast-triton")
    fast = pixels(engine, "a cat", 3)
    assert psnr(fast[0], exact[0]) > 30  # random weights
    assert np.array_equal(pixels(engine, "a cat", 3), fast)
    other = build(made, models, "v2")
    assert made.acceleration.computing(kind_of(other.pipeline)).name.startswith("fast-triton"), (
        "nothing is compiled for it"
    )
    again = Kernels(device, tmp_path)
    assert again._remembered() == []  # this factory keeps nothing
    kept = Kernels(device, tmp_path)
    kept._compile(engine.pipeline, Kind.of(engine.pipeline))
    assert again.rehearse()
    assert again.is_ready(Kind.of(engine.pipeline))
