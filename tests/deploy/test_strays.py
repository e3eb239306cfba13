"""Stray links of `ln -sf v2 current`: the rule as tables, then real links, and a long stress."""

import os
import random
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.deploy.factory import AS_ROOT, next_tick, reseal_by_hand, until, write_version
from tests.deploy.typed import relink, temporaries
from tests.descriptors import assert_none_left, descriptors
from zwatch.deploy import links
from zwatch.deploy.look import Looker
from zwatch.deploy.seal import SEAL_NAME
from zwatch.deploy.strays import MAX_REPORTED, StrayFacts, judge

# The rule.

ALIAS_CTIME = 1000
TRUSTED = frozenset({0, 1000})
WISH = {
    "directory": "v1", "name": "v2", "text": "v2", "owner": 1000, "since_ns": 1001,
    "sealed": False, "is_version": True, "leads_beside": False,
}  # fmt: skip


def judged(links_here=("current",), moved=(), refused_before=None, **facts):
    return judge(StrayFacts(**{**WISH, **facts}), ALIAS_CTIME, TRUSTED, links_here, moved, refused_before)


@pytest.mark.parametrize("text", ["v2", "v2/", "v2//", "./v2", "../v2", "models/v2", "../models/v2/", "a/b/c/v2"])
def test_a_relative_text_that_ends_in_the_name_is_a_wish(text):
    assert judged(text=text) is None


@pytest.mark.parametrize("text", ["v1", "v2/transformer", "v2/.", "v2/..", "v", "v22", "x-v2", "..", ".", "V2"])
def test_a_relative_text_that_ends_in_something_else_is_no_wish(text):
    assert judged(text=text) == "its text does not end in v2"


def test_an_absolute_text_that_leads_to_the_version_beside_is_a_wish():
    assert judged(text="/models/v2", leads_beside=True) is None
    assert judged(text="/a/link/to/it", leads_beside=True) is None


def test_an_absolute_text_that_leads_elsewhere_is_no_wish():
    assert judged(text="/other/v2") == "its text does not lead to the version v2 beside it"


def test_a_link_to_itself_is_a_wish_for_the_version_it_lies_in():
    assert judged(name="v1", text="v1") is None


@pytest.mark.parametrize(("since_ns", "wish"), [(999, False), (1000, True), (1001, True)])
def test_a_wish_is_not_older_than_the_alias(since_ns, wish):
    assert judged(since_ns=since_ns) == (None if wish else "it is older than the alias")


@pytest.mark.parametrize(("owner", "wish"), [(0, True), (1000, True), (1001, False), (65534, False)])
def test_a_wish_has_a_trusted_owner(owner, wish):
    reason = judged(owner=owner)
    assert (reason is None) is wish
    if reason:
        assert f"(uid {owner})" in reason
        assert "neither root, nor the owner of the models root, nor the service's user" in reason


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"sealed": True}, "the version's seal names it"),
        ({"is_version": False}, "no version of that name"),
        ({"links_here": ("current", "canary")}, "current and canary both point to v1; it is not clear which"),
        ({"links_here": ()}, "both point to v1"),
        ({"links_here": ("a", "b", "c")}, "a, b and c all point to v1; it is not clear which"),
        (
            {"moved": ("canary",)},
            "canary may have pointed to v1 when it was made, as current does; it is not clear which",
        ),
        ({"refused_before": "a reason"}, "it was refused earlier, and stays refused until it is made again: a reason"),
    ],
)
def test_a_link_that_breaks_one_part_of_the_rule_is_no_wish_and_says_which(facts, words):
    assert words in judged(**facts)


SPOILS = {
    "sealed": {"sealed": True},
    "name": {"is_version": False},
    "owner": {"owner": 7},
    "age": {"since_ns": 1},
    "text": {"text": "v3"},
    "links": {"links_here": ("a", "b")},
    "moved": {"moved": ("a",)},
    "refused": {"refused_before": "a reason"},
}


