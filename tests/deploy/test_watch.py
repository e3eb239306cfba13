"""Watching the models root, on real inotify."""

import ctypes
import errno
import logging
import os
import shutil
import threading
import warnings
from pathlib import Path

import pytest
from watchdog.observers.api import BaseObserver, EventEmitter

from tests.deploy.factory import until, write_version
from tests.descriptors import assert_none_left, descriptors
from zwatch.deploy import watch
from zwatch.deploy.watch import RootWatcher


class Changes:
    """Counts the calls of `on_change`."""

    def __init__(self):
        self.count = 0
        self.happened = threading.Event()

    def __call__(self):
        self.count += 1
        self.happened.set()

    def settle(self):
        """Wait until earlier events cause no more calls, then forget them."""

        def quiet():
            self.happened.clear()
            return not self.happened.wait(0.1)

        until(quiet, "no more calls")

    def expect(self):
        until(self.happened.is_set, "a call of on_change")
        self.happened.clear()


@pytest.fixture
def changes():
    return Changes()


@pytest.fixture
def watcher(root, changes):
    watcher = RootWatcher(root, changes)
    yield watcher
    watcher.stop()


def observers():
    return [thread for thread in threading.enumerate() if isinstance(thread, BaseObserver)]


def emitters():
    return [thread for thread in threading.enumerate() if isinstance(thread, EventEmitter)]


def watches():
    """Return what this process watches with inotify: (device, inode) of each directory, as the kernel lists them."""
    found = []
    for info in Path("/proc/self/fdinfo").iterdir():
        try:
            lines = info.read_text().splitlines()
        except OSError:
            continue  # the descriptor of this listing
        for line in lines:
            if line.startswith("inotify "):
                fields = dict(field.split(":") for field in line.split()[1:] if ":" in field)
                found.append(int(fields["ino"], 16))
    return sorted(found)


def inodes(*paths):
    return sorted(path.stat().st_ino for path in paths)


def flip(root, text="v2"):
    (root / "operators-own").symlink_to(text)
    (root / "operators-own").replace(root / "current")


def ln_sf(root):
    (root / "v1" / "v2").symlink_to("v2")


def unlink_symlink(root):
    (root / "current").unlink()
    (root / "current").symlink_to("v2")


def copied_in(root):
    write_version(root, "v9")


def resealed(root):
    (root / "seal.new").write_text("x")
    (root / "seal.new").replace(root / "v1" / "BLAKE3SUMS")


def written_in_place(root):
    with open(root / "v2" / "transformer" / "config.json", "a") as file:
        file.write(" ")


def made_readable(root):
    (root / "v2" / "transformer" / "config.json").chmod(0o640)


def removed(root):
    (root / "v2" / "model_index.json").unlink()


FOLDERS = ["v1", "v2", "v2/transformer"]
CHANGES = [flip, ln_sf, unlink_symlink, copied_in, resealed, written_in_place, made_readable, removed]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_the_root_or_a_watched_folder_is_reported(root, changes, watcher, change):
    watcher.ensure_running(FOLDERS)
    assert watcher.kind == "native"
    changes.settle()
    change(root)
    changes.expect()


def test_the_start_reports_a_change_for_what_happened_before(changes, watcher):
    watcher.ensure_running()
    assert changes.count == 1


def test_a_folder_that_is_new_reports_a_change_for_what_happened_before(changes, watcher):
    watcher.ensure_running()
    changes.settle()
    calls = changes.count
    watcher.ensure_running(["v1"])
    watcher.ensure_running(["v1"])
    changes.settle()
    assert changes.count == calls + 1


def test_a_folder_that_is_no_longer_watched_causes_one_look_at_most(changes, watcher):
    watcher.ensure_running(["v1"])
    changes.settle()
    calls = changes.count
    watcher.ensure_running([])  # the kernel reports the end of the watch, from the observer's thread
    changes.settle()
    assert changes.count <= calls + 1


