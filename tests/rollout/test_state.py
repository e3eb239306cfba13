"""What is saved across restarts, and how its file is read and written."""

import asyncio
import errno
import gc
import json
import multiprocessing
import os
import shutil
import signal
import socket
import stat
import threading

import pytest

from tests.descriptors import assert_none_left, descriptors
from zwatch.api import sessions
from zwatch.bridge import Bridge, NoAnswer
from zwatch.deploy.durable import write_durably
from zwatch.deploy.refused import RefusedStray
from zwatch.deploy.resolving import LinkStamp
from zwatch.errors import UsageError
from zwatch.generation import trial_file
from zwatch.rollout.crashes import Crash
from zwatch.rollout.lifecycle import VersionKey
from zwatch.rollout.saved import SavedAlias, SavedState, serialise
from zwatch.rollout.state import StateFile, StateKeeper

V1, V2, V3 = (VersionKey(f"v{number}", str(number) * 64) for number in (1, 2, 3))
FIRST, LATER = LinkStamp(1, 2, 3), LinkStamp(1, 2, 4)


@pytest.fixture
def state(tmp_path):
    file = StateFile(tmp_path / "state")
    yield file
    file.close()


def a_state():
    return SavedState(
        True,
        {
            "current": SavedAlias(V1, V2, V3, [V1, V3], FIRST, LATER, V2, [V1, V2]),
            "canary": SavedAlias(trying=VersionKey("v9", None)),
        },
        [Crash(V2, 2, FIRST), Crash(V1, 1, None)],
        [RefusedStray("v1/v2", LATER, "current and canary both point to v1")],
        [V1],
    )


def test_what_was_written_is_read_again(state):
    state.write(serialise(a_state()))
    assert state.read() == a_state()


def test_a_state_file_without_refused_strays_is_read(state, tmp_path):
    saved = json.loads(serialise(a_state()))
    del saved["refused"]
    (tmp_path / "state/state.json").write_text(json.dumps(saved))
    read = state.read()
    assert read.refused == []
    assert read.aliases == a_state().aliases


def test_the_state_is_empty_at_first(state):
    assert state.read() == SavedState()


def test_the_latest_write_is_what_is_read(state):
    state.write(serialise(a_state()))
    state.write(serialise(SavedState(True)))
    assert state.read() == SavedState(True)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"[]", b"null", b"\xff\xfe", b"{}", b'{"format": 2, "running": true, "aliases": {}, "crashes": []}',
        serialise(a_state())[:-40], serialise(a_state()).replace(b'"stamp"', b'"stump"'),
        serialise(a_state()).replace(b'"good": [', b'"good": [7,'),
    ],
    ids=["empty", "half an object", "a list", "null", "not UTF-8", "no fields", "another format", "cut short",
         "a field missing", "a wrong field"],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_put_aside_and_the_state_is_empty(state, tmp_path, data):
    (tmp_path / "state/state.json").write_bytes(data)
    assert state.read() == SavedState()
    assert (tmp_path / "state/state.json.bad").read_bytes() == data
    assert not (tmp_path / "state/state.json").exists()
    state.write(serialise(a_state()))
    assert state.read() == a_state()


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
def test_a_failed_write_leaves_the_old_state_and_no_temporary_files(state, tmp_path, monkeypatch, step):
    state.write(serialise(a_state()))
    before = sorted(os.listdir(tmp_path / "state"))

    def fail(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        state.write(serialise(SavedState()))
    monkeypatch.undo()
    assert state.read() == a_state()
    assert sorted(os.listdir(tmp_path / "state")) == before


def test_a_reader_sees_the_old_or_the_new_state_while_it_is_written(state, tmp_path, monkeypatch):
    state.write(serialise(a_state()))
    seen = []
    genuine = os.replace

    def replace(source, destination):
        seen.append(json.loads((tmp_path / "state/state.json").read_bytes())["running"])
        genuine(source, destination)
        seen.append(json.loads((tmp_path / "state/state.json").read_bytes())["running"])

    monkeypatch.setattr(os, "replace", replace)
    state.write(serialise(SavedState(False)))
    assert seen == [True, False]


def test_the_bytes_are_fsynced_before_the_rename_and_the_directory_after_it(state, monkeypatch):
    steps = []
    for name in ("fsync", "replace"):
        genuine = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, genuine=genuine: (steps.append(name), genuine(*a))[1])
    state.write(serialise(SavedState()))
    assert steps == ["fsync", "replace", "fsync"]