@pytest.mark.parametrize("first", SPOILS)
@pytest.mark.parametrize("second", SPOILS)
def test_two_broken_parts_of_the_rule_do_not_cancel_each_other(first, second):
    assert judged(**SPOILS[first], **{k: v for k, v in SPOILS[second].items() if k not in SPOILS[first]}) is not None


# Real links.


@pytest.fixture
def looker(root):
    return Looker(root, ["current"], strict_links=False)


def version(look, alias="current"):
    return look.targets[alias].version


def strays_in(root):
    """Every symlink directly in a version directory."""
    return sorted(
        f"{directory.name}/{entry.name}"
        for directory in root.iterdir()
        if directory.is_dir() and not directory.is_symlink()
        for entry in directory.iterdir()
        if entry.is_symlink()
    )


def assert_clean(root):
    assert strays_in(root) == []
    assert temporaries(root) == []


def run(root, *command):
    subprocess.run(command, cwd=root, check=True)


@pytest.mark.parametrize(
    "text", ["v2", "v2/", "./v2", "../v2", "../models/v2", "{root}/v2", "{root}/v2/", "{root}/v1/../v2"]
)
def test_ln_sf_deploys_whatever_the_text(root, looker, text):
    assert version(looker.look()) == "v1"
    run(root, "ln", "-sf", text.format(root=root), "current")
    assert strays_in(root) == ["v1/v2"]
    look = looker.look()
    assert (version(look), os.readlink(root / "current")) == ("v2", "v2")
    assert (look.faults, list(look.strays)) == ({}, [])
    assert_clean(root)
    assert len(look.notes) == 1
    assert "current now points to v2; `ln -sfn v2 current` is the form that needs no help" in look.notes[0]
    assert looker.look().notes == []


def test_a_wish_made_where_zwatch_has_just_moved_the_link_is_swept_if_the_operator_moves_it_on(
    root, looker, monkeypatch
):
    looker.look()
    run(root, "ln", "-sf", "v2", "current")
    fsync = os.fsync

    def operator_is_faster(fd):
        monkeypatch.setattr(os, "fsync", fsync)
        fsync(fd)
        assert os.readlink(root / "current") == "v2"  # zwatch has moved it, and has not looked since
        run(root, "ln", "-sf", "v1", "current")
        next_tick(root)
        run(root, "ln", "-sfn", "v3", "current")

    monkeypatch.setattr(os, "fsync", operator_is_faster)
    looker.look()
    assert version(looker.look()) == "v3"
    assert_clean(root)


@pytest.mark.skipif(shutil.which("busybox") is None, reason="busybox is not installed")
def test_busybox_ln_sf_deploys(root, looker):
    looker.look()
    run(root, "busybox", "ln", "-sf", "v2", "current")
    assert strays_in(root) == ["v1/v2"]
    assert version(looker.look()) == "v2"
    assert_clean(root)


def test_a_link_made_while_the_service_was_down_deploys_at_its_start(root):
    next_tick(root.parent)
    run(root, "ln", "-sf", "v2", "current")
    assert version(Looker(root, ["current"], strict_links=False).look()) == "v2"
    assert_clean(root)


PLAIN = {
    "ln -sfn": ["ln -sfn v2 current"],
    "ln -sfT": ["ln -sfT v2 current"],
    "mv -T": ["ln -s v2 new", "mv -T new current"],
    "cp -PfT": ["ln -s v2 new", "cp -PfT new current", "rm new"],
    "unlink, symlink": ["rm current", "ln -s v2 current"],
    "absolute": ["ln -sfn {root}/v2 current"],
    "rsync -a": ["mkdir ../elsewhere", "ln -s v2 ../elsewhere/current", "rsync -a ../elsewhere/ ."],
    "busybox ln -sfn": ["busybox ln -sfn v2 current"],
}