# What is not watched costs nothing.


def test_only_the_root_and_the_given_folders_are_watched(root, watcher):
    (root / "training" / "run1" / "checkpoints").mkdir(parents=True)
    watcher.ensure_running(["v1", "v2/transformer"])
    assert watches() == inodes(root, root / "v1", root / "v2" / "transformer")
    watcher.ensure_running(["v2"])
    assert watches() == inodes(root, root / "v2")


def test_changes_elsewhere_below_the_root_are_not_reported(root, changes, watcher):
    (root / "training" / "run1").mkdir(parents=True)
    watcher.ensure_running(["v1"])
    changes.settle()
    calls = changes.count
    for number in range(100):
        for folder in ("training/run1", "v1/transformer", "v2"):
            (root / folder / f"file{number}").write_text("x")
            (root / folder / f"file{number}").unlink()
    flip(root)  # one instance keeps the order of its events: once this one is reported, those before it were dropped
    changes.expect()
    changes.settle()
    assert changes.count - calls <= 2


def test_reading_is_not_reported(root, changes, watcher):
    watcher.ensure_running(FOLDERS)
    changes.settle()
    calls = changes.count
    for folder, _, names in os.walk(root):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                file.read()
    os.readlink(root / "current")
    flip(root)
    changes.expect()
    changes.settle()
    assert changes.count - calls <= 2


@pytest.mark.parametrize("folder", ["", "v1"])
def test_thousands_of_changes_are_one_call(root, changes, folder):
    watcher = RootWatcher(root, changes, ["file", "le1", "1"], pause_seconds=3600)
    try:
        watcher.ensure_running(["v1"])
        for number in range(2000):
            (root / folder / f"file{number % 10}").touch()
            (root / folder / f"file{number % 10}").unlink()
        until(lambda: changes.count > 1, "the first of them to be reported")
        assert changes.count == 2  # and the one of the start
    finally:
        watcher.stop()  # does not wait for the pause
    assert (observers(), emitters()) == ([], [])


def test_a_followed_name_does_not_wait_for_the_pause(root, changes):
    watcher = RootWatcher(root, changes, ["canary", "current"], pause_seconds=3600)
    try:
        watcher.ensure_running()
        changes.settle()
        for _ in range(3):  # a link is made under another name, and renamed while the pause after that lasts
            (root / "other").touch()
            changes.settle()
            calls = changes.count
            flip(root)
            until(lambda calls=calls: changes.count > calls, "the rename to be reported")
    finally:
        watcher.stop()


def test_a_change_is_reported_after_a_queue_that_overflowed(root, changes, watcher):
    watcher.ensure_running()
    for number in range(20_000):  # the queue holds 16,384 events
        os.symlink("v1", root / f"link{number % 7}")
        os.unlink(root / f"link{number % 7}")
    changes.settle()
    flip(root)
    changes.expect()


def test_trees_that_come_and_go_raise_no_warning_and_are_not_watched(root, changes, watcher):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        watcher.ensure_running(["v1"])
        for first in range(10):
            for second in range(10):
                (root / f"a{first}" / f"b{second}" / "c" / "d").mkdir(parents=True)
        deep = os.open(root, os.O_RDONLY)
        for _ in range(400):
            os.mkdir("deeper", dir_fd=deep)
            deeper = os.open("deeper", os.O_RDONLY, dir_fd=deep)
            os.close(deep)
            deep = deeper
        os.close(deep)
        (root / "deeper").rename(root / "moved")
        (root / "moved").rename(root / "a0" / "moved")
        changes.settle()
        flip(root)
        changes.expect()
        assert watches() == inodes(root, root / "v1")
        watcher.stop()


# A models root that is moved, replaced or away.


