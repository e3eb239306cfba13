"""Votes: one a client and picture, and totals that outlive both."""

import shutil
import sqlite3
import threading

import pytest

from zwatch.generation import vote_store
from zwatch.generation.vote_store import Drawn, Votes, VoteStore

V1 = Drawn("v1", "1" * 64)
V3 = Drawn("v3", "3" * 64, "current@10", "t1")


@pytest.fixture
def store(tmp_path):
    found = VoteStore(tmp_path / "state" / "votes.sqlite")
    yield found
    found.close()


def totals(store):
    return {total.drawn: (total.up, total.down) for total in store.totals() if total.up or total.down}


def test_a_later_vote_replaces_the_one_before_and_0_takes_it_back(store):
    assert store.vote("a.png", "ann", 1, V1) == Votes(1, 0, 1)
    assert store.vote("a.png", "bob", -1, V1) == Votes(1, 1, -1)
    assert store.vote("a.png", "ann", 1, V1) == Votes(1, 1, 1)
    assert store.vote("a.png", "ann", -1, V1) == Votes(0, 2, -1)
    assert totals(store) == {V1: (0, 2)}
    assert store.vote("a.png", "ann", 0, V1) == Votes(0, 1, 0)
    assert store.vote("a.png", "cid", 0, V1) == Votes(0, 1, 0)
    assert totals(store) == {V1: (0, 1)}


def test_the_votes_of_many_pictures_are_asked_for_at_once(store):
    names = [f"{number}.png" for number in range(1200)]
    for name in names[::400]:
        store.vote(name, "ann", 1, V1)
    store.vote(names[0], "bob", -1, V1)
    assert store.votes(names, "bob") == {
        "0.png": Votes(1, 1, -1), "400.png": Votes(1, 0, 0), "800.png": Votes(1, 0, 0),
    }  # fmt: skip
    assert store.votes([], "bob") == {}


def test_they_are_there_after_a_restart(store):
    store.vote("a.png", "ann", 1, V3)
    store.close()
    again = VoteStore(store.file)
    assert again.votes(["a.png"], "ann") == {"a.png": Votes(1, 0, 1)}
    assert totals(again) == {V3: (1, 0)}
    again.close()


def test_a_deleted_picture_takes_the_votes_with_it_but_not_what_they_counted(store):
    store.vote("a.png", "ann", 1, V3)
    store.vote("b.png", "ann", -1, V1)
    store.forget(["a.png", "never-there.png"])
    assert store.votes(["a.png", "b.png"], "ann") == {"b.png": Votes(0, 1, -1)}
    assert totals(store) == {V3: (1, 0), V1: (0, 1)}


def test_a_vote_is_taken_back_from_the_total_that_it_went_to(store):
    """A picture drawn in one trial may be voted on again in another."""
    later = V3._replace(trial="t2")
    store.vote("a.png", "ann", 1, V3)
    store.vote("a.png", "ann", -1, later)
    assert totals(store) == {later: (0, 1)}


def test_clients_are_not_kept_in_clear(store):
    store.vote("a.png", "10.0.0.17", 1, V1)
    store.close()
    assert b"10.0.0.17" not in store.file.read_bytes()


def test_beyond_the_limit_the_oldest_votes_can_no_longer_be_changed_but_count(store, monkeypatch):
    monkeypatch.setattr(vote_store, "MOST_VOTES", 3)
    for number in range(5):
        store.vote(f"{number}.png", "ann", 1, V1)
    assert set(store.votes([f"{number}.png" for number in range(5)], "ann")) == {"2.png", "3.png", "4.png"}
    assert totals(store) == {V1: (5, 0)}


def test_totals_are_bounded_too(store, monkeypatch):
    monkeypatch.setattr(vote_store, "MOST_TOTALS", 2)
    for number in range(4):
        store.vote("a.png", f"client-{number}", 1, V1._replace(trial=f"t{number}"))
    assert [total.drawn.trial for total in store.totals()] == ["t2", "t3"]


def test_a_damaged_file_is_put_aside(store, caplog):
    store.vote("a.png", "ann", 1, V1)
    store.close()
    store.file.write_bytes(b"no database" * 1000)
    assert store.vote("a.png", "ann", 1, V1) == Votes(1, 0, 1)
    assert store.file.with_name("votes.sqlite.damaged").exists()
    assert "the votes are damaged" in caplog.text


def test_a_file_of_a_newer_release_is_left_as_it_is(store):
    store.totals()
    with sqlite3.connect(store.file) as database:
        database.execute("PRAGMA user_version = 2")
    database.close()
    again = VoteStore(store.file)
    with pytest.raises(sqlite3.NotSupportedError, match="newer zwatch"):
        again.vote("a.png", "ann", 1, V1)


def test_a_directory_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "votes.sqlite").mkdir()
    (tmp_path / "votes.sqlite" / "full").touch()
    blocked = VoteStore(tmp_path / "votes.sqlite" / "full" / "votes.sqlite")
    # What is no directory is put aside, so that even this works.
    assert blocked.vote("a.png", "ann", 1, V1) == Votes(1, 0, 1)
    blocked.close()


def test_a_directory_that_is_removed_is_made_again(store):
    store.vote("a.png", "ann", 1, V1)
    shutil.rmtree(store.file.parent)
    assert store.vote("b.png", "ann", 1, V1) == Votes(1, 0, 1)
    store.close()
    again = VoteStore(store.file)
    assert set(again.votes(["a.png", "b.png"], "ann")) == {"b.png"}
    again.close()


def test_two_processes_count_every_vote(store):
    """Two connections, as two processes have them during a takeover."""
    errors = []

    def work(number):
        own = VoteStore(store.file)
        try:
            for picture in range(20):
                own.vote(f"{picture}.png", f"client-{number}", 1, V1)
        except sqlite3.Error as error:
            errors.append(error)
        finally:
            own.close()

    store.totals()
    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert totals(store) == {V1: (60, 0)}
