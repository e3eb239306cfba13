"""LoRAs beside a version's weights: what they add, what they leave alone, and where they are kept."""

import gc
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.deploy.loras import write_lora
from tests.engine.editing import build, edit_tensors, parameters, rejection_of, seal_again
from tests.engine.fast import networks
from tests.engine.fast.networks import error
from tests.engine.test_dtype import psnr
from tests.engine.test_pipeline import library_image, library_pipeline
from zwatch.deploy.loras import LoraRoot
from zwatch.engine.adapted import AdaptedLinear, Down, linears, products, view_of
from zwatch.engine.computing import EXACT
from zwatch.engine.factory import EngineFactory
from zwatch.engine.fast.computing import FastComputing
from zwatch.engine.fast.operations import TorchOperations
from zwatch.engine.lora_layout import misfit
from zwatch.engine.parameters import UsedLora
from zwatch.engine.precision import Precision
from zwatch.engine.scaled import QuantizedLinear, Scaled
from zwatch.engine.schedule import EulerSchedule
from zwatch.shadow.device import Device

FAST = FastComputing(TorchOperations())
TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
ALL = pytest.mark.parametrize("of", [None, lambda module: True], ids=["attention", "all"])


@pytest.fixture
def factory():
    return EngineFactory(Device("cpu"))


@pytest.fixture
def loras(tiny_versions, tmp_path):
    """A LoRA root with `ink` and `night`."""
    root = tmp_path / "loras"
    for seed, name in enumerate(("ink", "night")):
        write_lora(root, name, tiny_versions / "v1/transformer", 4 + seed, seed)
    return LoraRoot(root)


def opened(root, *names):
    return [root.open_lora(name) for name in names]


def used(root, **scales):
    """Return parameters' LoRAs, as a request has them."""
    found = [UsedLora(name, scale, root.open_lora(name).digest) for name, scale in scales.items()]
    return tuple(found)


def drawn(engine, root, *seeds, is_request=False, **scales):
    """Return the pixels of an image drawn with LoRAs at these scales."""
    view = engine._acceleration.loras.load(engine.pipeline.transformer, opened(root, *scales)) if scales else None
    wanted = parameters("a cat", *seeds, loras=used(root, **scales))
    made = engine.generate(wanted, adapted=view, is_request=is_request)
    return np.asarray(made.images[0])


def merged(models, name, tmp_path, root, **scales):
    """Seal a copy of a version whose transformer has the LoRAs in its weights, in float32 until they are rounded."""
    import shutil

    target = tmp_path / "merged" / name
    shutil.copytree(models / name, target)
    deltas = {}
    for lora, scale in scales.items():
        tensors = load_file(root.path / lora / "lora.safetensors")
        for key in tensors:
            if key.endswith(".lora_A.weight"):
                module = key.removesuffix(".lora_A.weight")
                delta = tensors[f"{module}.lora_B.weight"].float() @ tensors[key].float() * scale
                deltas[f"{module}.weight"] = deltas.get(f"{module}.weight", 0) + delta

    def change(tensors):
        return {key: (value.float() + deltas[key]).to(value.dtype) if key in deltas else value for key, value in tensors.items()}  # fmt: skip

    edit_tensors(target / TRANSFORMER, change)
    seal_again(target)
    return tmp_path / "merged"


@pytest.mark.parametrize("scales", [{"ink": 1.0}, {"ink": 0.8, "night": -0.5}], ids=["one", "two"])
def test_it_draws_what_merged_weights_draw_within_rounding(factory, tiny_versions, loras, tmp_path, scales):
    engine = build(EngineFactory(Device("cpu"), precision=Precision("fp32")), tiny_versions, "v1")
    beside = drawn(engine, loras, **scales)
    plain = drawn(engine, loras)
    other = EngineFactory(Device("cpu"), precision=Precision("fp32"))
    edited = tmp_path / "fp32"
    edited.mkdir()
    models = merged(tiny_versions, "v1", tmp_path, loras, **scales)
    truth = np.asarray(build(other, models, "v1").generate(parameters("a cat")).images[0])
    # The merged weights are rounded to bfloat16, once more than the LoRA's products are.
    assert psnr(beside, truth) > 35 > psnr(plain, truth)


