"""Errors of the system where they are met: what they mean, and that nothing stays behind. tests/chaos makes the calls of a
whole service fail."""

import errno
import os
import threading
import tracemalloc
from types import SimpleNamespace

import pytest
import torch

from tests.deploy.factory import write_version
from tests.descriptors import assert_none_left, descriptors
from zwatch import options
from zwatch.app import check
from zwatch.deploy import header, seal
from zwatch.deploy.hashing import hash_file
from zwatch.engine.factory import _rejection_of
from zwatch.engine.proven import MOST_WRITERS, ProvenVersions
from zwatch.engine.tokenizer_maker import TokenizerMaker
from zwatch.errors import Rejection, UsageError
from zwatch.generation.generator import failure_of
from zwatch.lanes import Lane
from zwatch.rollout.load_thread import rejection_of
from zwatch.rollout.state import StateFile
from zwatch.shadow.device import Device
from zwatch.shadow.host import plain
from zwatch.shadow.prefetch import Prefetch

IMPOSSIBLE = 2**56
"""More bytes than any machine has."""


@pytest.fixture
def version(tmp_path):
    """An opened version directory."""
    write_version(tmp_path, "v1")
    fd = os.open(tmp_path / "v1", os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


@pytest.fixture
def no_threads(monkeypatch):
    """Let no thread start until the returned function is called."""

    def refused(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        yield patch.undo


# --- closing, reading


def test_a_descriptor_that_reports_an_error_when_it_is_closed_is_closed_and_what_was_read_counts(version, monkeypatch):
    before, genuine = descriptors(), os.close

    def failing(fd):
        genuine(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", failing)
        sealed = seal.read_seal(version)
        for path in sealed.files:
            with seal.opened_sealed(version, sealed, path) as fd:
                assert hash_file(fd) == sealed.files[path]
    assert_none_left(before)


def test_a_header_is_whole_however_few_bytes_one_call_reads(version, monkeypatch):
    genuine = os.pread
    (path,) = filter(header.carries_version, seal.read_seal(version).files)
    with seal.opened_file(version, path) as fd:
        expected = header.read_header(fd, path)
        monkeypatch.setattr(os, "pread", lambda fd, size, at: genuine(fd, min(size, 3), at))
        assert header.read_header(fd, path) == expected


@pytest.mark.parametrize("call", ["dup", "open", "fstat"])
def test_an_error_at_a_sealed_file_names_its_path(version, monkeypatch, call):
    sealed = seal.read_seal(version)
    path = max(sealed.files, key=lambda path: path.count("/"))

    def failing(*args, **keywords):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(OSError, match="Input/output error") as caught, seal.opened_sealed(version, sealed, path):
            pass
    assert caught.value.filename == path


def test_reading_a_small_file_takes_no_more_memory_than_it_has_bytes(version):
    seal.read_seal_bytes(version)
    tracemalloc.start()
    try:
        seal.read_seal_bytes(version)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


# --- the state file


def test_a_temporary_file_that_could_not_be_removed_is_removed_at_the_next_write(tmp_path, monkeypatch):
    file = StateFile(tmp_path / "state")

    def failing(*args, **keywords):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", failing)
        patch.setattr(os, "unlink", failing)
        with pytest.raises(OSError, match="Input/output error"):
            file.write(b"one")
    assert len(os.listdir(tmp_path / "state")) == 2
    file.write(b"two")
    assert sorted(os.listdir(tmp_path / "state")) == ["lock", "state.json"]
    file.close()


# --- memory


JOB = SimpleNamespace(loras=None, request=SimpleNamespace(prompt="a cat", negative_prompt=""))


def no_host_memory():
    """Return the error that torch raises where the host has too little memory."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(IMPOSSIBLE, dtype=torch.uint8)
    return caught.value


def test_host_memory_that_runs_out_is_told_as_that():
    error = no_host_memory()
    assert _rejection_of(error).code == "out_of_memory"
    assert rejection_of("v1", error).code == "out_of_memory"
    assert failure_of(error, JOB).code == "out_of_memory"
    with pytest.raises(MemoryError, match=str(IMPOSSIBLE)):
        plain(IMPOSSIBLE)


def test_another_error_of_a_device_is_not_told_as_memory():
    assert _rejection_of(RuntimeError("CUDA error: an illegal memory access was encountered")).code == "device_error"
    assert failure_of(RuntimeError("CUDA error"), JOB).code == "generation_failed"


def test_what_ends_a_load_outside_its_stages_is_told_as_what_it_is():
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE), "v1")
    assert (rejection_of("v1", error).code, rejection_of("v1", error).reason) == (
        "io_error",
        "v1: v1: Too many open files",
    )
    assert rejection_of("v1", MemoryError()).code == "out_of_memory"
    assert rejection_of("v1", LookupError("x")).code == "internal_error"


# --- threads


def test_a_lane_without_a_thread_says_so_and_works_when_one_can_be_started(no_threads):
    lane = Lane("test")
    with pytest.raises(OSError, match="Resource temporarily unavailable: no thread can be started") as caught:
        lane.submit(lambda: 1)
    assert caught.value.errno == errno.EAGAIN
    no_threads()
    assert lane.submit(lambda: 2).result(60) == 2
    lane.close()


def test_a_lane_with_a_thread_needs_no_second_one(monkeypatch):
    lane, go = Lane("test", width=2), threading.Event()
    first = lane.submit(lambda: go.wait(60))

    def refused(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        second = lane.submit(lambda: 2)
    go.set()
    assert (first.result(60), second.result(60)) == (True, 2)
    lane.close()


def test_a_lane_whose_call_was_left_works_when_a_thread_can_be_started(monkeypatch):
    lane, go, begun = Lane("test"), threading.Event(), threading.Event()
    stuck = lane.submit(lambda: (begun.set(), go.wait(60)))
    assert begun.wait(60)

    def refused(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        lane.leave(stuck)
        with pytest.raises(OSError, match="no thread"):
            lane.submit(lambda: 1)
    assert lane.submit(lambda: 2).result(60) == 2
    go.set()
    lane.close()


def test_a_tokenizer_that_no_thread_can_make_is_rejected_and_made_at_the_next_load(no_threads):
    files = {"tokenizer_config.json": b'{"no": "thread"}'}
    with pytest.raises(Rejection, match="no thread can be started") as caught:
        TokenizerMaker().get(files)
    assert caught.value.code == "io_error"
    no_threads()
    with pytest.raises(Rejection) as caught:
        TokenizerMaker().get(files)
    assert caught.value.code == "config_invalid", "it was tried out"


def test_what_is_only_for_the_next_start_needs_no_thread(no_threads, version):
    from zwatch.deploy.resolving import Directory

    proven = ProvenVersions(Device("cpu"), None)
    for _ in range(2 * MOST_WRITERS):
        proven._beside(pytest.fail, "it must not run")
    for _ in range(MOST_WRITERS):
        assert proven._writers.acquire(blocking=False), "a place that was not used is given back"
    before = descriptors()
    prefetch = Prefetch(Directory(os.dup(version), "v1"))
    prefetch.end()
    prefetch.join()
    del prefetch
    assert_none_left(before)


# --- the configuration


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOMEM])
def test_a_models_root_that_cannot_be_looked_at_now_is_no_wrong_configuration(tmp_path, monkeypatch, code):
    config = type("Config", (), {"models": tmp_path, "check": lambda self: None})()

    def failing(path, **where):
        raise OSError(code, os.strerror(code), path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", failing)
        assert options.directory(str(tmp_path)) == tmp_path
        check(config)


def test_a_models_root_that_is_not_there_is_a_wrong_configuration(tmp_path):
    config = type("Config", (), {"models": tmp_path / "none", "check": lambda self: None})()
    with pytest.raises(ValueError, match="no such directory"):
        options.directory(str(tmp_path / "none"))
    with pytest.raises(UsageError, match="no such directory"):
        check(config)
