"""The version in headers: what is written, what is kept, and what a crash at any moment leaves."""

import json
import os
import stat
import threading
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from tests.deploy.factory import AS_ROOT, as_other_user, framed, tensor
from zwatch.deploy import header, stamping
from zwatch.errors import Rejection

ARRAYS = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.array([1, 2, 3], dtype=np.uint8)}
NAME = "model.safetensors"
SECTOR = 512  # bytes; a power failure leaves each old or new


@pytest.fixture
def file(tmp_path):
    path = tmp_path / NAME
    save_file(ARRAYS, path, metadata={"format": "pt", "note": "ü"})
    return path


def read(path):
    with open(path, "rb") as opened:
        return header.read_header(opened.fileno(), path.name)


def prepared(file, version):
    return stamping.prepare(file.parent, file.name, read(file), version)


def stamp(file, version):
    """Write a version as sealing does; return how: "nothing", "in place" or "beside"."""
    found = prepared(file, version)
    if found is None:
        return "nothing"
    if not found.in_place:
        stamping.write_beside(found, lambda done: None, threading.Event())
    stamping.commit([found])
    return "in place" if found.in_place else "beside"


def test_writing_the_version_keeps_tensors_and_other_metadata(file):
    assert stamp(file, "v2") == "beside"
    with safe_open(file, "numpy") as stamped:
        assert stamped.metadata() == {"format": "pt", "note": "ü", "version": "v2"}
    loaded = load_file(file)
    assert set(loaded) == set(ARRAYS)
    for name, array in ARRAYS.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)
    header.check_version(read(file), "v2", "x")
    assert [entry.name for entry in file.parent.iterdir()] == [NAME]


def test_writing_the_version_keeps_every_tensor_byte_and_the_order(file):
    before, old = file.read_bytes(), read(file)
    stamp(file, "v2")
    after, new = file.read_bytes(), read(file)
    assert after[new.data_start :] == before[old.data_start :]
    assert list(new.tensors) == list(old.tensors)


def test_a_file_that_was_written_anew_has_room_for_every_later_version_in_its_first_sector(file):
    stamp(file, "v2")
    inode, before = file.stat().st_ino, file.read_bytes()
    for version in ("v3", "x" * 64, "a", "v2"):
        assert stamp(file, version) == "in place"
        after = file.read_bytes()
        assert read(file).version == version
        changed = [place for place, (old, new) in enumerate(zip(before, after, strict=True)) if old != new]
        assert max(changed, default=0) < SECTOR
    assert file.read_bytes() == before
    assert file.stat().st_ino == inode


def test_blocks_of_the_tensors_keep_their_places_in_blocks(file):
    """So that a file system can share them between the old file and the new one."""
    before = read(file).data_start
    stamp(file, "v2")
    assert (read(file).data_start - before) % header.BLOCK == 0


@pytest.mark.parametrize("spaces", [17, 40, 8000])
@pytest.mark.parametrize("place", ["at the end", "at the beginning", "in the middle"])
def test_spaces_anywhere_in_a_header_are_room(tmp_path, spaces, place):
    text = json.dumps({"__metadata__": {"format": "pt"}, "a": tensor(0, 4)}, separators=(",", ":"))
    room = " " * spaces
    text = {"at the end": text + room, "at the beginning": "{" + room + text[1:],
            "in the middle": text.replace(',"a":', f',{room}"a":')}[place]  # fmt: skip
    path = tmp_path / NAME
    path.write_bytes(framed(text, b"1234"))
    size, inode = path.stat().st_size, path.stat().st_ino
    assert stamp(path, "v2") == "in place"
    assert (path.stat().st_size, path.stat().st_ino) == (size, inode)
    assert (read(path).version, path.read_bytes()[-4:]) == ("v2", b"1234")


