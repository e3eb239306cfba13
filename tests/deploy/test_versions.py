"""Version names and directories, and what a glance at a version tells."""

import os
from pathlib import Path

import pytest

from tests.deploy.factory import WEIGHTS, framed, reseal_by_hand, tensor, weights, write_version
from tests.descriptors import assert_none_left, descriptors
from zwatch.deploy.seal import SEAL_NAME, read_seal
from zwatch.deploy.versions import is_version_directory, is_version_name, opened, summarise, version_names


@pytest.mark.parametrize("name", ["v1", "V", "1", "_", "a.b-c_d", "2026-11-21", "v1.0", "x" * 64, "v-"])
def test_a_valid_version_name_is_accepted(name):
    assert is_version_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".hidden", "-rf", "x" * 65, "a b", "a/b", "/v1", "v1/", "v1\n", "\nv1", "vé", "v\u0661", "a\0", "v:1"],
)  # fmt: skip
def test_an_invalid_version_name_is_refused(name):
    assert not is_version_name(name)


def test_versions_are_the_real_directories_with_a_valid_name(fs):
    for name in ("v2", "v1", "v10", ".git", "-x"):
        fs.create_dir(f"/models/{name}")
    fs.create_file("/models/file")
    for alias, text in {"current": "v1", "dangling": "v9", "loop": "loop"}.items():
        fs.create_symlink(f"/models/{alias}", text)
    with opened(Path("/models")) as root_fd:
        assert version_names(root_fd) == ["v1", "v10", "v2"]
        assert [name for name in ("v1", "current", "file", "gone", ".git", "..") if is_version_directory(root_fd, name)] == ["v1"]  # fmt: skip


def test_an_opened_directory_is_closed_again(tmp_path):
    with opened(tmp_path) as fd:
        os.fstat(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


@pytest.mark.parametrize("name", ["gone", "file"])
def test_only_a_directory_is_opened(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"No such file|Not a directory"), opened(tmp_path / name):
        pass


def test_a_summary_of_a_sealed_version_has_digest_version_bytes_and_time(root, root_fd):
    found = summarise(root_fd, "v2")
    with opened(root / "v2") as fd:
        sealed = read_seal(fd)
    assert (found.name, found.sealed, found.digest, found.header_version) == ("v2", True, sealed.digest, "v2")
    assert found.files == len(sealed.files) == 10
    assert found.bytes == sum((root / "v2" / path).stat().st_size for path in sealed.files)
    assert found.sealed_at.timestamp() == pytest.approx((root / "v2" / SEAL_NAME).stat().st_mtime)
    assert found.problem is None


def unsealed(directory):
    (directory / SEAL_NAME).unlink()


def bad_header(directory):
    (directory / WEIGHTS).write_bytes(framed({"a": tensor(0, 4, "F7")}, b"1234"))


def a_file_gone(directory):
    (directory / "model_index.json").unlink()


def bad_seal(directory):
    reseal_by_hand(directory, "hello")


@pytest.mark.parametrize(
    ("spoil", "sealed", "words"),
    [
        (unsealed, False, f"there is no {SEAL_NAME}; run `zwatch seal`"),
        (bad_seal, False, f"{SEAL_NAME} line 1: expected 64 hex digits"),
        (a_file_gone, True, "model_index.json: the seal names it, it is not there"),
        (bad_header, True, f"{WEIGHTS}: tensor 'a' has the unknown dtype 'F7'"),
    ],
)
def test_a_summary_of_a_bad_version_has_its_problem(root, root_fd, spoil, sealed, words):
    spoil(root / "v2")
    found = summarise(root_fd, "v2")
    assert found.sealed is sealed
    assert words in found.problem


def test_a_summary_of_a_version_with_an_absurd_header_does_not_fail(root, root_fd):
    (root / "v2" / WEIGHTS).write_bytes(framed({"a": tensor(0, 4, shape=[2**62] * 300)}, b"1234"))
    assert WEIGHTS in summarise(root_fd, "v2").problem


@pytest.mark.parametrize("name", ["gone", "current", "file"])
def test_a_summary_of_something_else_says_that_it_is_no_version(root, root_fd, name):
    (root / "file").touch()
    found = summarise(root_fd, name)
    assert not found.sealed
    assert found.problem.startswith(f"{name}: ")


def test_a_summary_shows_the_wrong_header_version_of_renamed_weights(tmp_path):
    write_version(tmp_path, "v1").rename(tmp_path / "v7")
    with opened(tmp_path) as root_fd:
        assert summarise(root_fd, "v7").header_version == "v1"


def test_a_summary_of_weights_without_a_header_version_has_none(root, root_fd):
    (root / "v2" / WEIGHTS).write_bytes(weights())
    assert summarise(root_fd, "v2").header_version is None


def test_a_summary_leaks_no_descriptor(root, root_fd):
    (root / "v3" / "model_index.json").unlink()
    before = descriptors()
    for name in ("v1", "v2", "v3", "gone"):
        summarise(root_fd, name)
    assert_none_left(before)
