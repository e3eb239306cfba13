"""Files that are kept across restarts, whatever lies in their places."""

import os
import stat

import pytest

from tests.odd import ODD
from zwatch.deploy.durable import clear_place, make_directory, put_aside, read_regular

odd = pytest.mark.parametrize("make", ODD.values(), ids=ODD.keys())


@odd
def test_reading_what_is_no_file_fails_at_once(tmp_path, make):
    make(tmp_path / "file")
    with pytest.raises((OSError, ValueError)):
        read_regular(tmp_path / "file", 100)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    with open(tmp_path / "file", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match="it has 1099511627776 bytes, at most 100 are expected"):
        read_regular(tmp_path / "file", 100)


@odd
def test_what_is_no_file_leaves_the_place_of_one_and_the_log_says_so(tmp_path, make, caplog):
    make(tmp_path / "file")
    kind = stat.S_IFMT((tmp_path / "file").lstat().st_mode)
    clear_place(tmp_path / "file")
    assert not os.path.lexists(tmp_path / "file")
    assert stat.S_IFMT((tmp_path / "file.bad").lstat().st_mode) == kind
    assert "file is not a regular file; it is renamed to file.bad" in caplog.text


def test_a_file_stays_in_its_place(tmp_path, caplog):
    (tmp_path / "file").write_text("it")
    clear_place(tmp_path / "file")
    clear_place(tmp_path / "another")
    assert os.listdir(tmp_path) == ["file"]
    assert caplog.text == ""


@pytest.mark.parametrize(
    "make",
    [
        *[ODD[name] for name in ODD if name not in ("a directory", "a dangling symlink")],
        lambda path: path.write_text(""),
    ],
)
def test_what_is_no_directory_leaves_the_place_of_one(tmp_path, make, caplog):
    make(tmp_path / "folder")
    make_directory(tmp_path / "folder")
    assert (tmp_path / "folder").is_dir()
    assert not (tmp_path / "folder").is_symlink()
    assert os.path.lexists(tmp_path / "folder.bad")
    assert "folder is not a directory; it is renamed to folder.bad" in caplog.text


def test_a_symlink_to_a_disk_that_is_not_mounted_stays_and_is_used_when_it_is(tmp_path, caplog):
    (tmp_path / "folder").symlink_to("disk")
    for _ in range(2):
        with pytest.raises(FileNotFoundError, match="it is a symbolic link to disk, where nothing is"):
            make_directory(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]
    assert caplog.text == ""
    (tmp_path / "disk").mkdir()
    make_directory(tmp_path / "folder")
    assert sorted(os.listdir(tmp_path)) == ["disk", "folder"]


def test_a_directory_by_way_of_a_symlink_is_one(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "folder").symlink_to("elsewhere")
    make_directory(tmp_path / "folder")
    assert (tmp_path / "folder").is_symlink()


def test_what_was_put_aside_is_never_overwritten_by_what_is_put_aside_next(tmp_path):
    for number in range(10):
        (tmp_path / "file").write_text(str(number))
        put_aside(tmp_path / "file")
    assert (tmp_path / "file.bad").read_text() == "0"
    assert [(tmp_path / f"file.bad-{number}").read_text() for number in range(1, 10)] == list("123456789")


def test_files_that_are_put_aside_again_and_again_do_not_fill_the_disk(tmp_path):
    for number in range(30):
        (tmp_path / "file").write_text(str(number))
        assert put_aside(tmp_path / "file") is not None
    assert len(os.listdir(tmp_path)) == 10
    assert (tmp_path / "file.bad").read_text() == "0"
    assert (tmp_path / "file.bad-9").read_text() == "29"
