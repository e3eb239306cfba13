"""The doorbell, on real inotify."""

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
from zwatch.deploy.watch import Doorbell


class Bell:
    """Counts the rings."""

    def __init__(self):
        self.rings = 0
        self.happened = threading.Event()

    def __call__(self):
        self.rings += 1
        self.happened.set()

    def hush(self):
        """Wait until nothing rings any more of what happened before, then forget it."""

        def quiet():
            self.happened.clear()
            return not self.happened.wait(0.1)

        until(quiet, "a bell that is quiet")

    def rang(self):
        until(self.happened.is_set, "a ring")
        self.happened.clear()


@pytest.fixture
def bell():
    return Bell()


@pytest.fixture
def doorbell(root, bell):
    doorbell = Doorbell(root, bell)
    yield doorbell
    doorbell.stop()


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
def test_it_rings_on_a_change_anywhere_below_the_root(root, bell, doorbell, change):
    doorbell.tend()
    assert doorbell.kind == "native"
    bell.hush()
    change(root)
    bell.rang()


def test_it_rings_once_it_stands_for_what_changed_before(bell, doorbell):
    doorbell.tend()
    assert bell.rings >= 1


def test_it_does_not_ring_for_reading(root, bell, doorbell):
    doorbell.tend()
    bell.hush()
    rings = bell.rings
    for folder, _, names in os.walk(root):
        for name in names:
            with open(os.path.join(folder, name), "rb") as file:
                file.read()
    os.readlink(root / "current")
    flip(root)  # events keep their order: once this one has rung, all before it would have
    bell.rang()
    bell.hush()
    assert bell.rings - rings <= 4


def test_it_rings_for_files_of_a_version_made_after_it_stood(root, bell, doorbell):
    doorbell.tend()
    (root / "v9" / "transformer").mkdir(parents=True)
    bell.rang()
    bell.hush()
    (root / "v9" / "transformer" / "config.json").write_text("{}")
    bell.rang()


def test_it_rings_below_a_root_that_is_a_symlink(root, bell, tmp_path):
    (tmp_path / "link").symlink_to("models")
    doorbell = Doorbell(tmp_path / "link", bell)
    try:
        doorbell.tend()
        bell.hush()
        flip(root)
        bell.rang()
    finally:
        doorbell.stop()


def test_tending_what_stands_changes_nothing(doorbell, bell):
    doorbell.tend()
    bell.hush()
    threads, rings = observers(), bell.rings
    for _ in range(5):
        doorbell.tend()
    assert (observers(), bell.rings) == (threads, rings)


def test_it_watches_a_root_that_was_moved_away_and_made_again(root, bell, doorbell, tmp_path, caplog):
    doorbell.tend()
    root.rename(tmp_path / "away")
    root.mkdir()
    bell.hush()
    doorbell.tend()
    bell.rang()
    assert "stopped or lost its directory; starting another" in caplog.text
    bell.hush()
    (root / "current").symlink_to("v1")
    bell.rang()
    assert len(observers()) == 1


def test_it_stands_again_when_the_root_comes_back(root, bell, doorbell, tmp_path):
    doorbell.tend()
    root.rename(tmp_path / "away")
    doorbell.tend()
    assert doorbell.kind == "none"
    assert observers() == []
    (tmp_path / "away").rename(root)
    doorbell.tend()
    assert doorbell.kind == "native"
    bell.hush()
    flip(root)
    bell.rang()


def test_an_observer_that_died_is_replaced(root, bell, doorbell):
    doorbell.tend()
    [observer] = observers()
    observer.stop()
    until(lambda: not observer.is_alive(), "an observer that died")
    doorbell.tend()
    assert doorbell.kind == "native"
    bell.hush()
    flip(root)
    bell.rang()


def test_an_observer_whose_reading_thread_died_is_replaced(root, bell, doorbell):
    doorbell.tend()
    [observer] = observers()
    [emitter] = observer.emitters
    emitter.stop()
    until(lambda: not emitter.is_alive(), "a reading thread that died")
    doorbell.tend()
    bell.hush()
    flip(root)
    bell.rang()


def test_it_watches_a_root_that_was_removed_and_made_again_of_the_same_inode_number_too(root, bell, doorbell):
    doorbell.tend()
    inode = root.stat().st_ino
    shutil.rmtree(root)
    for _ in range(20):
        root.mkdir()
        if root.stat().st_ino == inode:
            break
        root.rmdir()
    root.mkdir(exist_ok=True)
    bell.hush()

    def rings_again():
        doorbell.tend()  # as the tick does
        bell.happened.clear()
        (root / "v1").mkdir(exist_ok=True)
        (root / "v1").rmdir()
        return bell.happened.wait(0.3)

    until(rings_again, "a ring from the new root")


