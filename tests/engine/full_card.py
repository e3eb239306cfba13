"""On a GPU that is really full: a version that fits instead of the old one takes its place, others are rejected.

test_full_card.py runs these tests in a process of their own: where a card was full once, CUDA's libraries may choose other
kernels for the rest of the process, and tests that compare pixels with diffusers would see it.
"""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine.editing import TRANSFORMER, build, parameters, rejection_of
from zwatch.deploy.look import open_version
from zwatch.deploy.seal import read_seal
from zwatch.engine.factory import EngineFactory
from zwatch.errors import Abandoned
from zwatch.shadow.device import Device
from zwatch.shadow.loader import LoadControl

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

MODELS = Path(__file__).parents[2] / "models"
PAGE = 2 * 2**20
"""What cudaMalloc rounds a piece of memory of this size up to: itself."""


class Card:
    """A GPU with v1 on it, whose free memory others can take."""

    def __init__(self):
        self.factory = EngineFactory(Device("cuda"))
        self.device = self.factory.device
        self.device.hasher.compiling.result()
        self.old = build(self.factory, MODELS, "v1")
        self.old.serve(parameters())
        assert self.device.request_peak > 0
        self.device.request_peak += 64 * PAGE  # torch takes memory in larger pieces than it hands out
        self.ballast = []

    def plan(self, name="v2"):
        directory = open_version(MODELS, name)
        return directory, self.factory.plan(directory, read_seal(directory.fd).digest)

    def load(self, name="v2"):
        directory, planned = self.plan(name)
        return self.factory.build(directory, planned, LoadControl())

    def fill(self, room):
        """Take memory until at most this many bytes are left for weights in addition to making images."""
        self.relieve()
        self.device.give_room()
        # What torch keeps in small blocks it will not give to a large request; it stays out of this.
        most = torch.cuda.mem_get_info()[0] - max(0, self.device.request_peak + room) - 64 * PAGE
        self.ballast.append(torch.empty(most // PAGE * PAGE, dtype=torch.uint8, device="cuda"))
        while self.device.room > room:
            self.ballast.append(torch.empty(PAGE, dtype=torch.uint8, device="cuda"))

    def take_all(self):
        """Take every piece that CUDA still gives."""
        size = torch.cuda.mem_get_info()[0] // PAGE * PAGE
        while size >= PAGE:
            try:
                self.ballast.append(torch.empty(size, dtype=torch.uint8, device="cuda"))
            except torch.OutOfMemoryError:
                size = size // 2 // PAGE * PAGE

    def relieve(self):
        self.ballast.clear()
        torch.cuda.empty_cache()


@pytest.fixture
def card():
    gc.collect()
    gc.disable()  # memory must come back by itself, at once
    made = Card()
    yield made
    made.relieve()
    made.device.give_room()
    gc.enable()


def pixels(engine):
    return np.asarray(engine.generate(parameters()).images[0])


def test_a_version_that_does_not_fit_next_to_the_old_one_takes_its_place_and_back(card):
    fresh = EngineFactory(Device("cuda"))
    expected = {name: pixels(build(fresh, MODELS, name)) for name in ("v1", "v2")}
    del fresh
    weights_bytes = card.device.weights_bytes
    engine = card.old
    for name in ("v2", "v1"):
        card.fill(3 * 2**20)  # each time: CUDA's libraries take a little more memory now and then
        directory, planned = card.plan(name)
        assert card.factory.lacks(planned)
        assert card.factory.fits_instead(planned, engine, [])
        staged = card.factory.stage(directory, planned, LoadControl(), engine, [])
        engine = card.factory.exchange(engine, [], staged, LoadControl())
        del staged
        assert (pixels(engine) == expected[name]).all()
        assert engine.verify_resident() == (engine.nbytes, [])
        assert card.device.weights_bytes == weights_bytes


def test_a_version_that_does_not_fit_even_instead_is_rejected_with_both_byte_counts(card):
    _, planned = card.plan()
    card.fill(-card.old.nbytes)
    assert card.factory.lacks(planned)
    assert not card.factory.fits_instead(planned, card.old, [])
    code, reason = rejection_of(card.load)
    assert code == "insufficient_memory"
    free, total = card.device.memory()
    assert f"{free} of {total} are free" in reason
    assert f"v2 needs {planned.footprint([TRANSFORMER], {})} bytes" in reason


def test_a_load_that_runs_out_of_memory_is_rejected_and_frees_everything(card, monkeypatch):
    card.fill(3 * 2**20)
    weights_bytes = card.device.weights_bytes
    monkeypatch.setattr(card.device, "has_room", lambda sizes: True)  # others took it in between
    card.take_all()
    assert rejection_of(card.load)[0] == "out_of_memory"
    assert card.device.weights_bytes == weights_bytes
    card.relieve()
    monkeypatch.undo()
    assert card.load().verify_resident()[1] == []


def test_an_abandoned_load_frees_everything(card):
    weights_bytes, directory, planned = card.device.weights_bytes, *card.plan()
    control = LoadControl(lambda: control.abandon() if control.bytes_done else None)
    try:
        card.factory.build(directory, planned, control)
    except Abandoned:
        pass
    else:
        pytest.fail("it was not abandoned")
    assert card.device.weights_bytes == weights_bytes


def test_an_image_without_memory_gets_what_was_kept_for_the_next_version(card):
    before = card.old.serve(parameters(width=512, height=512)).images[0]
    torch.cuda.empty_cache()
    assert card.device.reserve([256 * PAGE])
    kept = card.device.kept
    card.take_all()
    assert (np.asarray(card.old.serve(parameters(width=512, height=512)).images[0]) == np.asarray(before)).all()
    assert card.device.kept < kept