def test_changes_below_a_root_that_is_a_symlink_are_reported(root, changes, tmp_path):
    (tmp_path / "link").symlink_to("models")
    watcher = RootWatcher(tmp_path / "link", changes)
    try:
        watcher.ensure_running(["v1"])
        for change in (flip, ln_sf):
            changes.settle()
            change(root)
            changes.expect()
    finally:
        watcher.stop()


def test_ensure_running_again_changes_nothing(watcher, changes):
    watcher.ensure_running(FOLDERS)
    changes.settle()
    threads, calls, watched = threading.enumerate(), changes.count, watches()
    for _ in range(5):
        watcher.ensure_running(FOLDERS)
    assert (changes.count, watches()) == (calls, watched)
    assert set(threading.enumerate()) <= set(threads)


def made_again(root, away):
    shutil.copytree(away, root, symlinks=True)


def moved_back(root, away):
    away.rename(root)


def now_a_symlink(root, away):
    root.symlink_to(away)


@pytest.mark.parametrize("comes_back", [made_again, moved_back, now_a_symlink])
@pytest.mark.parametrize("meanwhile", ["nothing", "file", "dangling", "loop"])
def test_a_root_that_was_moved_away_is_watched_when_it_is_back(
    root, changes, watcher, tmp_path, caplog, meanwhile, comes_back
):
    watcher.ensure_running(["v1"])
    threads = threading.enumerate()
    away = tmp_path / "away"
    root.rename(away)
    match meanwhile:
        case "file":
            root.touch()
        case "dangling":
            root.symlink_to("nowhere")
        case "loop":
            root.symlink_to(root)
    watcher.ensure_running(["v1"])
    assert (watcher.kind, watches()) == ("none", [])
    root.unlink(missing_ok=True)
    comes_back(root, away)
    changes.settle()
    watcher.ensure_running(["v1"])
    changes.expect()
    assert watcher.kind == "native"
    assert watches() == inodes(root, root / "v1")
    for change in (flip, ln_sf):
        changes.settle()
        change(root)
        changes.expect()
    assert set(threading.enumerate()) <= set(threads)
    assert caplog.text == ""


def test_a_root_that_is_a_symlink_is_followed_when_it_is_repointed(root, changes, tmp_path):
    shutil.copytree(root, tmp_path / "other", symlinks=True)
    (tmp_path / "link").symlink_to("models")
    watcher = RootWatcher(tmp_path / "link", changes)
    try:
        watcher.ensure_running(["v1"])
        (tmp_path / "new").symlink_to("other")
        (tmp_path / "new").replace(tmp_path / "link")
        watcher.ensure_running(["v1"])
        assert watches() == inodes(tmp_path / "other", tmp_path / "other" / "v1")
        changes.settle()
        flip(tmp_path / "other")
        changes.expect()
    finally:
        watcher.stop()


def test_a_root_made_again_with_the_same_inode_number_is_watched(root, changes, watcher):
    watcher.ensure_running()
    inode = root.stat().st_ino
    shutil.rmtree(root)
    for _ in range(20):
        root.mkdir()
        if root.stat().st_ino == inode:
            break
        root.rmdir()
    root.mkdir(exist_ok=True)
    changes.settle()
    watcher.ensure_running()
    changes.settle()
    (root / "current").symlink_to("v1")
    changes.expect()


@pytest.mark.parametrize("name", ["gone", "model_index.json", "loop", "nul\0", "x" * 5000])
def test_a_folder_that_cannot_be_watched_does_not_keep_others_from_it(root, watcher, name, caplog):
    (root / "loop").symlink_to("loop")
    watcher.ensure_running([name, "v1"])
    assert watches() == inodes(root, root / "v1")
    assert caplog.text == ""


def test_thousands_of_folders_are_not_all_watched(root, watcher):
    for number in range(600):
        (root / f"folder{number}").mkdir()
    watcher.ensure_running(f"folder{number}" for number in range(600))
    assert watches() == inodes(root, *(root / f"folder{number}" for number in range(511)))


# An observer that ended.


