"""Watching the models root, on real inotify."""

import errno
import logging
import os
import shutil
import subprocess
import sys
import threading
import warnings

import pytest
from watchdog.observers.api import BaseObserver
from watchdog.observers.inotify import InotifyObserver
from watchdog.observers.inotify_c import InotifyFD
from watchdog.observers.polling import PollingEmitter

from tests.deploy.factory import until, write_version
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
    watcher = RootWatcher(root, changes, poll_seconds=0.05)
    yield watcher
    watcher.stop()


def observers():
    return [thread for thread in threading.enumerate() if isinstance(thread, BaseObserver)]


def inotify_threads():
    return [thread for thread in threading.enumerate() if isinstance(thread, (InotifyObserver, InotifyFD))]


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
    (root / "v1" / "seal.new").write_text("x")
    (root / "v1" / "seal.new").replace(root / "v1" / "BLAKE3SUMS")


def written_in_place(root):
    with open(root / "v2" / "transformer" / "config.json", "a") as file:
        file.write(" ")


def removed(root):
    (root / "v3" / "model_index.json").unlink()


CHANGES = [flip, ln_sf, unlink_symlink, copied_in, resealed, written_in_place, removed]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_anywhere_below_the_root_is_reported(root, changes, watcher, change):
    watcher.ensure_running()
    assert watcher.kind == "native"
    changes.settle()
    change(root)
    changes.expect()


def test_the_start_reports_a_change_for_what_happened_before(changes, watcher):
    watcher.ensure_running()
    assert changes.count >= 1


def test_reading_is_not_reported(root, changes, watcher):
    watcher.ensure_running()
    changes.settle()
    calls = changes.count
    for folder, _, names in os.walk(root):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                file.read()
    os.readlink(root / "current")
    flip(root)  # events keep their order: once this one is reported, all before it are
    changes.expect()
    changes.settle()
    assert changes.count - calls <= 4


def test_files_of_a_version_made_after_the_start_are_reported(root, changes, watcher):
    watcher.ensure_running()
    (root / "v9" / "transformer").mkdir(parents=True)
    changes.expect()
    changes.settle()
    (root / "v9" / "transformer" / "config.json").write_text("{}")
    changes.expect()


def test_changes_below_a_root_that_is_a_symlink_are_reported(root, changes, tmp_path):
    (tmp_path / "link").symlink_to("models")
    watcher = RootWatcher(tmp_path / "link", changes)
    try:
        watcher.ensure_running()
        changes.settle()
        flip(root)
        changes.expect()
    finally:
        watcher.stop()


def test_ensure_running_again_changes_nothing(watcher, changes):
    watcher.ensure_running()
    changes.settle()
    threads, calls = observers(), changes.count
    for _ in range(5):
        watcher.ensure_running()
    assert (observers(), changes.count) == (threads, calls)


def test_a_root_that_was_moved_away_and_made_again_is_watched(root, changes, watcher, tmp_path, caplog):
    watcher.ensure_running()
    root.rename(tmp_path / "away")
    root.mkdir()
    changes.settle()
    watcher.ensure_running()
    changes.expect()
    assert "stopped or lost its directory; replacing it" in caplog.text
    changes.settle()
    (root / "current").symlink_to("v1")
    changes.expect()
    assert len(observers()) == 1


def test_watching_resumes_when_the_root_comes_back(root, changes, watcher, tmp_path):
    watcher.ensure_running()
    root.rename(tmp_path / "away")
    watcher.ensure_running()
    assert watcher.kind == "none"
    assert observers() == []
    (tmp_path / "away").rename(root)
    watcher.ensure_running()
    assert watcher.kind == "native"
    changes.settle()
    flip(root)
    changes.expect()


def test_an_observer_that_died_is_replaced(root, changes, watcher):
    watcher.ensure_running()
    [observer] = observers()
    observer.stop()
    until(lambda: not observer.is_alive(), "the observer to end")
    watcher.ensure_running()
    assert watcher.kind == "native"
    changes.settle()
    flip(root)
    changes.expect()


def test_an_observer_whose_reading_thread_died_is_replaced(root, changes, watcher):
    watcher.ensure_running()
    [observer] = observers()
    [emitter] = observer.emitters
    emitter.stop()
    until(lambda: not emitter.is_alive(), "the reading thread to end")
    watcher.ensure_running()
    changes.settle()
    flip(root)
    changes.expect()


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

    def calls_again():
        watcher.ensure_running()  # as the tick does
        changes.happened.clear()
        (root / "v1").mkdir(exist_ok=True)
        (root / "v1").rmdir()
        return changes.happened.wait(0.3)

    until(calls_again, "a call for the new root")


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


