"""The index of the output directory: names, pages, limits, and changes by other programs."""

import errno
import os
from datetime import UTC, datetime, timedelta, timezone

import pytest

from tests.descriptors import assert_none_left, descriptors
from zwatch.generation import image_index as module
from zwatch.generation.image_index import ImageIndex
from zwatch.generation.image_order import created, order

MOMENT = datetime(2026, 11, 21, 14, 22, 31, tzinfo=UTC)


@pytest.fixture
def index(tmp_path):
    opened = ImageIndex(tmp_path / "out", look_seconds=-1.0)  # every page looks for changes
    opened.open()
    return opened


def fill(index, count, size=1):
    """Save one image a second; return the names, newest first."""
    names = []
    for second in range(count):
        names.insert(0, index.save(b"x" * size, 1, "png", MOMENT + timedelta(seconds=second)))
        index.keep_limits()
    return names


def files(index):
    return sorted(os.listdir(index.directory))


def test_names_have_the_second_and_the_seed_and_are_unique(index):
    names = [index.save(b"x", 42, "png", MOMENT) for _ in range(3)]
    assert names == [f"20261121_142231_seed42{copy}.png" for copy in ("", "_2", "_3")]
    assert index.save(b"x", 42, "jpg", MOMENT) == "20261121_142231_seed42.jpg"
    there = MOMENT.astimezone(timezone(timedelta(hours=8)))
    assert index.save(b"x", 7, "webp", there) == "20261121_142231_seed7.webp", "in UTC, whatever the local time zone"
    assert created(names[2]) == MOMENT
    assert files(index) == sorted([*names, "20261121_142231_seed42.jpg", "20261121_142231_seed7.webp"])


def test_pages_list_all_images_once_newest_first(index):
    names = fill(index, 7)
    assert index.page(3, None) == names[:3]
    assert index.page(3, names[2]) == names[3:6]
    assert index.page(3, names[5]) == names[6:]
    assert index.page(3, names[6]) == []


def test_a_page_continues_after_a_deleted_image(index):
    names = fill(index, 4)
    assert index.delete(names[1])
    assert not index.delete(names[1])
    assert index.page(9, names[1]) == names[2:]


def test_within_a_second_images_are_in_the_order_in_which_they_were_made_also_after_a_restart(index):
    made = [index.save(b"x", seed, "png", MOMENT + timedelta(milliseconds=100 * number))
            for number, seed in enumerate((500, 7, 7, 9000, 8))]  # fmt: skip
    # The clock stands still, and is set back a little.
    made += [index.save(b"x", seed, "png", MOMENT + timedelta(milliseconds=400)) for seed in (6, 5)]
    made += [index.save(b"x", 4, "png", MOMENT - timedelta(seconds=3))]
    for one in (index, reopened(index)):
        assert one.page(99, None) == made[::-1]
        pages, before = [], None
        while page := one.page(3, before):
            pages += page
            before = page[-1]
        assert pages == made[::-1]
    assert index.delete(made[3])
    assert index.page(2, made[3]) == [made[2], made[1]], "a page continues after a removed one"
    limited = reopened(index, max_images=2)
    assert limited.page(9, None) == made[:-3:-1], "those that were made first are deleted first"


def test_within_a_second_copied_files_sort_by_seeds_as_numbers(index):
    for seed in ("100", "9", "10_2", "10"):
        (index.directory / f"20261121_142231_seed{seed}.png").write_bytes(b"x")
    stems = [name[16:-4] for name in index.page(9, None)]
    assert stems == ["seed100", "seed10_2", "seed10", "seed9"]


def test_a_page_begins_at_an_offset_and_each_image_has_its_place(index):
    names = fill(index, 6)
    some = {names[1], names[3], names[4]}
    assert index.page(2, None, offset=3) == names[3:5]
    assert index.page(2, names[1], offset=1) == names[3:5]
    assert index.page(9, None, some, offset=1) == [names[3], names[4]]
    assert index.page(9, None, offset=6) == index.page(9, None, offset=99) == []
    assert [index.place(name) for name in (*names, None)] == [(place, 6) for place in range(7)]
    assert [index.place(name, some) for name in (names[0], names[1], names[2], names[4], None)] == [
        (0, 3), (0, 3), (1, 3), (2, 3), (3, 3),
    ]  # fmt: skip


def test_open_finds_earlier_images_and_removes_stale_partial_files(index):
    names = fill(index, 150, size=2)
    (index.directory / ".fresh.part").write_bytes(b"another program writes this")
    (index.directory / ".old.part").write_bytes(b"lost")
    os.utime(index.directory / ".old.part", (0, 0))
    again = ImageIndex(index.directory)
    again.open()
    assert (len(again), again.bytes, again.page(500, None)) == (150, 300, names)
    assert [name for name in files(index) if name.endswith(".part")] == [".fresh.part"]


