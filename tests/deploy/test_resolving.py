"""Aliases: resolving one to an opened directory, and repointing one safely.

On a real file system: resolving asks /proc for the opened directory's name, which a made-up one does not have.
"""

import os
import shutil

import pytest
from blake3 import blake3

from tests.deploy.factory import next_tick, until, write_version
from zwatch.deploy import resolving
from zwatch.deploy.resolving import (
    TEMPORARY_PREFIX,
    Directory,
    Fault,
    LinkNote,
    Stamp,
    Target,
    finish_interrupted,
    repoint,
    resolve,
)
from zwatch.deploy.seal import SEAL_NAME, write_seal
from zwatch.errors import RepointError


def relink(root, text, alias="current"):
    """Repoint as `ln -sfn` does: a temporary link, renamed over the alias."""
    temporary = root / "operators-own"
    temporary.symlink_to(text)
    temporary.replace(root / alias)


def temporaries(root):
    return sorted(name for name in os.listdir(root) if name.startswith(TEMPORARY_PREFIX))


def note(root_fd, alias="current"):
    return LinkNote.take(root_fd, alias)


# Resolving.


def test_an_alias_resolves_to_the_opened_directory_its_name_its_stamp_and_its_digest(root, root_fd):
    target = resolve(root_fd, "current")
    assert isinstance(target, Target)
    assert (target.alias, target.link, target.version) == ("current", "v1", "v1")
    assert target.stamp == Stamp.of((root / "current").lstat())
    there = (root / "v1").stat()
    assert target.identity == (there.st_dev, there.st_ino)
    assert target.digest == blake3((root / "v1" / SEAL_NAME).read_bytes()).hexdigest()
    assert os.path.samestat(os.fstat(target.directory.fd), there)


@pytest.mark.parametrize(
    "text", ["v2", "./v2", "v2/", "../models/v2", "v1/../v2", "stable", "{root}/v2", "{root}/stable"]
)
def test_every_text_that_leads_to_a_version_resolves_to_it(root, root_fd, text):
    (root / "stable").symlink_to("v2")
    relink(root, text.format(root=root))
    assert resolve(root_fd, "current").version == "v2"


def dangling(root):
    relink(root, "v9")


def loop(root):
    relink(root, "other")
    (root / "other").symlink_to("current")


def self_loop(root):
    relink(root, "current")


def to_a_file(root):
    (root / "notes").touch()
    relink(root, "notes")


def to_a_fifo(root):
    os.mkfifo(root / "pipe")
    relink(root, "pipe")


def below_a_file(root):
    (root / "notes").touch()
    relink(root, "notes/v1")


def outside(root):
    write_version(root.parent, "elsewhere")
    relink(root, "../elsewhere")


def outside_of_the_same_name(root):
    shutil.copytree(root / "v1", root.parent / "v1")
    relink(root, "../v1")


def deeper(root):
    relink(root, "v1/transformer")


def deeper_of_the_same_name(root):
    (root / "v1" / "v2").mkdir()
    relink(root, "v1/v2")


def the_root(root):
    relink(root, ".")


def a_wrong_name(root):
    (root / ".hidden").mkdir()
    relink(root, ".hidden")


def missing(root):
    (root / "current").unlink()


def a_directory(root):
    (root / "current").unlink()
    (root / "current").mkdir()


def a_file(root):
    (root / "current").unlink()
    (root / "current").write_text("v1")


FAULTS = [
    (missing, "missing", "current: there is no such link; make it with `ln -sfn VERSION current`"),
    (dangling, "dangling", "current -> v9: there is nothing of that name"),
    (loop, "loop", "current -> other: the links lead in a circle"),
    (self_loop, "loop", "current -> current: the links lead in a circle"),
    (to_a_file, "not_a_directory", "current -> notes: expected a version directory, found a file"),
    (to_a_fifo, "not_a_directory", "current -> pipe: expected a version directory"),
    (below_a_file, "not_a_directory", "current -> notes/v1: expected a version directory"),
    (outside, "outside", "elsewhere is not a version directly under the models root"),
    (outside_of_the_same_name, "outside", "/v1 is not a version directly under the models root"),
    (deeper, "outside", "models/v1/transformer is not a version directly under the models root"),
    (deeper_of_the_same_name, "outside", "models/v1/v2 is not a version directly under the models root"),
    (the_root, "outside", "models is not a version directly under the models root"),
    (a_wrong_name, "outside", ".hidden is not a version directly under the models root"),
    (a_directory, "not_a_link", "current: expected a symlink, found something else of that name"),
    (a_file, "not_a_link", "current: expected a symlink, found something else of that name"),
]


