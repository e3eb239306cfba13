"""A replica without Ray: what the controller asks of it, one call after the other."""

import logging
import shutil
import threading
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from tests.deploy.loras import write_lora
from zwatch.deploy.look import open_version
from zwatch.deploy.loras import LoraRoot
from zwatch.deploy.seal import read_seal
from zwatch.engine.parameters import GenerationParameters, UsedLora
from zwatch.fleet.messages import Drawn, EngineFacts, Failure, Made, ReplicaSettings, Stepped
from zwatch.fleet.replica import Replica

ASKED = GenerationParameters("a cat", "", 64, 64, 4, 0.0, (7, 8))


@pytest.fixture(scope="module")
def root(tiny_versions, tmp_path_factory):
    root = tmp_path_factory.mktemp("replica")
    shutil.copytree(tiny_versions, root / "models")
    (root / "loras").mkdir()
    write_lora(root / "loras", "ink", root / "models/v1/transformer", 4, 1)
    return root


@pytest.fixture(scope="module")
def settings(root):
    return ReplicaSettings(
        "r0", "host-a", "cpu", str(root / "models"), str(root / "loras"), str(root / "cache"), None, None, "auto", None, "auto", 1
    )  # fmt: skip


@pytest.fixture(scope="module")
def replica(settings):
    logger = logging.getLogger("zwatch")
    before = logger.handlers[:], logger.level, logger.propagate
    made = Replica(settings)
    assert made.open().device == "cpu (CPU)"
    yield made
    logger.handlers[:], logger.level, logger.propagate = before


def digest(root, version):
    with closing(open_version(root / "models", version)) as directory:
        return read_seal(directory.fd).digest


def prepared(replica, root, engine_id="e1", version="v1"):
    """Let a replica load and warm a version; return what it says."""
    content = digest(root, version)
    assert replica.plan(engine_id, version, content, 5.0) is None
    assert replica.lacks(engine_id) is False
    assert isinstance(replica.build(engine_id, content), EngineFacts)
    return replica.warm(engine_id)


def drawn_by(replica, *asked):
    return [event for events in replica.draw(*asked) for event in events]


@pytest.fixture
def engine(replica, root):
    facts = prepared(replica, root)
    assert isinstance(facts, EngineFacts), facts
    yield facts
    replica.forget("e1")


def test_a_version_is_held_once_it_is_warm_until_it_is_forgotten(replica, root):
    content = digest(root, "v1")
    replica.plan("e1", "v1", content, 5.0)
    replica.build("e1", content)
    assert replica.look().held == {}
    assert replica.warm("e1").digest == content
    assert replica.look().held == {"e1": content}
    assert replica.progress("e1") is None
    replica.forget("e1")
    assert replica.look().held == {}


def test_what_is_drawn_comes_step_by_step(replica, engine):
    events = drawn_by(replica, "run", "e1", ASKED, ())
    assert [event.done for event in events if isinstance(event, Stepped)] == [*range(1, 9)]
    assert events[0].preview.shape == (8, 8, 3)
    assert [event.number for event in events if isinstance(event, Made)] == [0, 1]
    assert isinstance(events[-1], Drawn)


def test_a_drawing_is_cancelled_also_before_it_comes(replica, engine):
    replica.cancel("early")
    [event] = drawn_by(replica, "early", "e1", ASKED, ())
    assert event.kind == "cancelled"
    events = []
    for some in replica.draw("late", "e1", replace(ASKED, steps=100), ()):
        events += some
        replica.cancel("late")
    assert events[-1].kind == "cancelled"
    assert len(events) < 50


def test_a_lora_is_loaded_by_its_name_and_must_have_the_digest(replica, engine, root):
    lora = LoraRoot(root / "loras").open_lora("ink")
    drawn = replace(ASKED, seeds=(7,), loras=(UsedLora("ink", 1.0, lora.digest),))
    with_lora = drawn_by(replica, "run", "e1", drawn, (("ink", lora.digest),))
    without = drawn_by(replica, "run", "e1", replace(ASKED, seeds=(7,)), ())
    assert (_pixels(with_lora) != _pixels(without)).any()
    assert replica.look().loras.keys() == {lora.digest}
    assert replica.load_loras("e1", (("ink", lora.digest),)) is None
    wrong = replica.load_loras("e1", (("ink", "0" * 64),))
    assert (wrong.kind, wrong.code) == ("rejection", "seal_changed")
    missing = replica.load_loras("e1", (("pencil", "1" * 64),))
    assert missing.code == "file_missing"
    lora.close()


def _pixels(events):
    return next(np.asarray(event.pixels) for event in events if isinstance(event, Made))


def test_the_next_controller_gets_what_is_left_without_a_load(replica, settings, root):
    prepared(replica, root, "old")
    assert set(replica.greet(settings).held) == {"old"}
    content = digest(root, "v1")
    shutil.move(root / "models/v1", root / "moved")  # it is not read again
    try:
        assert replica.plan("new", "v1", content, 0.0) is None
        facts = replica.build("new", content)
    finally:
        shutil.move(root / "moved", root / "models/v1")
    assert (facts.digest, facts.bytes_done) == (content, 0)
    assert replica.warm("new") == replica.warm("new")
    assert set(replica.look().held) == {"new"}
    replica.forget("new")


def test_a_controller_with_other_settings_does_not_get_it(replica, settings):
    assert replica.greet(replace(settings, dtype="fp16")) is None


def test_what_an_earlier_controller_left_is_forgotten_if_nobody_asks_for_it(replica, settings, root):
    prepared(replica, root, "old")
    replica.greet(settings)
    replica.forget_left()
    assert replica.look().held == {}


def test_a_version_that_comes_later_is_waited_for_and_can_be_abandoned(replica, root):
    content, found = digest(root, "v2"), []
    shutil.move(root / "models/v2", root / "v2")
    waiting = threading.Thread(target=lambda: found.append(replica.plan("e2", "v2", content, 60.0)))
    waiting.start()
    while (progress := replica.progress("e2")) is None or "waiting for v2" not in progress.activity:
        pass
    assert progress.is_waiting
    shutil.move(root / "v2", root / "models/v2")
    waiting.join()
    assert found == [None]
    replica.forget("e2")
    waiting = threading.Thread(target=lambda: found.append(replica.plan("e3", "v2", "0" * 64, 60.0)))
    waiting.start()
    while (progress := replica.progress("e3")) is None or "its digest here is" not in progress.activity:
        pass
    replica.forget("e3")
    waiting.join()
    assert found[-1].kind == "abandoned"


def test_a_version_that_never_comes_says_what_is_missing(replica, root):
    missing = replica.plan("e4", "v9", "0" * 64, 0.0)
    assert (missing.code, "v9: there is no such directory" in missing.text) == ("file_missing", True)
    replica.forget("e4")


@pytest.mark.parametrize("call", ["build", "draw", "warm"])
def test_a_replica_that_has_begun_anew_says_so(replica, call):
    arguments = {"build": ("no", "0"), "warm": ("no",), "draw": ("run", "no", ASKED, ())}[call]
    found = getattr(replica, call)(*arguments)
    assert (found if isinstance(found, Failure) else next(iter(found))[0]).kind == "anew"
