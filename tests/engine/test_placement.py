"""Where the weights of a version are, when the device is small."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

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
from zwatch.deploy.contents import SCALE
from zwatch.deploy.look import open_version
from zwatch.deploy.seal import read_seal
from zwatch.engine.acceleration import kind_of
from zwatch.engine.factory import EngineFactory
from zwatch.engine.kernels import Kind
from zwatch.engine.placement import Placement
from zwatch.engine.precision import Precision
from zwatch.shadow import device as device_module
from zwatch.shadow.buffers import Footprint
from zwatch.shadow.device import CpuMemory, Device
from zwatch.shadow.host import HOST_SPARE
from zwatch.shadow.loader import LoadControl, plan
from zwatch.shadow.quantized import Rows


class Card(CpuMemory):
    """The memory of a card of its own, with so many bytes free when nothing is loaded."""

    def __init__(self, size):
        self.size = size
        self.elsewhere = 0
        """What other programs have of it."""
        self.device = None

    def unused(self):
        return self.size - self.elsewhere - self.device.weights_bytes, self.size


def card(size, **options):
    """Return a device whose memory is its own, as a GPU's."""
    memory = Card(size)
    made = memory.device = Device("cpu", memory=memory, **options)
    made.is_host_memory = False
    return made


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    """Pictures of these models need no room to speak of."""
    monkeypatch.setattr(device_module, "WORKING_ROOM", 0)


def factory(device, text_encoder="auto", quantize=None, dtype="auto"):
    return EngineFactory(device, precision=Precision(dtype, quantize), text_encoder=text_encoder)


def planned(models, name="v1"):
    directory = open_version(models, name)
    try:
        return plan(directory, read_seal(directory.fd).digest)
    finally:
        directory.close()


def bytes_of(models, quantize=None):
    """Return the bytes of all weights, and of the text encoder's."""
    return Placement(card(2**40), Precision("auto", quantize)).whole(planned(models))


def pixels(engine):
    return np.asarray(engine.generate(parameters(steps=4)).images[0])


# --- what goes where


@pytest.mark.parametrize(
    ("missing", "asked", "expected"),
    [
        (0, "auto", "device"), (1, "auto", "host"), ("text encoder", "auto", "host"), ("more", "auto", "device"),
        (1, "device", "device"), (0, "host", "host"),
    ],
)  # fmt: skip
def test_the_text_encoder_is_in_host_memory_where_the_rest_fits_only_without_it(models, missing, asked, expected):
    whole, text_encoder = bytes_of(models)
    lacking = {"text encoder": text_encoder, "more": text_encoder + 1}.get(missing, missing)
    found = Placement(card(whole - lacking), Precision(), asked).is_offloaded(planned(models))
    assert ("host" if found else "device") == expected


def test_what_making_images_needs_counts(models, monkeypatch):
    whole, _ = bytes_of(models)
    made = card(whole + 1000)
    assert not Placement(made, Precision()).is_offloaded(planned(models))
    made.request_peak = 1001
    assert Placement(made, Precision()).is_offloaded(planned(models))
    made.request_peak = 0
    monkeypatch.setattr(device_module, "WORKING_ROOM", 1001)
    assert Placement(made, Precision()).is_offloaded(planned(models))


def test_what_is_loaded_does_not_change_where_the_next_versions_text_encoder_is(models):
    whole, _ = bytes_of(models)
    made = card(whole)
    engine = build(factory(made), models, "v1")
    assert made.room == 0
    assert not Placement(made, Precision()).is_offloaded(planned(models, "v2"))
    assert engine.host_nbytes == 0


def test_on_a_cpu_and_beside_a_process_that_will_end_nothing_is_offloaded_by_itself(models):
    whole, _ = bytes_of(models)
    assert not Placement(Device("cpu", budget=whole - 1), Precision()).is_offloaded(planned(models))
    made = card(whole - 1)
    made.peak_elsewhere = 1
    assert not Placement(made, Precision()).is_offloaded(planned(models))


