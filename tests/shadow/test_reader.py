"""Reader: files land byte for byte where they belong, in order, and of exactly their length."""

import errno
import gc
import os
import threading
import weakref
from functools import partial
from queue import SimpleQueue

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.shadow.conftest import rejection_of
from zwatch.errors import Abandoned
from zwatch.shadow import reader
from zwatch.shadow.page_cache import cached_share
from zwatch.shadow.read_threads import BLOCK, Filling, Order
from zwatch.shadow.reader import HostReader, PinnedReader


@pytest.fixture
def opened(tmp_path):
    """Write files and open them as fillings of tensors on some device."""
    fds = []

    def write(*contents, size=None, device="cpu"):
        fillings = []
        for number, data in enumerate(contents):
            path = tmp_path / f"{number}.safetensors"
            path.write_bytes(data)
            fds.append(os.open(path, os.O_RDONLY))
            length = len(data) if size is None else size
            fillings.append(Filling(fds[-1], f"vae/{path.name}", torch.zeros(length, dtype=torch.uint8, device=device)))
        return fillings

    yield write
    for fd in fds:
        os.close(fd)


def contents(fillings):
    return [bytes(filling.destination.cpu().numpy()) for filling in fillings]


def nothing(number, prefix):
    pass


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 2500])
def test_files_land_byte_for_byte_and_reported_bytes_are_there(opened, size, threads):
    data = [os.urandom(size), os.urandom(130)]
    fillings, landed = opened(*data), [[0], [0]]

    def note(number, prefix):
        landed[number].append(prefix)
        assert bytes(fillings[number].destination[:prefix].numpy()) == data[number][:prefix]

    HostReader(threads, chunk=100).fill(fillings, note)
    assert contents(fillings) == data
    assert all(told == sorted(set(told)) for told in landed)
    assert [told[-1] for told in landed] == [size, 130]
    if threads == 1:
        assert landed[0] == [0, *(min(begin + 100, size) for begin in range(0, size, 100))]


LENGTHS = [
    (0, "ended after 0 bytes, expected 250"),
    (120, "ended after 120 bytes, expected 250"),
    (251, "grew beyond 250 bytes"),
]


@pytest.mark.parametrize(("on_disk", "what"), LENGTHS, ids=["empty", "short", "grown"])
def test_a_file_of_another_length_is_rejected_with_both_sizes(opened, on_disk, what):
    fillings = opened(bytes(on_disk), size=250)
    code, reason = rejection_of(lambda: HostReader(2, chunk=100).fill(fillings, nothing))
    assert code == "size_mismatch"
    assert reason.startswith("vae/0.safetensors: ")
    assert what in reason


def test_an_error_in_the_progress_callback_stops_the_reading(opened, monkeypatch):
    fillings, reading, go, begun = opened(b"x" * 1000), os.preadv, threading.Event(), []

    def preadv(*arguments):
        begun.append(arguments[2])
        if len(begun) > 2:
            assert go.wait(60)
        return reading(*arguments)

    def stop(number, prefix):
        if prefix == 200:
            go.set()
            raise Abandoned

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(Abandoned):
        HostReader(1, chunk=100).fill(fillings, stop)
    left = sum(begin not in begun for begin in range(0, 1000, 100))
    assert left >= 6, "no more than what was being read is read to its end"
    assert contents(fillings) == [b"x" * (1000 - 100 * left) + bytes(100 * left)]


def failing_reads(monkeypatch, failing, number):
    """Let reads of one descriptor fail."""
    reading = os.preadv

    def preadv(fd, *rest):
        if fd == failing:
            raise OSError(number, os.strerror(number))
        return reading(fd, *rest)

    monkeypatch.setattr(os, "preadv", preadv)


def test_a_read_that_fails_names_the_file(opened, monkeypatch):
    (filling,) = opened(b"x" * 100)
    failing_reads(monkeypatch, filling.fd, errno.EIO)
    with pytest.raises(OSError, match=r"Input/output error: 'vae/0\.safetensors'"):
        HostReader(2).fill([filling], nothing)
    assert cached_share(filling.fd, filling.size) == 1.0, "the read itself will say what is wrong"


@pytest.mark.parametrize("size", [8192, 5000, 4096, 1])
def test_if_unbuffered_reads_fail_buffered_reads_are_used(opened, monkeypatch, size):
    """Some file systems open a file for unbuffered reading and then refuse to read so."""
    data = os.urandom(size)
    (filling,) = opened(data)
    memory, direct = memoryview(bytearray(8192)), os.dup(filling.fd)
    failing_reads(monkeypatch, direct, errno.EINVAL)
    Order(filling, 0, 0, size, memory, direct).read()
    assert bytes(memory[:size]) == data
    os.close(direct)


