"""Chains, `current -> stable -> v1`: the last link is moved, and the others lead through it as before."""

import errno
import os

import pytest

from tests.deploy.factory import next_tick
from tests.deploy.faulty import FailingCalls
from tests.deploy.typed import looking, run
from zwatch.deploy.chains import read_chain
from zwatch.deploy.look import point, read_stamps


def texts(root, *names):
    return [os.readlink(root / name) for name in names]


@pytest.fixture
def chain(root):
    """current -> stable -> v1."""
    run(root, "ln -s v1 stable")
    run(root, "ln -sfn stable current")
    next_tick(root.parent)
    return root


@pytest.mark.parametrize("typed", ["stable", "current"])
@pytest.mark.parametrize("aliases", [[], ["stable"]], ids=["current is followed", "both are followed"])
@pytest.mark.parametrize("running", [True, False], ids=["while it runs", "before its start"])
def test_ln_sf_moves_the_link_that_holds_the_version_and_says_so(chain, typed, aliases, running):
    looker = looking(chain, *aliases)
    if running:
        looker.look()
    run(chain, f"ln -sf v2 {typed}")
    look = looker.look()
    assert {target.version for target in look.targets.values()} == {"v2"}
    assert texts(chain, "current", "stable") == ["stable", "v2"]
    assert not os.path.lexists(chain / "v1" / "v2")
    assert (dict(look.faults), list(look.strays)) == ({}, [])
    [note] = look.notes
    assert "stable now points to v2 (current leads through stable, which held v1, so stable was moved)" in note
    assert "`ln -sfn v2 stable` is the form that needs no help" in note


@pytest.mark.parametrize("text", ["stable/", "./stable", "../models/stable", "v2/../stable", "{root}/stable"])
def test_the_chain_is_kept_whatever_its_texts(root, text):
    text = text.format(root=root)
    run(root, "ln -s v1/ stable")
    run(root, f"ln -sfn {text} current")
    next_tick(root.parent)
    looker = looking(root)
    looker.look()
    run(root, "ln -sf v2 stable")
    assert looker.look().targets["current"].version == "v2"
    assert texts(root, "current", "stable") == [text, "v2"]


def test_of_a_long_chain_the_last_link_is_moved(root):
    for name, text in (("c", "v1"), ("b", "c"), ("a", "b")):
        run(root, f"ln -s {text} {name}")
    run(root, "ln -sfn a current")
    next_tick(root.parent)
    looker = looking(root)
    looker.look()
    run(root, "ln -sf v2 b")
    assert looker.look().targets["current"].version == "v2"
    assert texts(root, "current", "a", "b", "c") == ["a", "b", "c", "v2"]


def test_wishes_in_a_row_are_followed_each(chain):
    looker = looking(chain)
    looker.look()
    for name in ("v2", "v3", "v1", "v2"):
        next_tick(chain.parent)
        run(chain, f"ln -sf {name} stable")
        assert looker.look().targets["current"].version == name
        assert texts(chain, "current", "stable") == ["stable", name]


@pytest.mark.parametrize("text", ["v1", "stable", "current"])
def test_a_link_beside_the_chain_makes_a_wish_ambiguous(chain, text):
    run(chain, f"ln -s {text} backup")
    next_tick(chain.parent)
    looker = looking(chain)
    looker.look()
    run(chain, "ln -sf v2 stable")
    look = looker.look()
    assert look.targets["current"].version == "v1"
    assert texts(chain, "current", "stable", "backup") == ["stable", "v1", text]
    assert "it is not clear which link was meant" in look.strays[0].reason
    assert "backup" in look.strays[0].reason


def test_a_link_that_nobody_follows_and_that_leads_through_an_alias_makes_a_wish_ambiguous(root):
    run(root, "ln -s current backup")
    next_tick(root.parent)
    looker = looking(root)
    looker.look()
    run(root, "ln -sf v2 backup")
    look = looker.look()
    assert look.targets["current"].version == "v1"
    assert "current and backup both point to v1" in look.strays[0].reason