def test_one_space_too_few_is_no_room(tmp_path):
    path = tmp_path / NAME
    path.write_bytes(
        framed(json.dumps({"__metadata__": {}, "a": tensor(0, 4)}, separators=(",", ":")) + " " * 13, b"1234")
    )
    assert len('"version":"v2"') == 14
    assert stamp(path, "v2") == "beside"


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@settings(max_examples=60, deadline=None)
@given(metadata=st.dictionaries(TEXTS, TEXTS, max_size=4), names=st.lists(TEXTS, max_size=4, unique=True), spaces=st.integers(0, 60),
       is_ascii=st.booleans(), first=st.from_regex(r"\A[A-Za-z0-9_][A-Za-z0-9._-]{0,63}\Z"))  # fmt: skip
def test_any_header_keeps_its_tensors_and_its_metadata_and_has_room_afterwards(
    metadata, names, spaces, is_ascii, first
):
    names = [name for name in names if name != "__metadata__"]
    table = {"__metadata__": metadata} | {name: tensor(4 * place, 4 * place + 4) for place, name in enumerate(names)}
    raw = framed(json.dumps(table, ensure_ascii=is_ascii) + " " * spaces)
    old = header.parse_header(raw, len(raw) + 4 * len(names), NAME)
    before = len(raw)
    for version in (first, "v2"):
        raw = header.with_version(old, version, NAME)
        new = header.parse_header(raw, len(raw) + 4 * len(names), NAME)
        assert new.metadata == metadata | {"version": version}
        assert [(name, info.dtype, info.shape) for name, info in new.tensors.items()] == [
            (name, info.dtype, info.shape) for name, info in old.tensors.items()
        ]
        assert (len(raw) - before) % header.BLOCK == 0
        old = new
    assert len(header.with_version(old, "x" * 64, NAME)) in (len(raw), len(raw) + header.BLOCK)


@pytest.mark.parametrize("text", [{"a": tensor(0, 4)}, {"a": tensor(0, 4), "__metadata__": {"x": "y"}}])
def test_metadata_that_is_missing_or_elsewhere_gets_the_version_first(tmp_path, text):
    path = tmp_path / NAME
    path.write_bytes(framed(text, b"1234"))
    stamp(path, "v2")
    assert read(path).metadata == text.get("__metadata__", {}) | {"version": "v2"}
    assert path.read_bytes()[8:].startswith(b'{"__metadata__":{')


def test_a_header_without_tensors_gets_a_version(tmp_path):
    path = tmp_path / NAME
    path.write_bytes(framed("{}"))
    stamp(path, "v2")
    assert read(path).metadata == {"version": "v2"}


def test_writing_the_same_version_again_changes_nothing(file):
    stamp(file, "v2")
    before = (file.stat(), file.read_bytes())
    assert stamp(file, "v2") == "nothing"
    assert (file.stat(), file.read_bytes()) == before


def test_a_file_with_another_hard_link_is_written_anew(file):
    stamp(file, "v2")
    other = file.with_name("v2's.safetensors")
    os.link(file, other)
    assert stamp(file, "v3") == "beside"
    assert (read(file).version, read(other).version) == ("v3", "v2")


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_writing_the_version_keeps_the_file_mode(file, mode):
    for version in ("v2", "v3"):
        file.chmod(mode)
        stamp(file, version)
        assert read(file).version == version
        assert stat.S_IMODE(file.stat().st_mode) == mode


def test_a_long_file_is_copied_whole(tmp_path):
    path = tmp_path / NAME
    data = os.urandom(stamping._COPY // 16) * 16 + b"the end"
    path.write_bytes(framed({"a": tensor(0, len(data))}, data))
    counts = []
    found = prepared(path, "v2")
    stamping.write_beside(found, counts.append, threading.Event())
    stamping.commit([found])
    assert path.read_bytes()[read(path).data_start :] == data
    assert sum(counts) == path.stat().st_size


@pytest.mark.parametrize("error", [38, 95, 22, 18])
def test_a_file_system_that_cannot_copy_by_itself_is_read_and_written(file, monkeypatch, error):
    def refused(*_):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "copy_file_range", refused)
    before = load_file(file)
    stamp(file, "v2")
    assert {name: array.tobytes() for name, array in load_file(file).items()} == {
        name: array.tobytes() for name, array in before.items()
    }


