"""Shares as links: every form in which people make, move and remove them, and aliases that come and go."""

import os
import subprocess

import pytest

from tests.deploy.factory import next_tick
from tests.deploy.typed import looking, run
from tests.lifecycles.ways import STRAY_WAYS, TEXTS, WAYS
from zwatch.deploy.followed import MISSING_GRACE, Known
from zwatch.deploy.following import Rule
from zwatch.deploy.shares import share_key

KEY = share_key("current")


@pytest.fixture
def looker(root, clock):
    (root / "v4").mkdir()
    return looking(root, clock=clock)


def share(look, alias="current"):
    """Return the counted link's name and the version that it leads to."""
    seen, target = look.shares.get(alias), look.targets.get(share_key(alias))
    return (None if seen is None or seen.link is None else seen.link.name, None if target is None else target.version)


# --- making and moving one


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("way", WAYS)
def test_every_form_of_link_makes_a_share_and_moves_it(root, looker, way, text):
    for version in ("v3", "v4", "v2"):
        WAYS[way](root, TEXTS[text](root, version), "current@10")
        assert share(looker.look()) == ("current@10", version)
    assert looker.look().targets["current"].version == "v1"


def test_ln_s_makes_a_share(root, looker):
    run(root, "ln -s v3 current@10")
    assert share(looker.look()) == ("current@10", "v3")


@pytest.mark.parametrize(
    "line", ["mv -T current@10 current@50", "mv current@10 current@50", "rename", "cp -P and rm"]
)  # fmt: skip
def test_every_form_of_rename_changes_the_percentage_alone(root, looker, line):
    run(root, "ln -s v3 current@10")
    before = looker.look()
    next_tick(root.parent)
    if line == "rename":
        os.replace(root / "current@10", root / "current@50")
    elif line == "cp -P and rm":
        run(root, "cp -P current@10 current@50")
        run(root, "rm current@10")
    else:
        run(root, line)
    after = looker.look()
    assert share(after) == ("current@50", "v3")
    assert after.targets[KEY].digest == before.targets[KEY].digest
    is_renamed = after.shares["current"].renamed_from == before.targets[KEY].link_stamp
    assert is_renamed == (line != "cp -P and rm")  # a copy is another link
    assert looker.look().shares["current"].renamed_from is None


def test_a_link_that_is_made_anew_under_another_name_was_not_renamed(root, looker):
    run(root, "ln -s v3 current@10")
    looker.look()
    run(root, "rm current@10")
    run(root, "ln -s v3 current@50")
    assert looker.look().shares["current"].renamed_from is None


def test_a_share_that_was_renamed_to_and_fro_is_the_same_link(root, looker, clock):
    run(root, "ln -s v3 current@10")
    before = looker.look().targets[KEY].link_stamp
    next_tick(root.parent)
    run(root, "mv current@10 elsewhere")
    run(root, "mv elsewhere current@10")
    assert looker.look().shares["current"].renamed_from == before
    run(root, "mv current@10 current@ten")
    clock.forward(MISSING_GRACE)
    looker.look()
    clock.forward(MISSING_GRACE)
    assert share(looker.look()) == (None, None)
    next_tick(root.parent)
    run(root, "mv current@ten current@20")
    assert looker.look().shares["current"].renamed_from is not None


def test_a_share_whose_chain_has_a_new_link_is_a_new_wish_also_if_it_is_renamed(root, looker):
    run(root, "ln -s v3 stable")
    run(root, "ln -s stable current@10")
    looker.look()
    next_tick(root.parent)
    run(root, "ln -sfn v3 stable")
    assert looker.look().shares["current"].renamed_from is None
    next_tick(root.parent)
    run(root, "mv current@10 current@50")
    assert looker.look().shares["current"].renamed_from is not None
    next_tick(root.parent)
    run(root, "ln -sfn v3 stable")
    run(root, "mv current@50 current@60")
    assert looker.look().shares["current"].renamed_from is None


def test_another_looker_knows_a_renamed_share_by_what_was_saved(root, looker):
    run(root, "ln -s v3 current@10")
    before = looker.look().shares["current"].mark
    next_tick(root.parent)
    run(root, "mv current@10 current@50")
    known = Known.before(Rule(("current",)), {"current": None, KEY: before, "other@": before})
    other = looking(root, known=known)
    assert other.look().shares["current"].renamed_from == before.stamp
    assert set(other.known.marks) == {KEY}
    other.look()
    run(root, "rm current@50")
    run(root, "ln -s v3 current@60")
    known = Known.before(Rule(("current",)), {KEY: before})
    assert looking(root, known=known).look().shares["current"].renamed_from is None


