"""Components: built from the views without a second copy, shared where equal, refused where they do not fit."""

import gc
import json
import shutil
import weakref

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.engine.editing import (
    TEXT_ENCODER,
    TRANSFORMER,
    VAE,
    build,
    edit_json,
    edit_tensors,
    parameters,
    rejection_of,
    seal_again,
)
from zwatch.deploy.look import open_version
from zwatch.deploy.seal import read_seal
from zwatch.engine.components import config_object
from zwatch.engine.factory import EngineFactory
from zwatch.errors import Abandoned
from zwatch.shadow.buffers import KERNEL_ALIGNMENT
from zwatch.shadow.device import CpuMemory, Device
from zwatch.shadow.loader import LoadControl

BUDGET = 256 * 2**20


@pytest.fixture
def factory():
    return EngineFactory(Device("cpu", budget=BUDGET))


@pytest.fixture
def without_collector():
    """Memory must be freed immediately without the collector: a full Z-Image cannot wait for the collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def weights_bytes(factory):
    return BUDGET - factory.device.memory()[0]


def components(engine):
    return {component.key.component: component for component in engine.components}


def pixels(engine, wanted=None):
    return np.asarray(engine.generate(wanted or parameters()).images[0])


# --- no second copy


@pytest.mark.parametrize("name", ["text_encoder", "vae", "transformer"])
def test_every_parameter_is_a_view_into_the_buffers(factory, tiny_versions, name):
    component = components(build(factory, tiny_versions, "v1"))[name]
    ours = {
        memory.untyped_storage().data_ptr()
        for buffer in component.buffers
        for memory in (buffer.data, buffer.derived)
        if memory is not None
    }
    parameters_ = dict(component.module.named_parameters())
    assert parameters_
    assert {key for key, value in parameters_.items() if value.untyped_storage().data_ptr() not in ours} == set()
    assert {value.data_ptr() % KERNEL_ALIGNMENT for value in parameters_.values()} == {0}
    assert not any(value.requires_grad for value in parameters_.values())
    assert not component.module.training


def test_an_engine_holds_what_its_files_need_and_no_more(factory, tiny_versions):
    engine = build(factory, tiny_versions, "v1")
    assert weights_bytes(factory) == engine.nbytes == engine.plan.footprint(list(engine.plan.headers), {})


# --- sharing


def test_equal_components_are_the_same_objects_and_the_transformer_is_not(factory, tiny_versions):
    control = LoadControl()
    v1 = components(build(factory, tiny_versions, "v1"))
    v2 = components(build(factory, tiny_versions, "v2", control))
    assert {name: v1[name].module is v2[name].module for name in ("text_encoder", "vae", "transformer")} == {
        "text_encoder": True, "vae": True, "transformer": False,
    }  # fmt: skip
    assert sorted(control.shared) == ["text_encoder", "vae"]


def test_a_second_version_costs_only_its_transformer(factory, tiny_versions):
    v1 = build(factory, tiny_versions, "v1")
    before = weights_bytes(factory)
    v2 = build(factory, tiny_versions, "v2")
    assert weights_bytes(factory) - before == components(v2)["transformer"].nbytes
    assert v1.nbytes == v2.nbytes


def test_a_tokenizer_is_shared_and_never_copied(factory, tiny_versions):
    v1, v2 = build(factory, tiny_versions, "v1"), build(factory, tiny_versions, "v2")
    assert v1.pipeline.tokenizer is v2.pipeline.tokenizer


def test_another_config_with_equal_weights_shares_the_weights_and_nothing_else(factory, models):
    v1 = build(factory, models, "v1")
    edit_json(models / "v2/vae/config.json", lambda config: config.update(shift_factor=0.2))
    seal_again(models / "v2")
    control = LoadControl()
    v2 = build(factory, models, "v2", control)
    assert sorted(control.shared) == ["text_encoder", "vae"]
    assert v1.pipeline.vae is not v2.pipeline.vae
    assert v1.pipeline.vae.config.shift_factor != v2.pipeline.vae.config.shift_factor == 0.2
    assert components(v1)["vae"].buffers == components(v2)["vae"].buffers
    assert not np.array_equal(pixels(v1), pixels(v2))


@pytest.mark.parametrize("path", ["vae/config.json", "scheduler/scheduler_config.json", "transformer/config.json"])
def test_a_version_sealed_again_for_one_config_loads_nothing(factory, models, path):
    v1 = build(factory, models, "v1")
    before = weights_bytes(factory)
    edit_json(models / "v1" / path, lambda config: config.update(_note="tuned"))
    seal_again(models / "v1")
    control = LoadControl()
    again = build(factory, models, "v1", control)
    assert again.digest != v1.digest
    assert weights_bytes(factory) == before
    assert sorted(control.shared) == ["text_encoder", "transformer", "vae"]
    assert np.array_equal(pixels(again), pixels(v1))
    v1.close()
    assert again.verify_resident() == (again.nbytes, [])


def test_a_shared_component_is_verified_on_disk_too(factory, models):
    v1 = build(factory, models, "v1")
    data = bytearray((models / "v2" / VAE).read_bytes())
    data[-1] ^= 1
    (models / "v2" / VAE).write_bytes(data)
    code, reason = rejection_of(lambda: build(factory, models, "v2"))
    assert (code, reason.startswith(VAE)) == ("hash_mismatch", True)
    assert v1.verify_resident()[1] == []


def test_a_shared_file_whose_header_differed_at_planning_is_rejected(factory, models):
    _first = build(factory, models, "v1")
    path = models / "v2/vae/diffusion_pytorch_model.safetensors"
    sealed = path.read_bytes()
    path.write_bytes(sealed.replace(b'"pt"', b'"tp"', 1))
    directory = open_version(models, "v2")
    planned = factory.plan(directory, read_seal(directory.fd).digest)
    path.write_bytes(sealed)
    code, reason = rejection_of(lambda: factory.build(directory, planned, LoadControl()))
    assert code == "header_invalid"
    assert reason.startswith("vae/diffusion_pytorch_model.safetensors: ")


@pytest.mark.parametrize(("closed", "left"), [("v1", "v2"), ("v2", "v1")])
def test_shared_components_survive_the_close_of_the_other_engine(factory, tiny_versions, closed, left):
    engines = {name: build(factory, tiny_versions, name) for name in ("v1", "v2")}
    expected = pixels(engines[left])
    engines[closed].close()
    del engines[closed]
    assert np.array_equal(pixels(engines[left]), expected)
    assert weights_bytes(factory) == engines[left].nbytes


def test_closing_an_engine_frees_its_components_at_once(factory, tiny_versions, without_collector):
    engine = build(factory, tiny_versions, "v1")
    pixels(engine)
    watched = {name: weakref.ref(component) for name, component in components(engine).items()}
    engine.close()
    assert {name for name, reference in watched.items() if reference() is not None} == set()
    assert weights_bytes(factory) == 0


def test_closing_an_engine_releases_its_modules_immediately(factory, tiny_versions, without_collector):
    engine = build(factory, tiny_versions, "v1")
    pixels(engine)
    watched = {name: weakref.ref(getattr(engine.pipeline, name)) for name in ("transformer", "vae", "text_encoder")}
    weights = weakref.ref(next(engine.pipeline.transformer.parameters()))
    engine.close()
    assert {name for name, reference in watched.items() if reference() is not None} == set()
    assert weights() is None


def test_closing_frees_only_what_no_other_engine_shares(factory, tiny_versions, without_collector):
    v1, v2 = build(factory, tiny_versions, "v1"), build(factory, tiny_versions, "v2")
    watched = {name: weakref.ref(component) for name, component in components(v1).items()}
    v1.close()
    assert {name for name, reference in watched.items() if reference() is None} == {"transformer"}
    v2.close()
    assert {name for name, reference in watched.items() if reference() is not None} == set()


def test_a_version_loaded_again_after_its_close_is_read_again(factory, tiny_versions):
    first = build(factory, tiny_versions, "v1")
    expected = pixels(first)
    first.close()
    control = LoadControl()
    assert np.array_equal(pixels(build(factory, tiny_versions, "v1", control)), expected)
    assert control.shared == []
    assert control.bytes_done == control.bytes_total > 0


# --- what is refused


def tensors_of(path):
    return lambda change: lambda version: edit_tensors(version / path, change)


def config_of(path, **changes):
    return lambda version: edit_json(version / path, lambda config: config.update(changes))


def without(name):
    return lambda tensors: {key: value for key, value in tensors.items() if key != name}


def index_without(name):
    return lambda version: edit_json(version / "model_index.json", lambda index: index.pop(name))


def no_chat_template(version):
    (version / "tokenizer/chat_template.jinja").unlink()


X_PAD = "x_pad_token"
BROKEN = {
    "no index": (
        lambda v: (v / "model_index.json").unlink(), "file_missing", "model_index.json"),
    "index no JSON": (
        lambda v: (v / "model_index.json").write_text("{"), "config_invalid", "model_index.json"),
    "another pipeline": (
        config_of("model_index.json", _class_name="FluxPipeline"), "class_not_allowed", "FluxPipeline"),
    "another transformer": (
        config_of("model_index.json", transformer=["diffusers", "FluxTransformer2DModel"]),
        "class_not_allowed", "FluxTransformer2DModel"),
    "a class from elsewhere": (
        config_of("model_index.json", vae=["my_code", "AutoencoderKL"]), "class_not_allowed", "my_code"),
    "a class from a hub module": (
        config_of("model_index.json", vae=["diffusers_modules.local.evil", "AutoencoderKL"]),
        "class_not_allowed", "diffusers_modules"),
    "a class that is no pair": (
        config_of("model_index.json", vae="AutoencoderKL"), "class_not_allowed", "vae"),
    "a nested class": (
        config_of("model_index.json", vae=[["diffusers"], "AutoencoderKL"]), "class_not_allowed", "vae"),
    "a component less": (index_without("vae"), "config_invalid", "vae"),
    "a component more": (
        config_of("model_index.json", safety_checker=["diffusers", "X"]), "config_invalid", "safety_checker"),
    "no transformer config": (
        lambda v: (v / "transformer/config.json").unlink(), "file_missing", "transformer/config.json"),
    "no tokenizer config": (
        lambda v: (v / "tokenizer/tokenizer_config.json").unlink(), "file_missing", "tokenizer_config.json"),
    "no VAE weights": (lambda v: (v / VAE).unlink(), "file_missing", VAE),
    "config no object": (lambda v: (v / "vae/config.json").write_text("[1]"), "config_invalid", "vae/config.json"),
    "a transformer of another width": (
        config_of("transformer/config.json", cap_feat_dim=48), "weights_mismatch", "has the shape"),
    "a transformer of more layers": (
        config_of("transformer/config.json", n_layers=3), "weights_mismatch", "lack"),
    "a transformer of fewer layers": (
        config_of("transformer/config.json", n_layers=1), "weights_mismatch", "the config does not"),
    "a text encoder of another width": (
        config_of("text_encoder/config.json", intermediate_size=65), "weights_mismatch", "text_encoder"),
    "a tensor missing": (
        tensors_of(TRANSFORMER)(without(X_PAD)), "weights_mismatch", X_PAD),
    "a tensor too many": (
        tensors_of(VAE)(lambda tensors: tensors | {"surplus": torch.zeros(1)}), "weights_mismatch", "surplus"),
    "a tensor of another shape": (
        tensors_of(TRANSFORMER)(lambda tensors: tensors | {X_PAD: torch.zeros(1, 65)}), "weights_mismatch", X_PAD),
    "a tensor of whole numbers": (
        tensors_of(TRANSFORMER)(lambda tensors: tensors | {X_PAD: tensors[X_PAD].to(torch.int32)}),
        "weights_mismatch", X_PAD),
    "a head that a decoder has besides": (
        tensors_of(TEXT_ENCODER)(lambda tensors: tensors | {"lm_head.weight": torch.zeros(1)}),
        "weights_mismatch", "lm_head.weight"),
    "heads that diffusers refuses": (
        config_of("transformer/config.json", axes_dims=[8, 8, 8]), "config_invalid", "transformer/config.json"),
    "a width that is a word": (
        config_of("transformer/config.json", dim="wide"), "config_invalid", "transformer/config.json"),
    "a VAE that diffusers refuses": (
        config_of("vae/config.json", down_block_types=["NoSuchBlock"] * 4), "config_invalid", "vae/config.json"),
    "a text encoder that transformers refuses": (
        config_of("text_encoder/config.json", hidden_act="no such"), "config_invalid", "text_encoder/config.json"),
    "a scheduler that diffusers refuses": (
        config_of("scheduler/scheduler_config.json", shift="much", num_train_timesteps="x"),
        "config_invalid", "scheduler"),
    "a tokenizer that is none": (
        lambda v: (v / "tokenizer/tokenizer.json").write_text("{}"), "config_invalid", "tokenizer"),
    "a tokenizer without chat template": (no_chat_template, "config_invalid", "chat template"),
    "a default size that is none": (config_of("vae/config.json", sample_size=100), "config_invalid", "default size"),
}  # fmt: skip


@pytest.mark.parametrize(("harm", "code", "names"), BROKEN.values(), ids=BROKEN.keys())
def test_a_version_that_does_not_fit_together_is_rejected_and_nothing_is_held(
    factory, models, without_collector, harm, code, names
):
    harm(models / "v1")
    seal_again(models / "v1")
    found_code, reason = rejection_of(lambda: build(factory, models, "v1"))
    assert (found_code, reason) == (code, reason)
    assert names in reason
    assert weights_bytes(factory) == 0


def test_rejecting_a_version_leaves_what_it_shares_alone(factory, models):
    v1 = build(factory, models, "v1")
    expected, before = pixels(v1), weights_bytes(factory)
    edit_tensors(models / "v2" / TRANSFORMER, without(X_PAD))
    seal_again(models / "v2")
    assert rejection_of(lambda: build(factory, models, "v2"))[0] == "weights_mismatch"
    assert weights_bytes(factory) == before
    assert np.array_equal(pixels(v1), expected)


def test_abandoning_while_components_are_built_frees_everything(factory, tiny_versions, without_collector):
    control = LoadControl(lambda: control.abandon() if control.bytes_done == control.bytes_total > 10**6 else None)
    try:
        build(factory, tiny_versions, "v1", control)
    except Abandoned:
        pass
    assert control.is_abandoned
    assert weights_bytes(factory) == 0


# --- shards, and files as others save them


def shard(version, names=("a.safetensors", "b.safetensors")):
    """Spread the transformer over two files by a shard index."""
    tensors = load_file(version / TRANSFORMER)
    parts = {names[0]: dict(list(tensors.items())[::2]), names[1]: dict(list(tensors.items())[1::2])}
    for name, part in parts.items():
        save_file(part, version / "transformer" / name, {"format": "pt"})
    (version / TRANSFORMER).unlink()
    weight_map = {tensor: name for name, part in parts.items() for tensor in part}
    (version / f"{TRANSFORMER}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return parts


def test_a_sharded_transformer_makes_the_same_image(factory, models):
    expected = pixels(build(factory, models, "v1"))
    shard(models / "v1")
    seal_again(models / "v1")
    engine = build(factory, models, "v1")
    assert len(components(engine)["transformer"].buffers) == 2
    assert np.array_equal(pixels(engine), expected)


def test_a_tensor_in_two_shards_is_refused(factory, models):
    parts = shard(models / "v1")
    twice = parts["a.safetensors"] | {name: parts["b.safetensors"][name] for name in list(parts["b.safetensors"])[:1]}
    save_file(twice, models / "v1/transformer/a.safetensors", {"format": "pt"})
    seal_again(models / "v1")
    code, reason = rejection_of(lambda: build(factory, models, "v1"))
    assert code == "weights_mismatch"
    assert "in two shards" in reason


@pytest.mark.parametrize("name", ["c.safetensors", "../vae/diffusion_pytorch_model.safetensors", "/etc/passwd"])
def test_a_shard_that_the_seal_does_not_name_below_the_component_is_refused(factory, models, name):
    shard(models / "v1")
    edit_json(models / "v1" / f"{TRANSFORMER}.index.json", lambda index: index["weight_map"].update({X_PAD: name}))
    seal_again(models / "v1")
    code, reason = rejection_of(lambda: build(factory, models, "v1"))
    assert (code, name in reason) == ("file_missing", True)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["a"]}], ids=json.dumps)
def test_a_shard_index_without_a_weight_map_is_refused(factory, models, index):
    shard(models / "v1")
    (models / "v1" / f"{TRANSFORMER}.index.json").write_text(json.dumps(index))
    seal_again(models / "v1")
    assert rejection_of(lambda: build(factory, models, "v1"))[0] == "config_invalid"


@pytest.mark.parametrize("head", [True, False], ids=["with a head", "tied"])
def test_a_text_encoder_saved_from_the_language_model_makes_the_same_image(factory, models, head):
    expected = pixels(build(factory, models, "v1"))

    def as_language_model(tensors):
        prefixed = {f"model.{name}": tensor for name, tensor in tensors.items()}
        return prefixed | ({"lm_head.weight": torch.zeros(384, 32)} if head else {})

    edit_tensors(models / "v1" / TEXT_ENCODER, as_language_model)
    seal_again(models / "v1")
    assert np.array_equal(pixels(build(factory, models, "v1")), expected)


def test_the_text_encoders_class_may_only_be_what_is_listed(factory, models):
    edit_json(
        models / "v1/model_index.json", lambda index: index.update(text_encoder=["transformers", "Qwen3ForCausalLM"])
    )
    seal_again(models / "v1")
    assert rejection_of(lambda: build(factory, models, "v1"))[0] == "class_not_allowed"


def test_a_file_that_the_seal_does_not_name_is_never_opened(factory, models):
    expected = pixels(build(factory, models, "v1"))
    (models / "v1/transformer/surplus.safetensors").write_bytes(b"rubbish")
    (models / "v1/tokenizer/special_tokens_map.json").write_bytes(b"rubbish")
    (models / "v1/zwatch.json").write_bytes(b"rubbish")
    assert np.array_equal(pixels(build(EngineFactory(Device("cpu")), models, "v1")), expected)


@pytest.mark.parametrize("size", [16, 128, 4096])
def test_a_version_may_have_its_own_default_size(factory, models, size):
    (models / "v1/zwatch.json").write_text(json.dumps({"default_size": size}))
    seal_again(models / "v1")
    assert build(factory, models, "v1").default_size == size


@pytest.mark.parametrize("size", [0, -64, 100, 4112, 64.0, "64", True, None])
def test_a_default_size_that_no_image_can_have_is_refused(factory, models, size):
    (models / "v1/zwatch.json").write_text(json.dumps({"default_size": size}))
    seal_again(models / "v1")
    assert rejection_of(lambda: build(factory, models, "v1"))[0] == "config_invalid"


# --- memory


def test_too_little_memory_is_rejected_with_both_byte_counts_before_anything_is_allocated(tiny_versions):
    factory = EngineFactory(Device("cpu", budget=10_000))
    control = LoadControl()
    code, reason = rejection_of(lambda: build(factory, tiny_versions, "v1", control))
    enough = EngineFactory(Device("cpu"))
    needed = build(enough, tiny_versions, "v1").nbytes
    assert code == "insufficient_memory"
    assert f"needs {needed} bytes" in reason
    assert "10000 of 10000 are free" in reason
    assert (control.bytes_done, factory.device.memory()[0]) == (0, 10_000)


def test_shared_components_need_no_memory(tiny_versions):
    first = EngineFactory(Device("cpu"))
    both = build(first, tiny_versions, "v1").nbytes
    transformer = components(build(first, tiny_versions, "v2"))["transformer"].nbytes
    factory = EngineFactory(Device("cpu", budget=both + transformer))
    engines = [build(factory, tiny_versions, name) for name in ("v1", "v2")]
    assert [engine.version for engine in engines] == ["v1", "v2"]


class SmallMemory(CpuMemory):
    """A device whose memory is half free."""

    def __init__(self, free):
        self.free = free

    def unused(self):
        return self.free, 2 * self.free


def test_memory_for_making_images_is_left_free(tiny_versions):
    needed = build(EngineFactory(Device("cpu")), tiny_versions, "v1").nbytes
    factory = EngineFactory(Device("cpu", memory=SmallMemory(needed)))
    factory.device.request_peak = 1
    assert rejection_of(lambda: build(factory, tiny_versions, "v1"))[0] == "insufficient_memory"


def test_memory_for_making_images_is_not_taken_from_the_weights_budget(tiny_versions):
    needed = build(EngineFactory(Device("cpu")), tiny_versions, "v1").nbytes
    factory = EngineFactory(Device("cpu", budget=needed))
    factory.device.request_peak = 10 * needed
    assert build(factory, tiny_versions, "v1").nbytes == needed


def test_a_copied_version_under_another_name_shares_all_but_the_stamped_transformer(factory, models):
    v1 = build(factory, models, "v1")
    shutil.copytree(models / "v1", models / "v3")
    seal_again(models / "v3")
    control = LoadControl()
    v3 = build(factory, models, "v3", control)
    assert sorted(control.shared) == ["text_encoder", "vae"]
    assert np.array_equal(pixels(v1), pixels(v3))


# --- configs


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'"x"', b"null", b"\xff", b"[" * 100_000], ids=lambda data: repr(data[:5])
)
def test_a_config_that_is_no_json_object_is_rejected_with_its_path(data):
    code, reason = rejection_of(lambda: config_object(data, "vae/config.json"))
    assert (code, reason.startswith("vae/config.json: ")) == ("config_invalid", True)


def test_a_config_is_parsed():
    assert config_object(json.dumps({"a": [1]}).encode(), "x") == {"a": [1]}
