"""Fixtures of all tests: models roots with tiny, genuine pipelines."""

import os
import shutil
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.gpu_turns import turn, wait_for_kernels

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
# Before torch is imported, here and in the services that tests start: tiny tensors are not faster with two threads, which
# wait for each other if a core is busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Also before the first import of triton, which torch does where it is installed: kernels run in its interpreter.
if not Path("/proc/driver/nvidia/version").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")
# A process that a shell starts in the background ignores SIGINT, and one of nohup SIGHUP, and so would the services that tests
# start and interrupt.
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

# A busy machine makes an example slow, not wrong.
settings.register_profile("untimed", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

LONGEST = (
    "test_takeover.py",
    "test_failures.py",
    "test_operations.py",
    "test_training.py",
    "test_deploy_under_load.py",
)
"""Files that take a minute or more. They come first: at the end, one process would work through the last of them alone."""


def pytest_collection_modifyitems(items):
    """Begin with the longest files, and skip the tests marked `gpu` if there is no GPU."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    wanted = [item for item in items if item.get_closest_marker("gpu")]
    if not wanted:
        return
    import torch

    if not torch.cuda.is_available():
        for item in wanted:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Let the workers of a run take turns on the GPU: one that fills it would change what the others draw."""
    marker = item.get_closest_marker("gpu")
    if marker is None:
        return (yield)
    with turn(alone=marker.kwargs.get("alone", False)) if hasattr(item.config, "workerinput") else nullcontext():
        try:
            return (yield)
        finally:
            wait_for_kernels()


@pytest.fixture(autouse=True)
def signals_as_before():
    """Commands that run in this process set how signals end them."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny_versions(tmp_path_factory):
    """Sealed versions v1 and v2 of a tiny pipeline (64 x 64 images in milliseconds), made once. Copy before changing."""
    from random_pipeline import PRESETS, write_pipeline

    from zwatch.deploy.sealing import write_seal

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
