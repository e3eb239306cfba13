"""Errors that pass: a call that fails says nothing about what is there. Nothing is taken for missing or changed, a wish is
neither lost nor followed for the wrong link, and the next look finds what is right."""

import errno
import os

import pytest

from tests.deploy.factory import WEIGHTS, next_tick
from tests.deploy.faulty import READS, FailingCalls, free_descriptors
from tests.deploy.typed import relink, run
from zwatch.deploy import links
from zwatch.deploy.look import SETTLED, Looker, await_files, has_version, open_version, point, read_stamps
from zwatch.deploy.resolving import LinkStamp
from zwatch.deploy.seal import SEAL_NAME
from zwatch.deploy.versions import opened, version_names
from zwatch.errors import RepointError

PASSING = [errno.EIO, errno.ENOMEM, errno.EMFILE, errno.ESTALE]


def digests(root):
    look = Looker(root, ["v1-link", "v2-link"], strict_links=True).look()
    return {target.version: target.digest for target in look.targets.values()}


@pytest.fixture
def expected(root):
    """The digest of each version."""
    for name in ("v1", "v2"):
        (root / f"{name}-link").symlink_to(name)
    found = digests(root)
    for name in ("v1", "v2"):
        (root / f"{name}-link").unlink()
    return found


def assert_honest(look, expected):
    """An alias has a target with its digest, or a fault that says that it could not be read."""
    target, fault = look.targets.get("current"), look.faults.get("current")
    assert target is not None or fault is not None
    assert fault is None or fault.code == "unreadable", fault
    assert target is None or target.digest == expected[target.version]


# Calls that fail.


@pytest.mark.parametrize("code", [*PASSING, errno.EACCES])
def test_whichever_call_of_a_look_at_a_flip_fails_the_next_look_sees_the_flip(root, expected, monkeypatch, code):
    calls, number = FailingCalls(monkeypatch, code, READS), 0
    while True:
        number += 1
        looker = Looker(root, ["current"], strict_links=False)
        relink(root, "v1")
        looker.look()
        relink(root, "v2")
        with calls.at(number):
            look = looker.look()
        if calls.failed is None:
            break
        assert_honest(look, expected)
        look = looker.look()
        assert (look.targets["current"].version, dict(look.faults)) == ("v2", {})
    assert number > 10


@pytest.mark.parametrize("code", [*PASSING, errno.EACCES])
def test_whichever_call_of_a_look_at_an_unchanged_alias_fails_its_target_stays(root, monkeypatch, code):
    looker = Looker(root, ["current"], strict_links=False)
    known = looker.look().targets["current"]
    calls, number = FailingCalls(monkeypatch, code, READS), 0
    while True:
        number += 1
        with calls.at(number):
            look = looker.look()
        if calls.failed is None:
            break
        target = look.targets["current"]
        assert (target.version, target.digest, target.link_stamp) == (known.version, known.digest, known.link_stamp)
        assert all(fault.code == "unreadable" for fault in look.faults.values())
        assert dict(looker.look().faults) == {}
    assert number > 5


@pytest.mark.parametrize("code", PASSING)
def test_whichever_call_fails_a_wish_is_followed_at_last(root, monkeypatch, code):
    calls, number = FailingCalls(monkeypatch, code), 0
    while True:
        number += 1
        looker = Looker(root, ["current"], strict_links=False)
        relink(root, "v1")
        looker.look()
        next_tick(root.parent)
        run(root, "ln -sf v2 current")
        with calls.at(number):
            looker.look()
        failed = calls.failed
        look = looker.look()
        assert look.targets["current"].version == "v2", f"{failed} failed"
        assert os.readlink(root / "current") == "v2"
        if failed is None:
            break
        (root / "v1" / "v2").unlink(missing_ok=True)
    assert number > 20


@pytest.mark.parametrize("code", PASSING)
def test_whichever_call_fails_a_wish_that_may_be_for_another_link_is_not_followed(root, monkeypatch, code):
    (root / "backup").symlink_to("v1")
    (root / "v3" / "deep").symlink_to("../v1")
    looker = Looker(root, ["current"], strict_links=False)
    looker.look()
    calls, number = FailingCalls(monkeypatch, code), 0
    while True:
        number += 1
        next_tick(root.parent)
        run(root, "ln -sf v2 backup")
        with calls.at(number):
            looker.look()
        assert looker.look().targets["current"].version == "v1", f"{calls.failed} failed"
        if calls.failed is None:
            break
    assert number > 15


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("code", [*PASSING, errno.EACCES, errno.EROFS])
def test_whichever_call_of_a_repointing_fails_it_says_what_happened(root, monkeypatch, code, exchange):
    if not exchange:
        monkeypatch.setattr(links, "renameat2", lambda *_: False)
    calls, number = FailingCalls(monkeypatch, code), 0
    while True:
        number += 1
        relink(root, "v1")
        with calls.at(number):
            try:
                placed, reason = point(root, "current", "v2"), os.strerror(code)
            except RepointError as error:
                placed, reason = None, str(error)
        assert os.strerror(code) in reason
        assert (os.readlink(root / "current") == "v2") == (placed is not None), f"{calls.failed} failed"
        if placed is not None:
            assert placed == LinkStamp.of((root / "current").lstat())
        if calls.failed is None:
            break
    assert number > 8


