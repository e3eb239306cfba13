"""File systems as they are: without exchanges and hard links, with inode numbers that do not hold still, with clocks that were
wrong."""

import errno
import os
import stat
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from tests.deploy.factory import AS_ROOT, WEIGHTS, next_tick, weights
from tests.deploy.faulty import change_inodes
from tests.deploy.typed import looking, relink, run, temporaries
from zwatch.deploy import links
from zwatch.deploy.durable import write_durably
from zwatch.deploy.links import TEMPORARY_PREFIX, LinkNote, repoint
from zwatch.deploy.look import SETTLED, SWEEP_AFTER, Looker, await_files, open_version, point
from zwatch.deploy.resolving import LinkStamp, are_unchanged, resolve
from zwatch.deploy.sealing import write_seal
from zwatch.deploy.strays import AHEAD, OLDER
from zwatch.deploy.wishes import WishFollower
from zwatch.errors import RepointError

HOUR_NS = 3600 * 10**9


def version(look, alias="current"):
    return look.targets[alias].version


# Without an exchange and without hard links.


@pytest.fixture(params=[errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK])
def plain(request, root, monkeypatch):
    """A models root on a file system that only has a plain rename."""

    def refused(*_, **__):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(links, "renameat2", lambda *_: False)
    monkeypatch.setattr(os, "link", refused)
    return root


def test_with_a_plain_rename_only_an_alias_is_repointed(plain):
    for name in ("v2", "v3", "v3", "v1"):
        assert point(plain, "current", name) == LinkStamp.of((plain / "current").lstat())
        assert os.readlink(plain / "current") == name
    assert temporaries(plain) == []


def test_with_a_plain_rename_only_an_alias_is_made(plain):
    point(plain, "canary", "v2")
    assert os.readlink(plain / "canary") == "v2"
    assert temporaries(plain) == []


def test_with_a_plain_rename_only_ln_sf_deploys(plain):
    looker = looking(plain)
    looker.look()
    run(plain, "ln -sf v2 current")
    assert version(looker.look()) == "v2"
    assert not os.path.lexists(plain / "v1" / "v2")


def test_with_a_plain_rename_only_a_move_by_the_operator_stays(plain, root_fd):
    stale = LinkNote.take(root_fd, "current")
    next_tick(plain.parent)
    relink(plain, "v3")
    with pytest.raises(RepointError, match="current was repointed by another process; that change stays"):
        repoint(root_fd, "current", "v2", stale)
    assert os.readlink(plain / "current") == "v3"
    assert temporaries(plain) == []


@pytest.mark.skipif(not AS_ROOT, reason="mounting needs root")
def test_on_a_mounted_overlay_a_flip_and_a_wish_are_followed(root, tmp_path):
    for name in ("upper", "work", "merged"):
        (tmp_path / name).mkdir()
    merged = tmp_path / "merged"
    options = f"lowerdir={root},upperdir={tmp_path}/upper,workdir={tmp_path}/work"
    mount = ["mount", "-t", "overlay", "overlay", "-o", options, merged]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no overlay file system can be mounted here")
    try:
        looker = looking(merged)
        assert version(looker.look()) == "v1"
        run(merged, "ln -sf v2 current")
        assert version(looker.look()) == "v2"
        point(merged, "current", "v3")
        assert version(looker.look()) == "v3"
        del looker
    finally:
        subprocess.run(["umount", "-l", merged], check=True)


# A temporary link that cannot be removed.


@pytest.fixture
def left(root, monkeypatch):
    """A models root in which a repointing to v2 could not remove its temporary link."""
    with monkeypatch.context() as patch:

        def failing(*_, **__):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        patch.setattr(os, "unlink", failing)
        point(root, "current", "v2")
    assert len(temporaries(root)) == 1
    return root


def test_a_temporary_link_that_could_not_be_removed_is_removed_at_the_next_start(left):
    assert version(looking(left).look()) == "v2"
    assert temporaries(left) == []


def test_a_temporary_link_that_could_not_be_removed_is_removed_by_a_later_tick(root, clock, monkeypatch):
    looker = looking(root, clock=clock)
    looker.look()
    with monkeypatch.context() as patch:

        def failing(*_, **__):
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        patch.setattr(os, "unlink", failing)
        point(root, "current", "v2")
        for _ in range(3):
            looker.look()
            clock.forward(SWEEP_AFTER)
        assert len(temporaries(root)) == 1
    assert version(looker.look()) == "v2"
    assert temporaries(root) == []


def test_a_temporary_link_that_was_just_made_is_left_to_its_maker(root, clock):
    looker = looking(root, clock=clock)
    looker.look()
    (root / f"{TEMPORARY_PREFIX}current-0123456789ab").symlink_to("v2")
    looker.look()
    clock.forward(SWEEP_AFTER / 2)
    looker.look()
    assert len(temporaries(root)) == 1


