"""A wish for one link never moves another: every link counts, and a refused stray stays refused."""

import os
from dataclasses import replace

import pytest

from tests.deploy.factory import next_tick, write_version
from tests.deploy.typed import looking, run
from zwatch.deploy.links import TEMPORARY_PREFIX
from zwatch.deploy.look import point
from zwatch.deploy.made import Made
from zwatch.deploy.refused import MAX_REFUSED, RefusedStray, RefusedStrays
from zwatch.deploy.resolving import LinkStamp
from zwatch.deploy.root_links import RootLinks


def link(root, name, text):
    """Make a link, and let the file system's clock move on."""
    (root / name).symlink_to(text)
    next_tick(root.parent)


def versions(look):
    return {alias: target.version for alias, target in look.targets.items()}


def reasons(look):
    return {stray.path: stray.reason for stray in look.strays}


@pytest.fixture
def canary(root):
    """A root where `current` and `canary` point to v1."""
    link(root, "canary", "v1")
    return root


@pytest.fixture
def refused(canary):
    """A Looker that follows both links and has refused `ln -sf v2 canary`."""
    looker = looking(canary, "canary")
    looker.look()
    run(canary, "ln -sf v2 canary")
    look = looker.look()
    assert versions(look) == {"current": "v1", "canary": "v1"}
    assert reasons(look) == {
        "v1/v2": "current and canary both point to v1; it is not clear which link was meant: `ln -sfn v2 LINK` moves one"
    }
    return looker


def deploy_over_http(root):
    point(root, "canary", "v3")


LATER = {
    "repointed as advised": lambda root: run(root, "ln -sfn v2 canary"),
    "deployed over HTTP": deploy_over_http,
    "removed": lambda root: run(root, "rm canary"),
    "renamed": lambda root: run(root, "mv -T canary v2/canary"),
    "dangling": lambda root: run(root, "ln -sfn v9 canary"),
    "pointed elsewhere": lambda root: run(root, "ln -sfn / canary"),
    "replaced by a file": lambda root: (run(root, "rm canary"), run(root, "touch canary")),
}


# A refusal stays.


@pytest.mark.parametrize("change", LATER.values(), ids=LATER)
def test_a_refused_stray_stays_refused_whatever_happens_to_the_other_link(canary, refused, change):
    change(canary)
    for _ in range(3):
        look = refused.look()
        assert versions(look)["current"] == "v1"
        assert "v1/v2" in reasons(look)
    assert os.readlink(canary / "current") == "v1"
    assert "it was refused earlier" in reasons(look)["v1/v2"]
    assert "current and canary both point to v1" in reasons(look)["v1/v2"]


@pytest.mark.parametrize("aliases", [[], ["canary"]], ids=["without --alias", "with --alias"])
@pytest.mark.parametrize("change", LATER.values(), ids=LATER)
def test_a_refusal_survives_a_restart(canary, refused, change, aliases):
    saved = refused.look().refused
    assert [(stray.path, stray.link_stamp) for stray in saved] == [
        ("v1/v2", LinkStamp.of((canary / "v1" / "v2").lstat()))
    ]
    change(canary)
    look = looking(canary, *aliases, refused=saved).look()
    assert versions(look)["current"] == "v1"
    assert look.refused == saved


def copied(root):
    """Replace v1 by its own copy, as a restored backup does."""
    run(root, "cp -a v1 copy")
    run(root, "rm -r v1")
    run(root, "mv copy v1")


def unpacked(root):
    """Replace v1 by what tar kept of it."""
    run(root, "tar cf v1.tar v1")
    run(root, "rm -r v1")
    run(root, "tar xf v1.tar")


def renamed(root, looker):
    run(root, "mv v1/v2 v1/x")
    looker.look()
    run(root, "mv v1/x v1/v2")


