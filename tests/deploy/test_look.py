"""One look at the models root: targets, faults, awaited files; and repointing an alias on request."""

import os
import shutil

import pytest

from tests.deploy.factory import (
    SMALL,
    TEXT_ENCODER,
    VAE,
    WEIGHTS,
    next_tick,
    reseal_by_hand,
    until,
    weights,
    write_version,
)
from tests.deploy.typed import relink
from tests.descriptors import assert_none_left, descriptors
from zwatch.deploy.followed import MISSING_GRACE
from zwatch.deploy.links import TEMPORARY_PREFIX
from zwatch.deploy.look import SETTLED, Awaited, Looker, await_files, open_version, point
from zwatch.deploy.resolving import LinkStamp
from zwatch.deploy.seal import SEAL_NAME
from zwatch.deploy.sealing import write_seal
from zwatch.errors import RepointError


@pytest.fixture
def looker(root, clock):
    return Looker(root, ["current"], strict_links=False, clock=clock)


# What an alias asks for.


def test_a_look_sees_every_followed_alias_and_no_other(root):
    (root / "canary").symlink_to("v2")
    (root / "backup").symlink_to("v3")
    look = Looker(root, ["current", "canary"], strict_links=False).look()
    assert {alias: target.version for alias, target in look.targets.items()} == {"current": "v1", "canary": "v2"}
    assert (dict(look.faults), list(look.strays), list(look.notes)) == ({}, [], [])


def test_a_look_at_an_unchanged_root_returns_the_very_same_target(looker):
    first = looker.look().targets["current"]
    assert looker.look().targets["current"] is first
    assert looker.look().targets["current"] is first


def test_a_flip_gives_another_target_and_the_old_one_keeps_its_directory(root, looker):
    old = looker.look().targets["current"]
    relink(root, "v2")
    new = looker.look().targets["current"]
    assert (old.version, new.version) == ("v1", "v2")
    assert os.path.samestat(os.fstat(old.directory.fd), (root / "v1").stat())


def test_a_flip_and_back_between_two_looks_gives_a_new_stamp_and_the_same_content(root, looker):
    old = looker.look().targets["current"]
    next_tick(root.parent)
    relink(root, "v2")
    relink(root, "v1")
    new = looker.look().targets["current"]
    assert new.link_stamp != old.link_stamp
    assert (new.version, new.digest, new.identity) == (old.version, old.digest, old.identity)


def test_a_version_sealed_again_has_a_new_digest(root, looker):
    old = looker.look().targets["current"]
    (root / "v1" / WEIGHTS).write_bytes(weights(b"other bytes here", "v1"))
    assert looker.look().targets["current"] is old  # not before it is sealed
    sealed = write_seal(root / "v1", "v1")
    new = looker.look().targets["current"]
    assert new.digest == sealed.digest != old.digest
    assert new.link_stamp == old.link_stamp


def test_a_version_that_is_sealed_later_gets_its_digest(root, looker):
    (root / "v1" / SEAL_NAME).unlink()
    assert looker.look().targets["current"].digest is None
    sealed = write_seal(root / "v1", "v1")
    assert looker.look().targets["current"].digest == sealed.digest


def test_a_seal_rewritten_in_place_is_noticed(root, looker):
    old = looker.look().targets["current"]
    next_tick(root)
    reseal_by_hand(root / "v1", *(root / "v1" / SEAL_NAME).read_text().splitlines()[:-1])
    assert looker.look().targets["current"].digest != old.digest


def test_a_directory_replaced_under_the_same_name_is_noticed(root, looker):
    old = looker.look().targets["current"]
    (root / "v1").rename(root / "v1-old")
    shutil.copytree(root / "v1-old", root / "v1")
    new = looker.look().targets["current"]
    assert new is not old
    assert new.identity != old.identity
    assert (new.version, new.digest) == (old.version, old.digest)


# Faults.


