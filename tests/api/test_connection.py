"""Clients that close their sending side, that leave, that send more than is read, and that are refused again and again."""

import asyncio
import heapq
import json
import logging
import socket
import struct
import time

import pytest

from zwatch.api.refusals import Bucket, Refusals, Slowdown
from zwatch.api.services import TimeLimits

LONG = {"prompt": "x", "steps": 100, "width": 512, "height": 512}
SHORT = {"prompt": "x", "steps": 1}


def get(path: str, version: str = "1.1") -> bytes:
    return f"GET {path} HTTP/{version}\r\nHost: localhost\r\n\r\n".encode()


def post(path: str, body: dict, *headers: str) -> bytes:
    data = json.dumps(body).encode()
    head = "".join(f"{line}\r\n" for line in ("Host: localhost", f"Content-Length: {len(data)}", *headers))
    return f"POST {path} HTTP/1.1\r\n{head}\r\n".encode() + data


async def ask_and_close_sending_side(client, words: bytes) -> bytes:
    """Send bytes, close the sending side, and return everything that comes."""
    reader, writer = await client.connect()
    writer.write(words)
    writer.write_eof()
    try:
        return await asyncio.wait_for(reader.read(), 60)
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("words", "statuses"),
    [
        (get("/status"), [200]),
        (get("/health/live", "1.0"), [200]),
        (get("/nothing"), [404]),
        (post("/generate", {**SHORT, "steps": 20}), [200]),
        (post("/generate", SHORT) + get("/status") + post("/generate", SHORT), [200, 200, 200]),
        (get("/status") * 40, [200] * 40),
        (post("/generate", SHORT, "Accept: text/event-stream"), [200]),
        (get("/status") + post("/generate", SHORT)[:-3], [200]),
        (b"hello\r\n\r\n", [400]),
    ],
    ids=[
        "read",
        "HTTP/1.0",
        "unknown path",
        "generation",
        "pipelined",
        "many",
        "stream",
        "a half one behind",
        "invalid",
    ],
)
async def test_a_client_that_closes_its_sending_side_gets_every_answer(client, words, statuses):
    found = await ask_and_close_sending_side(client, words)
    assert found.startswith(b"HTTP/1.")
    assert [int(part[2:5]) for part in found.split(b"HTTP/1.")[1:]] == statuses
    if b"event-stream" in words:
        assert b"event: done" in found
        assert found.endswith(b"0\r\n\r\n")