TOUCHED = {
    "another owner": lambda root, looker: run(root, "chown -h --reference=v1 v1/v2"),
    "owners below": lambda root, looker: run(root, "chown -R --reference=v1 v1"),
    "another time": lambda root, looker: run(root, "touch -h -d 2001-01-01 v1/v2"),
    "a hard link": lambda root, looker: run(root, "ln v1/v2 v3/v2"),
    "renamed to and fro": renamed,
    "restored": lambda root, looker: copied(root),
    "unpacked": lambda root, looker: unpacked(root),
}


@pytest.mark.parametrize("running", [True, False], ids=["running", "after a restart"])
@pytest.mark.parametrize("touch", TOUCHED.values(), ids=TOUCHED)
def test_a_refused_stray_is_the_same_whatever_is_done_to_it(canary, refused, touch, running):
    run(canary, "ln -sfn v2 canary")
    saved = refused.look().refused
    next_tick(canary.parent)
    touch(canary, refused)
    look = (refused if running else looking(canary, "canary", refused=saved)).look()
    assert versions(look) == {"current": "v1", "canary": "v2"}
    assert "v1/v2" in reasons(look)
    assert os.readlink(canary / "current") == "v1"


def test_a_refused_stray_is_the_same_after_one_thing_after_another(canary, refused):
    run(canary, "ln -sfn v2 canary")
    for touch in [*TOUCHED.values(), *reversed(TOUCHED.values())]:
        refused.look()
        next_tick(canary.parent)
        run(canary, "rm -f v3/v2 v1.tar")
        touch(canary, refused)
        assert versions(refused.look()) == {"current": "v1", "canary": "v2"}


def test_a_refused_stray_of_an_earlier_release_learns_when_it_was_made(canary, refused):
    run(canary, "ln -sfn v2 canary")
    saved = [replace(stray, made=Made()) for stray in refused.look().refused]
    assert looking(canary, "canary", refused=saved).look().refused == refused.refused != tuple(saved)


def test_at_the_start_a_stray_is_as_old_as_when_it_was_made(canary):
    run(canary, "ln -sf v2 canary")
    next_tick(canary.parent)
    run(canary, "ln -sfn v2 canary")
    next_tick(canary.parent)
    run(canary, "chown -R --reference=v1 v1")
    look = looking(canary, "canary").look()
    assert versions(look)["current"] == "v1"
    assert "canary may have pointed to v1 when it was made" in reasons(look)["v1/v2"]


def test_on_a_file_system_without_birth_times_the_mtime_tells_a_link(root, root_fd, monkeypatch):
    run(root, "ln -s v2 v1/v2")
    status = (root / "v1" / "v2").lstat()
    assert Made.of(root_fd, "v1/v2", status).since(status.st_ctime_ns) == status.st_ctime_ns
    monkeypatch.setattr("zwatch.deploy.made._libc", object)
    assert Made.of(root_fd, "v1/v2", status) == Made(None, status.st_mtime_ns)
    assert Made(None, 1).since(2) == 2
    assert Made(1, 1).since(2) == 1


def test_a_stray_that_is_made_again_is_judged_again(canary, refused):
    run(canary, "ln -sfn v3 canary")
    refused.look()
    next_tick(canary.parent)
    run(canary, "ln -sf v2 current")
    look = refused.look()
    assert versions(look) == {"current": "v2", "canary": "v3"}
    assert (reasons(look), look.refused) == ({}, ())


def test_beside_a_refused_stray_a_good_one_is_followed(canary, refused):
    run(canary, "rm canary")
    refused.look()
    run(canary, "ln -sf v3 current")
    look = refused.look()
    assert versions(look)["current"] == "v3"
    assert (canary / "v1" / "v2").is_symlink()
    assert not (canary / "v1" / "v3").is_symlink()


def test_a_refused_self_link_stays_refused(canary):
    looker = looking(canary, "canary")
    before = looker.look().targets["current"].link_stamp
    run(canary, "ln -sf v1 canary")
    looker.look()
    run(canary, "rm canary")
    assert looker.look().targets["current"].link_stamp == before


