"""Repointing a link safely, and what a crash in the middle of it leaves."""

import errno
import os
import threading

import pytest

from tests.deploy.factory import next_tick, until
from tests.deploy.typed import relink, temporaries
from zwatch.deploy import links
from zwatch.deploy.links import TEMPORARY_PREFIX, Leftovers, LinkNote, finish_interrupted, repoint
from zwatch.deploy.resolving import LinkStamp, resolve
from zwatch.errors import RepointError


def note(root_fd, alias="current"):
    return LinkNote.take(root_fd, alias)


@pytest.fixture(params=["renameat2", "rename"])
def _either_exchange(request, monkeypatch):
    """With the kernel's exchange, and without it."""
    if request.param == "rename":
        monkeypatch.setattr(links, "renameat2", lambda *_: False)


@pytest.mark.usefixtures("_either_exchange")
class TestRepoint:
    def test_a_noted_alias_is_repointed_and_its_new_stamp_is_returned(self, root, root_fd):
        placed = repoint(root_fd, "current", "v2", note(root_fd))
        assert os.readlink(root / "current") == "v2"
        assert placed == LinkStamp.of((root / "current").lstat())
        assert resolve(root_fd, "current").link_stamp == placed
        assert temporaries(root) == []

    def test_an_alias_that_did_not_exist_is_made(self, root, root_fd):
        placed = repoint(root_fd, "canary", "v2", None)
        assert os.readlink(root / "canary") == "v2"
        assert placed == LinkStamp.of((root / "canary").lstat())
        assert temporaries(root) == []

    def test_an_alias_that_another_process_made_stays(self, root, root_fd):
        with pytest.raises(RepointError, match="current was made by another process; that change stays"):
            repoint(root_fd, "current", "v2", None)
        assert os.readlink(root / "current") == "v1"
        assert temporaries(root) == []

    @pytest.mark.parametrize("text", ["v3", "v1"])
    def test_an_alias_that_was_moved_after_the_note_stays_where_the_operator_put_it(self, root, root_fd, text):
        stale = note(root_fd)
        next_tick(root)
        relink(root, text)
        theirs = note(root_fd)
        with pytest.raises(RepointError, match="current was repointed by another process; that change stays"):
            repoint(root_fd, "current", "v2", stale)
        assert note(root_fd) == theirs
        assert temporaries(root) == []

    def test_a_new_link_with_a_reused_inode_is_recognised_by_its_time(self, root, root_fd):
        stale = note(root_fd)

        def reused():
            (root / "current").unlink()
            (root / "current").symlink_to("v1")
            return (root / "current").lstat().st_ino == stale.inode

        next_tick(root)
        try:
            until(reused, "an inode number that is used again", 2)
        except AssertionError:
            pytest.skip("this file system does not use inode numbers again")
        theirs = note(root_fd)
        assert theirs != stale
        with pytest.raises(RepointError, match="that change stays"):
            repoint(root_fd, "current", "v2", stale)
        assert note(root_fd) == theirs

    def test_an_alias_that_was_removed_after_the_note_stays_removed(self, root, root_fd):
        stale = note(root_fd)
        (root / "current").unlink()
        with pytest.raises(RepointError, match="current was removed by another process; that change stays"):
            repoint(root_fd, "current", "v2", stale)
        assert not os.path.lexists(root / "current")
        assert temporaries(root) == []

    @pytest.mark.parametrize("noted", [True, False])
    def test_a_link_that_is_in_place_but_could_not_be_synced_is_repointed_and_that_is_logged(
        self, root, root_fd, monkeypatch, caplog, noted
    ):
        def full(fd):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        alias = "current" if noted else "canary"
        placed = repoint(root_fd, alias, "v2", note(root_fd) if noted else None)
        assert os.readlink(root / alias) == "v2"
        assert placed == LinkStamp.of((root / alias).lstat())
        assert temporaries(root) == []
        assert f"{alias} points to v2, but after a power failure it may not" in caplog.text
        assert "No space left on device" in caplog.text

    @pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
    def test_a_file_system_that_cannot_sync_directories_is_no_matter(self, root, root_fd, monkeypatch, caplog, code):
        def unsupported(fd):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", unsupported)
        repoint(root_fd, "current", "v2", note(root_fd))
        assert os.readlink(root / "current") == "v2"
        assert caplog.text == ""

    def test_a_root_that_may_not_be_written_is_reported_with_the_command_to_type(self, root, root_fd, monkeypatch):
        def read_only(*_, **__):
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(os, "symlink", read_only)
        with pytest.raises(
            RepointError, match=r"may not be written \(Read-only file system\); type `ln -sfn v2 current`"
        ):
            repoint(root_fd, "current", "v2", note(root_fd))
        assert os.readlink(root / "current") == "v1"

    def test_a_rename_that_fails_leaves_the_alias_and_nothing_else(self, root, root_fd, monkeypatch):
        def refused(*_, **__):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "rename", refused)
        if links.renameat2.__name__ == "renameat2":
            monkeypatch.setattr(links, "renameat2", refused)
        with pytest.raises(RepointError, match="could not be repointed to v2: Operation not permitted"):
            repoint(root_fd, "current", "v2", note(root_fd))
        assert os.readlink(root / "current") == "v1"
        assert temporaries(root) == []

    @pytest.mark.parametrize("moves", [["v3"], ["v3", "v1"], ["v3", "v1", "v3"], ["v3", None]])
    def test_the_newest_of_several_concurrent_moves_by_the_operator_stays(self, root, root_fd, monkeypatch, moves):
        """The operator moves the alias before the first exchange, before the exchange that restores that move, and so on."""
        exchange = links.exchange
        pending = iter(moves)
        count = 0

        def raced(fd, first, second):
            nonlocal count
            count += 1
            assert count < 20, "the exchanges never end"
            for move in pending:
                (root / "current").unlink()
                if move is not None:
                    (root / "current").symlink_to(move)
                break
            exchange(fd, first, second)

        monkeypatch.setattr(links, "exchange", raced)
        with pytest.raises(RepointError):
            repoint(root_fd, "current", "v2", note(root_fd))
        if moves[-1] is None:
            assert not os.path.lexists(root / "current")
        else:
            assert os.readlink(root / "current") == moves[-1]
        assert temporaries(root) == []

    def test_a_move_right_after_the_repointing_stays(self, root, root_fd, monkeypatch):
        fsync = os.fsync

        def late(fd):
            fsync(fd)
            relink(root, "v3")

        monkeypatch.setattr(os, "fsync", late)
        with pytest.raises(RepointError, match="that change stays"):
            repoint(root_fd, "current", "v2", note(root_fd))
        assert os.readlink(root / "current") == "v3"
        assert temporaries(root) == []

    def test_readers_never_see_the_alias_missing(self, root, root_fd):
        absent = []
        stop = threading.Event()

        def read():
            while not stop.is_set():
                try:
                    os.readlink("current", dir_fd=root_fd)
                except FileNotFoundError as error:
                    absent.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        for round_ in range(200):
            repoint(root_fd, "current", f"v{round_ % 3 + 1}", note(root_fd))
        stop.set()
        reader.join()
        assert absent == []