def test_a_temporary_link_for_a_link_that_is_missing_stays(root, clock):
    looker = looking(root, clock=clock)
    looker.look()
    (root / f"{TEMPORARY_PREFIX}canary-0123456789ab").symlink_to("v2")
    for _ in range(3):
        looker.look()
        clock.forward(SWEEP_AFTER)
    assert len(temporaries(root)) == 1


# Inode numbers that change at every look.


@pytest.fixture
def moving(root, monkeypatch):
    change_inodes(monkeypatch)
    assert (root / "v1").stat().st_ino != (root / "v1").stat().st_ino
    return root


def test_with_changing_inodes_an_unchanged_alias_is_the_same_target(moving):
    looker = looking(moving)
    first = looker.look().targets["current"]
    assert looker.look().targets["current"] is first
    assert (first.version, dict(looker.look().faults)) == ("v1", {})


def test_with_changing_inodes_a_repointing_returns_the_stamp_that_a_look_sees(moving):
    looker = looking(moving)
    looker.look()
    for name in ("v2", "v3", "v1"):
        placed = point(moving, "current", name)
        target = looker.look().targets["current"]
        assert (target.version, target.link_stamp) == (name, placed)
    assert temporaries(moving) == []


def test_with_changing_inodes_an_unloaded_alias_keeps_its_stamp_until_it_is_made_again(moving):
    looker = looking(moving)
    stamp = looker.look().targets["current"].link_stamp
    assert looker.look().targets["current"].link_stamp == looking(moving).look().targets["current"].link_stamp == stamp
    next_tick(moving.parent)
    relink(moving, "v1")
    assert looker.look().targets["current"].link_stamp != stamp


@pytest.mark.parametrize("text", ["v2", "{root}/v2"])
def test_with_changing_inodes_ln_sf_deploys(moving, text):
    looker = looking(moving)
    looker.look()
    run(moving, f"ln -sf {text.format(root=moving)} current")
    look = looker.look()
    assert (version(look), dict(look.faults), list(look.strays)) == ("v2", {}, [])


@pytest.mark.parametrize("text", ["v1", "{root}/v1", "v2/../v1", "../models/v1"])
def test_with_changing_inodes_a_second_link_makes_a_wish_ambiguous(moving, text):
    (moving / "backup").symlink_to(text.format(root=moving))
    next_tick(moving.parent)
    looker = looking(moving)
    looker.look()
    run(moving, "ln -sf v2 backup")
    for _ in range(3):
        look = looker.look()
        assert version(look) == "v1"
        assert "backup both point to v1" in look.strays[0].reason


def test_with_changing_inodes_a_refused_stray_stays_refused(moving):
    (moving / "backup").symlink_to("v1")
    next_tick(moving.parent)
    looker = looking(moving)
    looker.look()
    run(moving, "ln -sf v2 backup")
    refused = looker.look().refused
    run(moving, "ln -sfn v3 backup")
    for _ in range(3):
        look = looker.look()
        assert version(look) == "v1"
    assert "it was refused earlier" in look.strays[0].reason
    assert version(looking(moving, refused=refused).look()) == "v1"


def test_with_changing_inodes_unchanged_files_are_not_awaited_again(moving, clock):
    looker = looking(moving, clock=clock)
    directory = open_version(moving, "v2")
    awaited = await_files(directory)
    for _ in range(3):
        assert looker.look([awaited]).changed == frozenset()
        clock.forward(SETTLED)
    next_tick(moving.parent)
    (moving / "v2" / WEIGHTS).write_bytes(weights(b"other bytes here", "v2"))
    looker.look([awaited])
    clock.forward(SETTLED)
    assert looker.look([awaited]).changed == {0}
    assert are_unchanged(awaited.stamps, awaited.stamps)
    directory.close()


def test_with_changing_inodes_a_replaced_directory_and_a_new_seal_are_noticed(moving):
    looker = looking(moving)
    before = looker.look().targets["current"]
    (moving / "v1").rename(moving / "old")
    run(moving, "cp -r old v1")
    replaced = looker.look().targets["current"]
    assert replaced is not before
    (moving / "v1" / "zwatch.json").write_text("{}")
    sealed = write_seal(moving / "v1", "v1")
    assert looker.look().targets["current"].digest == sealed.digest != replaced.digest


def test_with_changing_inodes_a_link_to_outside_is_a_fault(moving, root_fd):
    run(moving.parent, "cp -r models/v1 v1")
    relink(moving, "../v1")
    assert resolve(root_fd, "current").code == "outside"


def test_a_refusal_is_recognised_after_the_machine_gave_the_file_system_another_device_number(root):
    strict = Looker(root, ["current"], strict_links=True)
    strict.look()
    run(root, "ln -sf v2 current")
    refused = strict.look().refused
    moved = [replace(stray, link_stamp=replace(stray.link_stamp, device=77, inode=78)) for stray in refused]
    look = looking(root, refused=moved).look()
    assert version(look) == "v1"
    assert "it was refused earlier" in look.strays[0].reason


# Clocks that were wrong.