def test_a_stray_for_a_version_that_was_missing_stays_refused_when_it_comes(root):
    looker = looking(root)
    looker.look()
    run(root, "ln -sf v9 current")
    assert reasons(looker.look()) == {"v1/v9": "no version of that name"}
    write_version(root, "v9")
    look = looker.look()
    assert versions(look) == {"current": "v1"}
    assert "it was refused earlier" in reasons(look)["v1/v9"]


def test_what_strict_links_refused_stays_refused_without_it(root):
    strict = looking(root, strict=True)
    strict.look()
    run(root, "ln -sf v2 current")
    first = strict.look()
    assert first.strays == strict.look().strays  # the same words: it is logged once
    look = looking(root, refused=first.refused).look()
    assert versions(look) == {"current": "v1"}
    assert "--strict-links forbids" in reasons(look)["v1/v2"]


def test_a_wish_that_could_not_be_carried_out_is_not_refused(root, monkeypatch):
    looker = looking(root)
    looker.look()
    run(root, "ln -sf v2 current")

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "symlink", full)
        look = looker.look()
    assert "No space left on device" in reasons(look)["v1/v2"]
    assert look.refused == ()
    assert versions(looking(root, refused=look.refused).look()) == {"current": "v2"}


def test_a_refusal_follows_a_renamed_version(canary, refused):
    run(canary, "mv v1 v8")
    run(canary, "rm canary")
    refused.look()
    look = refused.look()
    assert [stray.path for stray in look.refused] == ["v8/v2"]


def test_a_refusal_is_forgotten_with_its_link(canary, refused):
    run(canary, "rm v1/v2")
    assert refused.look().refused == ()


def test_a_refusal_survives_a_models_root_that_is_gone_for_a_while(canary, refused):
    canary.rename(canary.parent / "away")
    assert len(refused.look().refused) == 1
    (canary.parent / "away").rename(canary)
    run(canary, "rm canary")
    assert versions(refused.look())["current"] == "v1"


def test_the_number_of_refusals_is_limited(root, root_fd):
    strays = RefusedStrays()
    for number in range(MAX_REFUSED + 5):
        path = root / "v1" / f"x{number}"
        path.symlink_to("y")
        strays.add(f"v1/x{number}", LinkStamp.of(path.lstat()), "a reason", Made())
    strays.prune(root_fd)
    assert len(strays.all()) == MAX_REFUSED


def test_a_refusal_in_a_directory_that_was_moved_away_is_kept(root, root_fd):
    (root / "v1" / "v2").symlink_to("v2")
    stamp = LinkStamp.of((root / "v1" / "v2").lstat())
    strays = RefusedStrays([RefusedStray("v1/v2", stamp, "a reason")])
    (root / "v1").rename(root.parent / "v1")
    strays.prune(root_fd)
    assert strays.reason("v1/v2", stamp, Made()) == "a reason"


def test_the_first_reason_of_a_refusal_is_kept_as_valid_text(root):
    strays = RefusedStrays()
    stamp = LinkStamp(1, 2, 3)
    strays.add("v1/v2", stamp, "current and \udcff both point to v1", Made())
    strays.add("v1/v2", stamp, "it is older than the alias", Made())
    assert strays.reason("v1/v2", stamp, Made()) == "current and \\udcff both point to v1"


# Every link counts.