@pytest.mark.parametrize(
    ("text", "code"),
    [("v9", "dangling"), ("current", "loop"), ("notes", "not_a_directory"), ("..", "outside"), ("v1/vae", "outside")],
)
def test_a_link_to_no_version_is_a_fault_at_once_and_no_target(root, looker, text, code):
    (root / "notes").touch()
    looker.look()
    relink(root, text)
    look = looker.look()
    assert look.faults["current"].code == code
    assert "current" not in look.targets


def test_a_fault_that_is_repaired_is_gone(root, looker):
    relink(root, "v9")
    assert looker.look().faults["current"].code == "dangling"
    write_version(root, "v9")
    look = looker.look()
    assert (look.targets["current"].version, dict(look.faults)) == ("v9", {})


def test_a_fault_of_one_alias_does_not_affect_another(root):
    (root / "canary").symlink_to("v9")
    look = Looker(root, ["current", "canary"], strict_links=False).look()
    assert look.targets["current"].version == "v1"
    assert look.faults["canary"].code == "dangling"


def test_a_link_that_is_missing_for_less_than_a_second_is_no_fault(root, looker, clock):
    known = looker.look().targets["current"]
    (root / "current").unlink()
    for _ in range(3):
        look = looker.look()
        assert dict(look.faults) == {}
        assert look.targets.get("current") in (None, known)
        clock.forward(MISSING_GRACE / 4)
    (root / "current").symlink_to("v2")
    assert looker.look().targets["current"].version == "v2"


def test_a_link_that_stays_missing_is_a_fault_after_a_second(root, looker, clock):
    looker.look()
    (root / "current").unlink()
    assert dict(looker.look().faults) == {}
    clock.forward(MISSING_GRACE - 0.01)
    assert dict(looker.look().faults) == {}
    clock.forward(0.01)
    look = looker.look()
    assert look.faults["current"].code == "missing"
    assert "current" not in look.targets
    clock.forward(10)
    assert looker.look().faults["current"].code == "missing"


def test_the_second_is_counted_from_the_start_of_each_absence(root, looker, clock):
    looker.look()
    for _ in range(4):
        (root / "current").unlink()
        assert dict(looker.look().faults) == {}
        clock.forward(MISSING_GRACE * 0.7)
        assert dict(looker.look().faults) == {}
        (root / "current").symlink_to("v1")
        assert looker.look().targets["current"].version == "v1"
        clock.forward(MISSING_GRACE * 0.7)


def test_a_link_that_never_existed_is_a_fault_at_once(root, clock):
    (root / "current").unlink()
    assert Looker(root, ["current"], strict_links=False).look().faults["current"].code == "missing"


# The models root itself.


@pytest.mark.parametrize("gone", ["moved away", "a file instead"])
def test_a_missing_root_is_a_fault_of_every_alias_until_it_comes_back(root, gone):
    looker = Looker(root, ["current", "canary"], strict_links=False)
    looker.look()
    root.rename(root.parent / "away")
    if gone == "a file instead":
        root.touch()
    look = looker.look()
    assert {alias: fault.code for alias, fault in look.faults.items()} == {"current": "no_root", "canary": "no_root"}
    assert str(root) in look.faults["current"].message
    assert "see --models" in look.faults["current"].message
    assert dict(look.targets) == {}
    root.unlink(missing_ok=True)
    (root.parent / "away").rename(root)
    assert looker.look().targets["current"].version == "v1"


def test_a_root_that_was_replaced_is_read_again(root, looker):
    old = looker.look().targets["current"]
    root.rename(root.parent / "away")
    write_version(root, "v2")
    (root / "current").symlink_to("v2")
    new = looker.look().targets["current"]
    assert (old.version, new.version) == ("v1", "v2")


