"""Making, moving, ending and promoting a share, and what a crash in the middle of it leaves."""

import itertools
import os

import pytest

from tests.deploy.factory import AS_ROOT, next_tick
from tests.deploy.typed import relink, temporaries
from zwatch.deploy import links, sharing
from zwatch.deploy.chains import read_chain, stamp_of
from zwatch.deploy.links import TEMPORARY_PREFIX, Leftovers, LinkNote, finish_interrupted
from zwatch.deploy.shares import ShareLink
from zwatch.deploy.sharing import end_share, find_shares, make_share, promote_share
from zwatch.errors import RepointError


def shares(root, alias="current"):
    """Return what leads where, of the alias and its shares."""
    return {
        path.name: os.readlink(path)
        for path in sorted(root.iterdir())
        if path.is_symlink() and (path.name == alias or path.name.startswith(f"{alias}@"))
    }


@pytest.fixture(params=["renameat2", "rename"])
def _either_rename(request, monkeypatch):
    """With the kernel's renames that have flags, and without them."""
    if request.param == "rename":
        monkeypatch.setattr(links, "renameat2", lambda *_: False)


@pytest.mark.usefixtures("_either_rename")
class TestSharing:
    @pytest.mark.parametrize("percent", [0, 10, 100])
    def test_a_share_is_made(self, root, root_fd, percent):
        placed = make_share(root, "current", "v3", percent)
        assert shares(root) == {"current": "v1", f"current@{percent}": "v3"}
        assert (placed.name, placed.text) == (f"current@{percent}", "v3")
        assert placed.stamp == stamp_of(read_chain(root_fd, placed.name))
        assert temporaries(root) == []

    def test_a_percentage_is_moved_by_a_rename_of_the_same_link(self, root, root_fd):
        make_share(root, "current", "v3", 10)
        note = LinkNote.take(root_fd, "current@10")
        next_tick(root)
        for percent in (50, 5):
            placed = make_share(root, "current", None, percent)
            assert shares(root) == {"current": "v1", f"current@{percent}": "v3"}
            assert LinkNote.take(root_fd, placed.name) == note
            assert placed.stamp == stamp_of(read_chain(root_fd, placed.name))

    def test_the_version_that_it_has_already_does_not_make_the_link_again(self, root, root_fd):
        make_share(root, "current", "v3", 10)
        note = LinkNote.take(root_fd, "current@10")
        next_tick(root)
        for percent in (10, 50):
            placed = make_share(root, "current", "v3", percent)
            assert LinkNote.take(root_fd, placed.name) == note

    def test_what_is_asked_anew_makes_the_link_again(self, root, root_fd):
        make_share(root, "current", "v3", 10)
        for percent in (10, 50, 20):
            [before] = [LinkNote.take(root_fd, share.name) for share in find_shares(root_fd, "current")]
            next_tick(root)
            placed = make_share(root, "current", "v3", percent, anew=True)
            assert shares(root) == {"current": "v1", f"current@{percent}": "v3"}
            assert LinkNote.take(root_fd, placed.name) != before
        assert temporaries(root) == []

    @pytest.mark.parametrize("percent", [5, 10, 50])
    def test_version_and_percentage_are_changed_together(self, root, percent):
        make_share(root, "current", "v3", 10)
        make_share(root, "current", "v2", percent)
        assert shares(root) == {"current": "v1", f"current@{percent}": "v2"}
        assert temporaries(root) == []

    def test_a_share_is_ended(self, root):
        make_share(root, "current", "v3", 10)
        assert end_share(root, "current") == [ShareLink("current", 10)]
        assert shares(root) == {"current": "v1"}
        assert temporaries(root) == []
        assert end_share(root, "current") == [], "there is none any more, which is what was asked for"

    def test_of_several_shares_all_are_ended(self, root):
        for percent in (10, 50):
            (root / f"current@{percent}").symlink_to("v3")
        assert end_share(root, "current") == [ShareLink("current", 10), ShareLink("current", 50)]
        assert shares(root) == {"current": "v1"}

    def test_a_promotion_is_one_rename_over_the_alias(self, root, root_fd):
        made = make_share(root, "current", "v3", 50)
        note = LinkNote.take(root_fd, "current@50")
        next_tick(root)
        placed = promote_share(root, "current", made.stamp)
        assert shares(root) == {"current": "v3"}
        assert LinkNote.take(root_fd, "current") == note
        assert (placed.name, placed.stamp) == ("current", stamp_of(read_chain(root_fd, "current")))
        assert temporaries(root) == []

    def test_the_shares_of_another_alias_are_left_alone(self, root):
        (root / "canary").symlink_to("v2")
        make_share(root, "canary", "v3", 20)
        make_share(root, "current", "v2", 10)
        make_share(root, "current", None, 20)
        promote_share(root, "current")
        end_share(root, "current")
        assert shares(root, "canary") == {"canary": "v2", "canary@20": "v3"}

    def test_a_share_that_leads_through_another_link_keeps_it(self, root):
        (root / "next").symlink_to("v3")
        (root / "current@10").symlink_to("next")
        make_share(root, "current", "v3", 50)
        promote_share(root, "current")
        assert shares(root) == {"current": "next"}

    # What the operator did is never undone.

    def test_a_share_that_the_operator_made_at_the_same_moment_stays(self, root, monkeypatch):
        repoint = sharing.repoint

        def raced(*given):
            (root / "current@50").symlink_to("v2")
            return repoint(*given)

        monkeypatch.setattr(sharing, "repoint", raced)
        with pytest.raises(RepointError, match="current@50 was made by another process; that share stays"):
            make_share(root, "current", "v3", 10)
        assert shares(root) == {"current": "v1", "current@50": "v2"}

    @pytest.mark.parametrize("change", ["percent", "end", "both"])
    @pytest.mark.parametrize("text", ["v2", "v3"])
    def test_a_link_that_the_operator_makes_again_at_the_same_moment_stays(
        self, root, root_fd, monkeypatch, change, text
    ):
        make_share(root, "current", "v3", 10)
        next_tick(root)
        rename = sharing._rename_to_free
        moves = iter([text])

        def raced(fd, source, destination):
            for move in moves:
                relink(root, move, "current@10")
            rename(fd, source, destination)

        monkeypatch.setattr(sharing, "_rename_to_free", raced)
        changes = {
            "percent": lambda: make_share(root, "current", None, 50),
            "both": lambda: make_share(root, "current", "v1", 50),
            "end": lambda: end_share(root, "current"),
        }
        with pytest.raises(RepointError, match="current@10 was repointed by another process; that change stays"):
            changes[change]()
        assert shares(root) == {"current": "v1", "current@10": text}
        assert temporaries(root) == []

    def test_a_link_that_the_operator_removes_at_the_same_moment_stays_removed(self, root, monkeypatch):
        make_share(root, "current", "v3", 10)
        rename = sharing._rename_to_free

        def raced(fd, source, destination):
            (root / "current@10").unlink()
            rename(fd, source, destination)

        monkeypatch.setattr(sharing, "_rename_to_free", raced)
        with pytest.raises(RepointError, match="current@10 was removed by another process; that change stays"):
            make_share(root, "current", None, 50)
        assert shares(root) == {"current": "v1"}

    def test_a_share_with_the_new_percentage_that_appears_at_the_same_moment_is_not_replaced(self, root, monkeypatch):
        make_share(root, "current", "v3", 10)
        rename = sharing._rename_to_free

        def raced(fd, source, destination):
            (root / "current@50").symlink_to("v2")
            rename(fd, source, destination)

        monkeypatch.setattr(sharing, "_rename_to_free", raced)
        with pytest.raises(RepointError, match="current@50 was made by another process; that change stays"):
            make_share(root, "current", None, 50)
        assert shares(root) == {"current": "v1", "current@10": "v3", "current@50": "v2"}

    def test_a_share_that_was_moved_since_it_was_judged_is_not_promoted(self, root):
        made = make_share(root, "current", "v3", 10)
        next_tick(root)
        relink(root, "v2", "current@10")
        with pytest.raises(RepointError, match="current@10 was repointed by another process; that change stays"):
            promote_share(root, "current", made.stamp)
        assert shares(root) == {"current": "v1", "current@10": "v2"}