@pytest.mark.parametrize("lines", PLAIN.values(), ids=PLAIN)
def test_commands_that_repoint_the_link_itself_need_no_help(root, looker, lines):
    for line in lines:
        if shutil.which(line.split()[0]) is None:
            pytest.skip(f"{line.split()[0]} is not installed")
    looker.look()
    for line in lines:
        run(root, *line.format(root=root).split())
    look = looker.look()
    assert version(look) == "v2"
    assert look.notes == []
    assert_clean(root)


def test_ln_sf_of_the_version_that_serves_makes_a_new_link(root, looker):
    before = looker.look().targets["current"]
    next_tick(root)
    run(root, "ln", "-sf", "v1", "current")
    assert strays_in(root) == ["v1/v1"]
    after = looker.look().targets["current"]
    assert (after.version, after.identity) == ("v1", before.identity)
    assert after.link_stamp != before.link_stamp
    assert_clean(root)


def test_a_temporary_link_moved_into_the_version_is_no_wish_and_is_reported(root, looker):
    looker.look()
    run(root, "ln", "-s", "v2", "tmp")
    run(root, "mv", "tmp", "current")
    look = looker.look()
    assert version(look) == "v1"
    [stray] = look.strays
    assert (stray.path, stray.text, stray.reason) == ("v1/tmp", "v2", "no version of that name")
    assert strays_in(root) == ["v1/tmp"]


def refused_unsealed(root):
    run(root, "ln", "-sf", "v9", "current")
    return "v9", "no version of that name"


def refused_text(root):
    (root / "v1" / "v2").symlink_to("v3")
    return "v2", "its text does not end in v2"


def refused_absolute(root):
    write_version(root.parent / "other", "v2")
    run(root, "ln", "-sf", f"{root.parent}/other/v2", "current")
    return "v2", "its text does not lead to the version v2 beside it"


def refused_sealed(root):
    lines = (root / "v1" / SEAL_NAME).read_text().splitlines()
    reseal_by_hand(root / "v1", *lines, f"{'ab' * 32}  v2")
    run(root, "ln", "-sf", "v2", "current")
    return "v2", "the version's seal names it"


def refused_symlinked_version(root):
    (root / "backup").symlink_to("v2")
    run(root, "ln", "-sf", "backup", "current")
    return "backup", "no version of that name"


def refused_file(root):
    (root / "notes").touch()
    run(root, "ln", "-sf", "notes", "current")
    return "notes", "no version of that name"


@pytest.mark.parametrize(
    "make",
    [refused_unsealed, refused_text, refused_absolute, refused_sealed, refused_symlinked_version, refused_file],
)
def test_a_stray_that_is_no_wish_stays_and_is_reported_with_its_reason(root, looker, make):
    looker.look()
    name, reason = make(root)
    for _ in range(2):
        look = looker.look()
        assert version(look) == "v1"
        assert [(stray.path, stray.reason) for stray in look.strays] == [(f"v1/{name}", reason)]
    assert strays_in(root) == [f"v1/{name}"]


def test_a_stray_older_than_the_alias_is_ignored(root, looker):
    (root / "v2" / "v3").symlink_to("v3")
    next_tick(root)
    run(root, "ln", "-sfn", "v2", "current")
    look = looker.look()
    assert version(look) == "v2"
    assert [stray.reason for stray in look.strays] == ["it is older than the alias"]


@pytest.mark.skipif(not AS_ROOT, reason="only root can give a link away")
def test_a_stray_of_an_untrusted_owner_is_no_wish(root, looker):
    looker.look()
    run(root, "ln", "-sf", "v2", "current")
    os.lchown(root / "v1" / "v2", 54321, 54321)
    look = looker.look()
    assert version(look) == "v1"
    assert "its owner (uid 54321) is neither root" in look.strays[0].reason