def test_a_root_that_is_a_symlink_is_followed_also_when_it_moves(root, tmp_path):
    link = tmp_path / "link"
    link.symlink_to("models")
    looker = Looker(link, ["current"], strict_links=False)
    first = looker.look().targets["current"]
    assert first.version == "v1"
    assert looker.look().targets["current"] is first
    write_version(tmp_path / "other", "v5")
    (tmp_path / "other" / "current").symlink_to("v5")
    (tmp_path / "new").symlink_to("other")
    (tmp_path / "new").replace(link)
    assert looker.look().targets["current"].version == "v5"


def test_a_stray_below_a_symlinked_root_is_a_wish(root, tmp_path):
    (tmp_path / "link").symlink_to("models")
    looker = Looker(tmp_path / "link", ["current"], strict_links=False)
    looker.look()
    (root / "v1" / "v2").symlink_to(tmp_path / "link" / "v2")
    assert looker.look().targets["current"].version == "v2"


def test_the_first_look_finishes_what_a_crash_interrupted(root):
    left = root / f"{TEMPORARY_PREFIX}current-0123456789ab"
    left.symlink_to("v2")
    looker = Looker(root, ["current"], strict_links=False)
    assert looker.look().targets["current"].version == "v2"
    assert not os.path.lexists(left)


def test_looks_leak_no_descriptor(root, looker):
    looker.look()
    before = descriptors()
    for text in ("v2", "v9", "v1", "..", "v3", "v1"):
        relink(root, text)
        looker.look()
    assert_none_left(before)


# Awaited files.


@pytest.fixture
def awaited(root):
    """The files of v2, as they are now."""
    directory = open_version(root, "v2")
    yield await_files(directory)
    directory.close()


def test_the_awaited_files_are_those_that_the_seal_names(root, awaited):
    assert set(awaited.stamps) == {*SMALL, WEIGHTS, TEXT_ENCODER, VAE}
    assert None not in awaited.stamps.values()


@pytest.mark.parametrize("lines", [None, [], ["no seal"]], ids=["missing", "empty", "bad"])
def test_nothing_is_awaited_where_the_seal_cannot_be_read(root, lines):
    (root / "v2" / SEAL_NAME).unlink()
    if lines is not None:
        reseal_by_hand(root / "v2", *lines)
    assert await_files(open_version(root, "v2")).stamps == {}


def test_unchanged_files_are_never_reported_as_changed(looker, awaited, clock):
    for _ in range(3):
        assert looker.look([awaited]).changed == frozenset()
        clock.forward(10)


def test_a_file_that_the_seal_does_not_name_is_not_awaited(root, looker, awaited, clock):
    (root / "v2" / "README.md").touch()
    looker.look([awaited])
    clock.forward(10)
    assert looker.look([awaited]).changed == frozenset()


def written(root):
    next_tick(root)
    with open(root / "v2" / WEIGHTS, "ab") as file:
        file.write(b"more")


def renamed_into_place(root):
    (root / "v2" / "new").write_bytes((root / "v2" / WEIGHTS).read_bytes())
    (root / "v2" / "new").replace(root / "v2" / WEIGHTS)


def removed(root):
    (root / "v2" / "model_index.json").unlink()


@pytest.mark.parametrize("change", [written, renamed_into_place, removed])
def test_changed_files_are_reported_once_they_have_settled(root, looker, awaited, clock, change):
    change(root)
    assert looker.look([awaited]).changed == frozenset()
    clock.forward(SETTLED - 0.01)
    assert looker.look([awaited]).changed == frozenset()
    clock.forward(0.01)
    assert looker.look([awaited]).changed == {0}
    assert looker.look([awaited]).changed == {0}  # until it is no longer awaited


def test_files_that_keep_changing_have_not_settled(root, looker, awaited, clock):
    for _ in range(5):
        written(root)
        assert looker.look([awaited]).changed == frozenset()
        clock.forward(SETTLED * 0.9)
    clock.forward(SETTLED)
    assert looker.look([awaited]).changed == {0}