OF_AN_EARLIER_RELEASE = b"""{
 "format": 1,
 "running": true,
 "aliases": {
  "current": {
   "serving": {
    "version": "v1",
    "digest": "aa"
   },
   "trying": null,
   "previous": null,
   "good": [],
   "stamp": {
    "device": 1,
    "inode": 2,
    "ctime_ns": 3
   },
   "unloaded": null
  }
 },
 "crashes": [
  {
   "key": {
    "version": "v2",
    "digest": null
   },
   "count": 2,
   "stamp": null
  }
 ],
 "refused": []
}"""
ON_DISK = b"""{
 "format": 1,
 "running": true,
 "aliases": {
  "current": {
   "serving": {
    "version": "v1",
    "digest": "aa"
   },
   "trying": null,
   "previous": null,
   "good": [],
   "stamp": {
    "device": 1,
    "inode": 2,
    "ctime_ns": 3
   },
   "unloaded": null,
   "wish": null,
   "promoted": []
  }
 },
 "crashes": [
  {
   "key": {
    "version": "v2",
    "digest": null
   },
   "count": 2,
   "stamp": null
  }
 ],
 "refused": [],
 "proved": []
}"""


def test_the_format_on_disk_is_fixed(state, tmp_path):
    saved = SavedState(
        True,
        {"current": SavedAlias(serving=VersionKey("v1", "aa"), link_stamp=FIRST)},
        [Crash(VersionKey("v2", None), 2, None)],
    )
    assert serialise(saved) == ON_DISK
    (tmp_path / "state/state.json").write_bytes(ON_DISK)
    assert state.read() == saved


def test_a_file_of_an_earlier_release_is_read(state, tmp_path):
    (tmp_path / "state/state.json").write_bytes(OF_AN_EARLIER_RELEASE)
    assert serialise(state.read()) == ON_DISK


def test_keys_that_a_later_release_adds_are_ignored(state, tmp_path):
    (tmp_path / "state/state.json").write_bytes(ON_DISK.replace(b'"trying"', b'"later": [1],\n   "trying"'))
    assert state.read().aliases["current"].serving == VersionKey("v1", "aa")