@pytest.mark.skipif(not AS_ROOT, reason="only root can give a link away")
def test_a_stray_of_the_models_root_s_owner_is_a_wish(root, looker):
    looker.look()
    os.chown(root, 54321, 54321)
    run(root, "ln", "-sf", "v2", "current")
    os.lchown(root / "v1" / "v2", 54321, 54321)
    assert version(looker.look()) == "v2"


def test_a_wish_in_a_version_of_two_aliases_is_ambiguous(root):
    (root / "canary").symlink_to("v1")
    looker = Looker(root, ["current", "canary"], strict_links=False)
    looker.look()
    next_tick(root)
    run(root, "ln", "-sf", "v2", "canary")
    look = looker.look()
    assert (version(look), version(look, "canary")) == ("v1", "v1")
    assert [stray.reason for stray in look.strays] == [
        "current and canary both point to v1; it is not clear which link was meant: `ln -sfn v2 LINK` moves one"
    ]


def test_each_of_two_aliases_gets_its_own_wish(root):
    (root / "canary").symlink_to("v2")
    looker = Looker(root, ["current", "canary"], strict_links=False)
    looker.look()
    run(root, "ln", "-sf", "v3", "canary")
    run(root, "ln", "-sf", "v2", "current")
    look = looker.look()
    assert (version(look), version(look, "canary")) == ("v2", "v3")
    assert_clean(root)


def test_strict_links_reports_strays_and_moves_nothing(root):
    looker = Looker(root, ["current"], strict_links=True)
    looker.look()
    run(root, "ln", "-sf", "v2", "current")
    look = looker.look()
    assert version(look) == "v1"
    [stray] = look.strays
    assert "--strict-links forbids to follow it; `ln -sfn v2 current`" in stray.reason
    assert strays_in(root) == ["v1/v2"]
    assert temporaries(root) == []


def test_a_read_only_root_is_reported_with_the_command_to_type(root, looker, monkeypatch):
    looker.look()
    run(root, "ln", "-sf", "v2", "current")

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(os, "symlink", read_only)
        look = looker.look()
        assert version(look) == "v1"
        assert "the models root may not be written (Read-only file system)" in look.strays[0].reason
        assert "`ln -sfn v2 current`" in look.strays[0].reason
    assert version(looker.look()) == "v2"  # once it may
    assert_clean(root)


def test_a_stray_that_may_not_be_removed_is_followed_once(root, looker, monkeypatch):
    looker.look()
    run(root, "ln", "-sf", "v2", "current")
    unlink = os.unlink

    def refused(path, **where):
        if path == "v2":
            raise PermissionError(13, "Permission denied")
        unlink(path, **where)

    monkeypatch.setattr(os, "unlink", refused)
    look = looker.look()
    assert version(look) == "v2"
    assert any("v1/v2 could not be removed: Permission denied" in note for note in look.notes)
    next_tick(root)
    run(root, "ln", "-sfn", "v1", "current")
    look = looker.look()
    assert version(look) == "v1"
    [stray] = look.strays
    assert stray.path == "v1/v2"
    assert looker.look().notes == []


def test_a_self_link_that_may_not_be_removed_is_followed_once(root, looker, monkeypatch):
    looker.look()
    run(root, "ln", "-sf", "v1", "current")

    def refused(path, **where):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "unlink", refused)
    first = looker.look().targets["current"]
    second = looker.look()
    assert second.targets["current"] is first
    assert [stray.path for stray in second.strays] == ["v1/v1"]


def test_the_same_ln_sf_again_and_again_is_one_version(root, looker):
    looker.look()
    for _ in range(3):
        run(root, "ln", "-sf", "v2", "current")
        assert version(looker.look()) == "v2"
        assert_clean(root)


def test_repeated_flips_and_rollbacks_by_ln_sf_are_followed(root, looker):
    looker.look()
    for wish in ("v2", "v1", "v2", "v3", "v1"):
        run(root, "ln", "-sf", wish, "current")
        assert version(looker.look()) == wish
        assert_clean(root)


