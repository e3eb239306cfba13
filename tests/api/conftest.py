"""The whole service in this process, on a free port."""

import asyncio
from contextlib import asynccontextmanager, contextmanager

import aiohttp
import pytest

from zwatch.api.services import TimeLimits
from zwatch.app import running
from zwatch.config import Config


class Client:
    """Calls a service in this process, whose parts are in `services`."""

    def __init__(self, service, http):
        self.url, self.services, self.app, self.http = service.url, service.services, service.app, http
        host, port = self.url.removeprefix("http://").split(":")
        self.address = (host, int(port))

    async def call(self, method, path, **options):
        """Return (status, headers, JSON body)."""
        async with self.http.request(method, self.url + path, **options) as response:
            return response.status, response.headers, await response.json()

    async def png(self, **fields):
        """Generate an image; return (headers, file)."""
        async with self.http.post(self.url + "/generate", json={"prompt": "a cat", **fields}) as response:
            assert response.status == 200, await response.text()
            return response.headers, await response.read()

    async def connect(self):
        """Open a connection; return its reader and writer."""
        return await asyncio.open_connection(*self.address)

    async def first_line(self, request: bytes) -> bytes:
        """Send bytes; return the status line of the answer."""
        reader, writer = await self.connect()
        writer.write(request)
        try:
            return (await asyncio.wait_for(reader.readline(), 60)).rstrip()
        finally:
            writer.close()

    def weight(self):
        """Return a weight of the version that `current` serves."""
        components = self.services.engines.serving("current").engine.components
        [transformer] = [one.module for one in components if one.key[0] == "transformer"]
        return transformer.layers[0].feed_forward.w1.weight

    @contextmanager
    def failing(self):
        """Make every generation fail inside the block."""
        weight, whole = self.weight(), self.weight().data
        weight.data = whole[:, :1]
        try:
            yield
        finally:
            weight.data = whole

    async def error(self, path, body, status):
        """Post a body (bytes, or a value sent as JSON); return the error object of the answer, which has this status."""
        given = {"data": body} if isinstance(body, bytes) else {"json": body}
        found, _, answer = await self.call("POST", path, **given)
        assert found == status, (found, answer)
        return answer["error"]

    async def serves(self, version="v1"):
        """Wait until a version serves `current`."""
        supervisor = self.services.supervisor
        while (found := self.services.engines.serving("current")) is None or found.key.version != version:
            await supervisor.changes.wait()


def tiny_config(root, models, **changes):
    """Return the configuration of a service on the CPU, with its directories in `root`."""
    settings = {
        "models": models, "aliases": ("current",), "strict_links": False, "device": "cpu", "memory_budget": None,
        "state_dir": root / "state", "host": "127.0.0.1", "port": 0, "token": None, "insecure_no_token": False,
        "allowed_hosts": (), "queue": 64, "timeout": 60.0, "log": "text", "max_work": 600.0, "stall_timeout": None, "history": True,
        "output_dir": root / "output", "history_max_images": None, "history_max_bytes": None,
    }  # fmt: skip
    return Config(**{**settings, **changes})


@pytest.fixture
def start(models, tmp_path):
    """Return an asynchronous context manager that runs a service with these settings changed."""

    @asynccontextmanager
    async def begin(limits=None, **changes):
        config = tiny_config(tmp_path, models, **changes)
        async with running(config, limits or TimeLimits()) as service, aiohttp.ClientSession() as http:
            yield Client(service, http)

    return begin


@pytest.fixture
async def client(start):
    """A service that serves v1."""
    async with start() as found:
        await found.serves()
        yield found