# What cannot be done says what to type.


def test_of_two_shares_none_is_moved_or_promoted(root):
    for percent in (10, 50):
        (root / f"current@{percent}").symlink_to("v3")
    words = "current has several shares, current@10 and current@50, so none counts; remove all but one: `rm current@10` or `rm current@50`"
    for change in (lambda: make_share(root, "current", "v3", 20), lambda: promote_share(root, "current")):
        with pytest.raises(RepointError, match=words):
            change()
    assert shares(root) == {"current": "v1", "current@10": "v3", "current@50": "v3"}


def test_an_alias_that_is_not_there_has_no_share(root):
    with pytest.raises(RepointError, match=r"there is no link canary.* make it first: `ln -s VERSION canary`"):
        make_share(root, "canary", "v3", 10)
    assert shares(root, "canary") == {}


def test_a_directory_in_the_alias_s_place_is_named(root):
    (root / "current").unlink()
    (root / "current").mkdir()
    with pytest.raises(RepointError, match="current: expected a symlink, found something else"):
        make_share(root, "current", "v3", 10)


def test_a_directory_in_the_share_s_place_is_named_and_left(root):
    (root / "current@10").mkdir()
    with pytest.raises(RepointError, match="current@10: expected a symlink, found something else with that name"):
        make_share(root, "current", "v3", 10)
    make_share(root, "current", "v3", 20)
    with pytest.raises(RepointError, match="current@10: expected a symlink, found something else with that name"):
        make_share(root, "current", None, 10)
    assert shares(root) == {"current": "v1", "current@20": "v3"}
    assert (root / "current@10").is_dir()


