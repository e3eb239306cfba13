"""The factory translates every error of a load into a rejection, which the supervisor handles."""

import errno
import logging

import pytest
import torch

from tests.engine.editing import build, rejection_of
from zwatch.deploy.look import open_version
from zwatch.deploy.seal import read_seal
from zwatch.engine import components
from zwatch.engine.factory import EngineFactory
from zwatch.errors import Abandoned, Rejection, Retry
from zwatch.shadow import pace
from zwatch.shadow.device import Device
from zwatch.shadow.loader import LoadControl

BUDGET = 2**26


@pytest.mark.parametrize(
    ("make", "code", "names"),
    [
        (
            lambda: torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate"),
            "out_of_memory",
            "CUDA out of memory. Tried",
        ),
        (MemoryError, "out_of_memory", "MemoryError"),
        (lambda: OSError(errno.EIO, "Input/output error", "vae/w"), "io_error", "vae/w: Input/output error"),
        (lambda: OSError(errno.ESTALE, "Stale file handle"), "io_error", "Stale file handle"),
        (
            lambda: RuntimeError("CUDA error: an illegal memory access\nmore"),
            "device_error",
            "an illegal memory access",
        ),
        (lambda: KeyError("surprise"), "internal_error", "KeyError: 'surprise'"),
    ],
    ids=["device memory", "host memory", "file", "file system", "device", "surprise"],
)
def test_a_failure_in_the_middle_of_a_load_is_a_rejection_that_is_tried_again(tiny_versions, caplog, make, code, names):
    # pytest keeps log records, and with them the traceback's frames.
    caplog.set_level(logging.CRITICAL + 1, "zwatch.engine.factory")

    def fail():
        if control.bytes_done:
            raise make()

    control = LoadControl(fail)
    factory = EngineFactory(Device("cpu", budget=BUDGET))
    found_code, reason = rejection_of(lambda: build(factory, tiny_versions, "v1", control))
    assert found_code == code
    assert names in reason
    assert "\n" not in reason
    assert Rejection(found_code, reason).retry is Retry.BACKOFF
    assert factory.device.memory()[0] == BUDGET


def test_an_abandoned_load_stays_abandoned(tiny_versions):
    control = LoadControl()
    control.abandon()
    with pytest.raises(Abandoned):
        build(EngineFactory(Device("cpu")), tiny_versions, "v1", control)


def test_an_abandoned_load_stops_in_the_middle_of_building_and_is_no_rejection(tiny_versions, monkeypatch):
    control, genuine, built = LoadControl(), components.ZImageTransformer, []

    def make(config):
        control.abandon()
        built.append(genuine(config))

    monkeypatch.setattr(pace, "BURST", 0)
    monkeypatch.setattr(components, "ZImageTransformer", make)
    with pytest.raises(Abandoned):
        build(EngineFactory(Device("cpu")), tiny_versions, "v1", control)
    assert not built


@pytest.mark.parametrize(("spare", "lacks"), [(0, False), (-1, True)])
def test_the_factory_foresees_whether_a_version_fits(tiny_versions, spare, lacks):
    needed = build(EngineFactory(Device("cpu")), tiny_versions, "v1").nbytes
    factory = EngineFactory(Device("cpu", budget=needed + spare))
    directory = open_version(tiny_versions, "v1")
    assert factory.lacks(factory.plan(directory, read_seal(directory.fd).digest)) is lacks


def test_a_version_that_shares_components_needs_memory_only_for_the_rest(tiny_versions):
    first = EngineFactory(Device("cpu"))
    v1 = build(first, tiny_versions, "v1")
    transformer = next(one.nbytes for one in v1.components if one.key.component == "transformer")
    factory = EngineFactory(Device("cpu", budget=v1.nbytes + transformer))
    resident = build(factory, tiny_versions, "v1")
    directory = open_version(tiny_versions, "v2")
    planned = factory.plan(directory, read_seal(directory.fd).digest)
    assert not factory.lacks(planned)
    factory.device.budget -= 1
    assert factory.lacks(planned)
    resident.close()