def set_ahead(monkeypatch, *names):
    """Let the time of these links lie an hour ahead, as after a start with a wrong clock."""
    genuine = os.stat

    def ahead(path, **where):
        status = genuine(path, **where)
        if path not in names or where.get("follow_symlinks", True):
            return status
        extra = {name: getattr(status, name) for name in ("st_atime_ns", "st_mtime_ns", "st_rdev")}
        return os.stat_result(list(status), {**extra, "st_ctime_ns": status.st_ctime_ns + HOUR_NS})

    monkeypatch.setattr(os, "stat", ahead)


def test_a_wish_for_an_alias_whose_time_lies_ahead_is_followed_if_it_was_seen_to_come(root, monkeypatch):
    set_ahead(monkeypatch, "current")
    looker = looking(root)
    looker.look()
    run(root, "ln -sf v2 current")
    look = looker.look()
    assert (version(look), list(look.strays)) == ("v2", [])


def test_a_wish_for_an_alias_whose_time_lies_ahead_is_reported_as_a_wish_if_its_age_is_not_known(root, monkeypatch):
    set_ahead(monkeypatch, "current")
    run(root, "ln -sf v2 current")
    for _ in range(2):
        look = looking(root).look()
        assert version(look) == "v1"
        [stray] = look.strays
        assert stray.is_wish
        assert stray.reason == f"{AHEAD}; type `ln -sfn v2 current`"
        assert look.refused == ()


def test_what_is_no_wish_beside_an_alias_whose_time_lies_ahead_is_not_reported_as_one(root, monkeypatch):
    set_ahead(monkeypatch, "current")
    (root / "v1" / "v2").symlink_to("v3")
    [stray] = looking(root).look().strays
    assert (stray.is_wish, stray.reason) == (False, OLDER)


def test_a_stray_that_lay_in_the_version_before_the_alias_came_is_no_wish_whatever_its_time(root):
    looker = looking(root)
    looker.look()
    (root / "v2" / "v3").symlink_to("v3")
    next_tick(root.parent)
    relink(root, "v2")
    for _ in range(3):
        look = looker.look()
        assert version(look) == "v2"
        assert [(stray.reason, stray.is_wish) for stray in look.strays] == [(OLDER, False)]


def test_a_stray_that_lay_in_a_directory_which_took_the_version_s_place_is_no_wish(root):
    (root / "v1" / "v2").symlink_to("v2")
    next_tick(root.parent)
    (root / "v1").rename(root / "other")
    run(root, "cp -r v3 v1")
    relink(root, "v1")
    looker = looking(root)
    looker.look()
    (root / "v1").rename(root / "gone")
    (root / "other").rename(root / "v1")
    look = looker.look()
    assert version(look) == "v1"
    assert [stray.reason for stray in look.strays] == [OLDER]


def test_a_file_server_whose_clock_is_a_little_ahead_makes_no_old_stray_a_wish(root):
    (root / "v2" / "v3").symlink_to("v3")
    next_tick(root.parent)
    relink(root, "v2")
    targets = list(looking(root).look().targets.values())
    with os.scandir(root):
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        follower = WishFollower(strict=False, wall_ns=lambda: time.time_ns() - 30 * 10**9)
        strays, moved = follower.take_wishes(descriptor, targets)
    finally:
        os.close(descriptor)
    assert not moved
    assert [(stray.reason, stray.is_wish) for stray in strays] == [(OLDER, False)]


# A wish that cannot be carried out.


def test_a_wish_that_may_not_be_carried_out_is_reported_as_one_until_it_is(root, monkeypatch):
    looker = looking(root)
    looker.look()
    run(root, "ln -sf v2 current")

    def refused(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(os, "symlink", refused)
        for _ in range(3):
            [stray] = looker.look().strays
            assert stray.is_wish
            assert "a wish for v2, but the models root may not be written (Permission denied)" in stray.reason
            assert "`ln -sfn v2 current`" in stray.reason
    look = looker.look()
    assert (version(look), list(look.strays)) == ("v2", [])


def test_a_file_is_written_durably_on_a_file_system_that_cannot_sync_directories(tmp_path, monkeypatch):
    genuine = os.fsync

    def unsupported(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        genuine(descriptor)

    monkeypatch.setattr(os, "fsync", unsupported)
    write_durably(tmp_path, "state.json", b"{}")
    assert [path.name for path in tmp_path.iterdir()] == ["state.json"]


# Several services on one models root, as pods on one volume.


@pytest.mark.parametrize("typed", ["ln -sf v2 current", "ln -sfn v2 current"])
def test_several_services_on_one_root_all_follow_a_link_and_one_of_them_moves_it(root, typed):
    lookers = [looking(root) for _ in range(4)]
    for looker in lookers:
        looker.look()
    for version_now, command in (("v2", typed), ("v3", typed.replace("v2", "v3"))):
        next_tick(root.parent)
        run(root, command)
        with ThreadPoolExecutor(len(lookers)) as threads:
            list(threads.map(Looker.look, lookers))
        for looker in lookers:
            look = looker.look()
            assert (version(look), dict(look.faults), list(look.strays)) == (version_now, {}, [])
        assert os.readlink(root / "current") == version_now
    assert temporaries(root) == []
