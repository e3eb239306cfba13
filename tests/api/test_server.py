"""Invalid HTTP, slow and silent clients, and many connections."""

import asyncio
import json
import resource
import zlib
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import aiohttp
import pytest
from aiohttp import web
from aiohttp.compression_utils import ZLibDecompressor

from zwatch.api.server import Runner, connection_limits
from zwatch.api.services import TimeLimits

LARGE = 32 * 2**20


async def exchange(client, words: bytes) -> tuple[bytes, dict, bytes]:
    """Send bytes; return the status line, the headers and the body of the answer, after which the server disconnects."""
    reader, writer = await client.connect()
    writer.write(words)
    try:
        head, _, body = (await asyncio.wait_for(reader.read(), 60)).partition(b"\r\n\r\n")
    finally:
        writer.close()
    line, *headers = head.split(b"\r\n")
    return line, dict(header.decode().split(": ", 1) for header in headers), body


@pytest.mark.parametrize(
    "words",
    [
        b"hello\r\n\r\n",
        b"GET /status HTTP/9\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nbroken\r\n\r\n",
        b"BREW /status HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /status HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 10_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS handshake
    ],
)
async def test_invalid_http_is_answered_with_the_usual_error_and_an_id(client, words):
    line, headers, body = await exchange(client, words)
    assert line.split()[1] == b"400"
    assert headers["X-Request-Id"]
    assert json.loads(body)["error"]["code"] == "invalid_http"


async def test_an_unknown_expectation_is_answered_with_the_usual_error(client):
    words = b"GET /status HTTP/1.1\r\nHost: localhost\r\nExpect: miracles\r\nConnection: close\r\n\r\n"
    line, headers, body = await exchange(client, words)
    assert line.split()[1] == b"417"
    assert headers["X-Request-Id"]
    assert json.loads(body)["error"]["code"] == "invalid_http"


async def test_a_body_that_contradicts_its_encoding_is_a_400_without_a_warning(client, caplog):
    words = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd"
    line, _, body = await exchange(client, words)
    assert line.split()[1] == b"400"
    assert "Content-Encoding" in json.loads(body)["error"]["message"]
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


@pytest.mark.parametrize("token", [None, "sesame"])
async def test_a_decompression_bomb_is_not_decompressed(start, monkeypatch, token):
    decompressed = 0
    decompress = ZLibDecompressor.decompress_sync

    def counted(self, *arguments, **options):
        nonlocal decompressed
        made = decompress(self, *arguments, **options)
        decompressed += len(made)
        return made

    monkeypatch.setattr(ZLibDecompressor, "decompress_sync", counted)
    bomb = zlib.compress(bytes(2**29))
    words = (
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: deflate\r\nContent-Length: %d\r\n\r\n"
        % len(bomb)
    )
    async with start(token=token) as client:
        reader, writer = await client.connect()
        writer.write(words + bomb)
        with suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 60)
        writer.close()
    assert decompressed < 2**24


@pytest.mark.parametrize("path", ["/events", "/jobs/j-1/events"])
async def test_head_is_not_allowed_for_streams(client, path):
    words = f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    line, headers, body = await exchange(client, words)
    assert (line.split()[1], headers["Allow"], body) == (b"405", "GET", b"")


@pytest.mark.parametrize("words", [b"", b"GET /status HTTP/1.1\r\nHost: loc"])
async def test_a_connection_that_sends_no_complete_head_is_closed(start, words):
    async with start(TimeLimits(head=0.3)) as client:
        reader, writer = await client.connect()
        writer.write(words)
        assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()


async def test_sending_a_head_byte_by_byte_does_not_extend_the_limit(start):
    async with start(TimeLimits(head=0.5)) as client:
        reader, writer = await client.connect()
        writer.write(b"GET /status HTTP/1.1\r\nHost: ")
        closed = asyncio.create_task(reader.read())
        async with asyncio.timeout(60):
            while not closed.done():
                writer.write(b"x")
                await asyncio.sleep(0.05)
        writer.close()


