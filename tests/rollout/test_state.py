"""What is remembered across restarts, and how its file survives."""

import json
import os

import pytest

from zwatch.deploy.refused import RefusedStray
from zwatch.deploy.resolving import LinkStamp
from zwatch.errors import UsageError
from zwatch.rollout.lifecycle import VersionKey
from zwatch.rollout.state import Crash, SavedAlias, SavedState, StateFile, serialise

V1, V2, V3 = (VersionKey(f"v{number}", str(number) * 64) for number in (1, 2, 3))
FIRST, LATER = LinkStamp(1, 2, 3), LinkStamp(1, 2, 4)


@pytest.fixture
def state(tmp_path):
    file = StateFile(tmp_path / "state")
    yield file
    file.close()


def remembered():
    return SavedState(
        True,
        {
            "current": SavedAlias(V1, V2, V3, [V1, V3], FIRST, LATER),
            "canary": SavedAlias(trying=VersionKey("v9", None)),
        },
        [Crash(V2, 2, FIRST), Crash(V1, 1, None)],
        [RefusedStray("v1/v2", LATER, "current and canary both point to v1")],
    )


def test_what_was_written_is_read_again(state):
    state.write(serialise(remembered()))
    assert state.read() == remembered()


def test_a_state_file_without_refused_strays_is_read(state, tmp_path):
    saved = json.loads(serialise(remembered()))
    del saved["refused"]
    (tmp_path / "state/state.json").write_text(json.dumps(saved))
    read = state.read()
    assert read.refused == []
    assert read.aliases == remembered().aliases


def test_nothing_is_remembered_at_first(state):
    assert state.read() == SavedState()


def test_the_latest_memory_stands(state):
    state.write(serialise(remembered()))
    state.write(serialise(SavedState(True)))
    assert state.read() == SavedState(True)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b'{"format": 2, "running": true, "aliases": {}, "crashes": []}',
        serialise(remembered())[:-40], serialise(remembered()).replace(b'"stamp"', b'"stump"'),
        serialise(remembered()).replace(b'"good": [', b'"good": [7,'),
    ],
    ids=["empty", "half an object", "a list", "null", "no text", "no fields", "another format", "cut short",
         "a field missing", "a wrong field"],
)  # fmt: skip
def test_a_file_that_cannot_be_read_is_put_aside_and_forgotten(state, tmp_path, data):
    (tmp_path / "state/state.json").write_bytes(data)
    assert state.read() == SavedState()
    assert (tmp_path / "state/state.json.bad").read_bytes() == data
    assert not (tmp_path / "state/state.json").exists()
    state.write(serialise(remembered()))
    assert state.read() == remembered()


def test_one_process_at_a_time_owns_the_state_directory(state, tmp_path):
    with pytest.raises(UsageError, match="another zwatch uses the state directory"):
        StateFile(tmp_path / "state")


def test_the_state_directory_is_free_again_after_its_owner(tmp_path):
    StateFile(tmp_path / "state").close()
    StateFile(tmp_path / "state").close()


def test_a_state_directory_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file/state cannot be used: Not a directory; see --state-dir"):
        StateFile(tmp_path / "file/state")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_memory_and_no_rubbish(state, tmp_path, monkeypatch, step):
    state.write(serialise(remembered()))
    before = sorted(os.listdir(tmp_path / "state"))

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        state.write(serialise(SavedState()))
    monkeypatch.undo()
    assert state.read() == remembered()
    assert sorted(os.listdir(tmp_path / "state")) == before


def test_a_reader_sees_the_old_or_the_new_memory_while_it_is_written(state, tmp_path, monkeypatch):
    state.write(serialise(remembered()))
    seen = []
    genuine = os.replace

    def replace(source, destination):
        seen.append(json.loads((tmp_path / "state/state.json").read_bytes())["running"])
        genuine(source, destination)
        seen.append(json.loads((tmp_path / "state/state.json").read_bytes())["running"])

    monkeypatch.setattr(os, "replace", replace)
    state.write(serialise(SavedState(False)))
    assert seen == [True, False]


def test_the_bytes_are_on_disk_before_the_name_is_theirs_and_the_name_is_too(state, monkeypatch):
    steps = []
    for name in ("fsync", "replace"):
        genuine = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, genuine=genuine: (steps.append(name), genuine(*a))[1])
    state.write(serialise(SavedState()))
    assert steps == ["fsync", "replace", "fsync"]


