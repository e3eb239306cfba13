"""Aliases: resolving one to an opened directory.

On a real file system: resolving asks /proc for the opened directory's name, which a made-up one does not have.
"""

import os
import shutil

import pytest
from blake3 import blake3

from tests.deploy.factory import next_tick, write_version
from tests.deploy.typed import relink
from tests.descriptors import assert_none_left, descriptors
from zwatch.deploy.resolving import Directory, Fault, LinkStamp, Target, resolve
from zwatch.deploy.seal import SEAL_NAME
from zwatch.deploy.sealing import write_seal

# Resolving.


def test_an_alias_resolves_to_the_opened_directory_its_name_its_stamp_and_its_digest(root, root_fd):
    target = resolve(root_fd, "current")
    assert isinstance(target, Target)
    assert (target.alias, target.link, target.version) == ("current", "v1", "v1")
    assert target.link_stamp == LinkStamp.of((root / "current").lstat())
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
    (dangling, "dangling", "current -> v9: nothing with that name exists"),
    (loop, "loop", "current -> other: the links form a loop"),
    (self_loop, "loop", "current -> current: the links form a loop"),
    (to_a_file, "not_a_directory", "current -> notes: expected a version directory, found a file"),
    (to_a_fifo, "not_a_directory", "current -> pipe: expected a version directory"),
    (below_a_file, "not_a_directory", "current -> notes/v1: expected a version directory"),
    (outside, "outside", "elsewhere is not a version directly under the models root"),
    (outside_of_the_same_name, "outside", "/v1 is not a version directly under the models root"),
    (deeper, "outside", "models/v1/transformer is not a version directly under the models root"),
    (deeper_of_the_same_name, "outside", "models/v1/v2 is not a version directly under the models root"),
    (the_root, "outside", "models is not a version directly under the models root"),
    (a_wrong_name, "outside", ".hidden is not a version directly under the models root"),
    (a_directory, "not_a_link", "current: expected a symlink, found something else with that name"),
    (a_file, "not_a_link", "current: expected a symlink, found something else with that name"),
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
    before = descriptors()
    resolve(root_fd, "current")
    assert_none_left(before)


def test_a_version_without_a_seal_resolves_without_a_digest(root, root_fd):
    (root / "v1" / SEAL_NAME).unlink()
    target = resolve(root_fd, "current")
    assert (target.version, target.seal_stamp, target.digest) == ("v1", None, None)


def test_a_seal_that_is_a_fifo_does_not_block_the_look(root, root_fd):
    (root / "v1" / SEAL_NAME).unlink()
    os.mkfifo(root / "v1" / SEAL_NAME)
    assert resolve(root_fd, "current").digest is None


def test_an_unchanged_known_target_is_returned_itself(root, root_fd):
    known = resolve(root_fd, "current")
    assert resolve(root_fd, "current", known) is known


def linked_anew(root):
    next_tick(root)
    relink(root, "v1")


def resealed(root):
    (root / "v1" / "zwatch.json").write_text("{}")
    write_seal(root / "v1", "v1")


def seal_gone(root):
    (root / "v1" / SEAL_NAME).unlink()


def directory_replaced(root):
    (root / "v1").rename(root / "old")
    shutil.copytree(root / "old", root / "v1")


def flipped(root):
    relink(root, "v2")


@pytest.mark.parametrize("change", [linked_anew, resealed, seal_gone, directory_replaced, flipped])
def test_a_changed_known_target_is_resolved_again(root, root_fd, change):
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


def test_an_alias_that_appears_during_the_look_is_read_again(root, root_fd, monkeypatch):
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


def test_an_alias_that_changes_all_the_time_is_a_fault(root, root_fd, monkeypatch):
    readlink = os.readlink

    def moving(path, **where):
        text = readlink(path, **where)
        if path == "current":
            next_tick(root)
            relink(root, "v2")
        return text

    monkeypatch.setattr(os, "readlink", moving)
    assert resolve(root_fd, "current").code == "unsettled"


def test_an_alias_that_becomes_a_file_during_the_look_is_no_error(root, root_fd, monkeypatch):
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
    paths = ["model_index.json", "vae/config.json", "gone", "gone/deeper"]
    before = directory.file_stamps(paths)
    assert (before["gone"], before["gone/deeper"]) == (None, None)
    assert directory.file_stamps(paths) == before
    next_tick(root)
    (root / "v1" / "model_index.json").write_text("{}")
    after = directory.file_stamps(paths)
    assert [path for path in paths if after[path] != before[path]] == ["model_index.json"]