def test_a_version_that_fits_in_no_way_is_rejected_with_what_would_help(models):
    whole, text_encoder = bytes_of(models)
    smaller, _ = bytes_of(models, "int8")
    code, reason = rejection_of(lambda: build(factory(card(whole - text_encoder - 1)), models, "v1"))
    assert (code, f"v1 needs {whole} bytes" in reason) == ("insufficient_memory", True)
    assert reason.endswith(f"with --quantize int8 or fp8 the whole model takes {smaller} bytes")
    _, reason = rejection_of(lambda: build(factory(card(whole - 1), "device"), models, "v1"))
    assert reason.endswith(
        f"{text_encoder} of them are the text encoder's, which --text-encoder host keeps in host memory"
    )


def test_too_little_host_memory_for_the_text_encoder_is_told_before_anything_is_loaded(models):
    whole, text_encoder = bytes_of(models)
    made = card(whole - 1, host_memory=lambda: (HOST_SPARE + text_encoder - 1, 2**40))
    code, reason = rejection_of(lambda: build(factory(made), models, "v1"))
    assert (code, made.weights_bytes) == ("insufficient_memory", 0)
    assert f"v1 needs {text_encoder} bytes; its text encoder" in reason
    assert f"only {text_encoder - 1} of the host's {2**40} bytes are free" in reason


def test_too_little_host_memory_to_convert_a_file_there_is_told_before_anything_is_loaded(models):
    whole, _ = bytes_of(models, "int8")
    largest = max(Footprint.of(header).total for header in planned(models).headers.values())
    for lacking in (0, 1):
        made = Device("cpu", budget=whole, host_memory=lambda lacking=lacking: (HOST_SPARE + largest - lacking, 2**40))
        if lacking:
            code, reason = rejection_of(lambda made=made: build(factory(made, quantize="int8"), models, "v1"))
            assert (code, made.weights_bytes) == ("insufficient_memory", 0)
            assert f"v1 needs {largest} bytes; " in reason
        else:
            assert build(factory(made, quantize="int8"), models, "v1").nbytes == whole


# --- engines with an offloaded text encoder


@pytest.mark.parametrize("quantize", [None, "int8", "fp8"])
def test_a_picture_is_the_same_with_the_text_encoder_in_host_memory(models, quantize):
    whole, text_encoder = bytes_of(models, quantize)
    expected = build(factory(card(2**40), quantize=quantize), models, "v1")
    made = card(2**40)
    engine = build(factory(made, "host", quantize), models, "v1")
    assert np.array_equal(pixels(engine), pixels(expected))
    assert engine.precision == expected.precision
    assert (engine.nbytes, engine.host_nbytes) == (whole - text_encoder, text_encoder)
    assert made.weights_bytes == engine.nbytes


def test_a_device_without_room_for_the_text_encoder_draws_the_same_picture(models):
    expected = pixels(build(factory(card(2**40)), models, "v1"))
    whole, text_encoder = bytes_of(models)
    engine = build(factory(card(whole - text_encoder)), models, "v1")
    assert np.array_equal(pixels(engine), expected)
    assert (engine.nbytes, engine.host_nbytes) == (whole - text_encoder, text_encoder)


def test_the_librarys_text_encoder_can_be_in_host_memory_too(models):
    edit_json(models / "v1" / "text_encoder" / "config.json", lambda config: config.update(a_new_field=1))
    seal_again(models / "v1")
    whole, text_encoder = bytes_of(models)
    expected = pixels(build(factory(card(2**40)), models, "v1"))
    assert np.array_equal(pixels(build(factory(card(whole - text_encoder)), models, "v1")), expected)


def test_the_fast_way_draws_with_it_too(models):
    whole, text_encoder = bytes_of(models)
    made = card(whole - text_encoder)
    fast = EngineFactory(made, exact=False)
    engine = build(fast, models, "v1")
    kind = kind_of(engine.pipeline)
    assert kind is not None
    assert kind == replace(kind_of(build(factory(card(2**40)), models, "v1").pipeline), is_offloaded=True)
    kept = json.loads(json.dumps(asdict(kind)))
    assert Kind.read(kept) == kind
    del kept["is_offloaded"]  # as an earlier build wrote it
    assert Kind.read(kept) == replace(kind, is_offloaded=False)
    first, again = (engine.serve(parameters(steps=4)).images[0] for _ in range(2))  # the second from the prompt cache
    assert np.array_equal(np.asarray(first), np.asarray(again))


