"""The whole service in this process, on a port of its own."""

from contextlib import asynccontextmanager

import aiohttp
import pytest

from zwatch.app import running
from zwatch.config import Config


class Client:
    """Talks to a service in this process, and may look inside it."""

    def __init__(self, service, http):
        self.url, self.services, self.app, self.http = service.url, service.services, service.app, http

    async def call(self, method, path, **options):
        """Return (status, headers, JSON body)."""
        async with self.http.request(method, self.url + path, **options) as response:
            return response.status, response.headers, await response.json()

    async def error(self, path, body, status):
        """Post a body (JSON, or bytes as they are); return the error object of the answer, which has this status."""
        given = {"data": body} if isinstance(body, bytes) else {"json": body}
        found, _, answer = await self.call("POST", path, **given)
        assert found == status, (found, answer)
        return answer["error"]

    async def serves(self, version="v1"):
        """Wait until a version serves `current`."""
        supervisor = self.services.supervisor
        while (found := self.services.engines.serving("current")) is None or found.key.version != version:
            await supervisor.changes.wait()


@pytest.fixture
def start(models, tmp_path):
    """Return an asynchronous context manager that runs a service with these settings changed."""

    @asynccontextmanager
    async def begin(**changes):
        settings = {
            "models": models, "aliases": ("current",), "strict_links": False, "device": "cpu", "memory_budget": None,
            "state_dir": tmp_path / "state", "host": "127.0.0.1", "port": 0, "token": None, "insecure_no_token": False,
            "allowed_hosts": (), "queue": 64, "timeout": 60.0, "log": "text",
            "max_work": 600.0, "history": True, "output_dir": tmp_path / "output", "history_max_images": None,
            "history_max_bytes": None,
        }  # fmt: skip
        async with running(Config(**{**settings, **changes})) as service, aiohttp.ClientSession() as http:
            yield Client(service, http)

    return begin


@pytest.fixture
async def client(start):
    """A service that serves v1."""
    async with start() as found:
        await found.serves()
        yield found