def test_an_observer_that_does_not_stop_is_abandoned(root, changes, monkeypatch, caplog):
    watcher = RootWatcher(root, changes, stop_seconds=0.05)
    watcher.ensure_running()
    [observer] = observers()
    go, stop = threading.Event(), observer.stop

    def hang():
        assert go.wait(30)
        stop()

    monkeypatch.setattr(observer, "stop", hang)
    watcher.stop()
    assert watcher.kind == "none"
    assert [record.message for record in caplog.records] == [f"the observer of {root} does not stop; abandoning it"]
    go.set()


def test_after_a_stop_nothing_is_reported_and_no_thread_is_left(root, changes, watcher):
    watcher.ensure_running()
    watcher.stop()
    watcher.stop()
    assert (watcher.kind, observers(), inotify_threads()) == ("none", [], [])
    changes.happened.clear()
    flip(root)
    assert not changes.happened.wait(0.2)


def no_more_instances(*_):
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def refusing(where):
    """Return an observer that inotify refuses at this point of its life."""

    class Refused(InotifyObserver):
        pass

    def refuse(self, *_, **__):
        no_more_instances()

    setattr(Refused, where, refuse)
    return Refused


@pytest.fixture
def inotify_refused(monkeypatch):
    """As where `fs.inotify.max_user_instances` is used up."""
    monkeypatch.setattr(InotifyFD, "_create_inotify_fd", no_more_instances)


@pytest.mark.usefixtures("inotify_refused")
class TestPolling:
    def test_without_inotify_polling_is_logged_once_and_reports_changes(self, root, changes, watcher, tmp_path, caplog):
        watcher.ensure_running()
        assert watcher.kind == "polling"
        watcher.ensure_running()
        changes.settle()
        flip(root)
        changes.expect()
        root.rename(tmp_path / "away")
        watcher.ensure_running()
        (tmp_path / "away").rename(root)
        watcher.ensure_running()
        lines = [record for record in caplog.records if "inotify is not available" in record.message]
        assert [record.levelno for record in lines] == [logging.WARNING]
        assert os.strerror(errno.EMFILE) in lines[0].message
        assert "fs.inotify.max_user_instances" in lines[0].message

    def test_polling_reports_a_stray_and_a_new_version(self, root, changes, watcher):
        watcher.ensure_running()
        for change in (ln_sf, copied_in):
            changes.settle()
            change(root)
            changes.expect()

    def test_polling_is_stopped_too(self, watcher):
        watcher.ensure_running()
        watcher.stop()
        assert observers() == []


POLL = """
import sys
from pathlib import Path
from watchdog.observers.inotify_c import InotifyFD
from zwatch.deploy.watch import RootWatcher

def refused(*_):
    raise OSError(24, "Too many open files")

InotifyFD._create_inotify_fd = refused
watcher = RootWatcher(Path(sys.argv[1]), lambda: None)
watcher.ensure_running()
print(watcher.kind)
watcher.stop()
"""


def test_polling_does_not_follow_links_in_circles(root):
    """In a separate process: a walk through them never ends."""
    for here in ("v1", "v2", "v3"):
        for there in ("v1", "v2", "v3"):
            (root / here / there).symlink_to(root / there)
    done = subprocess.run(
        [sys.executable, "-c", POLL, str(root)], capture_output=True, text=True, check=False, timeout=20
    )
    assert done.stdout.strip() == "polling", done.stderr


@pytest.mark.parametrize("where", ["__init__", "schedule", "start"])
def test_polling_is_used_wherever_inotify_fails(watcher, monkeypatch, where):
    monkeypatch.setattr(watch, "Observer", refusing(where))
    watcher.ensure_running()
    assert watcher.kind == "polling"
    assert inotify_threads() == []


@pytest.mark.parametrize("where", ["__init__", "schedule", "start"])
def test_a_root_that_cannot_be_observed_is_logged_once_and_tried_again(
    root, changes, watcher, monkeypatch, caplog, where
):
    with monkeypatch.context() as patch:
        patch.setattr(watch, "Observer", refusing(where))
        patch.setattr(PollingEmitter, "on_thread_start", no_more_instances)
        for _ in range(3):
            watcher.ensure_running()
        assert watcher.kind == "none"
        assert inotify_threads() == []
        assert caplog.text.count("cannot be watched; checking every 250 ms") == 1
    watcher.ensure_running()
    assert watcher.kind == "native"
    changes.settle()
    flip(root)
    changes.expect()


def test_no_warning_is_raised_while_versions_come_and_go(root, changes, watcher):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)  # see pyproject.toml
        watcher.ensure_running()
        for number in range(5):
            copied_in(root)
            (root / "v9").rename(root / f"w{number}")
        changes.settle()
        flip(root)
        changes.expect()
