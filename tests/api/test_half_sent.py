"""Clients that send half a request, or read an answer slowly: how long they are kept, and what others notice."""

import asyncio
import gc
import socket
import time
from types import SimpleNamespace

import pytest
from aiohttp import web

from zwatch.api import bodies, entrance
from zwatch.api.connection import Connection
from zwatch.api.entrance import TCPSite
from zwatch.api.pieces import PIECE, SharedBytes
from zwatch.api.server import Runner
from zwatch.api.services import TimeLimits

HEAD = b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
SECONDS = 0.5
"""The limit of heads and bodies here."""


@pytest.fixture
async def lonely(start, models):
    """A service that serves nothing, with short limits for requests and the usual one for idle connections."""
    (models / "current").unlink()
    async with start(TimeLimits(head=SECONDS, body=SECONDS)) as client:
        yield client


async def closed_after(client, first: bytes, drip: bytes = b"", pause: float = 0.05) -> tuple[float, bytes]:
    """Send bytes, then others again and again; return after how many seconds the service closes, and what it has sent."""
    reader, writer = await client.connect()
    begun = time.monotonic()

    async def dripping():
        while True:
            await asyncio.sleep(pause)
            writer.write(drip)

    writer.write(first)
    sending = asyncio.create_task(dripping())
    try:
        async with asyncio.timeout(90):
            answer = await reader.read()
    except ConnectionResetError:
        answer = b""
    finally:
        sending.cancel()
        writer.close()
    return time.monotonic() - begun, answer


async def answered(client, words: bytes = LIVE) -> bytes:
    reader, writer = await client.connect()
    writer.write(words)
    async with asyncio.timeout(60):
        head = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    return head


@pytest.mark.parametrize(
    ("first", "drip"),
    [
        (b"", b""),
        (b"\r\n", b"\r\n"),
        (b"GET /sta", b""),
        (b"GET /status HTTP/1.1\r\nX: ", b"x"),
        (LIVE + b"GET /", b""),
        (LIVE + b"GET / HTTP/1.1\r\nX: ", b"x"),
        (HEAD % 100 + b"{", b""),
        (HEAD % 100_000 + b'{"prompt": "', b"x"),
        (HEAD % 100_000 + b"x" * 50_000, b""),
        (b"POST /generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", b""),
        (b"POST /generate HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"POST /x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nGET /", b""),
        (HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") % 10_000 + b"\x1f\x8b", b""),
    ],
    ids=[
        "nothing", "empty lines", "half a head", "a dripped head", "half a head behind a request", "a dripped one behind a request",
        "half a body", "a dripped body", "half a long body", "half a chunk", "dripped chunks", "half a head behind chunks",
        "half a compressed body",
    ],
)  # fmt: skip
async def test_half_a_request_is_closed_after_its_limit_and_not_the_idle_one(lonely, first, drip):
    seconds, answer = await closed_after(lonely, first, drip)
    assert seconds < 60, "the idle time is 75 s"
    if first.startswith(b"POST /generate") and not drip:  # what is sent to a closed connection resets it
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code": "request_timeout"' in answer


async def test_a_connection_that_has_sent_a_request_may_be_idle_for_longer(lonely):
    reader, writer = await lonely.connect()
    for _ in range(3):
        writer.write(LIVE)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        assert head.startswith(b"HTTP/1.1 200 ")
        await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].split()[0]))
        await asyncio.sleep(2 * SECONDS)
    writer.close()


async def test_a_slow_line_may_take_as_long_as_it_needs(start, models, monkeypatch):
    """Each limit's share arrives: longer than the limit in all."""
    monkeypatch.setattr(bodies, "LEAST", 1000)
    (models / "current").unlink()
    body, limit = b"{" + b" " * 25_000, 2.0
    async with start(TimeLimits(head=limit, body=limit)) as client:
        reader, writer = await client.connect()
        writer.write(HEAD % len(body))
        begun = time.monotonic()
        for at in range(0, len(body), 1000):
            writer.write(body[at : at + 1000])
            await asyncio.sleep(limit / 20)  # a busy machine may make 20 times as much of it
        assert time.monotonic() - begun > 1.2 * limit
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        assert head.startswith(b"HTTP/1.1 400 "), "all of it was read"
        writer.close()


async def test_few_bytes_that_are_many_once_decompressed_are_few(lonely):
    import zlib

    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(b" " * 900_000) + packer.flush(zlib.Z_SYNC_FLUSH)
    pieces = [packed[at : at + 20] for at in range(0, len(packed), 20)]
    reader, writer = await lonely.connect()
    writer.write(HEAD.replace(b"\r\n\r\n", b"\r\nContent-Encoding: gzip\r\n\r\n") % 100_000)

    async def dripping():
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(SECONDS / 4)

    sending = asyncio.create_task(dripping())
    try:
        answer = await asyncio.wait_for(reader.read(), SECONDS / 4 * len(pieces))
    except ConnectionResetError:
        answer = b""
    sending.cancel()
    assert len(pieces) > 20
    assert b"408" in answer[:20] or not answer
    writer.close()