def test_its_weights_are_verified_too(models):
    whole, _ = bytes_of(models)
    engine = build(factory(card(whole - 1)), models, "v1")
    assert engine.verify_resident() == (whole, [])
    [encoder] = [component for component in engine.components if component.is_offloaded]
    encoder.buffers[0].data[-1] ^= 1
    count, [problem] = engine.verify_resident()
    assert count == whole
    assert problem.startswith(f"{TEXT_ENCODER}: blake3 in host memory is ")


def test_what_is_not_as_sealed_is_rejected_and_nothing_is_held(models):
    path = models / "v1" / TEXT_ENCODER
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    whole, _ = bytes_of(models)
    made = card(whole - 1)
    code, reason = rejection_of(lambda: build(factory(made), models, "v1"))
    assert (code, TEXT_ENCODER in reason, made.weights_bytes) == ("hash_mismatch", True, 0)


def test_versions_share_it(models):
    whole, text_encoder = bytes_of(models)
    made = card(2 * whole - text_encoder)
    asked = factory(made, "host")
    one, two = build(asked, models, "v1"), build(asked, models, "v2")
    parts = [next(part for part in engine.components if part.is_offloaded) for engine in (one, two)]
    assert parts[0] is parts[1]


def crowded(models, size):
    """Return a card with room for all weights but one byte, of a size that is enough for more."""
    made = card(size)
    made._memory.elsewhere = size - bytes_of(models)[0] + 1
    return made


def test_a_version_that_is_loaded_when_others_have_freed_the_card_has_its_text_encoder_there(models, caplog):
    expected = pixels(build(factory(card(2**40)), models, "v2"))
    whole, text_encoder = bytes_of(models)
    made = crowded(models, 3 * whole)
    asked = factory(made)
    with caplog.at_level("INFO"):
        old = build(asked, models, "v1")
    assert old.host_nbytes == text_encoder
    [record] = [record for record in caplog.records if "stays in host memory" in record.getMessage()]
    assert (record.levelname, "if nothing else uses it" in record.getMessage()) == ("WARNING", True)
    made._memory.elsewhere = 0
    new = build(asked, models, "v2")
    assert (new.nbytes, new.host_nbytes) == (whole, 0)
    assert np.array_equal(pixels(new), expected)
    assert old.host_nbytes == text_encoder
    assert next(iter(build(asked, models, "v1").components)) in new.components


def test_its_bytes_count_when_room_is_looked_for(models):
    whole, text_encoder = bytes_of(models)
    made = crowded(models, 3 * whole)
    asked = factory(made)
    old = build(asked, models, "v1")
    one, two = planned(models), planned(models, "v2")
    own = sum(
        Footprint.of(header).total
        for path, header in two.headers.items()
        if two.seal.files[path] not in one.seal.files.values()
    )
    for lacking in (0, 1):
        made._memory.elsewhere = 3 * whole - old.nbytes - text_encoder - own + lacking
        assert asked.lacks(two) == bool(lacking)
    assert not asked.lacks(one)


def test_a_version_shares_a_text_encoder_in_host_memory_that_has_no_place_on_the_device_yet(models):
    whole, text_encoder = bytes_of(models)
    made = card(whole - text_encoder)
    asked = factory(made)
    old = build(asked, models, "v1")
    made.request_peak = 1  # more than there is beside it
    again = build(asked, models, "v1")
    assert again.components[0] in old.components
    assert (again.host_nbytes, made.weights_bytes) == (text_encoder, whole - text_encoder)


def test_a_card_that_is_too_small_is_told_without_a_warning(models, caplog):
    with caplog.at_level("INFO"):
        build(factory(card(bytes_of(models)[0] - 1)), models, "v1")
    [record] = [record for record in caplog.records if "stays in host memory" in record.getMessage()]
    assert (record.levelname, "nothing else" in record.getMessage()) == ("INFO", False)


