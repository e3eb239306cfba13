"""The list of versions: what it says, and that an unchanged version is not read again."""

import errno
import os

import pytest

from tests.deploy.factory import VAE, WEIGHTS, next_tick, weights, write_version
from zwatch.deploy import seal
from zwatch.deploy import summaries as module
from zwatch.deploy.provenance import NAME, Provenance
from zwatch.deploy.seal import SEAL_NAME
from zwatch.deploy.sealing import write_seal
from zwatch.deploy.summaries import Summaries

NOTE = '{"note": "one"}'


def named(found):
    return {one.name: one for one in found.versions}


def test_every_version_is_described_and_a_bad_one_by_its_problem(root):
    (root / "v2" / SEAL_NAME).unlink()
    found = Summaries(root).read()
    assert [(one.name, one.sealed) for one in found.versions] == [("v1", True), ("v2", False), ("v3", True)]


def test_versions_below_a_root_that_is_gone_cannot_be_described(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        Summaries(tmp_path / "gone").read()


def test_a_directory_whose_name_cannot_be_a_versions_is_named_with_the_reason(root):
    for name in ("a b", ".hidden", "-rf", "x" * 65, "v\n1", "vé"):
        (root / name).mkdir()
    os.mkdir(os.fsencode(root) + b"/v\xff")
    (root / "a file").touch()
    (root / "a link").symlink_to("a b")
    found = dict(Summaries(root).read().unusable)
    assert found.keys() == {"a b", ".hidden", "-rf", "x" * 65, "v\n1", "vé", r"v\xff"}
    for name, words in {
        "a b": "has the character ' '", ".hidden": "begins with '.'", "-rf": "begins with '-'", "x" * 65: "has 65 characters",
        "v\n1": r"has the character '\n'", "vé": r"has the character '\xe9'",
    }.items():  # fmt: skip
        assert words in found[name]
        assert "1-64 of A-Za-z0-9._-" in found[name]


def test_an_unchanged_version_is_not_opened_again(root, monkeypatch):
    summaries = Summaries(root)
    before = summaries.read()

    def never(*given, **named):
        raise AssertionError("a file was opened")

    monkeypatch.setattr(seal, "opened_file", never)
    assert summaries.read() == before


@pytest.mark.parametrize("change", ["seal", "weights", "gone", "link", "folder", "new directory"])
def test_what_changes_is_read_again(root, tmp_path, change):
    summaries = Summaries(root)
    before = named(summaries.read())
    next_tick(tmp_path)
    version = root / "v2"
    match change:
        case "seal":
            (version / NAME).write_text(NOTE)
            write_seal(version, "v2")
        case "weights":
            (version / WEIGHTS).write_bytes(weights(version="v7"))
        case "gone":
            (version / "transformer/config.json").unlink()
        case "link":
            (version / VAE).rename(tmp_path / "vae")
            (version / VAE).symlink_to(tmp_path / "vae")
        case "folder":
            (version / "vae").rename(tmp_path / "vae")
            (version / "vae").symlink_to(tmp_path / "vae")
        case "new directory":
            version.rename(tmp_path / "old")
            write_version(root, "v2", b"others..")
    after = named(summaries.read())
    assert after["v1"] is before["v1"]
    assert after["v2"] != before["v2"]
    assert after == named(Summaries(root).read())


def test_a_version_that_is_sealed_in_the_middle_of_a_look_is_read_again(root, monkeypatch):
    sealed = (root / "v2" / SEAL_NAME).read_bytes()
    (root / "v2" / SEAL_NAME).unlink()
    genuine = module.summarise

    def summarise(root_fd, name):
        (root / "v2" / SEAL_NAME).write_bytes(sealed)
        return genuine(root_fd, name)

    summaries = Summaries(root)
    monkeypatch.setattr(module, "summarise", summarise)
    assert named(summaries.read())["v2"].sealed
    monkeypatch.undo()
    (root / "v2" / SEAL_NAME).unlink()
    assert not named(summaries.read())["v2"].sealed


def test_a_version_of_very_many_files_is_described_too(root, monkeypatch):
    monkeypatch.setattr(module, "_MOST_FILES", 3)
    summaries = Summaries(root)
    assert named(summaries.read())["v2"].files == 10
    (root / "v2" / WEIGHTS).write_bytes(weights(version="v7"))
    assert named(summaries.read())["v2"].header_version == "v7"


def test_a_problem_that_passes_is_not_remembered(root, monkeypatch):
    genuine = seal.read_seal

    def failing(fd):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    summaries = Summaries(root)
    monkeypatch.setattr(seal, "read_seal", failing)
    assert "Too many open files" in summaries.read().versions[0].problem
    monkeypatch.setattr(seal, "read_seal", genuine)
    assert summaries.read().versions[0].problem is None


def test_a_summary_has_the_provenance_only_where_it_is_sealed(root):
    (root / "v1" / NAME).write_text(NOTE)
    summaries = Summaries(root)
    assert named(summaries.read())["v1"].provenance is None
    write_seal(root / "v1", "v1")
    assert named(summaries.read())["v1"].provenance == Provenance(note="one")


@pytest.mark.parametrize("kind", ["rubbish", "unknown key", "huge", "fifo", "symlink", "directory"])
def test_a_version_with_a_bad_provenance_is_listed_with_its_problem(root, kind):
    path = root / "v1" / NAME
    path.write_text(NOTE)
    write_seal(root / "v1", "v1")
    path.unlink()
    match kind:
        case "rubbish":
            path.write_text("rubbish")
        case "unknown key":
            path.write_text('{"nota": "one"}')
        case "huge":
            with open(path, "wb") as file:
                file.truncate(2**40)
        case "fifo":
            os.mkfifo(path)
        case "symlink":
            path.symlink_to("/etc/passwd")
        case "directory":
            path.mkdir()
    found = named(Summaries(root).read())["v1"]
    assert found.sealed
    assert found.provenance is None
    assert found.problem.startswith("zwatch.json: ")