def test_changes_by_other_programs_are_noticed(index):
    names = fill(index, 3)
    (index.directory / names[1]).unlink()
    (index.directory / "20300101_000000_seed5.webp").write_bytes(b"four")
    (index.directory / "holiday.png").write_bytes(b"not ours")
    (index.directory / "20300101_000000_seed6.png").mkdir()
    assert index.page(9, None) == ["20300101_000000_seed5.webp", names[0], names[2]]
    assert index.bytes == 6


@pytest.mark.parametrize(
    "name",
    ["../secret", "..", "", ".", "/etc/passwd", "20261121_142231_seed1.png/../../x", "20261121_142231_seed1.exe",
     "20261121_142231_seed1.png\n", "\u0662\u0660261121_142231_seed1.png", "20261121_142231_seed1_0.png", "x\0"],
)  # fmt: skip
def test_other_names_are_never_opened_or_deleted(index, name):
    assert order(name) is None
    assert index.read(name) is None
    assert not index.delete(name)


def test_a_link_is_not_followed(index, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    name = "20261121_142231_seed1.png"
    (index.directory / name).symlink_to(tmp_path / "secret")
    assert index.read(name) is None
    assert index.page(9, None) == []


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_only_a_regular_file_is_an_image(index, make):
    name = "20261121_142231_seed1.png"
    make(index.directory / name)
    before = descriptors()
    assert [index.read(name) for _ in range(3)] == [None] * 3
    assert_none_left(before)
    assert not index.delete(name)
    assert files(index) == [name]


def test_names_that_differ_only_in_zeros_are_separate(index):
    names = [f"20261121_142231_seed{seed}.png" for seed in ("7", "07", "007")]
    for name in names:
        (index.directory / name).write_bytes(b"x")
    pages, before = [], None
    while page := index.page(1, before):
        pages += page
        before = page[-1]
    assert pages == names


def test_beyond_a_number_the_oldest_are_deleted(tmp_path):
    index = ImageIndex(tmp_path, max_images=3)
    index.open()
    names = fill(index, 5)
    assert files(index) == names[:3][::-1]
    smaller = ImageIndex(tmp_path, max_images=2)
    smaller.open()
    smaller.keep_limits()
    assert files(index) == names[:2][::-1]


def test_beyond_a_size_the_oldest_are_deleted_but_never_the_newest(tmp_path):
    index = ImageIndex(tmp_path, max_bytes=100)
    index.open()
    names = fill(index, 4, size=40)
    assert (files(index), index.bytes) == (names[:2][::-1], 80)
    huge = index.save(b"x" * 500, 1, "png", MOMENT + timedelta(hours=1))
    index.keep_limits()
    assert files(index) == [huge]


@pytest.mark.parametrize("failing", ["link", "open"])
def test_a_full_disk_leaves_no_partial_file(index, monkeypatch, failing):
    names = fill(index, 1)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "link":
        monkeypatch.setattr(os, "link", full)
        monkeypatch.setattr(os, "rename", full)
    else:
        monkeypatch.setattr(module, "open", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        index.save(b"x", 1, "png", MOMENT + timedelta(days=1))
    monkeypatch.undo()
    assert files(index) == names
    assert index.page(9, None) == names


def test_a_file_system_without_hard_links_works(index, monkeypatch):
    def unable(*arguments):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unable)
    names = [index.save(b"x", 1, "png", MOMENT) for _ in range(2)]
    assert files(index) == sorted(names)


def test_a_removed_directory_is_created_again(index):
    fill(index, 1)
    (index.directory / files(index)[0]).unlink()
    index.directory.rmdir()
    assert files(index) == [] if index.directory.exists() else True
    assert index.page(9, None)  # the known images are listed until the directory can be read again
    name = index.save(b"x", 1, "png", MOMENT + timedelta(days=1))
    assert index.page(9, None) == [name]


def test_all_images_can_be_deleted_in_batches(index):
    fill(index, 250)
    assert [index.delete_some(120) for _ in range(4)] == [120, 120, 10, 0]
    assert (len(index), index.bytes, files(index)) == (0, 0, [])


# --- clocks, and other programs' names

FUTURE = datetime(2099, 1, 1, tzinfo=UTC)
ABSURD = [
    "99999999_999999_seed1.png",
    "00000000_000000_seed9223372036854775807.png",
    "20990101_000000_seed1_999999999.png",
]


def reopened(index, **limits):
    again = ImageIndex(index.directory, look_seconds=-1.0, **limits)
    again.open()
    again.keep_limits()
    return again


def saved(index, seed, moment):
    name = index.save(b"x", seed, "png", moment)
    index.keep_limits()
    return name


def test_files_of_the_future_do_not_push_out_what_is_added_now(tmp_path):
    for seed in range(5):
        (tmp_path / f"20990101_000000_seed{seed}.png").write_bytes(b"x")
        os.utime(tmp_path / f"20990101_000000_seed{seed}.png", (4e9, 4e9))
    index = ImageIndex(tmp_path, max_images=5, look_seconds=-1.0)
    index.open()
    names = []
    for number in range(5):
        names.insert(0, saved(index, number, MOMENT + timedelta(seconds=number)))
        assert index.read(names[0]) == b"x"
        assert index.page(1, None) == names[:1], "the newest is first"
    assert index.page(9, None) == names


def test_the_order_survives_a_clock_that_jumps_forward_and_back_and_a_restart(index):
    first = saved(index, 1, MOMENT)
    ahead = [saved(index, seed, FUTURE) for seed in (2, 3)]
    back = [saved(index, seed, MOMENT + timedelta(seconds=seed)) for seed in (5, 6)]
    earlier = [saved(index, seed, MOMENT - timedelta(days=365)) for seed in (7, 8)]
    newest_first = [*earlier[::-1], *back[::-1], *ahead[::-1], first]
    for one in (index, reopened(index), reopened(reopened(index))):
        assert one.page(99, None) == newest_first
        pages, before = [], None
        while page := one.page(2, before):
            pages += page
            before = page[-1]
        assert pages == newest_first
    limited = reopened(index, max_images=4)
    assert limited.page(99, None) == newest_first[:4]
    last = saved(limited, 9, MOMENT - timedelta(days=366))
    assert limited.page(99, None) == [last, *newest_first[:3]]


def test_a_page_continues_after_a_deleted_image_of_an_earlier_era(index):
    ahead = [saved(index, seed, FUTURE) for seed in (1, 2, 3)]
    now = saved(index, 4, MOMENT)
    assert index.page(2, None) == [now, ahead[2]]
    assert index.delete(ahead[2])
    assert index.page(2, ahead[2]) == [ahead[1], ahead[0]]


def test_within_a_second_the_image_that_was_added_first_is_deleted_first(tmp_path):
    index = ImageIndex(tmp_path, max_images=2)
    index.open()
    names = [saved(index, seed, MOMENT) for seed in (900, 50, 7, 3)]
    assert files(index) == sorted(names[2:])


def test_a_clock_that_is_set_back_a_little_repeats_the_newest_time(index):
    newest = saved(index, 1, MOMENT)
    name = saved(index, 2, MOMENT - timedelta(seconds=5))
    assert name == "20261121_142231_seed2.png"
    assert index.page(9, None) == [name, newest]
    assert not [file for file in files(index) if file.startswith(".")]


def test_names_that_are_no_time_are_listed_and_do_no_harm(index):
    for name in ABSURD:
        (index.directory / name).write_bytes(b"x")
    name = saved(reopened(index), 5, MOMENT)
    again = reopened(index)
    assert again.page(9, None) == [name, ABSURD[0], ABSURD[2], ABSURD[1]]
    assert created(ABSURD[0]) is None


def test_old_images_that_another_program_adds_do_not_push_out_what_was_saved_here(tmp_path):
    index = ImageIndex(tmp_path, max_images=3, look_seconds=-1.0)
    index.open()
    own = [saved(index, seed, MOMENT + timedelta(seconds=seed)) for seed in (1, 2, 3)]
    for name in ("20200101_000000_seed1.png", "20990101_000000_seed1.png"):
        (tmp_path / name).write_bytes(b"x")
    index.page(1, None)
    index.keep_limits()
    assert files(index) == own


@pytest.mark.parametrize(
    "content", [b"", b"\xff" * 100, b"0 ../../x\n1 20261121_142231_seed1.png\nrubbish", b"9" * 999]
)
def test_an_order_file_that_says_anything_is_read(index, content):
    name = saved(index, 1, MOMENT)
    (index.directory / ".zwatch-order").write_bytes(content)
    again = reopened(index)
    assert again.page(9, None) == [name]
    assert again.page(9, saved(again, 2, MOMENT)) == [name]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_an_order_file_that_is_no_file_does_no_harm(index, make):
    make(index.directory / ".zwatch-order")
    saved(index, 1, FUTURE)
    name = saved(index, 2, MOMENT)
    assert reopened(index).read(name) == b"x"


def test_a_partial_file_of_the_future_is_removed_too(index):
    (index.directory / ".old.part").write_bytes(b"lost")
    os.utime(index.directory / ".old.part", (4e9, 4e9))
    assert files(reopened(index)) == []


def test_a_page_that_is_asked_for_before_the_directory_is_opened_has_all_images_then_and_later(index):
    ahead = saved(index, 1, FUTURE)
    now = saved(index, 2, MOMENT)
    again = ImageIndex(index.directory, look_seconds=-1.0)
    for _ in range(2):
        assert again.page(9, None) == [now, ahead]
        assert len(again) == 2
        again.open()
