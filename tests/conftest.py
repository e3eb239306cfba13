"""Fixtures of all tests: models roots with tiny, genuine pipelines."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
# Before torch is imported, here and in the services that tests start: tiny tensors are not faster with two threads, which
# wait for each other if a core is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A process that a shell starts in the background ignores SIGINT, and so would the services that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Skip the tests marked `gpu` if there is no GPU."""
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if not wanted:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def tiny_versions(tmp_path_factory):
    """Sealed versions v1 and v2 of a tiny pipeline (64 x 64 images in milliseconds), made once. Copy before changing."""
    from random_pipeline import PRESETS, write_pipeline

    from zwatch.deploy.seal import write_seal

    root = tmp_path_factory.mktemp("tiny")
    for seed in (1, 2):
        write_pipeline(root / f"v{seed}", PRESETS["tiny"], seed)
        write_seal(root / f"v{seed}", f"v{seed}")
    return root


@pytest.fixture
def models(tiny_versions, tmp_path):
    """A models root for one test: v1, v2, and current -> v1."""
    root = tmp_path / "models"
    shutil.copytree(tiny_versions, root)
    (root / "current").symlink_to("v1")
    return root


@pytest.fixture
def hanging_mount():
    """Mount such file systems over directories; skipped where that is not allowed."""
    from tests.hanging import HangingMount

    mounts = []

    def mount(directory):
        try:
            mounts.append(HangingMount(directory))
        except OSError as error:
            pytest.skip(f"FUSE cannot be mounted: {error}")
        return mounts[-1]

    yield mount
    for one in mounts:
        one.heal()
        one.close()