# --- crashes


def run(memory, *, serving=None, trying=None, stamp=FIRST, crash=True):
    """Live through one run of the service; return what the next start hears of the one before."""
    heard = memory.begin_run()
    part = memory.alias("current")
    part.serving, part.trying, part.stamp = serving, trying, stamp
    if not crash:
        memory.end_run()
    return heard


def test_a_run_that_ended_by_itself_accuses_nobody():
    memory = SavedState()
    run(memory, serving=V1, crash=False)
    assert run(memory) == []
    assert not memory.is_set_aside(V1, FIRST)


def test_a_crash_accuses_what_served_and_what_was_tried():
    memory = SavedState()
    run(memory, serving=V1, trying=V2)
    assert sorted(run(memory)) == [V1, V2]


def test_a_crash_with_nothing_resident_accuses_nobody():
    memory = SavedState()
    run(memory)
    assert run(memory) == []


@pytest.mark.parametrize("role", ["serving", "trying"])
def test_two_crashes_in_a_row_set_a_version_aside(role):
    memory = SavedState()
    run(memory, **{role: V2})
    run(memory, **{role: V2})
    assert not memory.is_set_aside(V2, FIRST)
    memory.begin_run()
    assert memory.is_set_aside(V2, FIRST)
    assert not memory.is_set_aside(V1, FIRST)


@pytest.mark.parametrize("between", [{"serving": V2, "crash": False}, {"serving": V1}], ids=["a good end", "another"])
def test_two_crashes_not_in_a_row_do_not(between):
    memory = SavedState()
    run(memory, serving=V2)
    run(memory, **between)
    run(memory, serving=V2)
    memory.begin_run()
    assert not memory.is_set_aside(V2, FIRST)


def set_aside(key=V2):
    memory = SavedState()
    run(memory, trying=key)
    run(memory, trying=key)
    return memory


def test_what_was_set_aside_is_tried_again_when_linked_anew():
    memory = set_aside()
    memory.begin_run()
    assert memory.is_set_aside(V2, FIRST)
    assert not memory.is_set_aside(V2, LATER)


def test_what_was_set_aside_is_tried_again_when_sealed_anew():
    memory = set_aside()
    memory.begin_run()
    assert not memory.is_set_aside(VersionKey("v2", "f" * 64), FIRST)


def test_what_was_set_aside_stays_so_after_a_run_that_ended_by_itself():
    memory = set_aside()
    run(memory, serving=V1, crash=False)
    memory.begin_run()
    assert memory.is_set_aside(V2, FIRST)


def test_what_was_set_aside_stays_so_after_a_crash_of_another():
    memory = set_aside()
    run(memory, serving=V1)
    memory.begin_run()
    assert memory.is_set_aside(V2, FIRST)


def test_what_was_set_aside_stays_so_over_many_runs_in_the_file(state):
    state.write(serialise(set_aside()))
    for crash in (True, False, True, False):
        memory = state.read()
        run(memory, serving=V1, crash=crash)
        state.write(serialise(memory))
    memory = state.read()
    memory.begin_run()
    assert memory.is_set_aside(V2, FIRST)


# --- last-known-good


def test_the_two_latest_good_versions_are_remembered_newest_first():
    memory = SavedState()
    for key in (V1, V2, V3):
        assert memory.note_good("current", key)
    assert memory.fallbacks("current") == [V3, V2]


def test_the_same_good_version_is_no_news():
    memory = SavedState()
    memory.note_good("current", V1)
    assert not memory.note_good("current", V1)
    memory.note_good("current", V2)
    assert memory.note_good("current", V1)
    assert memory.fallbacks("current") == [V1, V2]


def test_a_good_version_that_was_set_aside_is_the_last_resort():
    memory = set_aside(V2)
    memory.alias("current").good = [V2, V1]
    memory.begin_run()
    assert memory.fallbacks("current") == [V1, V2]


def test_each_alias_has_its_own_good_versions():
    memory = SavedState()
    memory.note_good("current", V1)
    memory.note_good("canary", V2)
    assert (memory.fallbacks("current"), memory.fallbacks("canary")) == ([V1], [V2])