@pytest.mark.parametrize(("spoil", "code", "words"), FAULTS)
def test_a_link_to_no_version_is_a_fault_that_says_what_was_found(root, root_fd, spoil, code, words):
    spoil(root)
    fault = resolve(root_fd, "current")
    assert isinstance(fault, Fault)
    assert (fault.alias, fault.code) == ("current", code)
    assert words in fault.message
    if code not in ("missing", "not_a_link"):
        assert fault.link == os.readlink(root / "current")
        assert f"current -> {fault.link}" in fault.message


@pytest.mark.parametrize("spoil", [case[0] for case in FAULTS])
def test_a_fault_leaks_no_descriptor(root, root_fd, spoil):
    spoil(root)
    before = len(os.listdir("/proc/self/fd"))
    resolve(root_fd, "current")
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_version_without_a_seal_resolves_without_a_digest(root, root_fd):
    (root / "v1" / SEAL_NAME).unlink()
    target = resolve(root_fd, "current")
    assert (target.version, target.seal_stamp, target.digest) == ("v1", None, None)


def test_a_seal_that_is_a_fifo_does_not_block_the_look(root, root_fd):
    (root / "v1" / SEAL_NAME).unlink()
    os.mkfifo(root / "v1" / SEAL_NAME)
    assert resolve(root_fd, "current").digest is None


def test_what_is_known_and_unchanged_is_returned_itself(root, root_fd):
    known = resolve(root_fd, "current")
    assert resolve(root_fd, "current", known) is known


def linked_anew(root):
    next_tick(root)
    relink(root, "v1")


def resealed(root):
    (root / "v1" / "new.json").write_text("{}")
    write_seal(root / "v1", "v1")


def seal_gone(root):
    (root / "v1" / SEAL_NAME).unlink()


def directory_replaced(root):
    (root / "v1").rename(root / "old")
    shutil.copytree(root / "old", root / "v1")


def flipped(root):
    relink(root, "v2")


@pytest.mark.parametrize("change", [linked_anew, resealed, seal_gone, directory_replaced, flipped])
def test_what_is_known_and_changed_is_resolved_anew(root, root_fd, change):
    known = resolve(root_fd, "current")
    change(root)
    found = resolve(root_fd, "current", known)
    assert found is not known
    assert found != known
    assert resolve(root_fd, "current", found) is found


def test_a_renamed_version_under_a_chain_of_links_gets_its_new_name(root, root_fd):
    (root / "stable").symlink_to("v1")
    relink(root, "stable")
    known = resolve(root_fd, "current")
    (root / "v1").rename(root / "v7")
    relink(root, "v7", "stable")
    assert resolve(root_fd, "current", known).version == "v7"


def test_a_target_keeps_its_directory_when_the_link_moves_on(root, root_fd):
    target = resolve(root_fd, "current")
    relink(root, "v2")
    (root / "v1").rename(root / "gone")
    assert os.path.samestat(os.fstat(target.directory.fd), (root / "gone").stat())


def test_an_alias_that_appears_under_the_look_is_looked_at_again(root, root_fd, monkeypatch):
    readlink = os.readlink
    moves = iter(["v2"])

    def moving(path, **where):
        text = readlink(path, **where)
        if path == "current" and (move := next(moves, None)):
            next_tick(root)
            relink(root, move)
        return text

    monkeypatch.setattr(os, "readlink", moving)
    found = resolve(root_fd, "current")
    assert (found.version, found.link) == ("v2", "v2")


def test_an_alias_that_never_holds_still_is_a_fault_that_says_so(root, root_fd, monkeypatch):
    readlink = os.readlink

    def moving(path, **where):
        text = readlink(path, **where)
        if path == "current":
            next_tick(root)
            relink(root, "v2")
        return text

    monkeypatch.setattr(os, "readlink", moving)
    assert resolve(root_fd, "current").code == "unsettled"


