"""The output directory: names, pages, limits, and what others do to it."""

import errno
import os
from datetime import UTC, datetime, timedelta, timezone

import pytest

from zwatch.generation import image_index as module
from zwatch.generation.image_index import Gallery, created, order

MOMENT = datetime(2026, 11, 21, 14, 22, 31, tzinfo=UTC)


@pytest.fixture
def gallery(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LOOK_SECONDS", -1.0)  # every page looks
    opened = Gallery(tmp_path / "out", None, None)
    opened.open()
    return opened


def fill(gallery, count, size=1):
    """Save one image a second; return the names, newest first."""
    names = []
    for second in range(count):
        names.insert(0, gallery.save(b"x" * size, 1, "png", MOMENT + timedelta(seconds=second)))
        gallery.keep_limits()
    return names


def files(gallery):
    return sorted(os.listdir(gallery.directory))


def test_names_tell_the_second_and_the_seed_and_none_is_given_twice(gallery):
    names = [gallery.save(b"x", 42, "png", MOMENT) for _ in range(3)]
    assert names == [f"20261121_142231_seed42{copy}.png" for copy in ("", "_2", "_3")]
    assert gallery.save(b"x", 42, "jpg", MOMENT) == "20261121_142231_seed42.jpg"
    there = MOMENT.astimezone(timezone(timedelta(hours=8)))
    assert gallery.save(b"x", 7, "webp", there) == "20261121_142231_seed7.webp", (
        "in UTC, whatever the clock on the wall"
    )
    assert created(names[2]) == MOMENT
    assert files(gallery) == sorted([*names, "20261121_142231_seed42.jpg", "20261121_142231_seed7.webp"])


def test_pages_go_from_the_newest_to_the_oldest_without_gap_or_repetition(gallery):
    names = fill(gallery, 7)
    assert gallery.page(3, None) == names[:3]
    assert gallery.page(3, names[2]) == names[3:6]
    assert gallery.page(3, names[5]) == names[6:]
    assert gallery.page(3, names[6]) == []


def test_a_page_begins_where_it_should_also_when_that_image_is_gone(gallery):
    names = fill(gallery, 4)
    assert gallery.delete(names[1])
    assert not gallery.delete(names[1])
    assert gallery.page(9, names[1]) == names[2:]


def test_within_a_second_seeds_count_as_numbers(gallery):
    for seed in (9, 10, 100):
        gallery.save(b"x", seed, "png", MOMENT)
    gallery.save(b"x", 10, "png", MOMENT)
    stems = [name[16:-4] for name in gallery.page(9, None)]
    assert stems == ["seed100", "seed10_2", "seed10", "seed9"]


def test_an_earlier_runs_images_are_known_and_its_half_written_ones_removed(gallery, monkeypatch):
    names = fill(gallery, 150, size=2)
    (gallery.directory / ".fresh.part").write_bytes(b"another program writes this")
    (gallery.directory / ".old.part").write_bytes(b"lost")
    os.utime(gallery.directory / ".old.part", (0, 0))
    again = Gallery(gallery.directory, None, None)
    again.open()
    assert (len(again), again.bytes, again.page(500, None)) == (150, 300, names)
    assert [name for name in files(gallery) if name.endswith(".part")] == [".fresh.part"]


def test_what_others_add_and_remove_is_noticed(gallery):
    names = fill(gallery, 3)
    (gallery.directory / names[1]).unlink()
    (gallery.directory / "20300101_000000_seed5.webp").write_bytes(b"four")
    (gallery.directory / "holiday.png").write_bytes(b"not ours")
    (gallery.directory / "20300101_000000_seed6.png").mkdir()
    assert gallery.page(9, None) == ["20300101_000000_seed5.webp", names[0], names[2]]
    assert gallery.bytes == 6


@pytest.mark.parametrize(
    "name",
    ["../secret", "..", "", ".", "/etc/passwd", "20261121_142231_seed1.png/../../x", "20261121_142231_seed1.exe",
     "20261121_142231_seed1.png\n", "\u0662\u0660261121_142231_seed1.png", "20261121_142231_seed1_0.png", "x\0"],
)  # fmt: skip
def test_no_other_name_is_ever_opened_or_deleted(gallery, name):
    assert order(name) is None
    assert gallery.read(name) is None
    assert not gallery.delete(name)


def test_a_link_is_not_followed(gallery, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    name = "20261121_142231_seed1.png"
    (gallery.directory / name).symlink_to(tmp_path / "secret")
    assert gallery.read(name) is None
    assert gallery.page(9, None) == []


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_is_no_image_whatever_its_name(gallery, make):
    name = "20261121_142231_seed1.png"
    make(gallery.directory / name)
    descriptors = len(os.listdir("/proc/self/fd"))
    assert [gallery.read(name) for _ in range(3)] == [None] * 3
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert not gallery.delete(name)
    assert files(gallery) == [name]


def test_names_that_differ_in_a_zero_alone_each_have_their_place(gallery):
    names = [f"20261121_142231_seed{seed}.png" for seed in ("7", "07", "007")]
    for name in names:
        (gallery.directory / name).write_bytes(b"x")
    pages, before = [], None
    while page := gallery.page(1, before):
        pages += page
        before = page[-1]
    assert pages == names


def test_beyond_a_number_the_oldest_go(tmp_path):
    gallery = Gallery(tmp_path, 3, None)
    gallery.open()
    names = fill(gallery, 5)
    assert files(gallery) == names[:3][::-1]
    smaller = Gallery(tmp_path, 2, None)
    smaller.open()
    smaller.keep_limits()
    assert files(gallery) == names[:2][::-1]


def test_beyond_a_size_the_oldest_go_but_never_the_newest(tmp_path):
    gallery = Gallery(tmp_path, None, 100)
    gallery.open()
    names = fill(gallery, 4, size=40)
    assert (files(gallery), gallery.bytes) == (names[:2][::-1], 80)
    huge = gallery.save(b"x" * 500, 1, "png", MOMENT + timedelta(hours=1))
    gallery.keep_limits()
    assert files(gallery) == [huge]


@pytest.mark.parametrize("failing", ["link", "open"])
def test_a_full_disk_leaves_nothing_behind(gallery, monkeypatch, failing):
    names = fill(gallery, 1)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    if failing == "link":
        monkeypatch.setattr(os, "link", full)
        monkeypatch.setattr(os, "rename", full)
    else:
        monkeypatch.setattr(module, "open", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        gallery.save(b"x", 1, "png", MOMENT + timedelta(days=1))
    monkeypatch.undo()
    assert files(gallery) == names
    assert gallery.page(9, None) == names


def test_a_file_system_without_hard_links_will_do(gallery, monkeypatch):
    def unable(*arguments):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", unable)
    names = [gallery.save(b"x", 1, "png", MOMENT) for _ in range(2)]
    assert files(gallery) == sorted(names)


def test_a_directory_that_was_removed_is_made_again(gallery):
    fill(gallery, 1)
    (gallery.directory / files(gallery)[0]).unlink()
    gallery.directory.rmdir()
    assert files(gallery) == [] if gallery.directory.exists() else True
    assert gallery.page(9, None)  # what is known is shown until the directory can be read again
    name = gallery.save(b"x", 1, "png", MOMENT + timedelta(days=1))
    assert gallery.page(9, None) == [name]


def test_all_can_be_deleted_in_several_goes(gallery):
    fill(gallery, 250)
    assert [gallery.delete_some(120) for _ in range(4)] == [120, 120, 10, 0]
    assert (len(gallery), gallery.bytes, files(gallery)) == (0, 0, [])