def test_a_version_that_is_not_there_is_named(root):
    with pytest.raises(RepointError, match="there is no version 'v9'"):
        make_share(root, "current", "v9", 10)
    make_share(root, "current", "v3", 10)
    with pytest.raises(RepointError, match="there is no version 'v9'"):
        make_share(root, "current", "v9", 50)
    assert shares(root) == {"current": "v1", "current@10": "v3"}


def test_without_a_share_there_is_nothing_to_move_or_to_promote(root):
    with pytest.raises(RepointError, match="`zwatch share VERSION 50`"):
        make_share(root, "current", None, 50)
    with pytest.raises(RepointError, match="`zwatch deploy VERSION`"):
        promote_share(root, "current")


@pytest.mark.skipif(AS_ROOT, reason="root may write everywhere")
def test_a_root_of_another_user_says_what_to_type(root):
    (root / "current@10").symlink_to("v3")
    root.chmod(0o555)
    try:
        _check_commands(root)
    finally:
        root.chmod(0o755)


def test_a_root_that_may_not_be_written_says_what_to_type(root, monkeypatch):
    (root / "current@10").symlink_to("v3")

    def read_only(*_, **__):
        raise OSError(30, "Read-only file system")

    for name in ("symlink", "rename", "unlink"):
        monkeypatch.setattr(os, name, read_only)
    monkeypatch.setattr(links, "renameat2", read_only)
    _check_commands(root)


def _check_commands(root):
    cases = [
        (lambda: make_share(root, "current", "v2", 10), "ln -sfn v2 current@10"),
        (lambda: make_share(root, "current", None, 50), "mv -T current@10 current@50"),
        (lambda: end_share(root, "current"), "rm current@10"),
        (lambda: promote_share(root, "current"), "mv -T current@10 current"),
    ]
    for change, command in cases:
        with pytest.raises(RepointError, match=rf"the models root may not be written \(.*\); type `{command}`"):
            change()
    assert shares(root) == {"current": "v1", "current@10": "v3"}