def test_an_alias_that_becomes_a_file_under_the_look_is_no_error(root, root_fd, monkeypatch):
    readlink = os.readlink

    def moving(path, **where):
        if path == "current" and (root / "current").is_symlink():
            a_file(root)
        return readlink(path, **where)

    monkeypatch.setattr(os, "readlink", moving)
    assert resolve(root_fd, "current").code == "not_a_link"


# The opened directory.


def test_a_directory_is_closed_once_and_its_duplicate_lives_on(root):
    directory = Directory(os.open(root / "v1", os.O_RDONLY), "v1")
    own = directory.duplicate()
    directory.close()
    directory.close()
    assert own.version == "v1"
    assert os.path.samestat(os.fstat(own.fd), (root / "v1").stat())
    own.close()


def test_file_stamps_tell_what_changed_and_what_is_not_there(root, root_fd):
    directory = resolve(root_fd, "current").directory
    paths = ["model_index.json", "vae/model.safetensors", "gone", "gone/deeper"]
    before = directory.file_stamps(paths)
    assert (before["gone"], before["gone/deeper"]) == (None, None)
    assert directory.file_stamps(paths) == before
    next_tick(root)
    (root / "v1" / "model_index.json").write_text("{}")
    after = directory.file_stamps(paths)
    assert [path for path in paths if after[path] != before[path]] == ["model_index.json"]


# Repointing.


@pytest.fixture(params=["renameat2", "rename"])
def _either_exchange(request, monkeypatch):
    """With the kernel's exchange, and without it."""
    if request.param == "rename":
        monkeypatch.setattr(resolving, "_renameat2", lambda *_: False)


@pytest.mark.usefixtures("_either_exchange")
class TestRepoint:
    def test_a_noted_alias_is_repointed_and_its_new_stamp_is_returned(self, root, root_fd):
        placed = repoint(root_fd, "current", "v2", note(root_fd))
        assert os.readlink(root / "current") == "v2"
        assert placed == Stamp.of((root / "current").lstat())
        assert resolve(root_fd, "current").stamp == placed
        assert temporaries(root) == []

    def test_an_alias_that_did_not_exist_is_made(self, root, root_fd):
        placed = repoint(root_fd, "canary", "v2", None)
        assert os.readlink(root / "canary") == "v2"
        assert placed == Stamp.of((root / "canary").lstat())
        assert temporaries(root) == []

    def test_an_alias_that_was_made_meanwhile_stays(self, root, root_fd):
        with pytest.raises(RepointError, match="current was made by somebody else meanwhile; it stays as it is"):
            repoint(root_fd, "current", "v2", None)
        assert os.readlink(root / "current") == "v1"
        assert temporaries(root) == []

    @pytest.mark.parametrize("text", ["v3", "v1"])
    def test_an_alias_that_was_moved_after_the_note_stays_where_the_operator_put_it(self, root, root_fd, text):
        stale = note(root_fd)
        next_tick(root)
        relink(root, text)
        his = note(root_fd)
        with pytest.raises(RepointError, match="current was repointed by somebody else meanwhile; that move stands"):
            repoint(root_fd, "current", "v2", stale)
        assert note(root_fd) == his
        assert temporaries(root) == []

    def test_an_alias_whose_inode_was_used_again_is_known_for_another_by_its_time(self, root, root_fd):
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
        his = note(root_fd)
        assert his != stale
        with pytest.raises(RepointError, match="that move stands"):
            repoint(root_fd, "current", "v2", stale)
        assert note(root_fd) == his

    def test_an_alias_that_was_removed_after_the_note_stays_removed(self, root, root_fd):
        stale = note(root_fd)
        (root / "current").unlink()
        with pytest.raises(RepointError, match="current was removed meanwhile; it stays so"):
            repoint(root_fd, "current", "v2", stale)
        assert not os.path.lexists(root / "current")
        assert temporaries(root) == []

    def test_a_full_disk_leaves_the_alias_and_nothing_else(self, root, root_fd, monkeypatch):
        def full(fd):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(RepointError, match="current could not be repointed to v2: No space left"):
            repoint(root_fd, "current", "v2", note(root_fd))
        assert temporaries(root) == []

    def test_a_root_that_may_not_be_written_is_said_with_what_to_type(self, root, root_fd, monkeypatch):
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
        if resolving._renameat2.__name__ == "_renameat2":
            monkeypatch.setattr(resolving, "_renameat2", refused)
        with pytest.raises(RepointError, match="could not be repointed to v2: Operation not permitted"):
            repoint(root_fd, "current", "v2", note(root_fd))
        assert os.readlink(root / "current") == "v1"
        assert temporaries(root) == []

    @pytest.mark.parametrize("moves", [["v3"], ["v3", "v1"], ["v3", "v1", "v3"], ["v3", None]])
    def test_the_newest_of_an_operator_s_moves_stands_however_often_he_moves_meanwhile(
        self, root, root_fd, monkeypatch, moves
    ):
        """He moves the alias before the first exchange, again before the one that puts his move back, and so on."""
        exchange = resolving._exchange
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

        monkeypatch.setattr(resolving, "_exchange", raced)
        with pytest.raises(RepointError):
            repoint(root_fd, "current", "v2", note(root_fd))
        if moves[-1] is None:
            assert not os.path.lexists(root / "current")
        else:
            assert os.readlink(root / "current") == moves[-1]
        assert temporaries(root) == []

    def test_a_move_right_after_ours_stands(self, root, root_fd, monkeypatch):
        fsync = os.fsync

        def late(fd):
            fsync(fd)
            relink(root, "v3")

        monkeypatch.setattr(os, "fsync", late)
        with pytest.raises(RepointError, match="that move stands"):
            repoint(root_fd, "current", "v2", note(root_fd))
        assert os.readlink(root / "current") == "v3"
        assert temporaries(root) == []

    def test_readers_never_see_the_alias_missing(self, root, root_fd):
        import threading

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


