"""Hashing by several threads: the right hashes in the right order, whatever happens to the files meanwhile."""

import os
import resource
import shutil
import subprocess
import sys
import threading
from collections import Counter
from contextlib import contextmanager
from functools import partial

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.descriptors import assert_none_left, descriptors
from zwatch.deploy import hashing
from zwatch.deploy.hashing import Source, hash_file, hashed
from zwatch.errors import Rejection


@pytest.fixture
def small_pieces(monkeypatch):
    """So that a file of some hundred bytes has many pieces, and the ring is full at once."""
    monkeypatch.setattr(hashing, "PIECE", 16)


@contextmanager
def opened(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def source(path, **more):
    return Source(path.name, partial(opened, path), **more)


def write(folder, files):
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


SIZES = [0, 1, 15, 16, 17, 31, 32, 1000, 0, 5000, 16]


def test_files_are_hashed_in_their_order_whatever_their_sizes(tmp_path, small_pieces):
    data = {f"{number}-{size}": os.urandom(size) for number, size in enumerate(SIZES)}
    found = [(result.source.path, result.digest) for result in hashed(map(source, write(tmp_path, data)))]
    assert found == [(name, blake3(content).hexdigest()) for name, content in data.items()]


def test_a_file_of_many_real_pieces_has_the_hash_that_blake3_gives_it(tmp_path):
    data = os.urandom(2**20) * 41 + b"end"
    [path] = write(tmp_path, {"large": data})
    assert [result.digest for result in hashed([source(path)])] == [blake3(data).hexdigest()]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.binary(max_size=60), st.integers(0, 80), st.binary(max_size=200)), max_size=6))
def test_a_prefix_stands_for_the_beginning_of_a_file(tmp_path_factory, files):
    folder = tmp_path_factory.mktemp("prefixes")
    paths = write(folder, {str(number): data for number, (_, _, data) in enumerate(files)})
    sources = [source(path, prefix=prefix, start=start) for path, (prefix, start, _) in zip(paths, files, strict=True)]
    expected = [blake3(prefix + data[start:]).hexdigest() for prefix, start, data in files]
    assert [result.digest for result in hashed(sources)] == expected


def test_progress_counts_every_byte_once_and_in_one_thread(tmp_path, small_pieces):
    data = {"a": bytes(100), "b": bytes(0), "c": bytes(333)}
    counted, threads = Counter(), set()

    def advance(path, count):
        counted[path] += count
        threads.add(threading.current_thread())

    sources = [source(path, prefix=b"12345", start=10) for path in write(tmp_path, data)]
    assert len(list(hashed(sources, advance))) == 3
    assert counted == {"a": 95, "b": 5, "c": 328}
    assert threads == {threading.current_thread()}


def test_a_file_that_cannot_be_opened_or_read_has_an_error_and_the_others_their_hashes(tmp_path, small_pieces):
    first, last = write(tmp_path, {"first": b"1" * 100, "last": b"2" * 100})

    def rejected():
        raise Rejection("file_missing", "gone")

    sources = [source(first), source(tmp_path / "gone"), Source("odd", rejected), source(tmp_path), source(last)]
    found = list(hashed(sources))
    assert [result.digest for result in found] == [
        blake3(b"1" * 100).hexdigest(), "", "", "", blake3(b"2" * 100).hexdigest(),
    ]  # fmt: skip
    assert [type(result.error) for result in found] == [
        type(None), FileNotFoundError, Rejection, IsADirectoryError, type(None),
    ]  # fmt: skip


@pytest.mark.parametrize("size", [50, 500, 1100], ids=["shorter", "shorter at the end", "longer"])
def test_a_file_whose_size_changes_while_it_is_read_is_told_and_ends_nothing(tmp_path, small_pieces, size):
    path, other = write(tmp_path, {"changing": bytes(1000), "other": bytes(10)})

    results = hashed([source(path), source(other)], lambda name, done: os.truncate(path, size))
    found = [(result.source.path, result.error, result.has_changed) for result in results]
    assert found == [("changing", None, True), ("other", None, False)]


def test_a_file_that_is_linked_once_more_while_it_is_read_has_not_changed(tmp_path):
    [path] = write(tmp_path, {"a": bytes(1000)})
    for result in hashed([source(path)]):
        os.link(path, tmp_path / "b")
        assert not result.has_changed


def test_more_files_than_descriptors_are_hashed(tmp_path):
    paths = write(tmp_path, {str(number): bytes([number % 256]) for number in range(600)})
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # other tests of this process have some open
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 200, hard))
    try:
        found = list(hashed(map(source, paths)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [result.error for result in found] == [None] * 600


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interruption_leaves_no_thread_and_no_open_file(tmp_path, small_pieces, error):
    paths = write(tmp_path, {str(number): bytes(1000) for number in range(5)})
    before = descriptors()

    def interrupt(path, done):
        raise error

    with pytest.raises(error):
        list(hashed(map(source, paths), interrupt))
    assert not [thread for thread in threading.enumerate() if thread.name == "zwatch-hash"]
    assert_none_left(before)


def test_an_error_of_who_names_the_files_is_raised(tmp_path):
    def names():
        yield source(write(tmp_path, {"a": b"1"})[0])
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(hashed(names()))


@pytest.mark.parametrize("started", [0, 1])
def test_where_no_more_threads_may_be_started_fewer_read(tmp_path, small_pieces, monkeypatch, started):
    data = {f"{number}-{size}": os.urandom(size) for number, size in enumerate(SIZES)}
    real, begun = threading.Thread.start, []

    def start(thread):
        if len(begun) == started:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    found = [(result.source.path, result.digest) for result in hashed(map(source, write(tmp_path, data)))]
    assert found == [(name, blake3(content).hexdigest()) for name, content in data.items()]


def test_one_open_file_is_hashed_from_its_beginning(tmp_path):
    data = os.urandom(hashing.PIECE + 12345)
    [path] = write(tmp_path, {"x": data})
    counts = []
    with open(path, "rb") as file:
        file.seek(100)
        assert hash_file(file.fileno(), counts.append) == blake3(data).hexdigest()
    assert sum(counts) == len(data)


def test_a_file_that_cannot_be_read_raises_its_error(tmp_path):
    with opened(tmp_path) as fd, pytest.raises(IsADirectoryError):
        hash_file(fd)


HASHED_WITHOUT_THREADS = """
import resource, sys
from blake3 import blake3
from zwatch.deploy.parallel import parallel_hasher
_, hard = resource.getrlimit(resource.RLIMIT_NPROC)
resource.setrlimit(resource.RLIMIT_NPROC, (1, hard))
data = bytes(range(256)) * 2**14
found = [parallel_hasher(b"prefix") for _ in range(2)]
resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
for one in (*found, parallel_hasher(b"prefix")):
    one.update(data)
    assert one.hexdigest() == blake3(b"prefix" + data).hexdigest()
"""


@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("setpriv") is None, reason="needs root and setpriv, to be another user"
)
def test_where_no_thread_can_be_started_files_are_hashed_by_one_also_later():
    """The blake3 package panics for as long as the process lives if it could not start its threads once."""
    rights = "-all,+dac_override,+dac_read_search"  # the user may read this project, and has no right to exceed limits
    command = [
        "setpriv", "--reuid=54321", "--clear-groups", f"--inh-caps={rights}", f"--ambient-caps={rights}",
        f"--bounding-set={rights}", sys.executable, "-c", HASHED_WITHOUT_THREADS,
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "by one thread" in done.stderr
