"""The descriptors that this process has open."""

import os

from tests.deploy.factory import until


def descriptors() -> int:
    """Return how many are open."""
    return len(os.listdir("/proc/self/fd"))


def assert_none_left(before: int, more: int = 0) -> None:
    """Check that nothing was left open since there were so many, but for `more`. Threads, also those of earlier tests, may be about
    to close theirs."""
    until(lambda: descriptors() <= before + more, f"descriptors to be closed; there were {before}")