async def test_the_limit_for_heads_does_not_end_a_long_request(start):
    async with start(TimeLimits(head=0.5)) as client:
        await client.serves()
        body = {"prompt": "x", "steps": 100, "width": 256, "height": 256}
        async with client.http.post(client.url + "/generate", json=body) as response:
            assert response.status == 200
        assert client.services.queue.jobs.unsettled == []


@pytest.fixture
def request_for_large(tmp_path):
    """Store a picture that is larger than all socket buffers; return the request for it."""
    name = "20261121_142231_seed1.png"
    (tmp_path / "output").mkdir(exist_ok=True)
    (tmp_path / "output" / name).write_bytes(bytes(LARGE))
    return f"GET /history/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


async def test_a_connection_that_stops_reading_is_closed(start, request_for_large, caplog):
    caplog.set_level("INFO")
    async with start(TimeLimits(stall=0.2)) as client, asyncio.timeout(60):
        reader, writer = await client.connect()
        writer.write(request_for_large)
        while "the client read nothing of its answer" not in caplog.text:
            await asyncio.sleep(0.02)
        assert len(await reader.read()) < LARGE
        writer.close()


async def test_a_client_that_reads_slowly_gets_the_whole_answer(start, request_for_large):
    """In all it takes some 5 s."""
    async with start(TimeLimits(stall=3.0)) as client:
        reader, writer = await client.connect()
        writer.write(request_for_large)
        received = 0
        while part := await reader.read(2**20):
            received += len(part)
            await asyncio.sleep(0.02)
        assert received > LARGE
        writer.close()


@pytest.fixture
async def three_connections():
    """A server that takes three connections at a time."""

    async def live(request):
        return web.Response()

    app = web.Application()
    app.router.add_get("/health/live", live)
    runner = Runner(app, max_connections=3, limits=TimeLimits(), shutdown_timeout=2.0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield SimpleNamespace(connect=partial(asyncio.open_connection, *runner.addresses[0]))
    await runner.cleanup()


async def test_connections_beyond_the_limit_get_a_503_and_the_others_are_served(three_connections, caplog):
    idle = [await three_connections.connect() for _ in range(3)]
    for _ in range(5):
        line, headers, body = await exchange(three_connections, b"")
        assert (line.split()[1], headers["Retry-After"], headers["Connection"]) == (b"503", "5", "close")
        assert headers["X-Request-Id"]
        assert json.loads(body)["error"]["code"] == "too_many_connections"
    assert caplog.text.count("more are refused") == 1
    idle[0][1].close()
    await idle[0][1].wait_closed()
    async with asyncio.timeout(60):
        while (await exchange(three_connections, b"GET /health/live HTTP/1.0\r\n\r\n"))[0].split()[1] != b"200":
            await asyncio.sleep(0.01)
    for _, writer in idle[1:]:
        writer.close()


@pytest.mark.parametrize(
    ("limits", "raised", "connections"),
    [
        ((1024, 2**20), (65536, 2**20), (32768, 4096)),
        ((256, 256), None, (128, 16)),
        ((2**20, 2**20), None, (32768, 4096)),
        ((1024, resource.RLIM_INFINITY), (65536, resource.RLIM_INFINITY), (32768, 4096)),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None, (32768, 4096)),
    ],
)
def test_connections_leave_file_descriptors_for_everything_else(monkeypatch, limits, raised, connections):
    changed = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda which, to: changed.append(to))
    assert connection_limits() == connections
    assert changed == ([raised] if raised else [])


async def test_each_of_500_simultaneous_requests_gets_an_image_or_a_429(start):
    async with start(queue=64) as client:
        await client.serves()

        async def one(http):
            async with http.post(client.url + "/generate", json={"prompt": "x", "steps": 1}) as response:
                await response.read()
                assert response.status == 200 or response.headers["Retry-After"]
                return response.status, response.content_type

        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http, asyncio.timeout(60):
            answers = await asyncio.gather(*(one(http) for _ in range(500)))
        assert set(answers) == {(200, "image/png"), (429, "application/json")}
        assert answers.count((200, "image/png")) >= 65, "one runs and 64 wait"
        assert client.services.queue.waiting == 0
        assert client.services.engines.serving("current").leases == 0