def test_the_newer_of_two_wishes_counts_and_both_strays_are_removed(root, looker):
    looker.look()
    for wish in ("v3", "v2"):
        run(root, "ln", "-sf", wish, "current")
        next_tick(root.parent)
    assert strays_in(root) == ["v1/v2", "v1/v3"]
    assert version(looker.look()) == "v2"
    assert_clean(root)


def test_a_wish_in_the_version_that_was_wished_for_is_followed_in_the_same_look(root, looker):
    looker.look()
    run(root, "ln", "-sf", "v2", "current")
    next_tick(root.parent)
    (root / "v2" / "v3").symlink_to("v3")
    with_later = looker.look()
    assert os.readlink(root / "current") in ("v2", "v3")
    assert version(with_later) == os.readlink(root / "current")


# Wishes that land in the version just left: `ln` resolved the alias before zwatch repointed it.


def test_a_wish_that_lands_in_the_version_just_left_counts(root, looker):
    looker.look()
    run(root, "ln", "-sf", "v2", "current")
    assert version(looker.look()) == "v2"
    (root / "v1" / "v3").symlink_to("v3")
    assert version(looker.look()) == "v3"
    assert_clean(root)


def test_a_wish_that_lands_two_versions_back_counts(root, looker):
    looker.look()
    for wish in ("v2", "v3"):
        run(root, "ln", "-sf", wish, "current")
        looker.look()
    (root / "v1" / "v2").symlink_to("v2")
    assert version(looker.look()) == "v2"
    assert_clean(root)


def test_a_link_in_a_version_left_by_the_operator_s_own_move_is_no_wish(root, looker):
    looker.look()
    run(root, "ln", "-sf", "v2", "current")
    looker.look()
    run(root, "ln", "-sfn", "v3", "current")
    (root / "v1" / "v2").symlink_to("v2")
    assert version(looker.look()) == "v3"
    assert version(looker.look()) == "v3"
    assert strays_in(root) == ["v1/v2"]


def test_a_link_in_a_version_left_long_ago_is_no_wish(root, clock):
    looker = Looker(root, ["current"], strict_links=False, clock=clock)
    looker.look()
    run(root, "ln", "-sf", "v2", "current")
    looker.look()
    clock.forward(60)
    (root / "v1" / "v3").symlink_to("v3")
    assert version(looker.look()) == "v2"


def test_a_wish_in_the_version_just_left_moves_only_the_alias_that_leads_there_now(root):
    (root / "canary").symlink_to("v3")
    looker = Looker(root, ["current", "canary"], strict_links=False)
    looker.look()
    run(root, "ln", "-sf", "v2", "current")
    looker.look()
    run(root, "ln", "-sfn", "v1", "canary")
    look = looker.look()
    assert (version(look), version(look, "canary")) == ("v2", "v1")
    next_tick(root.parent)
    run(root, "ln", "-sf", "v3", "canary")
    look = looker.look()
    assert (version(look), version(look, "canary")) == ("v2", "v3")


@pytest.mark.parametrize("aliases", [["current", "canary"], ["canary", "current"]])
def test_a_late_wish_counts_though_another_alias_leads_to_the_new_version(root, aliases):
    (root / "canary").symlink_to("v2")
    looker = Looker(root, aliases, strict_links=False)
    looker.look()
    run(root, "ln", "-sf", "v2", "current")
    look = looker.look()
    assert (version(look), version(look, "canary")) == ("v2", "v2")
    (root / "v1" / "v3").symlink_to("v3")
    look = looker.look()
    assert (version(look), version(look, "canary")) == ("v3", "v2")
    assert_clean(root)