def test_a_wish_that_a_crash_kept_from_its_place_takes_it(root, root_fd):
    next_tick(root)
    crashed(root).symlink_to("v2")
    finish_interrupted(root_fd, "current")
    assert os.readlink(root / "current") == "v2"
    assert temporaries(root) == []


def test_a_displaced_link_that_a_crash_left_goes(root, root_fd):
    (root / "current").rename(crashed(root))
    next_tick(root)
    (root / "current").symlink_to("v2")
    finish_interrupted(root_fd, "current")
    assert os.readlink(root / "current") == "v2"
    assert temporaries(root) == []


def test_a_displaced_link_goes_though_the_operator_s_later_one_has_an_old_time_of_its_own(root, root_fd):
    """As `rsync -a` and `cp -a` make it: the link's modification time is that of the link it was copied from."""
    (root / "current").rename(crashed(root))
    next_tick(root)
    (root / "current").symlink_to("v2")
    os.utime(root / "current", ns=(10**18, 10**18), follow_symlinks=False)
    finish_interrupted(root_fd, "current")
    assert os.readlink(root / "current") == "v2"
    assert temporaries(root) == []


def test_a_wish_for_an_alias_that_is_not_there_takes_its_place(root, root_fd):
    (root / "current").unlink()
    crashed(root).symlink_to("v2")
    finish_interrupted(root_fd, "current")
    assert os.readlink(root / "current") == "v2"


def test_the_newest_of_several_left_links_takes_the_place(root, root_fd):
    for token, text in (("b" * 12, "v2"), ("a" * 12, "v3")):
        next_tick(root)
        crashed(root, token=token).symlink_to(text)
    finish_interrupted(root_fd, "current")
    assert os.readlink(root / "current") == "v3"
    assert temporaries(root) == []


def test_a_link_kept_by_a_second_name_goes_too(root, root_fd):
    os.link(root / "current", f"{crashed(root)}-kept", follow_symlinks=False)
    finish_interrupted(root_fd, "current")
    assert os.readlink(root / "current") == "v1"
    assert temporaries(root) == []


def test_what_was_left_for_another_alias_is_not_touched(root, root_fd):
    next_tick(root)
    crashed(root, "current-canary").symlink_to("v2")
    finish_interrupted(root_fd, "current")
    assert os.readlink(root / "current") == "v1"
    assert temporaries(root) == [crashed(root, "current-canary").name]


def test_nothing_left_is_nothing_done(root, root_fd):
    before = note(root_fd)
    finish_interrupted(root_fd, "current")
    assert note(root_fd) == before
