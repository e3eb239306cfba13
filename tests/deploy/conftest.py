"""A models root of light versions, for tests of links and files."""

import os
import shutil

import pytest

from tests.deploy.factory import next_tick, write_version


@pytest.fixture(scope="session")
def light_versions(tmp_path_factory):
    """Sealed v1, v2, v3, made once. Copy before changing."""
    root = tmp_path_factory.mktemp("light")
    for name in ("v1", "v2", "v3"):
        write_version(root, name)
    return root


@pytest.fixture
def root(light_versions, tmp_path):
    """A models root of this test's own: v1, v2, v3, and current -> v1."""
    root = tmp_path / "models"
    shutil.copytree(light_versions, root)
    (root / "current").symlink_to("v1")
    next_tick(tmp_path)
    return root


class Clock:
    """A monotonic clock that moves only when a test advances it; seconds."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def forward(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def root_fd(root):
    """The models root, opened."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)