@pytest.mark.parametrize("changed", [False, True], ids=["the same text encoder", "another text encoder"])
def test_versions_change_places_on_a_device_with_room_for_one_without_its_text_encoder(models, changed):
    if changed:
        edit_tensors(models / "v2" / TEXT_ENCODER, lambda tensors: {name: one * 0.5 for name, one in tensors.items()})
        seal_again(models / "v2")
    expected = pixels(build(factory(card(2**40)), models, "v2"))
    whole, text_encoder = bytes_of(models)
    made = card(whole - text_encoder)
    asked = factory(made)
    old = build(asked, models, "v1")
    directory = open_version(models, "v2")
    try:
        new_plan = asked.plan(directory, read_seal(directory.fd).digest)
        assert asked.lacks(new_plan)
        assert asked.fits_instead(new_plan, old, [])
        staged = asked.stage(directory, new_plan, LoadControl(), old, [])
        new = asked.exchange(old, [], staged, LoadControl())
    finally:
        directory.close()
    assert np.array_equal(pixels(new), expected)
    assert new.verify_resident() == (whole, [])
    assert made.weights_bytes == whole - text_encoder
    assert new.host_nbytes == text_encoder


def test_an_exchange_that_fails_leaves_the_old_version_as_it_was(models):
    expected = pixels(build(factory(card(2**40)), models, "v1"))
    edit_tensors(
        models / "v2" / TRANSFORMER,
        lambda tensors: {name: torch.full_like(one, float("nan")) for name, one in tensors.items()},
    )
    seal_again(models / "v2")
    whole, text_encoder = bytes_of(models)
    made = card(whole - text_encoder)
    asked = factory(made)
    old = build(asked, models, "v1")
    directory = open_version(models, "v2")
    try:
        new_plan = asked.plan(directory, read_seal(directory.fd).digest)
        staged = asked.stage(directory, new_plan, LoadControl(), old, [])
        assert rejection_of(lambda: asked.exchange(old, [], staged, LoadControl()))[0] == "bad_image"
    finally:
        directory.close()
    assert np.array_equal(pixels(old), expected)
    assert old.verify_resident() == (whole, [])


# --- the way of files that are converted


class Watched(Device):
    """A device that notes the most bytes that it held."""

    most = 0

    def allocate(self, owner, size):
        made = super().allocate(owner, size)
        self.most = max(self.most, self.weights_bytes)
        return made


@pytest.mark.parametrize("quantize", ["int8", "fp8"])
def test_with_room_for_what_is_made_alone_files_are_converted_from_host_memory(models, quantize):
    expected = build(factory(Device("cpu"), quantize=quantize), models, "v1")
    whole = expected.nbytes
    made = Watched("cpu", budget=whole)
    engine = build(factory(made, quantize=quantize), models, "v1")
    assert np.array_equal(pixels(engine), pixels(expected))
    assert engine.verify_resident() == (whole, [])
    assert made.most == whole


def test_with_room_for_one_file_more_files_are_converted_on_the_device_one_by_one(models):
    whole = build(factory(Device("cpu"), dtype="fp32"), models, "v1").nbytes
    made = planned(models)
    conversions = Placement(card(2**40), Precision("fp32")).conversions(made, list(made.headers))
    assert set(conversions) == {TRANSFORMER, TEXT_ENCODER, VAE}
    largest = made.footprint([max(conversions, key=lambda path: made.headers[path].file_size)], {})
    watched = Watched("cpu", budget=whole + largest)
    engine = build(factory(watched, dtype="fp32"), models, "v1")
    assert engine.verify_resident() == (whole, [])
    assert max(engine.sizes) < watched.most <= whole + largest
    assert engine.sizes == [buffer.size for buffer in engine.device_buffers], "files were there one at a time"


def test_all_files_of_a_component_say_what_it_is_converted_to(models):
    """The dtypes that its matrices are in decide, and the files that are missing may have others than those that are resident."""
    made = planned(models)
    other = "transformer/other.safetensors"
    header = made.headers[TRANSFORMER]
    wide = replace(header, tensors={name: replace(info, dtype="F32") for name, info in header.tensors.items()})
    both = replace(made, headers={**made.headers, other: wide})
    placement = Placement(card(2**40), Precision("bf16"))
    all_files = placement.conversions(both, [TRANSFORMER, other])
    for path in (TRANSFORMER, other):
        assert placement.conversions(both, [path]) == {path: all_files[path]}
    scaled = replace(header, tensors={**header.tensors, f"x.{SCALE}": next(iter(header.tensors.values()))})
    both = replace(made, headers={**made.headers, other: scaled})
    placement = Placement(card(2**40), Precision("fp32", "int8"))
    assert placement.conversions(made, [TRANSFORMER])[TRANSFORMER].quantized is torch.int8
    assert placement.conversions(both, [TRANSFORMER])[TRANSFORMER].quantized is None