OTHERS = {
    "not followed": lambda root: link(root, "backup", "v1"),
    "absolute": lambda root: link(root, "backup", root / "v1"),
    "through another link": lambda root: link(root, "backup", "current"),
    "hidden": lambda root: link(root, ".backup", "v1"),
    "through a directory": lambda root: link(root, "backup", "v2/../v1/."),
    "through a link outside": lambda root: (link(root.parent, "out", root / "v1"), link(root, "backup", "../out")),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
@pytest.mark.parametrize("earlier_look", [True, False])
def test_a_second_link_makes_a_wish_ambiguous_also_if_it_is_not_followed(root, other, earlier_look):
    other(root)
    looker = looking(root)
    if earlier_look:
        looker.look()
    run(root, "ln -sf v2 current")
    for _ in range(2):
        look = looker.look()
        assert versions(look) == {"current": "v1"}
        assert "backup" in reasons(look)["v1/v2"]
        assert "it is not clear which link was meant" in reasons(look)["v1/v2"]


def test_with_three_links_the_reason_names_all(canary):
    link(canary, "backup", "v1")
    looker = looking(canary, "canary")
    looker.look()
    run(canary, "ln -sf v2 backup")
    assert reasons(looker.look()) == {
        "v1/v2": "current, canary and backup all point to v1; it is not clear which link was meant: `ln -sfn v2 LINK` moves one"
    }


def test_an_alias_that_leads_through_a_second_link_outside_is_ambiguous(root):
    (root.parent / "stable").symlink_to(root / "v1")
    run(root, "ln -sfn ../stable current")
    next_tick(root.parent)
    looker = looking(root)
    looker.look()
    run(root, "ln -sf v2 current")
    look = looker.look()
    assert versions(look) == {"current": "v1"}
    assert "stable" in reasons(look)["v1/v2"]


@pytest.mark.parametrize("text", ["v2", "v1/transformer", ".", "..", "v9", "backup", "/nowhere"])
def test_a_link_that_leads_elsewhere_makes_no_wish_ambiguous(root, text):
    link(root, "backup", text)
    looker = looking(root)
    looker.look()
    run(root, "ln -sf v2 current")
    assert versions(looker.look()) == {"current": "v2"}


def test_a_temporary_link_of_zwatch_s_own_does_not_count(root):
    looker = looking(root)
    looker.look()
    (root / f"{TEMPORARY_PREFIX}canary-0123456789ab").symlink_to("v1")
    run(root, "ln -sf v2 current")
    assert versions(looker.look()) == {"current": "v2"}


# Between two looks, and at the start.


@pytest.mark.parametrize("aliases", [[], ["canary"]], ids=["not followed", "followed"])
@pytest.mark.parametrize("change", LATER.values(), ids=LATER)
def test_a_link_that_moved_since_the_last_look_may_have_been_meant(canary, aliases, change):
    looker = looking(canary, *aliases)
    looker.look()
    run(canary, "ln -sf v2 canary")
    change(canary)
    for _ in range(2):
        look = looker.look()
        assert versions(look)["current"] == "v1"
        assert "canary may have pointed to v1 when it was made, as current does" in reasons(look)["v1/v2"]
    assert looking(canary, *aliases, refused=look.refused).look().targets["current"].version == "v1"


def test_a_link_behind_a_link_that_moved_since_the_last_look_may_have_been_meant(root):
    link(root, "stable", "v1")
    link(root, "canary", "stable")
    looker = looking(root)
    looker.look()
    run(root, "ln -sf v2 canary")
    run(root, "ln -sfn v3 stable")
    assert versions(looker.look()) == {"current": "v1"}


def test_a_link_outside_the_root_that_is_newer_than_the_stray_may_have_been_meant(root):
    link(root.parent, "stable", root / "v1")
    link(root, "canary", "../stable")
    looker = looking(root)
    looker.look()
    run(root, "ln -sf v2 canary")
    next_tick(root.parent)
    run(root.parent, f"ln -sfn {root}/v3 stable")
    look = looker.look()
    assert versions(look) == {"current": "v1"}
    assert "stable" in reasons(look)["v1/v2"]


COME_AND_GONE = {
    "new, moved": (None, "ln -sfn v2 canary"),
    "known, removed": ("v3", "rm canary"),
    "known, moved away": ("v3", "mv canary v2/x"),
}
"""Where a link led before, if it was there, and how it left v1. One that leads from v3 over v1 to v2, or that no look ever saw,
leaves no trace."""


@pytest.mark.parametrize(("before", "leave"), COME_AND_GONE.values(), ids=COME_AND_GONE)
def test_a_link_that_came_and_left_between_two_looks_may_have_been_meant(root, before, leave):
    if before is not None:
        link(root, "canary", before)
    looker = looking(root)
    looker.look()
    run(root, "ln -sfn v1 canary")
    next_tick(root.parent)
    run(root, "ln -sf v2 canary")
    next_tick(root.parent)
    run(root, leave)
    look = looker.look()
    assert versions(look) == {"current": "v1"}
    assert "canary may have pointed to v1 when it was made" in reasons(look)["v1/v2"]


def test_a_link_that_moved_between_other_versions_makes_no_wish_ambiguous(root):
    link(root, "canary", "v3")
    looker = looking(root, "canary")
    looker.look()
    run(root, "ln -sf v2 current")
    run(root, "ln -sfn v2 canary")
    assert versions(looker.look()) == {"current": "v2", "canary": "v2"}


def test_at_the_start_a_link_newer_than_the_stray_may_have_been_meant(canary):
    run(canary, "ln -sf v2 canary")
    next_tick(canary.parent)
    run(canary, "ln -sfn v2 canary")
    for aliases in ([], ["canary"]):
        look = looking(canary, *aliases).look()
        assert versions(look)["current"] == "v1"
        assert "canary may have pointed to v1" in reasons(look)["v1/v2"]


@pytest.mark.parametrize("aliases", [["canary"], []])
@pytest.mark.parametrize("change", ["rm canary", "mv canary elsewhere/"])
def test_at_the_start_a_link_that_was_removed_since_may_have_been_meant(canary, aliases, change):
    (canary / "elsewhere").mkdir()
    next_tick(canary)
    run(canary, "ln -sf v2 canary")
    next_tick(canary)
    run(canary, change)
    for _ in range(2):
        look = looking(canary, *aliases, refused=()).look()
        assert versions(look)["current"] == "v1"
        assert "a link that was removed may have pointed to v1 when it was made" in reasons(look)["v1/v2"]


def test_at_the_start_a_stray_newer_than_every_change_of_the_root_is_followed(canary):
    run(canary, "rm canary")
    next_tick(canary)
    run(canary, "ln -sf v2 current")
    assert versions(looking(canary).look()) == {"current": "v2"}


BELOW = {
    "live/prod": "../v1",
    "hosts/eu/prod": "../../v1",
    "a/b/c/d/prod": "../../../../v1",
    ".hidden/prod": "../v1",
    "live/v1": "../v1",
    "v1/latest": ".",
    "v3/transformer/prod": "../../v1",
}


@pytest.mark.parametrize("path", BELOW)
def test_a_link_anywhere_below_the_root_counts(root, path):
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).symlink_to(BELOW[path])
    looker = looking(root)
    looker.look()
    next_tick(root)
    run(root, f"ln -sf v2 {path}")
    look = looker.look()
    assert versions(look) == {"current": "v1"}
    assert (
        reasons(look)["v1/v2"]
        == f"current and {path} both point to v1; it is not clear which link was meant: `ln -sfn v2 LINK` moves one"
    )


