"""When directories are read again, as a table of looks; a look that does not read costs a few stats."""

import os

import pytest

from tests.deploy.factory import next_tick, until
from zwatch.deploy.reread import Reread, stamp_of


def readings(clock, looks):
    """Return whether each look read. A look is (seconds since the one before, the stamps it saw)."""
    reread, found = Reread(clock), []
    for pause, stamps in looks:
        clock.forward(pause)
        found.append(reread.due(stamps))
        if found[-1]:
            reread.begin()
            reread.done()
    return found


@pytest.mark.parametrize(
    ("looks", "read"),
    [
        ([(0, "a")], [True]),
        # Once more after the stamp has settled, then not.
        ([(0, "a"), (0.25, "a"), (0.25, "a"), (0.25, "a")], [True, True, False, False]),
        # While a stamp is younger than a tick of the file system's clock, it may hide a change.
        ([(0, "a"), (0.01, "a"), (0.05, "a"), (0.05, "a"), (0.05, "a")], [True, True, True, True, False]),
        ([(0, "a"), (1, "a"), (0.25, "b"), (0.25, "b"), (0.25, "b")], [True, True, True, True, False]),
        ([(0, "a"), (1, "a"), (0.25, "a"), (0.01, "b"), (0.01, "a")], [True, True, False, True, True]),
        # After two seconds in any case.
        ([(0, "a"), (1, "a"), (1.9, "a"), (0.2, "a"), (0.25, "a")], [True, True, False, True, False]),
    ],
)
def test_what_did_not_change_is_read_once_more_and_then_every_two_seconds(clock, looks, read):
    assert readings(clock, looks) == read


@pytest.fixture
def spend(monkeypatch):
    """Spend seconds of a core, as `time.thread_time` counts them."""
    spent = [0.0]
    monkeypatch.setattr("zwatch.deploy.reread.time.thread_time", lambda: spent[0])

    def spend(seconds):
        spent[0] += seconds

    return spend


@pytest.mark.parametrize(("cost", "most"), [(0.001, 400), (0.03, 150), (0.1, 45), (1.0, 5)])
def test_readings_at_changes_without_end_take_a_fifth_of_a_core(clock, spend, cost, most):
    reread, count = Reread(clock), 0
    for look in range(400):  # 20 s
        if reread.due(look):
            reread.begin()
            spend(cost)
            reread.done()
            count += 1
        clock.forward(0.05)
    assert most * 0.8 <= count <= most


def test_a_costly_reading_waits_for_the_one_before_only(clock, spend):
    reread = Reread(clock)
    for look in range(100):
        clock.forward(0.05)
        if reread.due(look):
            reread.begin()
            spend(0.2)
            reread.done()
    clock.forward(1.1)
    assert reread.due("a wish")


@pytest.mark.parametrize(("cost", "pause"), [(0.001, 2.0), (0.04, 2.0), (0.1, 5.0), (3.0, 150.0)])
def test_readings_while_nothing_changes_take_a_fiftieth_of_a_core(clock, spend, cost, pause):
    reread = Reread(clock)
    assert reread.due("stamp")
    clock.forward(0.25)
    reread.begin()
    spend(cost)
    reread.done()
    clock.forward(pause - 0.01)
    assert not reread.due("stamp")
    clock.forward(0.02)
    assert reread.due("stamp")


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "new").symlink_to("v1"),
        lambda folder: (folder / "link").unlink(),
        lambda folder: (folder / "link").rename(folder / "other"),
        lambda folder: folder.chmod(0o700),
    ],
)
def test_an_entry_that_is_made_removed_or_renamed_changes_the_stamp(tmp_path, change):
    (tmp_path / "link").symlink_to("v1")
    fd = os.open(tmp_path, os.O_RDONLY)
    before = stamp_of(fd)
    next_tick(tmp_path.parent)
    change(tmp_path)
    until(lambda: stamp_of(fd) != before, "another stamp")
    os.close(fd)
