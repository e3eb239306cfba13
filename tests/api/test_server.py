"""Clients that speak no HTTP, or nothing at all."""

import asyncio
import json
import resource
import zlib
from contextlib import suppress

import aiohttp
import pytest
from aiohttp.compression_utils import ZLibDecompressor

from zwatch.api import server

LARGE = 32 * 2**20


async def talk(client, words: bytes) -> tuple[bytes, dict, bytes]:
    """Send bytes; return the status line, the headers and the body of the answer, after which the line is closed."""
    host, port = client.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(words)
    try:
        head, _, body = (await asyncio.wait_for(reader.read(), 20)).partition(b"\r\n\r\n")
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
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a browser that was told https
    ],
)
async def test_what_is_no_http_gets_an_answer_in_our_shape_with_an_id(client, words):
    line, headers, body = await talk(client, words)
    assert line.split()[1] == b"400"
    assert headers["X-Request-Id"]
    assert json.loads(body)["error"]["code"] == "invalid_http"


async def test_an_expectation_that_nobody_can_meet_gets_our_shape_too(client):
    words = b"GET /status HTTP/1.1\r\nHost: localhost\r\nExpect: miracles\r\nConnection: close\r\n\r\n"
    line, headers, body = await talk(client, words)
    assert line.split()[1] == b"417"
    assert headers["X-Request-Id"]
    assert json.loads(body)["error"]["code"] == "invalid_http"


async def test_a_body_that_is_not_what_it_says_is_no_error_of_ours(client, caplog):
    words = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nabcd"
    line, _, body = await talk(client, words)
    assert line.split()[1] == b"400"
    assert "Content-Encoding" in json.loads(body)["error"]["message"]
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []


@pytest.mark.parametrize("token", [None, "sesame"])
async def test_a_body_that_unfolds_without_end_is_not_unfolded(start, monkeypatch, token):
    unfolded = 0
    decompress = ZLibDecompressor.decompress_sync

    def counted(self, *arguments, **options):
        nonlocal unfolded
        made = decompress(self, *arguments, **options)
        unfolded += len(made)
        return made

    monkeypatch.setattr(ZLibDecompressor, "decompress_sync", counted)
    bomb = zlib.compress(bytes(2**29))
    words = (
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: deflate\r\nContent-Length: %d\r\n\r\n"
        % len(bomb)
    )
    async with start(token=token) as client:
        host, port = client.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(words + bomb)
        with suppress(ConnectionError):
            await asyncio.wait_for(reader.read(), 20)
        writer.close()
    assert unfolded < 2**24


@pytest.mark.parametrize("path", ["/events", "/jobs/j-1/events"])
async def test_a_stream_does_not_follow_a_head(client, path):
    words = f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()
    line, headers, body = await talk(client, words)
    assert (line.split()[1], headers["Allow"], body) == (b"405", "GET", b"")


@pytest.mark.parametrize("words", [b"", b"GET /status HTTP/1.1\r\nHost: loc"])
async def test_a_client_that_stops_in_the_middle_of_its_head_loses_the_line(start, monkeypatch, words):
    monkeypatch.setattr(server, "SILENCE_SECONDS", 0.3)
    async with start() as client:
        host, port = client.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(words)
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()


async def test_drops_of_a_head_do_not_buy_time(start, monkeypatch):
    monkeypatch.setattr(server, "SILENCE_SECONDS", 0.5)
    async with start() as client:
        host, port = client.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"GET /status HTTP/1.1\r\nHost: ")
        closed = asyncio.create_task(reader.read())
        async with asyncio.timeout(20):
            while not closed.done():
                writer.write(b"x")
                await asyncio.sleep(0.05)
        writer.close()


async def test_the_deadline_for_heads_does_not_end_a_long_answer(start, monkeypatch):
    monkeypatch.setattr(server, "SILENCE_SECONDS", 0.2)
    async with start() as client:
        await client.serves()
        body = {"prompt": "x", "steps": 40, "width": 256, "height": 256}
        async with client.http.post(client.url + "/generate", json=body) as response:
            assert response.status == 200
        assert client.services.queue.jobs.unsettled == []


@pytest.fixture
async def large(client, tmp_path):
    """A service with a picture that no buffer between two programs holds; returns (client, the request for it)."""
    name = "20261121_142231_seed1.png"
    (tmp_path / "output").mkdir(exist_ok=True)
    (tmp_path / "output" / name).write_bytes(bytes(LARGE))
    return client, f"GET /history/{name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode()


async def test_a_client_that_takes_nothing_of_its_answer_loses_the_line(large, monkeypatch, caplog):
    monkeypatch.setattr(server, "STALL_SECONDS", 0.2)
    caplog.set_level("INFO")
    client, words = large
    host, port = client.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(words)
    async with asyncio.timeout(20):
        while "took nothing of its answer" not in caplog.text:
            await asyncio.sleep(0.02)
        assert len(await reader.read()) < LARGE
    writer.close()


async def test_a_client_that_takes_its_answer_slowly_gets_all_of_it(large, monkeypatch):
    monkeypatch.setattr(server, "STALL_SECONDS", 1.0)
    client, words = large
    host, port = client.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(words)
    taken = 0
    while part := await reader.read(2**20):
        taken += len(part)
        await asyncio.sleep(0.02)
    assert taken > LARGE
    writer.close()


async def test_who_comes_when_there_is_no_room_is_told_so_and_the_rest_is_served(start, monkeypatch, caplog):
    monkeypatch.setattr("zwatch.app.room", lambda: (3, 8))
    async with start() as client:
        host, port = client.url.removeprefix("http://").split(":")
        idle = [await asyncio.open_connection(host, int(port)) for _ in range(3)]
        for _ in range(5):
            line, headers, body = await talk(client, b"")
            assert (line.split()[1], headers["Retry-After"], headers["Connection"]) == (b"503", "5", "close")
            assert headers["X-Request-Id"]
            assert json.loads(body)["error"]["code"] == "too_many_connections"
        assert caplog.text.count("more are refused") == 1
        idle[0][1].close()
        await idle[0][1].wait_closed()
        async with asyncio.timeout(10):
            while (await talk(client, b"GET /health/live HTTP/1.0\r\n\r\n"))[0].split()[1] != b"200":
                await asyncio.sleep(0.01)
        for _, writer in idle[1:]:
            writer.close()


@pytest.mark.parametrize(
    ("limits", "raised", "room"),
    [
        ((1024, 2**20), (65536, 2**20), (32768, 1024)),
        ((256, 256), None, (128, 16)),
        ((2**20, 2**20), None, (32768, 1024)),
        ((1024, resource.RLIM_INFINITY), (65536, resource.RLIM_INFINITY), (32768, 1024)),
        ((resource.RLIM_INFINITY, resource.RLIM_INFINITY), None, (32768, 1024)),
    ],
)
def test_connections_leave_files_for_everything_else(monkeypatch, limits, raised, room):
    changed = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits)
    monkeypatch.setattr(resource, "setrlimit", lambda which, to: changed.append(to))
    assert server.room() == room
    assert changed == ([raised] if raised else [])


async def test_five_hundred_at_once_each_get_an_image_or_a_429(start):
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