def test_a_refused_stray_in_another_version_is_no_link_that_counts(root):
    (root / "v3" / "v1").symlink_to("../v1")
    looker = looking(root)
    looker.look()
    next_tick(root)
    run(root, "ln -sf v2 current")
    assert versions(looker.look()) == {"current": "v2"}


def test_while_as_many_refusals_are_kept_as_can_be_every_older_stray_is_refused(canary):
    looker = looking(canary, "canary")
    looker.look()
    run(canary, "ln -sf v2 canary")
    look = looker.look()
    next_tick(canary)
    for number in range(MAX_REFUSED + 10):
        (canary / "v1" / f"x{number}").symlink_to(f"x{number}")
    looker.look()
    run(canary, "ln -sfn v2 canary")
    for _ in range(2):
        look = looker.look()
    assert versions(look) == {"current": "v1", "canary": "v2"}


def test_at_the_start_a_link_older_than_the_stray_that_leads_elsewhere_does_not_count(root):
    link(root, "backup", "v3")
    run(root, "ln -sf v2 current")
    assert versions(looking(root).look()) == {"current": "v2"}


def test_after_the_root_was_gone_the_rule_of_the_start_holds(canary):
    looker = looking(canary)
    looker.look()
    canary.rename(canary.parent / "away")
    looker.look()
    (canary.parent / "away").rename(canary)
    run(canary, "ln -sf v2 canary")
    next_tick(canary.parent)
    run(canary, "ln -sfn v2 canary")
    assert versions(looker.look()) == {"current": "v1"}