@pytest.mark.parametrize("call", ["fsync", "fchmod", "pwrite", "copy_file_range"])
def test_a_failed_write_beside_leaves_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / NAME
    path.write_bytes(framed({"a": tensor(0, 10_000)}, bytes(10_000)))
    before = path.read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    found = prepared(path, "v2")
    with pytest.raises(OSError, match="No space"):
        stamping.write_beside(found, lambda done: None, threading.Event())
    stamping.discard(found)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [NAME]


@pytest.mark.parametrize("call", ["fsync", "pwrite", "replace"])
def test_a_failed_write_in_place_leaves_the_old_header(file, monkeypatch, call):
    stamp(file, "v2")
    before, found, real = file.read_bytes(), prepared(file, "v3"), getattr(os, call)
    failed = []

    def fails_once(*args, **more):
        if not failed:
            failed.append(call)
            raise OSError(5, "Input/output error")
        return real(*args, **more)

    monkeypatch.setattr(os, call, fails_once)
    with pytest.raises(OSError, match="Input/output"):
        stamping.commit([found])
    assert file.read_bytes() == before
    stamping.recover(file.parent)
    assert [entry.name for entry in file.parent.iterdir()] == [NAME]


# A crash.


def cut(old, new, sectors):
    """Return a header of which these sectors are new, as a power failure may leave it."""
    size = SECTOR
    return b"".join(
        (new if number in sectors else old)[number * size : (number + 1) * size]
        for number in range(-(-len(old) // size))
    )


@pytest.fixture(scope="module")
def long_header(tmp_path_factory):
    """A file whose header has many sectors, and room only at its end, so that all of them change."""
    table = {f"layers.{number}.attention.weight": tensor(number * 4, number * 4 + 4) for number in range(100)}
    path = tmp_path_factory.mktemp("long") / NAME
    path.write_bytes(framed(json.dumps({"__metadata__": {}, **table}) + " " * 100, bytes(range(200)) * 2))
    return path


@settings(max_examples=40, deadline=None)
@given(sectors=st.sets(st.integers(0, 20)))
def test_any_mixture_of_old_and_new_sectors_becomes_the_old_header(long_header, sectors):
    whole = long_header.read_bytes()
    found = prepared(long_header, "v2")
    assert found.in_place
    torn = cut(found.old, found.new, sectors)
    try:
        long_header.write_bytes(torn + whole[len(torn) :])
        found.journal.write_bytes(found.old + found.new)
        stamping.recover(long_header.parent)
        expected = found.new if torn == found.new else found.old
        assert long_header.read_bytes() == expected + whole[len(torn) :]
        assert not found.journal.exists()
    finally:
        long_header.write_bytes(whole)


def test_a_journal_of_a_file_that_was_replaced_since_changes_nothing(file):
    stamp(file, "v2")
    found = prepared(file, "v3")
    found.journal.write_bytes(found.old + found.new)
    save_file({"other": np.zeros(100_000, np.uint8)}, file)
    before = file.read_bytes()
    stamping.recover(file.parent)
    assert file.read_bytes() == before
    assert [entry.name for entry in file.parent.iterdir()] == [NAME]


def test_what_a_crash_left_is_removed_and_nothing_else(file):
    folder = file.parent
    left = [f".{NAME}.stamping", f".{NAME}.journal.a1b2c3", ".gone.safetensors.journal"]
    kept = [".notes.stamping", "x.safetensors.stamping", ".git"]
    for name in [*left, *kept]:
        (folder / name).write_bytes(b"half a file")
    (folder / ".dir.safetensors.stamping").mkdir()
    stamping.recover(folder)
    assert {entry.name for entry in folder.iterdir()} == {NAME, *kept, ".dir.safetensors.stamping"}


CALLS = ("pwrite", "fsync", "replace", "unlink")


class Crash(BaseException):
    """Raised in the process that dies."""


def dies_at(monkeypatch, number):
    """Let the `number`-th of these calls end the process: half of a write is done."""
    count = 0

    def wrap(name):
        real = getattr(os, name)

        def call(*args, **more):
            nonlocal count
            count += 1
            if count == number:
                if name == "pwrite":
                    real(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
                os._exit(0)
            return real(*args, **more)

        monkeypatch.setattr(os, name, call)

    for name in CALLS:
        wrap(name)


@pytest.mark.parametrize("way", ["in place", "beside"])
def test_a_process_that_dies_at_any_call_leaves_a_file_that_recovers_to_one_of_the_two(
    long_header, tmp_path, monkeypatch, way
):
    for number in range(1, 40):
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / NAME
        whole = long_header.read_bytes()
        path.write_bytes(whole)
        if way == "beside":
            os.link(path, folder / "other")
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                dies_at(monkeypatch, number)
                assert stamp(path, "v2") == way
                os._exit(9)
            os._exit(8)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        stamping.recover(folder)
        found = read(path)
        assert found.version in (None, "v2")
        assert path.read_bytes()[found.data_start :] == whole[-400:]
        assert {entry.name for entry in folder.iterdir()} <= {NAME, "other"}
        if status == 9:
            assert found.version == "v2"
            break
        assert status == 0
    else:
        pytest.fail("it never came to its end")
    assert number > 4


# Refusals.


def test_a_version_that_would_make_the_header_too_long_to_read_is_refused(tmp_path):
    path = tmp_path / NAME
    empty = len('{"__metadata__":{"note":""}}')
    data = framed('{"__metadata__":{"note":"' + "x" * (header.MAX_HEADER - empty) + '"}}')
    path.write_bytes(data)
    assert read(path).version is None
    with pytest.raises(Rejection, match=f"{NAME}: the header has no room for the version"):
        prepared(path, "v2")


@pytest.mark.skipif(not AS_ROOT, reason="needs root")
@pytest.mark.parametrize(("mode", "group", "expected"), [
    (0o644, 5000, "beside"), (0o664, 6000, "beside"), (0o640, 6000, "beside"), (0o640, 5000, None), (0o600, 5000, None),
])  # fmt: skip
def test_a_teammate_who_owns_the_directory_alone_writes_anew_what_all_can_still_read(file, mode, group, expected):
    file.parent.chmod(0o755)
    os.chown(file.parent, 6001, 6000)
    os.chown(file, 5001, group)
    file.chmod(mode)
    found = read(file)

    def seal():
        planned = stamping.prepare(Path(), NAME, found, "v2")
        stamping.write_beside(planned, lambda done: None, threading.Event())
        stamping.commit([planned])
        return "beside"

    answer = as_other_user(6001, 6000, file.parent, seal)
    if expected is None:
        assert f"{NAME}: it belongs to the user 5001 and the group {group}, and the version has to be written" in answer
        assert "Run `zwatch seal` as the user 5001 or as root; nothing was changed" in answer
        assert read(file).version is None
    else:
        assert answer == expected
        status = file.stat()
        assert (read(file).version, status.st_uid, stat.S_IMODE(status.st_mode)) == ("v2", 6001, mode)


@pytest.mark.skipif(not AS_ROOT, reason="needs root")
def test_an_owner_who_is_not_in_the_group_that_reads_the_file_does_not_take_it_away(file):
    file.parent.chmod(0o777)
    os.chown(file, 6001, 5000)
    file.chmod(0o640)
    found = read(file)
    answer = as_other_user(6001, 6000, file.parent, lambda: stamping.prepare(Path(), NAME, found, "v2"))
    assert "could not be read by the group 5000. Run `zwatch seal` as root; nothing was changed" in answer


@pytest.mark.skipif(not AS_ROOT, reason="needs root")
def test_a_folder_that_may_not_be_written_is_named_with_the_user(file):
    file.parent.chmod(0o755)
    found = read(file)
    answer = as_other_user(6001, 6000, file.parent, lambda: stamping.prepare(Path(), NAME, found, "v2"))
    assert "and the user 6001 may not write in . (no permission); nothing was changed" in answer


@pytest.mark.skipif(not AS_ROOT, reason="needs root")
def test_root_keeps_the_owner_of_a_file(file):
    os.chown(file, 5001, 5002)
    stamp(file, "v2")
    assert (file.stat().st_uid, file.stat().st_gid) == (5001, 5002)
