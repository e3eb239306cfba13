"""A real service that the tests of one module share, for clients that are processes of their own."""

import contextlib
import re
import shutil
import time
from pathlib import Path

from tests.harness import DEADLINE, Server
from zwatch.client import Service


class Running:
    """A service that serves v1: its URL, and its calls."""

    def __init__(self, server: Server, token: str | None = None):
        self.server = server
        self.url = _until(lambda: re.search(r"serving \S+ at (http://\S+)", server.log.read_text()), server)[1]
        self.service = Service(self.url, token)
        _until(lambda: self.status["status"] == "ok", server)

    @property
    def status(self):
        return self.get("/status")

    @property
    def names(self):
        """The names of the pictures in the history, newest first."""
        return [one["name"] for one in self.get("/history?limit=100")["images"]]

    def get(self, path):
        status, body = self.service.get(path)
        assert status == 200, body
        return body

    def until(self, condition, deadline=DEADLINE):
        """Wait for a condition, and return its value."""
        return _until(condition, self.server, deadline)


def _until(condition, server, deadline=DEADLINE):
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        assert server.process.poll() is None, server.log.read_text()
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(server.log.read_text()[-5000:])


@contextlib.contextmanager
def running(models: Path, state: Path, *options: str, token: str | None = None):
    """Start a service, and stop it after the block."""
    server = Server(models, state, *options)
    server.start()
    try:
        yield Running(server, token)
    finally:
        server.stop()


@contextlib.contextmanager
def serving_v1(versions: Path, root: Path):
    """Start a service on a copy of versions, of which v1 serves, and stop it after the block."""
    shutil.copytree(versions, root / "models")
    (root / "models" / "current").symlink_to("v1")
    with running(root / "models", root / "state") as found:
        yield found
