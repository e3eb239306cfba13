"""A service for the tests of `zwatch generate`, and the command as a process."""

import os
import subprocess
import sys

import pytest

from tests.services import serving_v1


@pytest.fixture(scope="module")
def service(tiny_versions, tmp_path_factory):
    """A real service with v1 and v2, of which v1 serves."""
    with serving_v1(tiny_versions, tmp_path_factory.mktemp("service")) as found:
        yield found


@pytest.fixture
def generate(service, tmp_path):
    """Run `zwatch generate` in an empty directory; return the finished process."""

    def run(*arguments, stdin=None, url=service.url):
        command = [sys.executable, "-m", "zwatch", "generate", *map(str, arguments), "--url", url]
        environment = {**os.environ, "PYTHONPATH": os.getcwd()}
        return subprocess.run(
            command, cwd=tmp_path, env=environment, input=stdin or b"", capture_output=True, timeout=120
        )

    return run