def test_a_changed_byte_is_found_on_each_way(models):
    path = models / "v1" / TRANSFORMER
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for budget in (2**40, bytes_of(models, "int8")[0]):
        made = Device("cpu", budget=budget)
        code, reason = rejection_of(lambda made=made: build(factory(made, quantize="int8"), models, "v1"))
        assert (code, TRANSFORMER in reason, made.weights_bytes) == ("hash_mismatch", True, 0)


def test_what_conversions_take_beside_what_they_make_counts(models):
    whole, _ = bytes_of(models, "int8")
    made = card(whole)
    needs = Placement(made, Precision("auto", "int8")).needs(planned(models), list(planned(models).headers))
    assert (needs.held, needs.beside > 0) == (whole, True)
    code, reason = rejection_of(lambda: build(factory(made, "device", "int8"), models, "v1"))
    assert (code, f"and {needs.beside} for converting" in reason) == ("insufficient_memory", True)
    assert build(factory(card(whole + needs.beside), "device", "int8"), models, "v1").nbytes == whole


@pytest.mark.gpu
@pytest.mark.parametrize("quantize", [None, "int8", "fp8"])
def test_on_a_gpu_a_picture_is_the_same_with_the_text_encoder_in_host_memory(models, quantize):
    def made(text_encoder):
        return EngineFactory(
            Device("cuda"), exact=True, precision=Precision("auto", quantize), text_encoder=text_encoder
        )

    expected, engine = build(made("device"), models, "v1"), build(made("host"), models, "v1")
    assert np.array_equal(pixels(engine), pixels(expected))
    assert engine.verify_resident() == (expected.nbytes, [])
    assert engine.nbytes + engine.host_nbytes == expected.nbytes


@pytest.mark.gpu
@pytest.mark.parametrize("quantize", ["int8", "fp8"])
def test_on_a_gpu_files_are_converted_from_host_memory_to_the_same_weights(models, quantize):
    def made(budget):
        precision = Precision("auto", quantize)
        return EngineFactory(Device("cuda", budget=budget), exact=True, precision=precision, text_encoder="device")

    expected = build(made(None), models, "v1")
    engine = build(made(expected.nbytes), models, "v1")
    assert engine.verify_resident() == (expected.nbytes, [])
    assert np.array_equal(pixels(engine), pixels(expected))


@pytest.mark.gpu
def test_on_a_gpu_versions_with_the_text_encoder_in_host_memory_change_places(models):
    expected = {name: pixels(build(EngineFactory(Device("cuda"), exact=True), models, name)) for name in ("v1", "v2")}
    whole, text_encoder = bytes_of(models)
    made = EngineFactory(Device("cuda", budget=whole - text_encoder), exact=True)
    engine = build(made, models, "v1")
    for name in ("v2", "v1"):
        directory = open_version(models, name)
        try:
            new_plan = made.plan(directory, read_seal(directory.fd).digest)
            assert made.lacks(new_plan)
            assert made.fits_instead(new_plan, engine, [])
            staged = made.stage(directory, new_plan, LoadControl(), engine, [])
            engine = made.exchange(engine, [], staged, LoadControl())
            del staged
        finally:
            directory.close()
        assert np.array_equal(pixels(engine), expected[name])
        assert engine.verify_resident() == (whole, [])
        assert engine.host_nbytes == text_encoder


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_a_gpu_quantizes_to_the_bytes_that_a_cpu_does(dtype):
    x = torch.randn((512, 1024), generator=torch.Generator().manual_seed(0)).bfloat16()
    here, there = Rows.of(x, dtype), Rows.of(x.cuda(), dtype)
    assert torch.equal(here.scales, there.scales.cpu())
    assert torch.equal(here.values.view(torch.uint8), there.values.cpu().view(torch.uint8))
