"""Exchange: a version that does not fit next to the old one takes its place; on failure the old one is restored."""

import gc

import numpy as np
import pytest
import torch

from tests import goldens
from tests.engine.editing import TRANSFORMER, build, edit_json, edit_tensors, parameters, rejection_of, seal_again
from zwatch.deploy.look import open_version
from zwatch.deploy.seal import read_seal
from zwatch.engine import factory as factory_module
from zwatch.engine import store as store_module
from zwatch.engine.factory import EngineFactory
from zwatch.errors import Abandoned, Rejection
from zwatch.shadow.device import Device
from zwatch.shadow.host import HOST_SPARE
from zwatch.shadow.loader import LoadControl
from zwatch.shadow.system import system_memory


class Place:
    """A device with room for one version and no more, and v1 on it. `host_memory` is the host's (free, total) bytes."""

    def __init__(self, models):
        self.models = models
        self.host_memory = system_memory()
        self.budget = build(EngineFactory(Device("cpu")), models, "v1").nbytes
        self.factory = EngineFactory(Device("cpu", budget=self.budget, host_memory=lambda: self.host_memory))
        self.old = build(self.factory, models, "v1")
        self.on_report = lambda: None
        self.control = LoadControl(self.report)

    def plan(self, name="v2"):
        directory = open_version(self.models, name)
        return directory, self.factory.plan(directory, read_seal(directory.fd).digest)

    def exchange(self, name="v2"):
        directory, planned = self.plan(name)
        staged = self.factory.stage(directory, planned, self.control, self.old, [])
        return self.factory.exchange(self.old, [], staged, self.control)

    def report(self):
        self.on_report()

    @property
    def weights_bytes(self):
        return self.budget - self.factory.device.memory()[0]


@pytest.fixture
def place(models):
    gc.collect()
    gc.disable()  # memory must be freed immediately without the collector
    yield Place(models)
    gc.enable()


def pixels(engine):
    return np.asarray(engine.generate(parameters()).images[0])


def expected(models, name):
    return pixels(build(EngineFactory(Device("cpu")), models, name))


def test_a_version_that_does_not_fit_next_to_the_old_one_takes_its_place(place):
    directory, planned = place.plan()
    assert place.factory.lacks(planned)
    assert place.factory.fits_instead(planned, place.old, [])
    directory.close()
    new = place.exchange()
    assert np.array_equal(pixels(new), expected(place.models, "v2"))
    assert new.verify_resident() == (place.budget, [])
    assert place.weights_bytes == place.budget
    assert not place.old.is_complete


def test_only_what_differs_changes_places(place):
    shared = [component for component in place.old.components if component.key.component in ("text_encoder", "vae")]
    before = {buffer.data.data_ptr() for component in shared for buffer in component.buffers}
    new = place.exchange()
    assert sorted(place.control.shared) == ["text_encoder", "vae"]
    assert before <= {buffer.data.data_ptr() for component in new.components for buffer in component.buffers}


def nan(tensors):
    return {name: torch.full_like(tensor, float("nan")) for name, tensor in tensors.items()}


def renamed(tensors):
    return {f"{name}.x": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "code"), [(nan, "bad_image"), (renamed, "weights_mismatch")], ids=["no numbers", "other tensors"]
)
def test_a_version_that_fails_its_warm_up_or_build_restores_the_old_version(place, change, code):
    before = pixels(place.old)
    edit_tensors(place.models / "v2" / TRANSFORMER, change)
    seal_again(place.models / "v2")
    assert rejection_of(place.exchange)[0] == code
    assert place.old.is_complete
    assert np.array_equal(pixels(place.old), before)
    assert place.old.verify_resident() == (place.budget, [])
    assert place.weights_bytes == place.budget


