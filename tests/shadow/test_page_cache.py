"""The page cache: asked without being changed."""

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
    """Say whether a file system tells what the page cache has, and drops pages on request."""
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def test_asking_for_the_page_cache_does_not_change_the_answer(written):
    """A read that must not wait has the kernel read ahead where it asked: asked there again, all seemed to be cached."""
    size = 100 * BLOCK * page_cache.SAMPLES
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