def test_a_models_root_that_is_away_is_named(tmp_path):
    with pytest.raises(RepointError, match=r"the models root .*gone is away"):
        make_share(tmp_path / "gone", "current", "v3", 10)


# A crash.

CHANGES = {
    "make": (None, lambda root: make_share(root, "current", "v3", 10), {"current@10": "v3"}),
    "grow": ("v3", lambda root: make_share(root, "current", None, 50), {"current@50": "v3"}),
    "shrink": ("v3", lambda root: make_share(root, "current", None, 5), {"current@5": "v3"}),
    "repoint": ("v3", lambda root: make_share(root, "current", "v2", 10), {"current@10": "v2"}),
    "end": ("v3", lambda root: end_share(root, "current"), {}),
    "promote": ("v3", lambda root: promote_share(root, "current"), {"current": "v3"}),
    "grow another": ("v3", lambda root: make_share(root, "current", "v2", 50), {"current@50": "v2"}),
    "shrink another": ("v3", lambda root: make_share(root, "current", "v2", 5), {"current@5": "v2"}),
}
BETWEEN = {"grow another": {"current@10": "v2"}, "shrink another": {"current@5": "v3"}}
"""What may be left between the two renames that these need: never more requests for a version than asked for."""


def crashed_at(change, root, number, *, after):
    """Run a change in a child process that ends at once before or after its call `number` that changes the directory. Return
    whether it got that far."""
    child = os.fork()
    if child == 0:
        count = itertools.count(1)

        def ending(call):
            def called(*given, **named):
                is_last = next(count) == number
                if is_last and not after:
                    os._exit(9)
                try:
                    return call(*given, **named)
                finally:
                    if is_last:
                        os._exit(9)

            return called

        for name in ("symlink", "rename", "unlink", "link"):
            setattr(os, name, ending(getattr(os, name)))
        links.renameat2 = ending(links.renameat2)
        try:
            change(root)
        except BaseException:
            os._exit(1)
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9)
    return status == 9


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("name", CHANGES)
def test_a_crash_at_any_point_leaves_the_old_or_the_new_share_and_never_two(root, root_fd, name, after):
    version, change, new = CHANGES[name]
    seen = []
    for number in itertools.count(1):
        for path in [*root.glob("current*"), *(root / left for left in temporaries(root))]:
            path.unlink()
        (root / "current").symlink_to("v1")
        if version is not None:
            (root / "current@10").symlink_to(version)
        old = shares(root)
        next_tick(root)
        got_there = crashed_at(change, root, number, after=after)
        allowed = [old, {"current": "v1", **new}, {"current": "v1", **BETWEEN.get(name, new)}]
        assert shares(root) in allowed, "as every reader sees it at once"
        finish_interrupted(root_fd, "current")
        assert shares(root) in allowed, "after the next start"
        assert temporaries(root) == []
        seen.append(shares(root))
        if not got_there:
            break
    assert seen[-1] == {"current": "v1", **new}
    assert len(seen) > 1


def test_what_a_crash_left_of_a_share_that_has_another_name_by_now_is_removed(root, root_fd):
    left = root / f"{TEMPORARY_PREFIX}current@10-0123456789ab"
    left.symlink_to("v2")
    (root / "current@50").symlink_to("v3")
    finish_interrupted(root_fd, "canary")
    assert temporaries(root) == [left.name], "it is another alias's"
    finish_interrupted(root_fd, "current")
    assert (shares(root), temporaries(root)) == ({"current": "v1", "current@50": "v3"}, [])


def test_a_temporary_link_of_a_share_that_is_gone_is_swept(root, root_fd):
    (root / f"{TEMPORARY_PREFIX}current@10-0123456789ab").symlink_to("v2")
    leftovers = Leftovers(1.0)
    assert [leftovers.sweep(root_fd, now) for now in (0.0, 2.0)] == [True, False]
    assert temporaries(root) == []