def test_mv_t_onto_the_alias_promotes(root, looker, clock):
    run(root, "ln -s v3 current@50")
    looker.look()
    run(root, "mv -T current@50 current")
    look = looker.look()
    assert look.targets["current"].version == "v3"
    assert share(look) == ("current@50", "v3")  # for the grace, so that nothing is freed meanwhile
    clock.forward(MISSING_GRACE)
    assert share(looker.look()) == (None, None)


def test_a_moment_without_the_link_is_normal(root, looker, clock):
    run(root, "ln -s v3 current@10")
    looker.look()
    run(root, "rm current@10")
    for _ in range(3):
        clock.forward(MISSING_GRACE / 4)
        assert share(looker.look()) == ("current@10", "v3")
    run(root, "ln -s v4 current@10")
    assert share(looker.look()) == ("current@10", "v4")
    run(root, "rm current@10")
    looker.look()
    clock.forward(MISSING_GRACE)
    assert share(looker.look()) == (None, None)
    assert looker.look().shares == {}


# --- `ln -sf` into a version


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("way", STRAY_WAYS)
def test_ln_sf_over_a_share_moves_the_share(root, looker, way, text):
    run(root, "ln -s v3 current@10")
    looker.look()
    STRAY_WAYS[way](root, TEXTS[text](root, "v4"), "current@10")
    assert os.path.lexists(root / "v3/v4")
    look = looker.look()
    assert share(look) == ("current@10", "v4")
    assert os.readlink(root / "current@10") == "v4"
    assert look.targets["current"].version == "v1"
    assert not os.path.lexists(root / "v3/v4")


def test_ln_sf_while_nothing_ran_moves_the_share_too(root):
    (root / "v4").mkdir()
    run(root, "ln -s v3 current@10")
    next_tick(root.parent)
    run(root, "ln -sf v4 current@10")
    look = looking(root).look()
    assert share(look) == ("current@10", "v4"), look.strays


@pytest.mark.parametrize("other", ["current", "backup"])
def test_ln_sf_is_ambiguous_if_the_share_and_another_link_lead_there(root, looker, other):
    run(root, f"ln -sfn v3 {other}")
    run(root, "ln -s v3 current@10")
    looker.look()
    run(root, "ln -sf v4 current@10")
    look = looker.look()
    [stray] = look.strays
    assert (stray.path, stray.text) == ("v3/v4", "v4")
    assert "it is not clear which link was meant" in stray.reason
    assert share(look) == ("current@10", "v3")


def test_with_strict_links_a_share_is_not_moved(root):
    (root / "v4").mkdir()
    run(root, "ln -s v3 current@10")
    looker = looking(root, strict=True)
    looker.look()
    run(root, "ln -sf v4 current@10")
    look = looker.look()
    assert "--strict-links" in look.strays[0].reason
    assert share(look) == ("current@10", "v3")


def test_what_an_interrupted_move_of_a_share_left_is_tidied_up(root):
    run(root, "ln -s v3 current@10")
    (root / ".zwatch-current@10-0123456789ab").symlink_to("v2")
    looking(root).look()
    assert not [name for name in os.listdir(root) if name.startswith(".zwatch-")]


# --- faults


def test_two_shares_are_said_and_do_not_count(root, looker):
    run(root, "ln -s v3 current@10")
    looker.look()
    run(root, "ln -s v2 current@50")
    look = looker.look()
    assert look.shares["current"].link is None
    assert set(look.shares["current"].faults) == {"current@10", "current@50"}
    assert look.targets["current"].version == "v1"
    run(root, "rm current@10")
    assert share(looker.look()) == ("current@50", "v2")
    assert looker.look().shares["current"].faults == {}


@pytest.mark.parametrize("name", ["current@101", "current@ten", "current@10%", "current@", "current@05", "current@1@2"])
def test_a_bad_name_is_said(root, looker, name):
    (root / name).symlink_to("v3")
    look = looker.look()
    assert share(look) == (None, None)
    assert look.shares["current"].faults[name].message.startswith(f"{name}: ")
    run(root, "ln -s v3 current@10")
    look = looker.look()
    assert share(look) == ("current@10", "v3")
    assert list(look.shares["current"].faults) == [name]


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.write_text("x"), os.mkfifo])
def test_what_is_no_link_is_said(root, looker, make):
    make(root / "current@10")
    assert "expected a symlink" in looker.look().shares["current"].faults["current@10"].message