def test_searching_versions_just_left_leaks_no_descriptor(root, clock):
    looker = Looker(root, ["current"], strict_links=False, clock=clock)
    looker.look()
    before = descriptors()
    for wish in ("v2", "v1", "v3", "v1") * 5:
        run(root, "ln", "-sf", wish, "current")
        looker.look()
    clock.forward(60)
    looker.look()
    assert_none_left(before, 1)


# The operator moves while a wish is followed.


@pytest.mark.parametrize("moment", ["take", "symlink", "exchange"])
def test_a_move_by_the_operator_while_a_wish_is_followed_stays(root, looker, monkeypatch, moment):
    """The operator moves the alias after the look, after the note, or right before the exchange."""
    looker.look()
    run(root, "ln", "-sf", "v2", "current")
    moves = iter(["v3"])
    holder = {"take": links.LinkNote, "symlink": os, "exchange": links}[moment]
    real = getattr(holder, moment)

    def moved_first(*given, **where):
        for move in moves:
            next_tick(root.parent)
            run(root, "ln", "-sfn", move, "current")
        return real(*given, **where)

    monkeypatch.setattr(holder, moment, moved_first)
    looker.look()
    assert version(looker.look()) == "v3"
    assert os.readlink(root / "current") == "v3"
    assert temporaries(root) == []


# The stress.