async def test_an_answer_that_takes_seconds_is_whole_after_several_probes(client):
    words = post("/generate", {"prompt": "x", "steps": 100, "width": 256, "height": 256}, "Accept: application/json")
    head, _, body = (await ask_and_close_sending_side(client, words)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert json.loads(body)["version"] == "v1"


@pytest.mark.parametrize("leave", ["close", "reset", "close after the sending side"])
@pytest.mark.parametrize("accept", ["image/png", "text/event-stream"])
async def test_a_client_that_leaves_cancels_its_request(client, leave, accept):
    ended = []
    client.services.queue.on_end.append(ended.append)
    _, writer = await client.connect()
    writer.write(post("/generate", {**LONG, "n": 1, "width": 1024, "height": 1024}, f"Accept: {accept}"))
    while client.services.queue.running is None:
        await asyncio.sleep(0.005)
    if leave == "close after the sending side":
        writer.write_eof()
        await asyncio.sleep(0.1)
        assert ended == []
    if leave == "reset":
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.close()
    async with asyncio.timeout(30):
        while not ended:
            await asyncio.sleep(0.01)
    assert ended[0].state.value == "cancelled"


@pytest.fixture
async def quiet(start):
    """A service whose streams send no heartbeat."""
    async with start(TimeLimits(heartbeat=1000.0, stall=1000.0)) as client:
        await client.serves()
        yield client


async def test_an_event_stream_whose_client_left_ends_before_its_next_event(quiet):
    client = quiet
    reader, writer = await client.connect()
    writer.write(get("/events"))
    await reader.readuntil(b"event: status")
    in_progress = client.services.metrics.http_open._value.get
    assert in_progress() == 1
    writer.close()
    async with asyncio.timeout(60):
        while in_progress():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("first", ["/events", "/status"])
async def test_connections_that_sent_more_than_is_read_are_closed_when_their_client_is_gone(quiet, first):
    client, writers = quiet, []
    in_progress = client.services.metrics.http_open._value.get
    for _ in range(5):
        reader, writer = await client.connect()
        writer.write(get(first) + get("/status") * 2000)
        if first == "/events":
            await reader.readuntil(b"event: status")
        writers.append(writer)
    await asyncio.sleep(0.3)
    for writer in writers:
        writer.transport.abort()
    async with asyncio.timeout(60):
        while in_progress():
            await asyncio.sleep(0.02)


def test_only_who_is_refused_again_at_once_is_slowed_down():
    patient, hammer = Bucket(rate=1.0, free=4.0, most=1.0), Bucket(rate=1.0, free=4.0, most=1.0)
    assert [patient.delay(1.0, float(second)) for second in range(100)] == [0.0] * 100
    now, delays = 0.0, []
    for _ in range(100):
        delays.append(hammer.delay(1.0, now))
        now += delays[-1] + 0.001
    assert delays[:4] == [0.0] * 4
    assert delays[50:] == sorted(delays[50:])
    assert delays[-1] > 0.9
    assert hammer.delay(1.0, now + 100) == 0.0, "it is forgotten"


class Line:
    bucket = None


def test_connections_of_one_address_are_told_apart_and_new_ones_count_together():
    slowdown = Slowdown(10)
    hammer = Line()
    assert [slowdown.delay(hammer, "10.0.0.1", 1.0, 0.0) for _ in range(20)][-1] == 1.0
    assert slowdown.delay(Line(), "10.0.0.1", 1.0, 0.0) == 0.0, "another client behind the same proxy"
    assert [slowdown.delay(Line(), "10.0.0.2", 1.0, 0.0) for _ in range(60)][-1] == 1.0
    assert slowdown.delay(Line(), "10.0.0.3", 1.0, 0.0) == 0.0
    for number in range(3000):
        slowdown.delay(Line(), f"10.1.{number // 250}.{number % 250}", 1.0, 0.0)
    assert len(slowdown._addresses) <= 1000


@pytest.mark.parametrize("weight", [1.0, 1 / 50], ids=["429", "404"])
@pytest.mark.parametrize("keeps_connection", [True, False], ids=["same connection", "new connections"])
@pytest.mark.parametrize("addresses", [1, 128])
def test_many_clients_that_ask_again_at_once_are_slowed_down_together(addresses, keeps_connection, weight):
    """Each is refused, and asks again as soon as it has the answer, which takes 2 ms; 20 seconds in a simulation."""
    slowdown, lines = Slowdown(1000), [Line() for _ in range(128)]
    asking, refused = [(0.0, number) for number in range(128)], [0, 0]
    while asking[0][0] < 20.0:
        now, number = heapq.heappop(asking)
        line = lines[number] if keeps_connection else Line()
        again = now + 0.002 + slowdown.delay(line, f"10.0.0.{number % addresses}", weight, now)
        heapq.heappush(asking, (again, number))
        refused[now >= 10.0] += 1
    assert refused[0] < 4000, "in the first ten seconds"
    assert refused[1] <= 1300, "later, about one a second for each client"
    assert slowdown.delay(Line(), "10.9.9.9", weight, 20.0) == 0.0, "another address's first refusal"


async def test_a_limited_number_of_answers_is_delayed_at_a_time():
    slowdown = Slowdown(3)
    lines = [Line() for _ in range(10)]
    for line in lines:
        for _ in range(30):
            slowdown.delay(line, "10.0.0.1", 1.0, time.monotonic())
    waiting = [asyncio.create_task(slowdown.wait(line, "10.0.0.1", "/generate", 429)) for line in lines]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert sum(task.done() for task in waiting) == 7
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert slowdown._delayed == 0


async def test_a_connection_that_hammers_is_answered_slower(client):
    client.services.queue.limit = -1
    reader, writer = await client.connect()

    async def refused(reader, writer) -> float:
        begun = time.monotonic()
        writer.write(post("/generate", SHORT))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 429")
        [length] = [line for line in head.split(b"\r\n") if line.startswith(b"Content-Length")]
        await reader.readexactly(int(length.split()[1]))
        return time.monotonic() - begun

    waits = [await refused(reader, writer) for _ in range(12)]
    assert max(waits[6:]) > 0.2, "it waited"
    writer.close()


async def test_refusals_are_one_line_a_second_with_their_number(client, caplog, monkeypatch):
    monkeypatch.setattr("zwatch.api.refusals.LINE_SECONDS", 0.3)
    caplog.set_level(logging.INFO, "zwatch.api.observe")
    begun = time.monotonic()
    for number in range(30):
        await client.call("GET", f"/nothing/{number}")
    await client.call("POST", "/generate", json={})
    async with asyncio.timeout(60):
        while sum(getattr(record, "fields", {}).get("refused", 1) for record in caplog.records) < 31:
            await asyncio.sleep(0.02)
    first, *later = [record for record in caplog.records if record.name == "zwatch.api.observe"]
    assert first.getMessage().startswith("GET none 404 in")
    assert len(later) <= (time.monotonic() - begun) / 0.3 + 1
    assert any("x GET none 404" in record.getMessage() for record in later)


async def test_a_single_refusal_keeps_its_line_and_its_request_id(caplog):
    from zwatch.logs import request_id

    caplog.set_level(logging.INFO, "zwatch.api.observe")
    seen = []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append((record.getMessage(), request_id.get()))
    logging.getLogger("zwatch.api.observe").addHandler(handler)
    refusals = Refusals()
    try:
        for name in ("a", "b"):
            request_id.set(name)
            refusals.count("kind", f"line {name}")
        request_id.set(None)
        refusals.flush()
        refusals.flush()
    finally:
        logging.getLogger("zwatch.api.observe").removeHandler(handler)
    assert seen == [("line a", "a"), ("line b", "b")]