WRONG_VALUES = {
    "a float where an int belongs": (b'"inode": 2', b'"inode": 2.0'),
    "text where an int belongs": (b'"inode": 2', b'"inode": "2"'),
    "a bool where an int belongs": (b'"inode": 2', b'"inode": true'),
    "a number beyond every float": (b'"inode": 2', b'"inode": 5e79518'),
    "a count beyond every float": (b'"count": 2', b'"count": 5e79518'),
    "a negative count": (b'"count": 2', b'"count": -2'),
    "a huge count": (b'"count": 2', b'"count": ' + b"9" * 4000),
    "an int of 10,000 digits": (b'"inode": 2', b'"inode": ' + b"9" * 10_000),
    "not a number": (b'"inode": 2', b'"inode": NaN'),
    "an int where a bool belongs": (b'"running": true', b'"running": 1'),
    "text where a bool belongs": (b'"running": true', b'"running": "no"'),
    "a number where a digest belongs": (b'"digest": "aa"', b'"digest": 7'),
    "a name that is no version's": (b'"version": "v1"', b'"version": "../v1"'),
    "a lone surrogate": (b'"version": "v1"', b'"version": "\\ud800"'),
    "no format": (b'"format": 1,', b""),
    "no crashes": (b'"crashes"', b'"crushes"'),
    "an alias without a key": (b'   "good": [],\n', b""),
    "an alias that is a list": (b'"aliases": {', b'"aliases": {"canary": [],'),
    "deep nesting": (b'"good": []', b'"good": ' + b"[" * 50_000 + b"]" * 50_000),
    "deep nesting under an unknown key": (b'"format"', b'"x": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b',"format"'),
}  # fmt: skip


@pytest.mark.parametrize(("old", "new"), WRONG_VALUES.values(), ids=WRONG_VALUES.keys())
def test_a_wrong_value_puts_the_file_aside(state, tmp_path, caplog, old, new):
    data = ON_DISK.replace(old, new, 1)
    assert data != ON_DISK
    (tmp_path / "state/state.json").write_bytes(data)
    assert state.read() == SavedState()
    assert (tmp_path / "state/state.json.bad").read_bytes() == data
    (record,) = caplog.records
    assert "state.json cannot be used" in record.message
    assert "\n" not in record.message
    assert len(record.message) < 1000


def test_the_file_of_a_newer_release_is_put_aside_said_to_be_so_and_kept_whatever_happens_next(state, tmp_path, caplog):
    newer = ON_DISK.replace(b'"format": 1', b'"format": 2').replace(b'"crashes": [', b'"collapses": [')
    (tmp_path / "state/state.json").write_bytes(newer)
    assert state.read() == SavedState()
    assert "it is of format 2, expected 1; a newer release that wrote it can use it again" in caplog.text
    state.write(serialise(a_state()))
    for _ in range(30):
        (tmp_path / "state/state.json").write_bytes(b"garbage")
        assert state.read() == SavedState()
    assert (tmp_path / "state/state.json.bad").read_bytes() == newer


def test_a_file_that_is_cut_off_at_any_length_is_put_aside(state, tmp_path):
    whole = serialise(a_state())
    for length in range(len(whole)):
        (tmp_path / "state/state.json").write_bytes(whole[:length])
        assert state.read() == SavedState(), length
        assert not (tmp_path / "state/state.json").exists()
    (tmp_path / "state/state.json").write_bytes(whole)
    assert state.read() == a_state()


def test_a_file_that_is_too_large_is_put_aside_unread(state, tmp_path):
    with open(tmp_path / "state/state.json", "wb") as file:
        file.truncate(2**40)
    assert state.read() == SavedState()
    assert (tmp_path / "state/state.json.bad").stat().st_size == 2**40


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize(
    "make",
    [
        os.mkfifo,
        os.mkdir,
        make_socket,
        lambda path: path.symlink_to("/dev/zero"),
        lambda path: path.symlink_to(path),
        lambda path: path.symlink_to("nowhere"),
    ],
    ids=["FIFO", "directory", "socket", "device", "symlink loop", "dangling symlink"],
)
def test_anything_but_a_regular_file_is_put_aside_without_waiting_for_it(state, tmp_path, make):
    make(tmp_path / "state/state.json")
    kind = stat.S_IFMT((tmp_path / "state/state.json").lstat().st_mode)
    assert state.read() == SavedState()
    assert stat.S_IFMT((tmp_path / "state/state.json.bad").lstat().st_mode) == kind
    state.write(serialise(a_state()))
    assert state.read() == a_state()


def test_what_was_put_aside_earlier_does_not_prevent_it_now(state, tmp_path, caplog):
    (tmp_path / "state/state.json").mkdir()
    (tmp_path / "state/state.json.bad").write_text("from an earlier time")
    before = descriptors()
    assert state.read() == SavedState()
    assert "(it is not a regular file); it is renamed to state.json.bad-1" in caplog.text
    assert (tmp_path / "state/state.json.bad").read_text() == "from an earlier time"
    assert_none_left(before)
    (tmp_path / "state/state.json").write_text("{")
    (tmp_path / "state/state.json.bad").unlink()
    (tmp_path / "state/state.json.bad/inside").mkdir(parents=True)
    assert state.read() == SavedState()
    state.write(serialise(a_state()))
    assert state.read() == a_state()


@pytest.mark.parametrize(
    "make",
    [os.mkdir, os.mkfifo, make_socket, lambda path: path.symlink_to(path), lambda path: path.symlink_to("nowhere")],
    ids=["directory", "FIFO", "socket", "symlink loop", "dangling symlink"],
)
def test_anything_but_a_regular_file_in_the_place_of_the_lock_is_put_aside(tmp_path, make, caplog):
    (tmp_path / "state").mkdir()
    make(tmp_path / "state/lock")
    file = StateFile(tmp_path / "state")
    assert "lock cannot be used" in caplog.text
    assert "it is renamed to lock.bad" in caplog.text
    assert stat.S_ISREG((tmp_path / "state/lock").lstat().st_mode)
    with pytest.raises(UsageError, match="another zwatch uses"):
        StateFile(tmp_path / "state")
    file.close()


def test_what_a_crash_in_the_middle_of_a_write_left_is_removed_at_the_start(tmp_path):
    for name in (".state.json.abcd1234", ".state.json.", "state.json.bad", ".other"):
        (tmp_path / name).write_text("x")
    (tmp_path / ".state.json.link").symlink_to("state.json.bad")
    StateFile(tmp_path).close()
    assert sorted(os.listdir(tmp_path)) == [".other", "lock", "state.json.bad"]


def test_so_is_what_it_left_of_the_other_files_unless_another_process_still_writes_them(tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", lambda *given: os.kill(os.getpid(), signal.SIGKILL))
        for name in (trial_file.FILE, sessions.FILE):
            killed = multiprocessing.get_context("fork").Process(target=write_durably, args=(tmp_path, name, b"x"))
            killed.start()
            killed.join(60)
            assert killed.exitcode == -signal.SIGKILL
    left = sorted(os.listdir(tmp_path))
    assert [name.startswith((".ended-sessions.json.", ".trials.json.")) for name in left] == [True, True]
    lock = os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    StateFile(tmp_path, os.dup(lock), is_alone=False).close()
    assert sorted(os.listdir(tmp_path)) == [*left, "lock"]
    StateFile(tmp_path, lock).close()
    assert os.listdir(tmp_path) == ["lock"]


def test_a_directory_that_was_removed_is_made_again_and_locked(state, tmp_path):
    state.write(serialise(SavedState()))
    assert state.is_sound()
    shutil.rmtree(tmp_path / "state")
    assert not state.is_sound()
    state.write(serialise(a_state()))
    assert state.is_sound()
    assert state.read() == a_state()
    with pytest.raises(UsageError, match="another zwatch uses"):
        StateFile(tmp_path / "state")


def test_a_directory_that_another_process_made_again_is_not_written(state, tmp_path):
    (tmp_path / "state").rename(tmp_path / "away")
    other = StateFile(tmp_path / "state")
    with pytest.raises(BlockingIOError):
        state.write(serialise(a_state()))
    assert other.read() == SavedState()
    other.close()


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.unlink(),
        lambda path: os.replace(shutil.copy(path, path.with_name("copy")), path),
        lambda path: path.with_name("lock").unlink(),
    ],
    ids=["the file is gone", "the file was replaced", "the lock is gone"],
)
def test_a_change_by_another_program_is_seen(state, tmp_path, change):
    state.write(serialise(a_state()))
    change(tmp_path / "state/state.json")
    assert not state.is_sound()