def stopped_observer():
    observers()[0].stop()


def stopped_emitter():
    emitters()[0].stop()


def reader_that_gets_an_io_error():
    [emitter] = emitters()
    memory = os.open("/proc/self/mem", os.O_RDONLY)  # its first page is not mapped: reading it is EIO
    os.dup2(memory, emitter._inotify)
    os.close(memory)
    os.eventfd_write(emitter._wake, 1)  # it wakes, and reads


@pytest.mark.parametrize("ends", [stopped_observer, stopped_emitter, reader_that_gets_an_io_error])
def test_an_observer_that_ended_is_replaced(root, changes, watcher, caplog, ends):
    watcher.ensure_running(["v1"])
    [emitter] = emitters()
    before = descriptors()
    ends()
    until(lambda: not emitter.is_alive(), "the reading thread to end")
    watcher.ensure_running(["v1"])
    assert watcher.kind == "native"
    assert f"the observer of {root} ended; replacing it" in caplog.text
    assert (len(observers()), len(emitters())) == (1, 1)
    assert_none_left(before)
    for change in (flip, ln_sf):
        changes.settle()
        change(root)
        changes.expect()


def test_an_observer_that_ends_again_and_again_is_not_logged_each_time(watcher, caplog):
    for _ in range(5):
        watcher.ensure_running()
        [emitter] = emitters()
        emitter.stop()
        emitter.join()
    assert caplog.text.count("ended; replacing it") == 1


def test_a_callback_that_raises_does_not_stop_the_watching(root, changes, caplog):
    def fails_at_first():
        changes()
        if changes.count <= 2:
            raise RuntimeError("not now")

    watcher = RootWatcher(root, fails_at_first)
    try:
        watcher.ensure_running()
        changes.settle()
        until(lambda: changes.count > 2 or flip(root), "more calls than failures")
        [observer] = observers()
        assert observer.is_alive()
        assert "on_change failed" in caplog.text
        assert "not now" in caplog.text
        changes.settle()
        flip(root, "v3")
        changes.expect()
    finally:
        watcher.stop()


def test_after_a_stop_nothing_is_reported_and_nothing_is_left(root, changes, watcher):
    descriptors = os.listdir("/proc/self/fd")
    watcher.ensure_running(FOLDERS)
    watcher.stop()
    watcher.stop()
    assert (watcher.kind, observers(), emitters(), watches()) == ("none", [], [], [])
    assert os.listdir("/proc/self/fd") == descriptors
    changes.happened.clear()
    flip(root)
    assert not changes.happened.wait(0.2)


# Where inotify is not available.


def no_more(code):
    def refuse(*_):
        ctypes.set_errno(code)
        return -1

    return refuse


def no_more_threads(self):
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize(
    ("target", "name", "fails", "reason"),
    [
        (watch, "inotify_init", no_more(errno.EMFILE), os.strerror(errno.EMFILE)),
        (watch, "inotify_add_watch", no_more(errno.ENOSPC), "no more watches"),
        (threading.Thread, "start", no_more_threads, "can't start new thread"),
    ],
)
def test_without_inotify_nothing_runs_and_that_is_logged_once_and_tried_again(
    root, changes, watcher, monkeypatch, caplog, target, name, fails, reason
):
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(target, name, fails)
        for _ in range(3):
            watcher.ensure_running(["v1"])
        assert watcher.kind == "none"
        assert watches() == []
        if name != "inotify_add_watch":
            assert observers() == []
            assert_none_left(before)
    lines = [record for record in caplog.records if "inotify is not available" in record.message]
    assert [record.levelno for record in lines] == [logging.WARNING]
    assert reason in lines[0].message
    assert "fs.inotify.max_user_instances" in lines[0].message
    assert "every 250 ms" in lines[0].message
    watcher.ensure_running(["v1"])
    assert watcher.kind == "native"
    changes.settle()
    flip(root)
    changes.expect()
