"""The index of the output directory: names, pages, limits, and changes by other programs."""

import errno
import os
from datetime import UTC, datetime, timedelta, timezone

import pytest

from zwatch.generation import image_index as module
from zwatch.generation.image_index import ImageIndex, created, order

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


def test_within_a_second_seeds_sort_as_numbers(index):
    for seed in (9, 10, 100):
        index.save(b"x", seed, "png", MOMENT)
    index.save(b"x", 10, "png", MOMENT)
    stems = [name[16:-4] for name in index.page(9, None)]
    assert stems == ["seed100", "seed10_2", "seed10", "seed9"]


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
    descriptors = len(os.listdir("/proc/self/fd"))
    assert [index.read(name) for _ in range(3)] == [None] * 3
    assert len(os.listdir("/proc/self/fd")) == descriptors
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
