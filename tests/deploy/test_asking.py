"""Questions to file systems that do not answer: each waits for a while, and none leaves anything behind."""

import threading

import pytest

from tests.descriptors import assert_none_left, descriptors
from zwatch.deploy import followed
from zwatch.deploy.asking import Asker, Unanswered
from zwatch.deploy.look import Looker


@pytest.fixture
def gone():
    """A function that does not return before the test ends."""
    ended = threading.Event()
    yield lambda *_: ended.wait(60)
    ended.set()


def test_a_question_that_is_not_asked_because_an_earlier_one_waits_leaves_no_descriptor(root_fd, gone):
    asker = Asker(seconds=0.05)
    with pytest.raises(Unanswered):
        asker.ask_in("a file server", root_fd, gone)
    before = descriptors()
    for _ in range(50):
        with pytest.raises(Unanswered):
            asker.ask_in("a file server", root_fd, gone)
    assert_none_left(before)


def test_a_question_whose_thread_has_not_begun_leaves_no_descriptor(root_fd, gone, monkeypatch):
    asker = Asker(seconds=0.05)
    before = descriptors()
    monkeypatch.setattr(asker._lane, "_start", lambda: None)  # as on a machine too busy to start a thread
    for number in range(20):
        with pytest.raises(Unanswered):
            asker.ask_in(number, root_fd, gone)
    monkeypatch.undo()
    asker.seconds = 60.0
    asker.ask("another", lambda: None)  # takes what was left out of the queue first
    assert_none_left(before)


def test_looks_at_an_alias_on_a_file_server_that_is_gone_leave_no_descriptor(root, gone, monkeypatch):
    looker = Looker(root, ["current", "canary"], strict_links=False, asker=Asker(seconds=0.05))
    looker.look()
    resolve = followed.resolve
    monkeypatch.setattr(
        followed, "resolve", lambda fd, alias, *given: gone() if alias == "canary" else resolve(fd, alias, *given)
    )
    looker.look()
    before = descriptors()
    for _ in range(50):
        looker.look()
    assert_none_left(before, 1)