def test_a_disk_that_fails_for_a_moment_loses_no_state(state, tmp_path, monkeypatch):
    state.write(serialise(a_state()))
    genuine, failures = os.open, [errno.EIO, errno.EMFILE]

    def fail(path, *arguments, **options):
        if str(path).endswith("state.json") and failures:
            raise OSError(failures[0], os.strerror(failures.pop()))
        return genuine(path, *arguments, **options)

    monkeypatch.setattr(os, "open", fail)
    assert state.read() == a_state()
    assert failures == []


def test_a_read_only_disk_does_not_prevent_the_start(tmp_path, monkeypatch, caplog):
    genuine = os.open

    def fail(path, flags, *arguments, **options):
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return genuine(path, flags, *arguments, **options)

    monkeypatch.setattr(os, "open", fail)
    file = StateFile(tmp_path)
    assert "cannot be used: Read-only file system; retrying" in caplog.text
    assert file.read() == SavedState()
    with pytest.raises(OSError, match="Read-only"):
        file.write(b"")
    monkeypatch.undo()
    file.write(serialise(a_state()))
    assert file.is_sound()
    file.close()


# --- the keeper


@pytest.fixture
async def keeper(tmp_path):
    bridge, file = Bridge(), StateFile(tmp_path / "state")
    yield StateKeeper(bridge, file)
    bridge.close()
    file.close()