def test_an_error_of_a_thread_does_not_keep_itself_alive():
    """Its frames hold the buffers of the load that failed."""
    done = SimpleQueue()
    done.put(OSError())
    gc.collect()
    gc.disable()
    try:
        raised = weakref_of_error(done)
        assert raised() is None
    finally:
        gc.enable()


def weakref_of_error(done):
    class Held:
        pass

    held = Held()
    try:
        reader._gathered(done)
    except OSError:
        return weakref.ref(held)
    pytest.fail("no error")


def test_where_several_reads_fail_nothing_keeps_the_buffers_of_the_load(opened):
    (filling,) = opened(bytes(150), size=5000)
    buffer, fill = weakref.ref(filling.destination), partial(HostReader(4, chunk=100).fill, [filling], nothing)
    gc.collect()
    gc.disable()
    try:
        assert rejection_of(fill)[0] == "size_mismatch"
        del filling, fill
        assert buffer() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("most", [0, 1, 2])
def test_if_not_all_threads_can_be_started_the_others_read_everything(opened, monkeypatch, most):
    files, start, started = HostReader(3, chunk=100), threading.Thread.start, []

    def starts(thread):
        if len(started) == most:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", starts)
        if most:
            read = opened(b"x" * 1000)
            files.fill(read, nothing)
            assert contents(read) == [b"x" * 1000]
        else:
            with pytest.raises(OSError, match="no thread can be started"):
                files.fill(opened(b"x" * 1000), nothing)
    assert not any(thread.is_alive() for thread in started)
    again = opened(b"y" * 1000)
    files.fill(again, nothing)
    assert contents(again) == [b"y" * 1000]


@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=4), order=st.randoms(use_true_random=False))
def test_prefixes_grow_without_gaps_whatever_the_order_of_the_pieces(lengths, order):
    pieces = [(number, 10 * k) for number, count in enumerate(lengths) for k in range(count)]
    order.shuffle(pieces)
    prefixes, seen, told = reader._Prefixes(), set(), dict.fromkeys(range(len(lengths)), 0)

    def landed(number, prefix):
        assert prefix > told[number]
        assert all((number, begin) in seen for begin in range(0, prefix, 10))
        told[number] = prefix

    for number, begin in pieces:
        seen.add((number, begin))
        prefixes.grow(Order(None, number, begin, 10, memoryview(b"")), landed)
    assert told == {number: 10 * count for number, count in enumerate(lengths)}


@pytest.fixture(scope="module")
def small():
    """A reader with many small chunks of whole blocks."""
    return PinnedReader(torch.cuda.Stream(), threads=4, chunk=2 * BLOCK)


@pytest.mark.gpu
class TestOntoAGpu:
    @pytest.mark.parametrize("size", [0, 1, 8191, 8192, 8193, 1_000_003])
    def test_files_land_byte_for_byte_and_prefixes_grow(self, opened, small, size):
        data = [os.urandom(size), os.urandom(50_001)]
        fillings, told = opened(*data, device="cuda"), [0, 0]

        def note(number, prefix):
            assert told[number] < prefix <= len(data[number])
            told[number] = prefix

        small.fill(fillings, note)
        assert contents(fillings) == data
        assert told == [len(one) for one in data]

    def test_files_that_are_not_in_the_page_cache_land_byte_for_byte_too(self, opened, small):
        data = [os.urandom(size) for size in (8192 * 40, 8192 * 40 + 1, 300_003, 5)]
        fillings = opened(*data, device="cuda")
        for filling in fillings:
            os.fsync(filling.fd)
            os.posix_fadvise(filling.fd, 0, 0, os.POSIX_FADV_DONTNEED)
        small.fill(fillings, nothing)
        assert contents(fillings) == data

    @pytest.mark.parametrize(("on_disk", "what"), LENGTHS, ids=["empty", "short", "grown"])
    def test_a_file_of_another_length_is_rejected_with_both_sizes(self, opened, small, on_disk, what):
        fillings = opened(bytes(on_disk), size=250, device="cuda")
        code, reason = rejection_of(lambda: small.fill(fillings, nothing))
        assert code == "size_mismatch"
        assert what in reason

    def test_after_an_error_the_reader_works_on(self, opened, small):
        fillings = opened(os.urandom(1_000_000), device="cuda")

        def stop(number, prefix):
            raise Abandoned

        with pytest.raises(Abandoned):
            small.fill(fillings, stop)
        again = opened(b"y" * 1_000_000, device="cuda")
        small.fill(again, nothing)
        assert contents(again) == [b"y" * 1_000_000]

    def test_loads_from_two_threads_take_turns(self, opened, small):
        fillings = opened(b"a" * 200_000, b"b" * 200_000, device="cuda")
        threads = [threading.Thread(target=small.fill, args=([filling], nothing)) for filling in fillings]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert contents(fillings) == [b"a" * 200_000, b"b" * 200_000]