@pytest.mark.parametrize("harm", [None, "golden/1.png", "golden/3.png"])
def test_golden_images_are_compared_while_requests_wait_and_a_miss_restores_the_old_version(models, harm, monkeypatch):
    monkeypatch.setattr(factory_module, "HELD_SECONDS", 0.0)
    goldens.add(models, "v2")
    if harm is not None:
        goldens.invert(models / "v2", harm)
        goldens.seal(models / "v2")
    place = Place(models)
    if harm == "golden/1.png":
        code, reason = rejection_of(place.exchange)
        assert (code, reason.startswith("golden/1.png")) == ("golden_mismatch", True)
        assert place.old.is_complete
        return
    new = place.exchange()
    assert new.golden.checked == 1, "the others are checked when requests go on"


def test_the_old_version_can_be_restored_while_its_components_are_iterated(place):
    edit_tensors(place.models / "v2" / TRANSFORMER, renamed)
    seal_again(place.models / "v2")
    looking = []

    def look():
        if "aside" in place.control.phases and "back" not in place.control.phases:
            looking.append(iter(place.old.components))
            next(looking[-1])

    place.on_report = look
    rejection_of(place.exchange)
    assert place.old.is_complete
    assert [len(list(rest)) for rest in looking] == [3, 3]


def test_a_wrong_config_restores_the_old_version_too(place):
    before = pixels(place.old)
    edit_json(place.models / "v2/transformer/config.json", lambda config: config.update(n_layers=3))
    seal_again(place.models / "v2")
    assert rejection_of(place.exchange)[0] == "weights_mismatch"
    assert np.array_equal(pixels(place.old), before)


def test_a_newer_target_restores_the_old_version(place):
    before = pixels(place.old)

    def abandon():
        if "aside" in place.control.phases:
            place.control.abandon()

    place.on_report = abandon
    directory, planned = place.plan()
    staged = place.factory.stage(directory, planned, place.control, place.old, [])
    with pytest.raises(Abandoned):
        place.factory.exchange(place.old, [], staged, place.control)
    assert np.array_equal(pixels(place.old), before)


def test_an_old_version_that_cannot_be_restored_is_not_complete(place, monkeypatch):
    def broken(*args):
        raise Rejection("device_error", "the device fell off the bus")

    directory, planned = place.plan()
    staged = place.factory.stage(directory, planned, place.control, place.old, [])
    monkeypatch.setattr(store_module, "build", broken)
    assert rejection_of(lambda: place.factory.exchange(place.old, [], staged, place.control))[0] == "device_error"
    assert not place.old.is_complete
    with pytest.raises(RuntimeError, match="v1 cannot make images: it has released its device memory"):
        place.old.generate(parameters())


def test_a_staged_version_is_verified_before_anything_moves(place):
    data = bytearray((place.models / "v2" / TRANSFORMER).read_bytes())
    data[-1] ^= 1
    (place.models / "v2" / TRANSFORMER).write_bytes(data)
    directory, planned = place.plan()
    code, reason = rejection_of(lambda: place.factory.stage(directory, planned, place.control, place.old, []))
    assert (code, reason.startswith(TRANSFORMER)) == ("hash_mismatch", True)
    assert place.weights_bytes == place.budget


def test_a_version_that_does_not_fit_in_host_memory_is_rejected_with_both_byte_counts(place):
    place.host_memory = (HOST_SPARE + 1000, 2000)
    directory, planned = place.plan()
    code, reason = rejection_of(lambda: place.factory.stage(directory, planned, place.control, place.old, []))
    assert code == "insufficient_memory"
    assert "1000" in reason
    assert "2000" in reason


def test_without_host_memory_for_the_displaced_version_nothing_moves(place):
    def taken_by_others():
        if place.control.bytes_done == place.control.bytes_total > 0:
            place.host_memory = (0, 2000)

    place.on_report = taken_by_others
    code, reason = rejection_of(place.exchange)
    assert code == "insufficient_memory"
    assert "v1's " in reason
    assert "only 0 of 2000 bytes are free" in reason
    assert place.old.is_complete


def test_buffers_that_another_engine_shares_stay_on_the_device(place):
    """Of two engines that share components, only the buffers of the old one alone can be taken from it."""
    place.factory.device.budget *= 3
    other = build(place.factory, place.models, "v2")
    directory, _planned = place.plan("v2")
    given = place.old.exclusive_buffers([other], [])
    assert {buffer.path for buffer in given} == {TRANSFORMER}
    directory.close()