def test_it_draws_what_the_librarys_own_loras_draw(factory, tiny_versions, loras, peft_pipeline):
    """diffusers rounds each of the three products to bfloat16, zwatch only their sum."""
    engine = build(factory, tiny_versions, "v1")
    plain = drawn(engine, loras)
    for names in (("ink",), ("ink", "night")):
        scales = dict(zip(names, (0.8, -0.5), strict=False))
        peft_pipeline.set_adapters(list(names), [scales[name] for name in names])
        expected = np.asarray(library_image(peft_pipeline, parameters("a cat"), 42))
        found = drawn(engine, loras, **scales)
        assert psnr(found, expected) > 40 > psnr(found, plain)


@pytest.fixture
def peft_pipeline(tiny_versions, loras):
    """diffusers' pipeline of v1 with both LoRAs loaded by it."""
    pytest.importorskip(
        "peft", reason="pip install peft: the tests do without it, since diffusers imports all that it brings"
    )
    pipeline = library_pipeline(tiny_versions / "v1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of the second one
        for name in ("ink", "night"):
            _load(pipeline, loras, name)
    return pipeline


def _load(pipeline, loras, name):
    tensors = load_file(loras.path / name / "lora.safetensors")
    pipeline.load_lora_weights({f"transformer.{key}": value for key, value in tensors.items()}, adapter_name=name)


def test_two_requests_with_different_loras_never_see_each_others(factory, tiny_versions, loras):
    engine = build(factory, tiny_versions, "v1")
    plain = drawn(engine, loras)
    ink, night = drawn(engine, loras, ink=1.0), drawn(engine, loras, night=1.0)
    assert not np.array_equal(ink, night)
    assert np.array_equal(drawn(engine, loras), plain)
    assert np.array_equal(drawn(engine, loras, ink=1.0), ink)
    assert np.array_equal(drawn(engine, loras, night=1.0), night)


def test_the_scale_counts_for_each_request_of_one_view(factory, tiny_versions, loras):
    engine = build(factory, tiny_versions, "v1")
    by_scale = {scale: drawn(engine, loras, ink=scale) for scale in (0.0, 0.4, 1.0, -1.0)}
    assert np.array_equal(by_scale[0.0], drawn(engine, loras))
    assert len({image.tobytes() for image in by_scale.values()}) == 4
    assert np.array_equal(drawn(engine, loras, ink=0.4), by_scale[0.4])
    assert len(factory.loras._all_views()) == 1


def networks_of(dtype, quantized=None):
    network = networks.transformer(dtype)
    if quantized is not None:
        for path, part in linears(network).items():
            if "attention.to_" in path or "feed_forward" in path:
                parent, _, own = path.rpartition(".")
                setattr(network.get_submodule(parent), own, QuantizedLinear.of(part.weight, quantized))
    return network


def adapted_by_hand(network, dtype, rank=3, scale=0.7):
    """Return a view with random factors for all layers, and the same network with them in its weights, in float64."""
    random = torch.Generator().manual_seed(7)
    replaced, deltas = {}, {}
    for path, part in linears(network).items():
        out, width = part.weight.shape
        down = (torch.randn(rank, width, generator=random) / width**0.5).to(dtype)
        up = (torch.randn(out, rank, generator=random) / rank**0.5 * 0.5).to(dtype)
        replaced[path] = AdaptedLinear(part, Down(down, torch.full((rank,), scale)), up)
        deltas[path] = up.double() @ down.double() * scale
    truth = networks.transformer(torch.float64)
    with torch.no_grad():
        for path, part in linears(network).items():
            own = truth.get_submodule(path).weight
            weight = part.weight.double()
            if isinstance(part, QuantizedLinear):
                weight = weight * part.weight_scale.double()
            own.copy_(weight + deltas[path])
        others = {name: value for name, value in network.state_dict().items() if name in truth.state_dict()}
        for name, value in truth.state_dict().items():
            if name.rpartition(".")[0] not in deltas or not name.endswith("weight"):
                value.copy_(others[name])
    return view_of(network, replaced), truth


def moved(network, computing):
    torch.manual_seed(3)
    latents = torch.randn(1, 16, 8, 6)
    prompts = [torch.randn(20, 24).to(network.dtype)]
    timeline = EulerSchedule(shift=3.0).timeline(2, 12, latents.device)
    at = computing.velocities(network, timeline, prompts, latents)
    return [found for number in range(2) for found in at(latents, number)]


@pytest.mark.parametrize("computing", [EXACT, FAST], ids=["exact", "fast"])
@pytest.mark.parametrize(
    ("dtype", "quantized", "close"),
    [
        (torch.float32, None, 1e-4), (torch.bfloat16, None, 0.03), (torch.float16, None, 0.005),
        (torch.bfloat16, torch.float8_e4m3fn, 0.12), (torch.bfloat16, torch.int8, 0.05),
    ],
    ids=["fp32", "bf16", "fp16", "fp8", "int8"],
)  # fmt: skip
def test_every_precision_and_way_adds_the_product_of_the_factors(dtype, quantized, close, computing):
    with torch.inference_mode():
        network = networks_of(dtype, quantized)
        view, truth = adapted_by_hand(network, dtype)
        found, expected, plain = moved(view, computing), moved(truth.float(), EXACT), moved(network, computing)
        assert error(found, expected) < close < error(plain, expected)


def test_rows_of_fp8_with_scales_get_the_product_of_what_they_stand_for():
    torch.manual_seed(1)
    x, weight = torch.randn(2, 5, 32), torch.randn(24, 32)
    down, up = torch.randn(4, 32), torch.randn(24, 4)
    with torch.inference_mode():
        scaled = Scaled.of(x)
        layer = QuantizedLinear.of(weight)
        found = AdaptedLinear(layer, Down(down, torch.full((4,), 0.5)), up)(scaled)
        expected = layer(scaled) + scaled.float() @ down.t() @ up.t() * 0.5
    assert error(found, expected) < 0.01


def test_a_view_shares_all_that_no_lora_changes():
    network = networks.transformer(torch.float32)
    changed = "layers.0.attention.to_q"
    down, up = Down(torch.zeros(2, 48), torch.ones(2)), torch.zeros(48, 2)
    view = view_of(network, {changed: AdaptedLinear(network.get_submodule(changed), down, up)})
    assert type(view) is type(network)
    assert isinstance(view.get_submodule(changed), AdaptedLinear)
    assert type(network.get_submodule(changed)) is not AdaptedLinear
    assert view.layers[1] is network.layers[1]
    assert view.layers[0].feed_forward is network.layers[0].feed_forward
    own = {parameter.data_ptr() for parameter in network.parameters()}
    assert {parameter.data_ptr() for parameter in view.parameters()} == own


def test_the_order_of_the_loras_of_a_view_is_that_of_their_scales(factory, tiny_versions, loras):
    engine = build(factory, tiny_versions, "v1")
    both = drawn(engine, loras, ink=0.9, night=0.0)
    assert psnr(both, drawn(engine, loras, ink=0.9)) > 40
    assert psnr(drawn(engine, loras, night=0.0, ink=0.9), both) > 40


def test_a_lora_of_some_layers_and_one_of_all_are_drawn_together(factory, tiny_versions, loras):
    write_lora(loras.path, "all", tiny_versions / "v1/transformer", 3, 5, of=lambda module: True)
    engine = build(factory, tiny_versions, "v1")
    assert misfit(loras.open_lora("all").matrices, engine.linear_shapes) is None
    both = drawn(engine, loras, all=0.5, ink=1.0)
    assert psnr(both, drawn(engine, loras, all=0.5)) < 40


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_factors_of_other_dtypes_are_converted(factory, tiny_versions, tmp_path, dtype):
    write_lora(tmp_path / "loras", "ink", tiny_versions / "v1/transformer", 4, 1, dtype=dtype)
    root = LoraRoot(tmp_path / "loras")
    engine = build(factory, tiny_versions, "v1")
    write_lora(tmp_path / "others", "ink", tiny_versions / "v1/transformer", 4, 1, dtype="BF16")
    found, expected = drawn(engine, root, ink=1.0), drawn(engine, LoraRoot(tmp_path / "others"), ink=1.0)
    assert np.array_equal(found, expected) or (dtype == "F16" and psnr(found, expected) > 35)
    assert factory.loras.verify() == (factory.loras.nbytes, [])


# --- where they are kept


def test_one_is_read_once_for_all_engines_and_requests(factory, tiny_versions, loras, caplog):
    caplog.set_level("INFO")
    v1, v2 = (build(factory, tiny_versions, name) for name in ("v1", "v2"))
    for engine in (v1, v2, v1):
        drawn(engine, loras, ink=1.0)
    assert caplog.text.count("loaded the LoRA ink") == 1
    assert list(factory.loras.residents) == [loras.open_lora("ink").digest]
    views = sum(view.nbytes for view in factory.loras._all_views())
    assert factory.loras.nbytes == sum(factory.loras.residents.values()) + views


def test_its_bytes_count_as_weights_and_are_given_back(factory, tiny_versions, loras):
    engine = build(factory, tiny_versions, "v1")
    before = factory.device.weights_bytes
    drawn(engine, loras, ink=1.0, night=1.0)
    assert factory.device.weights_bytes - before == factory.loras.nbytes > 0
    assert factory.loras.give_room()
    gc.collect()
    assert factory.device.weights_bytes == before
    assert factory.loras.residents == {}


def test_the_least_recently_used_goes_when_there_is_no_room(tiny_versions, loras):
    factory = EngineFactory(Device("cpu"))
    engine = build(factory, tiny_versions, "v1")
    write_lora(loras.path, "third", tiny_versions / "v1/transformer", 4, 9)
    drawn(engine, loras, ink=1.0)
    factory.loras.most_bytes = factory.loras.nbytes + 30_000
    drawn(engine, loras, night=1.0)
    drawn(engine, loras, ink=1.0)
    drawn(engine, loras, third=1.0)
    names = {loras.open_lora(name).digest: name for name in ("ink", "night", "third")}
    assert {names[digest] for digest in factory.loras.residents} == {"ink", "third"}


def test_what_a_request_draws_with_stays(tiny_versions, loras):
    factory = EngineFactory(Device("cpu"))
    engine = build(factory, tiny_versions, "v1")
    view = factory.loras.load(engine.pipeline.transformer, opened(loras, "ink"))
    with factory.loras.used(view):
        assert not factory.loras.give_room()
        factory.loras.most_bytes = 80_000  # more than each of them takes, and less than both
        code, reason = rejection_of(lambda: factory.loras.load(engine.pipeline.transformer, opened(loras, "night")))
        assert code == "insufficient_memory"
        assert "night" in reason
    factory.loras.load(engine.pipeline.transformer, opened(loras, "night"))


def test_a_memory_budget_holds_for_loras_too(tiny_versions, loras):
    plain = EngineFactory(Device("cpu"))
    needed = build(plain, tiny_versions, "v1").nbytes
    factory = EngineFactory(Device("cpu", budget=needed + 1000))
    engine = build(factory, tiny_versions, "v1")
    code, reason = rejection_of(lambda: factory.loras.load(engine.pipeline.transformer, opened(loras, "ink")))
    assert code == "insufficient_memory"
    assert "the LoRA ink" in reason


def test_a_version_that_needs_their_memory_gets_it(tiny_versions, loras):
    plain = EngineFactory(Device("cpu"))
    needed = build(plain, tiny_versions, "v1").nbytes
    factory = EngineFactory(Device("cpu", budget=needed + 200_000))
    from zwatch.deploy.look import open_version
    from zwatch.deploy.seal import read_seal

    engine = build(factory, tiny_versions, "v1")
    factory.loras.load(engine.pipeline.transformer, opened(loras, "ink"))
    engine.close()
    del engine
    gc.collect()
    factory.device.budget = needed
    directory = open_version(tiny_versions, "v1")
    planned = factory.plan(directory, read_seal(directory.fd).digest)
    assert not factory.lacks(planned)
    assert factory.loras.residents == {}


def test_a_byte_that_is_not_the_seals_is_not_drawn_with(factory, tiny_versions, loras):
    engine = build(factory, tiny_versions, "v1")
    [lora] = opened(loras, "ink")
    path = loras.path / "ink/lora.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    code, reason = rejection_of(lambda: factory.loras.load(engine.pipeline.transformer, [lora]))
    assert code == "hash_mismatch"
    assert reason.startswith("ink/lora.safetensors: blake3 is ")
    assert factory.loras.residents == {}


def test_any_file_that_its_seal_names_is_verified(factory, tiny_versions, loras):
    engine = build(factory, tiny_versions, "v1")
    [lora] = opened(loras, "ink")
    (loras.path / "ink/zwatch.json").write_text("{}")
    assert rejection_of(lambda: factory.loras.load(engine.pipeline.transformer, [lora]))[0] == "hash_mismatch"


def test_what_is_resident_can_be_hashed_again_and_a_change_is_found(factory, tiny_versions, loras):
    engine = build(factory, tiny_versions, "v1")
    plain = drawn(engine, loras, ink=1.0, night=0.5)
    total, problems = engine.verify_resident()
    assert problems == []
    assert total == engine.nbytes + factory.loras.nbytes
    lora = next(iter(factory.loras._loras.values()))
    with torch.inference_mode():
        next(iter(lora.tensors.values()))[0, 0] += 1
    _, [problem] = engine.verify_resident()
    assert problem.startswith("ink/lora.safetensors: ")
    assert np.array_equal(drawn(engine, loras, ink=1.0, night=0.5), plain)  # it was read again


def test_a_change_of_what_was_joined_is_found(factory, tiny_versions, loras):
    engine = build(factory, tiny_versions, "v1")
    plain = drawn(engine, loras, ink=1.0, night=0.5)
    [view] = factory.loras._all_views()
    with torch.inference_mode():
        view.packed.down[0][0, 0] += 1
    _, [problem] = engine.verify_resident()
    assert "ink and night" in problem
    assert np.array_equal(drawn(engine, loras, ink=1.0, night=0.5), plain)


def test_an_engine_that_is_closed_is_freed_with_its_views(factory, tiny_versions, loras):
    engine = build(factory, tiny_versions, "v1")
    drawn(engine, loras, ink=1.0)
    gc.collect()
    engine.close()
    assert factory.loras._all_views() == []
    assert factory.device.weights_bytes == factory.loras.nbytes


def test_sealed_anew_it_is_another_lora(factory, tiny_versions, loras):
    engine = build(factory, tiny_versions, "v1")
    before = drawn(engine, loras, ink=1.0)
    write_lora(loras.path, "ink", tiny_versions / "v1/transformer", 4, 77)
    assert not np.array_equal(drawn(engine, loras, ink=1.0), before)


def test_the_prompts_that_are_kept_are_the_same_with_loras(tiny_versions, loras):
    factory = EngineFactory(Device("cpu"), exact=False)
    engine = build(factory, tiny_versions, "v1")
    drawn(engine, loras, is_request=True)
    kept = dict(factory.acceleration.prompts._kept)
    drawn(engine, loras, is_request=True, ink=1.0)
    assert len(kept) == 1
    assert factory.acceleration.prompts._kept.keys() == kept.keys()


@pytest.mark.parametrize("quantize", ["fp8", "int8"])
def test_it_is_drawn_beside_quantized_weights(tiny_versions, loras, quantize):
    engine = build(EngineFactory(Device("cpu"), precision=Precision("auto", quantize)), tiny_versions, "v1")
    full = build(EngineFactory(Device("cpu")), tiny_versions, "v1")
    found, plain = drawn(engine, loras, ink=1.0), drawn(engine, loras)
    expected = drawn(full, loras, ink=1.0)
    assert psnr(found, expected) > psnr(plain, expected)


def test_one_that_does_not_fit_is_described_with_names_and_shapes():
    from zwatch.deploy.loras import Matrix

    shapes = {"a.to_q": (64, 32), "a.to_k": (64, 32)}
    assert misfit({"a.to_q": Matrix(4, 64, 32)}, shapes) is None
    text = misfit({"a.to_q": Matrix(4, 64, 48), "b.to_q": Matrix(4, 64, 32)}, shapes)
    assert text == "a.to_q is [64, 32], the LoRA is for [64, 48]; there is no b.to_q [64, 32]"
    many = misfit({f"c.{number}": Matrix(4, 64, 32) for number in range(9)}, shapes)
    assert many.endswith("; and 6 more of its matrices")


@pytest.mark.parametrize("rank", [1, 3, 8, 13])
def test_ranks_of_every_size_are_filled_up_and_draw_the_same(factory, tiny_versions, tmp_path, rank):
    write_lora(
        tmp_path / "loras", "ink", tiny_versions / "v1/transformer", rank, 1, dtype="F32", of=lambda module: True
    )
    root = LoraRoot(tmp_path / "loras")
    engine = build(EngineFactory(Device("cpu"), precision=Precision("fp32")), tiny_versions, "v1")
    network = engine.pipeline.transformer
    view = engine._acceleration.loras.load(network, opened(root, "ink"))
    tensors = load_file(root.path / "ink/lora.safetensors")
    with torch.inference_mode():
        network = view.scaled([0.5])
    changed = [(path, part) for path, part in network.named_modules() if isinstance(part, AdaptedLinear)]
    assert len(changed) == len(tensors) // 2
    with torch.inference_mode():
        for path, part in changed:
            torch.manual_seed(1)
            x = torch.randn(2, 3, part.weight.shape[1])
            down, up = tensors[f"{path}.lora_A.weight"], tensors[f"{path}.lora_B.weight"]
            expected = part.linear(x) + x @ down.t() @ up.t() * 0.5
            assert error(part(x), expected) < 1e-5
            assert part.up.shape[1] % 8 == 0
        attention = network.get_submodule("layers.0.attention")
        layers = attention.to_q, attention.to_k, attention.to_v
        x = torch.randn(2, 3, attention.to_q.weight.shape[1])
        found = products(x, layers)
        assert error(torch.cat(found), torch.cat([layer(x) for layer in layers])) < 1e-6
        assert attention.to_q.shared is attention.to_v.shared