# What a crash left.


def crashed(root, alias="current", token="0123456789ab"):
    """Return where a repointing of `alias` keeps its temporary link."""
    return root / f"{TEMPORARY_PREFIX}{alias}-{token}"


def test_a_new_link_that_a_crash_left_under_its_temporary_name_is_moved_into_place(root, root_fd):
    next_tick(root)
    crashed(root).symlink_to("v2")
    finish_interrupted(root_fd, "current")
    assert os.readlink(root / "current") == "v2"
    assert temporaries(root) == []


def test_a_displaced_link_that_a_crash_left_is_removed(root, root_fd):
    (root / "current").rename(crashed(root))
    next_tick(root)
    (root / "current").symlink_to("v2")
    finish_interrupted(root_fd, "current")
    assert os.readlink(root / "current") == "v2"
    assert temporaries(root) == []


def test_a_displaced_link_is_removed_though_the_operator_s_newer_link_has_an_older_mtime(root, root_fd):
    """As `rsync -a` and `cp -a` make it: the link's modification time is that of the link it was copied from."""
    (root / "current").rename(crashed(root))
    next_tick(root)
    (root / "current").symlink_to("v2")
    os.utime(root / "current", ns=(10**18, 10**18), follow_symlinks=False)
    finish_interrupted(root_fd, "current")
    assert os.readlink(root / "current") == "v2"
    assert temporaries(root) == []


def test_a_left_link_for_a_missing_alias_is_moved_into_place(root, root_fd):
    (root / "current").unlink()
    crashed(root).symlink_to("v2")
    finish_interrupted(root_fd, "current")
    assert os.readlink(root / "current") == "v2"


def test_the_newest_of_several_left_links_is_moved_into_place(root, root_fd):
    for token, text in (("b" * 12, "v2"), ("a" * 12, "v3")):
        next_tick(root)
        crashed(root, token=token).symlink_to(text)
    finish_interrupted(root_fd, "current")
    assert os.readlink(root / "current") == "v3"
    assert temporaries(root) == []


def test_a_link_kept_under_a_second_name_is_removed_too(root, root_fd):
    os.link(root / "current", f"{crashed(root)}-kept", follow_symlinks=False)
    finish_interrupted(root_fd, "current")
    assert os.readlink(root / "current") == "v1"
    assert temporaries(root) == []


def test_a_link_left_for_another_alias_is_not_touched(root, root_fd):
    next_tick(root)
    crashed(root, "current-canary").symlink_to("v2")
    finish_interrupted(root_fd, "current")
    assert os.readlink(root / "current") == "v1"
    assert temporaries(root) == [crashed(root, "current-canary").name]


@pytest.mark.parametrize("kind", ["a file", "a directory"])
def test_what_is_no_link_never_takes_the_alias_s_place_nor_is_it_removed(root, root_fd, kind):
    next_tick(root)
    planted = crashed(root, "current")
    planted.touch() if kind == "a file" else planted.mkdir()
    finish_interrupted(root_fd, "current")
    leftovers = Leftovers(0.0)
    assert [leftovers.sweep(root_fd, now) for now in (1.0, 2.0)] == [False, False]
    assert os.readlink(root / "current") == "v1"
    assert planted.exists()


def test_without_a_left_link_nothing_is_changed(root, root_fd):
    before = note(root_fd)
    finish_interrupted(root_fd, "current")
    assert note(root_fd) == before
