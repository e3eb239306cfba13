"""Fixtures of the tests in which something below the service fails."""

import pytest

from tests.chaos.calls import build_library


@pytest.fixture(scope="session")
def failing_library(tmp_path_factory):
    """The library that makes system calls fail."""
    return build_library(tmp_path_factory.mktemp("failing"))


@pytest.fixture(scope="session")
def three_versions(tmp_path_factory):
    """Sealed versions v1, v2 and v3 of a tiny pipeline, which differ in the transformer. Copy before changing."""
    from random_pipeline import PRESETS, write_pipeline

    from zwatch.deploy.sealing import write_seal

    root = tmp_path_factory.mktemp("three")
    for seed in (1, 2, 3):
        write_pipeline(root / f"v{seed}", PRESETS["tiny"], seed)
        write_seal(root / f"v{seed}", f"v{seed}")
    return root