def test_a_stray_older_than_any_link_of_the_chain_is_no_wish(root):
    run(root, "ln -s v1 stable")
    run(root, "ln -s v2 v1/v2")
    next_tick(root.parent)
    run(root, "ln -sfn stable current")
    look = looking(root).look()
    assert look.targets["current"].version == "v1"
    assert texts(root, "current", "stable") == ["stable", "v1"]


def test_with_strict_links_the_reason_names_the_link_to_move(chain):
    looker = looking(chain, strict=True)
    looker.look()
    run(chain, "ln -sf v2 current")
    [stray] = looker.look().strays
    assert "`ln -sfn v2 stable`" in stray.reason
    assert texts(chain, "current", "stable") == ["stable", "v1"]


def test_a_deploy_moves_the_link_that_it_names_and_no_other(chain, caplog):
    looker = looking(chain)
    before = looker.look().targets["current"].link_stamp
    placed = point(chain, "current", "v2")
    assert texts(chain, "current", "stable") == ["v2", "v1"]
    target = looker.look().targets["current"]
    assert (target.version, target.link_stamp) == ("v2", placed)
    assert placed != before
    assert "current led through stable and now points to v2 itself" in caplog.text
    assert "`ln -sfn stable current` restores the chain" in caplog.text


def test_a_link_of_the_chain_that_is_made_again_changes_the_alias_s_stamp(chain):
    looker = looking(chain)
    before = looker.look().targets["current"]
    run(chain, "ln -sfn v1 stable")
    after = looker.look().targets["current"]
    assert after.version == before.version
    assert after.link_stamp != before.link_stamp
    assert read_stamps(chain, ["current"]) == [after.link_stamp]


def test_links_in_a_circle_are_read_once(root, root_fd):
    run(root, "ln -sfn a current")
    run(root, "ln -s b a")
    run(root, "ln -s a b")
    assert [link.name for link in read_chain(root_fd, "current")] == ["current", "a", "b"]
    assert looking(root).look().faults["current"].code == "loop"


CHAINS = {
    "none": {"current": "v1"},
    "in the root": {"current": "stable", "stable": "v1"},
    "with another spelling": {"current": "./stable", "stable": "v1"},
    "outside the root": {"current": "../stable", "../stable": "models/v1"},
}


@pytest.mark.parametrize("links", CHAINS.values(), ids=CHAINS)
def test_whatever_the_chain_a_change_of_it_or_of_its_end_is_seen_at_the_next_look(root, links):
    for path, text in links.items():
        (root / path).unlink(missing_ok=True)
        (root / path).symlink_to(text)
    next_tick(root.parent)
    looker = looking(root)
    first = looker.look().targets["current"]
    assert looker.look().targets["current"] is first
    for path, text in links.items():
        run(root, f"ln -sfn {text} {path}")
        again = looker.look().targets["current"]
        assert again.version == "v1"
        assert again.link_stamp != first.link_stamp
        first = again
    run(root, "mv v1 old")
    assert looker.look().faults["current"].code == "dangling"
    run(root, "cp -a old v1")
    again = looker.look().targets["current"]
    assert again.directory is not first.directory
    (root / "v1" / "BLAKE3SUMS").write_text("another seal")
    assert looker.look().targets["current"].seal_stamp != again.seal_stamp


def test_a_look_at_many_aliases_that_did_not_change_asks_little_for_each(root, clock, monkeypatch):
    aliases = [f"a{number}" for number in range(50)]
    for alias in aliases:
        (root / alias).symlink_to("v1")
    next_tick(root.parent)
    looker = looking(root, *aliases, clock=clock)
    for _ in range(2):
        looker.look()
        clock.forward(0.5)
    calls = FailingCalls(monkeypatch, errno.EIO)
    with calls.at(None):
        looker.look()
        count = calls.count
    assert count < 7 * len(aliases)
