"""Weights are read into the page cache ahead of the load, and of a file that is there in part the rest goes past it."""

import os

import pytest

from tests.shadow.test_page_cache import forgets
from zwatch.deploy.look import open_version
from zwatch.shadow import page_cache
from zwatch.shadow.page_cache import cached_share, unbuffered
from zwatch.shadow.prefetch import Prefetch
from zwatch.shadow.read_threads import BLOCK

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture
def forgotten(models):
    """v1's directory, its weights dropped from the page cache."""
    for path in (models / "v1").rglob("*.safetensors"):
        fd = os.open(path, os.O_RDONLY)
        is_forgotten = forgets(fd)
        os.close(fd)
        if not is_forgotten:
            pytest.skip("this file system cannot be asked, or forgets nothing")
    directory = open_version(models, "v1")
    yield directory
    directory.close()


def share(models, path=TRANSFORMER):
    fd = os.open(models / "v1" / path, os.O_RDONLY)
    try:
        return cached_share(fd, os.fstat(fd).st_size)
    finally:
        os.close(fd)


def test_all_weights_of_a_version_are_read(models, forgotten):
    assert share(models) < 0.5
    Prefetch(forgotten).join()
    for path in (models / "v1").rglob("*.safetensors"):
        assert share(models, path.relative_to(models / "v1")) == 1.0


def test_nothing_is_read_after_its_end(models, forgotten, monkeypatch):
    monkeypatch.setattr(Prefetch, "_read", lambda self, fd, size: self.end())
    Prefetch(forgotten).join()
    assert share(models) < 0.5


@pytest.mark.parametrize("harm", ["seal", "file"])
def test_what_is_wrong_with_a_version_is_left_to_the_load(models, harm):
    directory = open_version(models, "v1")
    (models / "v1" / ("BLAKE3SUMS" if harm == "seal" else TRANSFORMER)).unlink()
    Prefetch(directory).join()
    directory.close()


def test_the_part_that_is_cached_is_read_from_the_cache(tmp_path):
    size = 16 * BLOCK * page_cache.PARTS
    (tmp_path / "file").write_bytes(os.urandom(size))
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        if not forgets(fd):
            pytest.skip("this file system cannot be asked, or forgets nothing")
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)  # exactly what is read
        os.preadv(fd, [bytearray(size // 2)], 0)
        with unbuffered([(fd, size)]) as (file,):
            assert file is not None
            assert file.at(0) is None
            assert file.at(size // 4) is None
            assert file.at(size - 1) == file.fd
    finally:
        os.close(fd)