# Late wishes, and wishes that were overtaken.


def test_a_late_wish_in_a_version_to_which_another_link_leads_is_refused(root):
    looker = looking(root)
    looker.look()
    run(root, "ln -sf v2 current")
    assert versions(looker.look()) == {"current": "v2"}
    (root / "backup").symlink_to("v1")
    next_tick(root.parent)
    run(root, "ln -sf v3 backup")
    look = looker.look()
    assert versions(look) == {"current": "v2"}
    assert "current and backup both point to v1" in reasons(look)["v1/v3"]
    run(root, "rm backup")
    assert versions(looker.look()) == {"current": "v2"}


def test_a_late_wish_in_a_version_that_another_link_left_since_the_last_look_is_refused(root):
    looker = looking(root)
    looker.look()
    run(root, "ln -sf v2 current")
    looker.look()
    (root / "backup").symlink_to("v1")
    looker.look()
    run(root, "ln -sf v3 backup")
    run(root, "ln -sfn v3 backup")
    assert versions(looker.look()) == {"current": "v2"}


def test_an_overtaken_wish_that_may_be_for_another_link_is_not_removed(canary):
    looker = looking(canary)
    looker.look()
    run(canary, "ln -sf v2 canary")
    next_tick(canary.parent)
    run(canary, "ln -sfn v3 current")
    assert versions(looker.look()) == {"current": "v3"}
    assert (canary / "v1" / "v2").is_symlink()


def test_consecutive_wishes_of_two_aliases_are_followed_each(root):
    link(root, "canary", "v3")
    looker = looking(root, "canary")
    looker.look()
    for current, canary in (("v2", "v1"), ("v3", "v2"), ("v1", "v3")):
        run(root, f"ln -sf {current} current")
        assert versions(looker.look())["current"] == current
        run(root, f"ln -sf {canary} canary")
        assert versions(looker.look()) == {"current": current, "canary": canary}


# The links themselves.


def test_the_links_of_the_root_are_told_with_where_they_lead(root, root_fd):
    link(root, "stable", "v1")
    link(root.parent, "out", root / "v1")
    link(root, "far", "../out")
    link(root, "backup", "v3")
    found = RootLinks.read(root_fd)
    assert sorted(found.links) == ["backup", "current", "far", "stable"]
    v1 = (root / "v1").stat()
    assert found.leading_to(root_fd, (v1.st_dev, v1.st_ino)) == ["current", "far", "stable", "../out"]


# A second `ln -sf` makes its link under a temporary name, and renames it over the first one.


@pytest.mark.parametrize("text", ["v2", "../v2", "absolute"])
@pytest.mark.parametrize("left", [True, False])
def test_a_wish_that_was_seen_under_the_temporary_name_of_ln_is_followed(root, text, left):
    text = str(root / "v2") if text == "absolute" else text
    if left:  # by an earlier deploy that could not remove it
        link(root, "v1/v2", text)
        run(root, "ln -sfn v1 current")
        next_tick(root.parent)
    looker = looking(root)
    looker.look()
    (root / "v1" / "CuA1b2C3").symlink_to(text)
    assert versions(looker.look()) == {"current": "v1"}
    os.rename(root / "v1" / "CuA1b2C3", root / "v1" / "v2")
    assert versions(looker.look()) == {"current": "v2"}


def test_a_link_without_a_version_of_its_name_stays_refused_when_there_is_one(root):
    looker = looking(root)
    link(root, "v1/v9", "v9")
    assert reasons(looker.look()) == {"v1/v9": "no version of that name"}
    write_version(root, "v9")
    look = looker.look()
    assert versions(look) == {"current": "v1"}
    assert "refused earlier" in reasons(look)["v1/v9"]