async def test_the_body_of_which_nothing_arrives_is_given_up_before_a_slow_one():
    held = bodies.Bodies(most=100)
    async with asyncio.timeout(60) as first, asyncio.timeout(60) as second:
        slow, half = held.begin(), held.begin()
        slow.timeout, half.timeout = first, second
        held.grow(slow, 10)
        held.grow(half, 80)
        held.grow(slow, 10)
        held.grow(slow, 10)
        assert (slow.is_evicted, half.is_evicted) == (False, True)
        second.reschedule(None)


@pytest.fixture
async def small():
    """A server that takes five connections at a time."""

    async def live(request):
        return web.Response()

    app = web.Application()
    app.router.add_route("*", "/health/live", live)
    runner = Runner(app, max_connections=5, limits=TimeLimits(), shutdown_timeout=2.0)
    await runner.setup()
    await TCPSite(runner, "127.0.0.1", 0).start()
    address = runner.addresses[0]
    yield SimpleNamespace(server=runner.server, connect=lambda: asyncio.open_connection(*address))
    await runner.cleanup()


async def test_beyond_the_limit_those_that_send_nothing_give_way_and_those_that_work_do_not(small, monkeypatch):
    monkeypatch.setattr(entrance, "_EVICTED_SECONDS", 1000.0)
    kept = [await small.connect() for _ in range(2)]
    for reader, writer in kept:
        writer.write(LIVE)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    silent = [await small.connect() for _ in range(3)]
    while small.server.arriving < 3:
        await asyncio.sleep(0.01)
    assert (await answered(small)).startswith(b"HTTP/1.1 503 "), "they may be about to send something"
    monkeypatch.setattr(entrance, "_EVICTED_SECONDS", 0.0)
    for _ in range(5):
        assert (await answered(small)).startswith(b"HTTP/1.1 200 ")
    assert await asyncio.wait_for(silent[0][0].read(), 60) == b"", "the one that waited for longest"
    for reader, writer in kept:
        writer.write(LIVE)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
    for _, writer in (*kept, *silent):
        writer.close()


async def test_thousands_of_connections_at_once_are_counted_and_leave_nothing(small, monkeypatch):
    monkeypatch.setattr(small.server, "_max_connections", 10_000)
    lines = [await small.connect() for _ in range(300)]
    for number, (_, writer) in enumerate(lines):
        writer.write((b"", b"GET /he", LIVE)[number % 3])
    for reader, _ in lines[2::3]:
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).startswith(b"HTTP/1.1 200 ")
    assert small.server.arriving == 200
    for _, writer in lines:
        writer.close()
    async with asyncio.timeout(60):
        while small.server.arriving or small.server.connections:
            await asyncio.sleep(0.01)


async def test_who_reads_the_same_picture_at_the_same_time_shares_its_bytes():
    reads, shared = [], SharedBytes()

    async def read(name):
        reads.append(name)
        await asyncio.sleep(0)
        return bytes([len(reads)]) * 1000 if name == "changing" else b"x" * 1000

    found = await asyncio.gather(*(shared.body("a", read) for _ in range(10)))
    assert reads == ["a"]
    found.append(await shared.body("a", read))
    assert len({id(one._value.data) for one in found}) == 1, "also one that comes later"
    assert (await shared.body("changing", read))._value.data != (await shared.body("changing", read))._value.data
    del found
    assert "a" not in shared._found


async def test_a_read_that_fails_fails_for_all_who_wait_and_not_for_the_next():
    shared, answers = SharedBytes(), [ValueError("gone"), b"x"]

    async def read(name):
        await asyncio.sleep(0)
        if isinstance(found := answers.pop(0), Exception):
            raise found
        return found

    failed = await asyncio.gather(*(shared.body("a", read) for _ in range(3)), return_exceptions=True)
    assert [type(one) for one in failed] == [ValueError] * 3
    assert (await shared.body("a", read))._value.data == b"x"


async def test_pictures_that_are_read_slowly_hold_little_memory_and_arrive_whole(start, models, tmp_path):
    (models / "current").unlink()
    file = b"\x89PNG\r\n\x1a\n" + b"x" * 3_000_000
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "20261121_142231_seed1.png").write_bytes(file)
    async with start() as client:
        words = b"GET /history/20261121_142231_seed1.png HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        lines = []
        for _ in range(20):
            line = socket.socket()
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**13)
            line.connect(client.address)
            line.setblocking(False)
            reader, writer = await asyncio.open_connection(sock=line, limit=2**13)
            writer.write(words)
            lines.append((reader, writer))
        await asyncio.sleep(0.5)
        writing = [one for one in gc.get_objects() if type(one) is Connection and one.transport is not None]
        assert len(writing) >= 20
        assert all(one.transport.get_write_buffer_size() <= 2 * PIECE for one in writing), "the rest is not copied"
        heads = [await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60) for reader, _ in lines]
        assert all(f"Content-Length: {len(file)}".encode() in head for head in heads)
        for reader, writer in lines:
            assert await asyncio.wait_for(reader.read(), 60) == file
            writer.close()