def test_a_callback_that_raises_does_not_kill_it(root, bell, caplog):
    def fails_at_first():
        bell()
        if bell.rings <= 2:
            raise RuntimeError("not now")

    doorbell = Doorbell(root, fails_at_first)
    try:
        doorbell.tend()
        bell.hush()
        until(lambda: bell.rings > 2 or flip(root), "more rings than failures")
        [observer] = observers()
        assert observer.is_alive()
        assert "the doorbell could not be rung" in caplog.text
        assert "not now" in caplog.text
        bell.hush()
        flip(root, "v3")
        bell.rang()
    finally:
        doorbell.stop()


def test_an_observer_that_does_not_stop_is_left_behind(root, bell, doorbell, monkeypatch, caplog):
    doorbell.tend()
    go, stop = threading.Event(), doorbell._observer.stop

    def hang():
        assert go.wait(30)
        stop()

    monkeypatch.setattr(doorbell._observer, "stop", hang)
    monkeypatch.setattr(watch, "_STOP_SECONDS", 0.05)
    doorbell.stop()
    assert doorbell.kind == "none"
    assert [record.message for record in caplog.records] == [f"the observer of {root} does not stop; it is left behind"]
    go.set()


def test_after_stopping_it_neither_rings_nor_leaves_a_thread(root, bell, doorbell):
    doorbell.tend()
    doorbell.stop()
    doorbell.stop()
    assert (doorbell.kind, observers(), inotify_threads()) == ("none", [], [])
    bell.happened.clear()
    flip(root)
    assert not bell.happened.wait(0.2)


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
    monkeypatch.setattr(watch, "_POLL_SECONDS", 0.05)


@pytest.mark.usefixtures("inotify_refused")
class TestPolling:
    def test_without_inotify_it_polls_says_so_once_and_rings(self, root, bell, doorbell, tmp_path, caplog):
        doorbell.tend()
        assert doorbell.kind == "polling"
        doorbell.tend()
        bell.hush()
        flip(root)
        bell.rang()
        root.rename(tmp_path / "away")
        doorbell.tend()
        (tmp_path / "away").rename(root)
        doorbell.tend()
        lines = [record for record in caplog.records if "inotify cannot be had" in record.message]
        assert [record.levelno for record in lines] == [logging.WARNING]
        assert os.strerror(errno.EMFILE) in lines[0].message
        assert "fs.inotify.max_user_instances" in lines[0].message

    def test_polling_rings_for_a_stray_and_for_a_new_version(self, root, bell, doorbell):
        doorbell.tend()
        for change in (ln_sf, copied_in):
            bell.hush()
            change(root)
            bell.rang()

    def test_polling_is_stopped_too(self, doorbell):
        doorbell.tend()
        doorbell.stop()
        assert observers() == []


POLL = """
import sys
from pathlib import Path
from watchdog.observers.inotify_c import InotifyFD
from zwatch.deploy.watch import Doorbell

def refused(*_):
    raise OSError(24, "Too many open files")

InotifyFD._create_inotify_fd = refused
doorbell = Doorbell(Path(sys.argv[1]), lambda: None)
doorbell.tend()
print(doorbell.kind)
doorbell.stop()
"""


def test_polling_does_not_follow_links_in_circles(root):
    """In a process of its own: a walk through them never ends."""
    for here in ("v1", "v2", "v3"):
        for there in ("v1", "v2", "v3"):
            (root / here / there).symlink_to(root / there)
    done = subprocess.run(
        [sys.executable, "-c", POLL, str(root)], capture_output=True, text=True, check=False, timeout=20
    )
    assert done.stdout.strip() == "polling", done.stderr


@pytest.mark.parametrize("where", ["__init__", "schedule", "start"])
def test_wherever_inotify_is_refused_it_polls(doorbell, monkeypatch, where):
    monkeypatch.setattr(watch, "Observer", refusing(where))
    doorbell.tend()
    assert doorbell.kind == "polling"
    assert inotify_threads() == []


@pytest.mark.parametrize("where", ["__init__", "schedule", "start"])
def test_where_nothing_can_be_observed_it_says_so_once_and_goes_on(root, bell, doorbell, monkeypatch, caplog, where):
    with monkeypatch.context() as patch:
        patch.setattr(watch, "Observer", refusing(where))
        patch.setattr(PollingEmitter, "on_thread_start", no_more_instances)
        for _ in range(3):
            doorbell.tend()
        assert doorbell.kind == "none"
        assert inotify_threads() == []
        assert caplog.text.count("cannot be observed at all; looking every tick") == 1
    doorbell.tend()
    assert doorbell.kind == "native"
    bell.hush()
    flip(root)
    bell.rang()


def test_it_raises_no_warning_of_its_own_while_versions_come_and_go(root, bell, doorbell):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)  # see pyproject.toml
        doorbell.tend()
        for number in range(5):
            copied_in(root)
            (root / "v9").rename(root / f"w{number}")
        bell.hush()
        flip(root)
        bell.rang()