class Operator(threading.Thread):
    """Types wishes in bursts, in every way that people and tools do; each is at least a clock tick from the next."""

    def __init__(self, root: Path, ways: list[str], count: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.root = root
        self.dice = random.Random(seed)
        self.ways = ways
        self.count = count
        self.last = None
        self.typed = []
        self.problem = None

    def run(self):
        try:
            for _ in range(self.count):
                self.last = self.dice.choice(["v1", "v2", "v3"])
                way = self.dice.choice(self.ways)
                self.typed.append((way, self.last))
                getattr(self, way)(self.last)
                time.sleep(0.006)  # not a wait: the pace of the wishes
        except BaseException as error:
            self.problem = error

    def ln_sf(self, wish):
        """As GNU ln: open what the alias resolves to, make the link there; where one is, replace it by a rename."""
        folder = os.open(self.root / "current", os.O_PATH | os.O_DIRECTORY)
        try:
            os.symlink(wish, wish, dir_fd=folder)
        except FileExistsError:
            os.symlink(wish, "CuXXXXXX", dir_fd=folder)
            os.rename("CuXXXXXX", wish, src_dir_fd=folder, dst_dir_fd=folder)
        finally:
            os.close(folder)

    def ln_sfn(self, wish):
        temporary = self.root / "CuYYYYYY"
        temporary.symlink_to(wish)
        os.replace(temporary, self.root / "current")

    def unlink_symlink(self, wish):
        (self.root / "current").unlink()
        (self.root / "current").symlink_to(wish)


MIXED = ["ln_sf", "ln_sfn", "unlink_symlink"]


@pytest.mark.parametrize(
    ("ways", "bursts", "size"), [(MIXED, 20, 40), (["ln_sf"], 10, 30)], ids=["every way", "ln -sf alone"]
)
def test_after_every_burst_of_wishes_the_last_one_is_in_effect_and_nothing_is_left(root, looker, ways, bursts, size):
    looker.look()
    for burst in range(bursts):
        operator = Operator(root, ways, size, seed=burst)
        operator.start()
        while operator.is_alive():
            look = looker.look()
            assert set(look.faults) <= {"current"}
            assert all(fault.code == "unsettled" for fault in look.faults.values()), look.faults
        operator.join()
        assert operator.problem is None, operator.problem

        def settled():
            look = looker.look()
            # What an operator's own move overtook may be left: it is older than the alias and means nothing.
            overtaken = {stray.reason for stray in look.strays} <= {"it is older than the alias"}
            return "current" in look.targets and version(look) == operator.last and overtaken  # noqa: B023

        try:
            until(settled, "the last wish")
        except AssertionError:
            raise AssertionError(
                f"burst {burst}: typed …{operator.typed[-6:]}, current -> {os.readlink(root / 'current')}, "
                f"strays {strays_in(root)}"
            ) from None
        assert temporaries(root) == []
        alias = (root / "current").lstat().st_ctime_ns
        assert all((root / stray).lstat().st_ctime_ns < alias for stray in strays_in(root))
        if ways == ["ln_sf"]:
            assert strays_in(root) == []


def test_a_wish_that_a_later_move_by_the_operator_overtook_is_removed(root, looker):
    looker.look()
    (root / "v1" / "v2").symlink_to("v2")
    time.sleep(0.01)  # another tick of the file system's clock
    (root / "next").symlink_to("v3")
    os.replace(root / "next", root / "current")
    assert version(looker.look()) == "v3"
    assert strays_in(root) == []


def test_an_overtaken_wish_in_a_version_that_no_look_saw_is_removed(root, looker):
    looker.look()
    time.sleep(0.01)  # another tick of the file system's clock
    relink(root, "v2")
    (root / "v2" / "v3").symlink_to("v3")
    (root / "v2" / "v2").symlink_to("v2")
    time.sleep(0.01)
    relink(root, "v1")
    assert version(looker.look()) == "v1"
    assert strays_in(root) == []


@pytest.mark.parametrize(("text", "backup"), [("v3", "v2"), ("../v3", "v3")], ids=["another link", "a link of use"])
def test_what_may_be_somebody_s_own_in_a_version_that_no_look_saw_stays(root, looker, text, backup):
    (root / "backup").symlink_to(backup)
    looker.look()
    time.sleep(0.01)
    relink(root, "v2")
    (root / "v2" / "v3").symlink_to(text)
    time.sleep(0.01)
    relink(root, "v1")
    assert version(looker.look()) == "v1"
    assert strays_in(root) == ["v2/v3"]


# Directories that are no versions.


def fault_strays(root, text):
    """Return what a look reports after `ln -sf v2 current` where the alias has this text."""
    (root / "current").unlink()
    (root / "current").symlink_to(text)
    looker = Looker(root, ["current"], strict_links=False)
    looker.look()
    subprocess.run(["ln", "-sf", "v2", "current"], cwd=root, check=True)
    look = looker.look()
    assert look.faults["current"].link == str(text)
    assert os.readlink(root / "current") == str(text)
    return [(stray.path, stray.text, stray.reason) for stray in look.strays]


@pytest.mark.parametrize("text", ["v1/transformer", "v1/transformer/", "v1/../v1/transformer", "parts"])
def test_a_stray_in_a_directory_deep_in_a_version_is_reported_with_what_to_type(root, text):
    (root / "parts").symlink_to("v1/transformer")
    [(path, link, reason)] = fault_strays(root, text)
    assert (path, link) == ("v1/transformer/v2", "v2")
    assert "leads to no version" in reason
    assert "`rm v1/transformer/v2`" in reason
    assert "`ln -sfn v2 current`" in reason


def test_a_stray_in_a_directory_outside_the_models_root_is_reported_and_other_links_there_are_not(root, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    for name, text in [("v3", "../blobs/123"), ("v9", "v9"), ("latest", "v2")]:
        (outside / name).symlink_to(text)
    [(path, _, reason)] = fault_strays(root, outside)
    assert path == f"{outside}/v2"
    assert str(outside) not in [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert f"`rm {outside}/v2`" in reason


def test_a_stray_that_is_removed_from_a_directory_that_is_no_version_is_reported_no_more(root):
    looker = Looker(root, ["current"], strict_links=False)
    (root / "current").unlink()
    (root / "current").symlink_to("v1/transformer")
    (root / "v1" / "transformer" / "v2").symlink_to("v2")
    assert [stray.path for stray in looker.look().strays] == ["v1/transformer/v2"]
    (root / "v1" / "transformer" / "v2").unlink()
    assert list(looker.look().strays) == []


# Thousands of links.


def test_of_thousands_of_strays_the_first_are_reported_and_how_many_more(root, looker):
    for number in range(1000):
        (root / "v1" / f"x{number}").symlink_to(f"x{number}")
    (root / "v1" / "v3").symlink_to("elsewhere")
    strays = looker.look().strays
    assert len(strays) == MAX_REPORTED + 1
    assert "v1/v3" in [stray.path for stray in strays]
    assert strays[-1].reason == f"{1001 - MAX_REPORTED} more links were not followed; only {MAX_REPORTED} are reported"


def test_a_wish_among_thousands_of_links_is_followed(root, looker):
    for number in range(1000):
        (root / "v1" / f"x{number}").symlink_to(f"x{number}")
    looker.look()
    (root / "v1" / "v2").symlink_to("v2")
    assert looker.look().targets["current"].version == "v2"


class Listings:
    """Counts how often directories were listed, by path."""

    def __init__(self, monkeypatch):
        self.paths = []
        scandir = os.scandir

        def counted(fd):
            self.paths.append(os.readlink(f"/proc/self/fd/{fd}"))
            return scandir(fd)

        monkeypatch.setattr(os, "scandir", counted)

    def take(self):
        taken, self.paths = self.paths, []
        return taken


@pytest.mark.parametrize("text", ["v1", "v1/transformer"])
def test_looks_at_a_root_where_nothing_changes_list_no_directory(root, clock, monkeypatch, text):
    (root / "current").unlink()
    (root / "current").symlink_to(text)
    looker = Looker(root, ["current"], strict_links=False, clock=clock)
    for _ in range(3):
        looker.look()
        clock.forward(0.25)
    listings = Listings(monkeypatch)
    for _ in range(4):
        looker.look()
        clock.forward(0.25)
    assert listings.take() == []
    for _ in range(4):
        looker.look()
        clock.forward(0.25)
    # Once in two seconds, the root for the names in it and for strays.
    assert sorted(listings.take()) == sorted([str(root), str(root), str(root / text)])


@pytest.mark.parametrize("where", ["", "v1"])
def test_a_change_in_the_root_or_the_version_is_read_at_the_next_look(root, clock, monkeypatch, where):
    looker = Looker(root, ["current"], strict_links=False, clock=clock)
    for _ in range(3):
        looker.look()
        clock.forward(0.25)
    (root / where / "other").symlink_to("v3")
    listings = Listings(monkeypatch)
    looker.look()
    assert str(root) in listings.take()


def in_a_loop(root, number, count):
    (root / f"link{number}").symlink_to(f"link{(number + 1) % count}")


def in_a_loop_with_dots(root, number, count):
    (root / f"link{number}").symlink_to(f".//link{(number + 1) % count}/.")


def to_a_link(root, number, count):
    (root / f"link{number}").symlink_to("stable")


def in_a_chain(root, number, count):
    (root / f"link{number}").symlink_to(f"link{number + 1}" if number % 30 else "v2")


@pytest.mark.parametrize("kind", [in_a_loop, in_a_loop_with_dots, to_a_link, in_a_chain])
def test_thousands_of_links_in_the_root_are_each_asked_a_few_times_when_the_alias_moves(root, monkeypatch, kind):
    count = 1000
    (root / "stable").symlink_to("v3")
    for number in range(count):
        kind(root, number, count)
    looker = Looker(root, ["current"], strict_links=False)
    looker.look()
    calls = []
    for name in ("stat", "readlink"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, call=call, **k: calls.append(a) or call(*a, **k))
    (root / "v1" / "v2").symlink_to("v2")
    assert looker.look().targets["current"].version == "v2"
    (root / "new").symlink_to("v1")
    (root / "new").replace(root / "current")
    assert looker.look().targets["current"].version == "v1"
    assert len(calls) < 4 * 4 * count  # four rounds: each link's stamp, its text, and where it leads
