"""What is known of versions that were warmed on this machine before."""

import os
import threading
import time

import pytest
import torch
from PIL import Image

from tests.engine.editing import build
from zwatch.engine.factory import EngineFactory
from zwatch.engine.kept_files import KeptFiles
from zwatch.engine.parameters import Generation
from zwatch.engine.preview import LatentColours
from zwatch.engine.proven import KEPT, MOST_WRITERS, ProvenVersions
from zwatch.engine.rehearsal import draw
from zwatch.shadow.control import LoadControl
from zwatch.shadow.device import Device

DIGEST = "d" * 64


@pytest.fixture
def factory(tmp_path):
    return EngineFactory(Device("cpu"), tmp_path / "prepared")


def test_a_version_that_was_warmed_is_proven_at_the_next_start_and_has_its_previews(factory, models, tmp_path):
    engine = build(factory, models, "v1")
    assert not factory.is_proven(engine)
    factory.warm(engine, LoadControl())
    assert not engine.is_unjudged
    until_kept(tmp_path)

    later = EngineFactory(Device("cpu"), tmp_path / "prepared")
    again = build(later, models, "v1")
    assert later.is_proven(again)
    assert again.is_unjudged
    assert torch.equal(again.colours.weights, engine.colours.weights)
    assert torch.equal(again.colours.bias, engine.colours.bias)
    assert not later.is_proven(build(later, models, "v2")), "another digest"

    later.distrust(engine.digest)
    assert not later.is_proven(again)
    assert not again.is_unjudged


@pytest.mark.parametrize(
    "harm",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"weights", b"weightz")),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["truncated", "changed", "empty", "missing", "a directory"],
)
def test_a_record_that_is_not_whole_proves_nothing(factory, models, tmp_path, harm):
    engine = build(factory, models, "v1")
    factory.warm(engine, LoadControl())
    harm(until_kept(tmp_path))
    assert not factory.is_proven(engine)


def test_another_device_driver_or_torch_proves_nothing(tmp_path, monkeypatch):
    files = KeptFiles(tmp_path, ".proven", KEPT)
    device = Device("cpu")
    colours = build_colours()
    ProvenVersions(device, files).note(DIGEST, colours)
    until_kept(tmp_path, ".")
    assert ProvenVersions(device, files).find(DIGEST) is not None
    monkeypatch.setattr(device, "identity", lambda: ["another"])
    assert ProvenVersions(device, files).find(DIGEST) is None


def until_kept(root, folder="prepared"):
    """Wait until a record is written, in its thread; return its path."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if found := list((root / folder).glob("*.proven")):
            return found[0]
        time.sleep(0.01)
    raise AssertionError("no record was written")


def test_a_version_that_is_distrusted_stays_so_if_its_record_cannot_be_removed(factory, models, tmp_path, monkeypatch):
    engine = build(factory, models, "v1")
    factory.warm(engine, LoadControl())
    until_kept(tmp_path)
    monkeypatch.setattr(KeptFiles, "remove", lambda self, name: None)
    factory.distrust(engine.digest)
    assert not factory.is_proven(engine)
    factory.warm(engine, LoadControl())
    assert factory.is_proven(engine)


def build_colours():
    return LatentColours(torch.ones(3, 16), torch.zeros(3, 1))


def test_records_beyond_the_limit_are_removed(tmp_path):
    files = KeptFiles(tmp_path, ".proven", 2)
    for name in ("a", "b", "c"):
        files.write(name, name.encode())
    assert [files.read(name) for name in ("b", "c")] == [b"b", b"c"]
    assert files.read("a") is None


def test_what_a_killed_process_did_not_complete_is_removed_and_what_another_writes_now_is_not(tmp_path):
    hour_ago = time.time() - 3700
    for name in (".1.part", ".2.part", ".now.part"):
        (tmp_path / name).write_bytes(b"half")
        if "now" not in name:
            os.utime(tmp_path / name, (hour_ago, hour_ago))
    KeptFiles(tmp_path, ".proven", 2).write("a", b"a")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".now.part", "a.proven"]


def test_a_disk_that_does_not_answer_keeps_a_few_threads_however_many_versions_are_deployed(tmp_path, monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(KeptFiles, "write", lambda *_: answered.wait(60))
    monkeypatch.setattr(KeptFiles, "remove", lambda *_: answered.wait(60))
    proven = ProvenVersions(Device("cpu"), KeptFiles(tmp_path, ".proven", KEPT))
    for number in range(40):
        proven.note(f"{number}", build_colours())
        proven.forget(f"{number}")
    assert len(writers()) == MOST_WRITERS
    assert proven.find("0") is None
    answered.set()
    for thread in writers():
        thread.join(10)
    monkeypatch.undo()
    proven.note(DIGEST, build_colours())
    until_kept(tmp_path, ".")


def writers():
    return [thread for thread in threading.enumerate() if thread.name == "zwatch-proven"]


def test_the_first_image_of_an_engine_that_was_not_warmed_is_judged(factory, models, tmp_path):
    engine = build(factory, models, "v1")
    factory.warm(engine, LoadControl())
    until_kept(tmp_path)
    assert factory.is_proven(engine)
    grey = Image.new("RGB", (64, 64), (9, 9, 9))
    for bad in (Generation([grey], False, True, {}), Generation([], False, False, {})):
        assert factory.fault(engine, bad).code == "bad_image"
        assert engine.is_unjudged
    noise = Image.effect_noise((64, 64), 50).convert("RGB")
    assert factory.fault(engine, Generation([noise], False, True, {})) is None
    assert not engine.is_unjudged


def test_the_rehearsal_runs_through_all_networks():
    with torch.inference_mode():
        draw(torch.device("cpu"), torch.float32)