def make_unwritable(directory):
    """Leave no way to write in a directory, for root too."""
    directory.rename(directory.with_name("away"))
    directory.write_text("a file")


async def test_a_save_that_fails_is_logged_once_and_the_next_one_is_written(keeper, tmp_path, caplog):
    keeper.saved.running = True
    make_unwritable(tmp_path / "state")
    for _ in range(2):
        await keeper.save()
    assert not keeper.is_written
    assert keeper.problem.startswith(f"the state directory {tmp_path / 'state'} cannot be written: ")
    assert caplog.text.count("the state directory could not be written; retrying: ") == 1
    (tmp_path / "state").unlink()
    await keeper.save()
    assert keeper.is_written
    assert (await keeper.read()).running


async def test_what_was_saved_is_kept_although_another_program_removes_it(keeper, tmp_path):
    keeper.saved.running = True
    await keeper.save()
    shutil.rmtree(tmp_path / "state")
    async with asyncio.timeout(30):
        while not (tmp_path / "state/state.json").exists():
            keeper.keep()
            await asyncio.sleep(0.05)
    keeper.stop_keeping()
    assert (await keeper.read()).running


async def test_a_file_system_that_does_not_answer_holds_up_nobody(keeper, monkeypatch):
    monkeypatch.setattr("zwatch.rollout.state.SAVE_SECONDS", 0.05)
    answer = threading.Event()
    monkeypatch.setattr(keeper._file, "write", lambda data: answer.wait())
    async with asyncio.timeout(30):
        await keeper.save()
        assert "has not answered for 0.05 s" in keeper.problem
        await keeper.save()
        answer.set()
        while keeper.problem is not None:
            await asyncio.sleep(0.01)


async def test_looking_at_a_file_system_that_does_not_answer_is_no_unexpected_error(keeper, monkeypatch, caplog):
    def silent(*_):
        raise NoAnswer("state", 5.0)

    for call in ("write", "is_sound"):
        monkeypatch.setattr(keeper._file, call, silent)
    for _ in range(2):  # while it can be written as far as is known, and while it cannot
        keeper._check_at = 0.0
        keeper.keep()
        await asyncio.wait([keeper._checking])
        assert keeper._checking.exception() is None
        assert "no answer" in keeper.problem
    gc.collect()
    assert "never retrieved" not in caplog.text


# --- crashes


def run(saved, *, serving=None, trying=None, link_stamp=FIRST, crash=True):
    """Do what one run of the service does to the state; return what its start says of the previous run."""
    crashed = saved.begin_run()
    part = saved.alias("current")
    part.serving, part.trying, part.link_stamp = serving, trying, link_stamp
    if not crash:
        saved.end_run()
    return crashed