def test_a_file_that_was_missing_and_arrives_is_a_change(root, looker, clock):
    (root / "v2" / "model_index.json").rename(root / "kept")
    awaited = await_files(open_version(root, "v2"))
    assert awaited.stamps["model_index.json"] is None
    (root / "kept").rename(root / "v2" / "model_index.json")
    looker.look([awaited])
    clock.forward(SETTLED)
    assert looker.look([awaited]).changed == {0}


def test_the_changed_one_of_several_awaited_is_reported_by_position(root, looker, awaited, clock):
    others = [await_files(open_version(root, name)) for name in ("v1", "v3")]
    waits = [others[0], awaited, others[1]]
    written(root)
    looker.look(waits)
    clock.forward(SETTLED)
    assert looker.look(waits).changed == {1}


def test_awaited_files_are_watched_in_the_tried_directory_after_a_rename(root, looker, awaited, clock):
    (root / "v2").rename(root / "v8")
    (root / "v8" / WEIGHTS).write_bytes(weights(b"other bytes here", "v8"))
    looker.look([awaited])
    clock.forward(SETTLED)
    assert looker.look([awaited]).changed == {0}


def test_awaited_files_settle_in_real_time_too(root, awaited):
    looker = Looker(root, ["current"], strict_links=False)
    written(root)
    until(lambda: looker.look([awaited]).changed == {0}, "files that settled")


def test_awaited_files_keep_a_separate_handle_on_the_directory(root):
    directory = open_version(root, "v2")
    awaited = await_files(directory)
    directory.close()
    assert isinstance(awaited, Awaited)
    assert awaited.directory.file_stamps(list(awaited.stamps)) == awaited.stamps


# Opening, describing, pointing.


def test_a_version_is_opened_by_its_name(root):
    directory = open_version(root, "v2")
    assert directory.version == "v2"
    assert os.path.samestat(os.fstat(directory.fd), (root / "v2").stat())
    directory.close()


@pytest.mark.parametrize("name", ["v9", "current", "notes"])
def test_only_a_version_directory_is_opened_by_name(root, name):
    (root / "notes").touch()
    with pytest.raises(OSError, match=name):
        open_version(root, name)


def test_an_alias_is_pointed_at_a_version_and_its_new_stamp_is_returned(root, looker):
    looker.look()
    placed = point(root, "current", "v2")
    assert placed == LinkStamp.of((root / "current").lstat())
    target = looker.look().targets["current"]
    assert (target.version, target.link_stamp) == ("v2", placed)


def test_an_alias_that_does_not_exist_is_made(root):
    point(root, "canary", "v3")
    assert os.readlink(root / "canary") == "v3"


def test_a_dangling_alias_can_be_repointed(root):
    relink(root, "v9")
    point(root, "current", "v2")
    assert os.readlink(root / "current") == "v2"


@pytest.mark.parametrize("version", ["v9", "current", "..", ".", "", "v1/transformer", "../models/v1", "/etc", "notes"])
def test_an_alias_is_only_pointed_at_a_version(root, version):
    (root / "notes").touch()
    with pytest.raises(RepointError, match=r"there is no version .* under the models root"):
        point(root, "current", version)
    assert os.readlink(root / "current") == "v1"


@pytest.mark.parametrize("make", ["mkdir", "touch"])
def test_a_file_or_directory_with_the_alias_s_name_is_left_alone(root, make):
    (root / "current").unlink()
    getattr(root / "current", make)()
    with pytest.raises(RepointError, match="current"):
        point(root, "current", "v2")
    assert not (root / "current").is_symlink()
    assert [name for name in os.listdir(root) if name.startswith(TEMPORARY_PREFIX)] == []


def test_pointing_an_alias_below_a_missing_root_fails(tmp_path):
    with pytest.raises(RepointError, match="current could not be repointed to v2: No such file"):
        point(tmp_path / "gone", "current", "v2")


def test_a_look_right_after_a_point_sees_it(root, looker):
    for version in ("v2", "v3", "v1") * 10:
        placed = point(root, "current", version)
        target = looker.look().targets["current"]
        assert (target.version, target.link_stamp) == (version, placed)