def test_a_models_root_that_cannot_be_opened_for_a_while_keeps_every_target(root, monkeypatch):
    looker = Looker(root, ["current"], strict_links=False)
    known = looker.look().targets["current"]
    with FailingCalls(monkeypatch, errno.EMFILE, ["open"]).at(1):
        look = looker.look()
    assert look.targets["current"] is known
    assert look.faults["current"].code == "unreadable"
    assert dict(looker.look().faults) == {}


def test_a_link_that_moved_to_a_version_that_cannot_be_opened_no_longer_asks_for_the_old_one(root, monkeypatch):
    looker = Looker(root, ["current"], strict_links=False)
    looker.look()
    relink(root, "v2")
    genuine = os.open

    def failing(path, *args, **keywords):
        if path == "current":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return genuine(path, *args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", failing)
        look = looker.look()
    assert dict(look.targets) == {}
    assert (look.faults["current"].code, look.faults["current"].link) == ("unreadable", "v2")
    assert looker.look().targets["current"].version == "v2"


def test_a_root_whose_entries_cannot_be_listed_serves_its_aliases_and_says_that_strays_are_not_seen(root, monkeypatch):
    looker = Looker(root, ["current"], strict_links=False)
    looker.look()
    relink(root, "v2")

    def failing(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", failing)
        patch.setattr(os, "listdir", failing)
        look = looker.look()
    assert look.targets["current"].version == "v2"
    assert "stray links could not be searched for: Input/output error" in look.faults["current"].message


# Descriptors that run out.


@pytest.mark.parametrize("count", range(8))
def test_with_few_free_descriptors_at_a_flip_nothing_is_taken_for_missing_or_changed(root, expected, count):
    looker = Looker(root, ["current"], strict_links=False)
    looker.look()
    relink(root, "v2")
    with free_descriptors(count):
        look = looker.look()
    assert_honest(look, expected)
    look = looker.look()
    assert (look.targets["current"].version, dict(look.faults)) == ("v2", {})


@pytest.mark.parametrize("count", range(8))
def test_with_few_free_descriptors_a_wish_is_followed_at_last(root, count):
    looker = Looker(root, ["current"], strict_links=False)
    looker.look()
    run(root, "ln -sf v2 current")
    with free_descriptors(count):
        looker.look()
    look = looker.look()
    assert (look.targets["current"].version, dict(look.faults), list(look.strays)) == ("v2", {}, [])


# Awaited files, and versions by name.


def test_files_that_cannot_be_looked_at_have_not_changed(root, clock, monkeypatch):
    looker = Looker(root, ["current"], strict_links=False, clock=clock)
    directory = open_version(root, "v2")
    awaited = await_files(directory)
    genuine = os.stat

    def failing(path, **where):
        if path == WEIGHTS:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return genuine(path, **where)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", failing)
        for _ in range(3):
            assert looker.look([awaited]).changed == frozenset()
            clock.forward(SETTLED)
    assert looker.look([awaited]).changed == frozenset()
    directory.close()


@pytest.mark.parametrize("what", [SEAL_NAME, WEIGHTS])
def test_what_is_awaited_is_not_noted_from_an_error(root, monkeypatch, what):
    directory = open_version(root, "v2")
    name = what.rpartition("/")[2]
    for call in ("stat", "open"):
        genuine = getattr(os, call)

        def failing(path, *args, _genuine=genuine, **where):
            if str(path).endswith(name):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return _genuine(path, *args, **where)

        monkeypatch.setattr(os, call, failing)
    with pytest.raises(OSError, match="Input/output error"):
        await_files(directory)
    monkeypatch.undo()
    directory.close()


def test_a_version_that_cannot_be_looked_at_is_not_called_missing(root, monkeypatch):
    genuine = os.stat

    def failing(path, **where):
        if path == "v2":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return genuine(path, **where)

    monkeypatch.setattr(os, "stat", failing)
    with pytest.raises(OSError, match="Input/output error"):
        has_version(root, "v2")
    with pytest.raises(RepointError, match="current could not be repointed to v2: Input/output error"):
        point(root, "current", "v2")
    with opened(root) as root_fd:
        assert version_names(root_fd) == ["v1", "v2", "v3"]
    assert not has_version(root, "v9")


def test_the_stamp_of_a_link_that_cannot_be_read_is_not_known(root, monkeypatch):
    assert read_stamps(root, ["current", "v1", "gone"]) == [LinkStamp.of((root / "current").lstat()), None, None]
    with FailingCalls(monkeypatch, errno.EMFILE, ["open"]).at(1):
        assert read_stamps(root, ["current"]) == [None]