def test_a_run_that_did_not_crash_is_counted_for_no_version():
    saved = SavedState()
    run(saved, serving=V1, crash=False)
    assert run(saved) == []
    assert not saved.is_set_aside(V1, FIRST)


def test_a_crash_counts_for_what_served_and_what_was_tried():
    saved = SavedState()
    run(saved, serving=V1, trying=V2)
    assert sorted(run(saved)) == [V1, V2]


def test_a_crash_with_nothing_resident_is_counted_for_no_version():
    saved = SavedState()
    run(saved)
    assert run(saved) == []


@pytest.mark.parametrize("role", ["serving", "trying"])
def test_two_crashes_in_a_row_set_a_version_aside(role):
    saved = SavedState()
    run(saved, **{role: V2})
    run(saved, **{role: V2})
    assert not saved.is_set_aside(V2, FIRST)
    saved.begin_run()
    assert saved.is_set_aside(V2, FIRST)
    assert not saved.is_set_aside(V1, FIRST)


@pytest.mark.parametrize(
    "between", [{"serving": V2, "crash": False}, {"serving": V1}], ids=["no crash", "another version"]
)
def test_two_crashes_that_are_not_in_a_row_set_nothing_aside(between):
    saved = SavedState()
    run(saved, serving=V2)
    run(saved, **between)
    run(saved, serving=V2)
    saved.begin_run()
    assert not saved.is_set_aside(V2, FIRST)


def set_aside(key=V2):
    saved = SavedState()
    run(saved, trying=key)
    run(saved, trying=key)
    return saved


def test_a_version_that_was_set_aside_is_tried_again_when_linked_again():
    saved = set_aside()
    saved.begin_run()
    assert saved.is_set_aside(V2, FIRST)
    assert not saved.is_set_aside(V2, LATER)


def test_a_version_that_was_set_aside_is_tried_again_when_sealed_again():
    saved = set_aside()
    saved.begin_run()
    assert not saved.is_set_aside(VersionKey("v2", "f" * 64), FIRST)


def test_a_version_stays_set_aside_after_a_run_that_did_not_crash():
    saved = set_aside()
    run(saved, serving=V1, crash=False)
    saved.begin_run()
    assert saved.is_set_aside(V2, FIRST)


def test_a_version_stays_set_aside_after_a_crash_of_another():
    saved = set_aside()
    run(saved, serving=V1)
    saved.begin_run()
    assert saved.is_set_aside(V2, FIRST)


def test_a_version_stays_set_aside_over_many_runs(state):
    state.write(serialise(set_aside()))
    for crash in (True, False, True, False):
        saved = state.read()
        run(saved, serving=V1, crash=crash)
        state.write(serialise(saved))
    saved = state.read()
    saved.begin_run()
    assert saved.is_set_aside(V2, FIRST)


# --- last-known-good


def test_the_two_latest_good_versions_are_kept_newest_first():
    saved = SavedState()
    for key in (V1, V2, V3):
        assert saved.note_good("current", key)
    assert saved.fallbacks("current") == [V3, V2]


def test_noting_the_same_good_version_again_changes_nothing():
    saved = SavedState()
    saved.note_good("current", V1)
    assert not saved.note_good("current", V1)
    saved.note_good("current", V2)
    assert saved.note_good("current", V1)
    assert saved.fallbacks("current") == [V1, V2]


def test_a_good_version_that_was_set_aside_is_a_last_resort():
    saved = set_aside(V2)
    saved.alias("current").good = [V2, V1]
    saved.begin_run()
    assert saved.fallbacks("current") == [V1]
    assert list(saved.last_resorts("current")) == [V2]


def test_each_alias_has_its_own_good_versions():
    saved = SavedState()
    saved.note_good("current", V1)
    saved.note_good("canary", V2)
    assert (saved.fallbacks("current"), saved.fallbacks("canary")) == ([V1], [V2])