@pytest.mark.parametrize(
    ("text", "code"), [("v9", "dangling"), ("current@10", "loop"), ("/usr", "outside"), ("v3/nothing", "dangling")]
)
def test_a_share_that_leads_to_no_version_has_the_fault_of_an_alias(root, looker, text, code):
    (root / "current@10").symlink_to(text)
    look = looker.look()
    assert look.faults[KEY].code == code
    assert look.faults[KEY].message.startswith("current@10 -> ")
    assert look.shares["current"].link.name == "current@10"


def test_a_share_of_a_link_that_is_not_followed_is_none_of_our_business(root, looker):
    run(root, "ln -s v3 canary@10")
    run(root, "ln -s v3 canary@nonsense")
    assert looker.look().shares == {}


# --- what a look costs


def test_a_share_adds_no_listing_to_a_look_at_an_unchanged_root(root, looker, clock, monkeypatch):
    run(root, "ln -s v3 current@10")
    for _ in range(4):
        looker.look()
        clock.forward(0.2)
    listed = []
    scandir, listdir = os.scandir, os.listdir
    monkeypatch.setattr(os, "scandir", lambda *given: listed.append(given) or scandir(*given))
    monkeypatch.setattr(os, "listdir", lambda *given: listed.append(given) or listdir(*given))
    looker.look()
    assert listed == []


# --- aliases that come and go


@pytest.mark.parametrize(
    ("aliases", "name", "expected"),
    [
        (["current", "c*"], "canary", True),
        (["current", "c*"], "current", False),
        (["current", "c*"], "other", False),
        (["current", "*"], "other", True),
        (["current", "*"], "v1@10", False),
        (["current", "[ab]?"], "b1", True),
        (["current", "[!a]*"], "a1", False),
        (["current"], "current", False),
    ],
)
def test_which_links_a_pattern_finds(aliases, name, expected):
    assert Rule.of(aliases).matches(name) is expected


def test_a_link_that_is_there_for_a_moment_is_no_alias(root, clock):
    looker = looking(root, "*", clock=clock)
    assert looker.look().aliases == ("current",)
    run(root, "ln -s v2 CuAbCdEf")
    assert looker.look().aliases == ("current",)
    run(root, "mv -T CuAbCdEf canary")
    assert looker.look().aliases == ("current",)
    clock.forward(0.2)
    assert looker.look().aliases == ("current", "canary")


def test_a_found_alias_keeps_its_fault_until_its_link_is_gone(root, clock):
    run(root, "ln -s v2 canary")
    looker = looking(root, "*", clock=clock)
    assert looker.look().targets["canary"].version == "v2"
    run(root, "ln -sfn /usr canary")
    look = looker.look()
    assert (look.aliases, look.faults["canary"].code) == (("current", "canary"), "outside")
    run(root, "rm canary")
    assert looker.look().aliases == ("current", "canary")
    clock.forward(MISSING_GRACE)
    look = looker.look()
    assert (look.aliases, list(look.faults)) == (("current",), [])


@pytest.mark.parametrize("way", STRAY_WAYS)
def test_ln_sf_over_a_found_alias_moves_it(root, clock, way):
    run(root, "ln -s v2 canary")
    looker = looking(root, "*", clock=clock)
    looker.look()
    STRAY_WAYS[way](root, "v3", "canary")
    assert looker.look().targets["canary"].version == "v3"


def test_a_named_alias_stays_when_its_link_is_gone(root, clock):
    run(root, "ln -s v2 canary")
    looker = looking(root, "canary", "*", clock=clock)
    looker.look()
    run(root, "rm canary")
    looker.look()
    clock.forward(MISSING_GRACE)
    look = looker.look()
    assert (look.aliases, look.faults["canary"].code) == (("current", "canary"), "missing")


def test_shares_of_a_found_alias_go_with_it(root, clock):
    run(root, "ln -s v2 canary")
    run(root, "ln -s v3 canary@20")
    looker = looking(root, "*", clock=clock)
    assert share(looker.look(), "canary") == ("canary@20", "v3")
    subprocess.run("rm canary", shell=True, cwd=root, check=True)
    looker.look()
    clock.forward(MISSING_GRACE)
    assert looker.look().shares == {}
