"""The page cache: asked without being changed."""

import ctypes
import mmap
import os
import time

import pytest

from zwatch.shadow import page_cache
from zwatch.shadow.page_cache import cached_share, unbuffered
from zwatch.shadow.read_threads import BLOCK


@pytest.fixture
def written(tmp_path):
    """Write files of these sizes in bytes, and open them."""
    fds = []

    def write(size):
        path = tmp_path / str(len(fds))
        path.write_bytes(os.urandom(size))
        fds.append(os.open(path, os.O_RDONLY))
        return fds[-1]

    yield write
    for fd in fds:
        os.close(fd)


def test_a_file_that_was_just_written_is_in_the_page_cache(written):
    assert cached_share(written(300_000), 300_000) == 1.0


def test_an_empty_file_counts_as_cached(written):
    assert cached_share(written(0), 0) == 1.0


def test_a_file_in_the_page_cache_is_not_opened_again(written):
    with unbuffered([(written(300_000), 300_000), (written(0), 0)]) as opened:
        assert opened == [None, None]


def forgets(fd):
    """Drop a file from the page cache; say whether its file system does that."""
    os.fsync(fd)
    for _ in range(100):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if not any_cached(fd):
            return True
        time.sleep(0.01)  # another processor may still hold pages that it has just added
    return False


def any_cached(fd):
    """Say whether the page cache has a page of a file, without reading one."""
    libc = ctypes.CDLL(None)
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
    size = os.fstat(fd).st_size
    pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    with mmap.mmap(fd, size, mmap.MAP_PRIVATE) as mapped:
        address = ctypes.c_char.from_buffer(mapped)
        failed = libc.mincore(ctypes.addressof(address), size, pages)
        del address
    return bool(failed) or any(page & 1 for page in pages)


def test_asking_for_the_page_cache_does_not_change_the_answer(written):
    """A read that must not wait has the kernel read ahead where it asked: asked there again, all seemed to be cached."""
    size = 100 * BLOCK * page_cache.PARTS
    fd = written(size)
    if not forgets(fd):
        pytest.skip("this file system cannot be asked, or forgets nothing")
    shares = []
    for _ in range(4):
        shares.append(cached_share(fd, size))
        time.sleep(0.05)  # so long what was read ahead may take
    assert max(shares) < 0.5
    with unbuffered([(fd, size)]) as (again,):
        assert again is not None, "read around the page cache"


def test_without_cachestat_samples_are_asked(written, monkeypatch):
    fd = written(300_000)
    monkeypatch.setattr(page_cache, "_syscall", lambda *arguments: -1)
    assert cached_share(fd, 300_000) == 1.0
    assert cached_share(fd, 0) == 1.0
    assert 0.0 <= cached_share(fd, 300_000_000) <= 1.0, "an offset behind its end"
