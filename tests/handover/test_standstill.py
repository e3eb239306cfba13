"""A process of a handover that stands still: the other one ends it, and clients are served."""

import asyncio
import os
import signal
import socket
import sys
import time
from contextlib import asynccontextmanager
from functools import partial

import aiohttp
import pytest

from tests.api.conftest import Client, start, tiny_config  # noqa: F401 (a fixture)
from tests.harness import Server
from zwatch.api.services import TimeLimits
from zwatch.app import running
from zwatch.bridge import Bridge
from zwatch.deploy.look import point
from zwatch.handover.channel import Channel
from zwatch.handover.taking import Taking
from zwatch.opening import make_factory

SILENCE = 2.0

TAKER = """
import json, os, signal, socket, sys
connected = socket.socket(socket.AF_UNIX)
connected.connect(sys.argv[1])
lines = connected.makefile("rwb")

def send(body):
    lines.write(json.dumps(body).encode() + b"\\n")
    lines.flush()

def receive():
    while "beat" in (body := json.loads(lines.readline())):
        pass
    return body

send({"protocol": 1, "zwatch": "test", "beats": True})
offer = receive()
if sys.argv[2] != "hello":
    send({"ask": "exchange", "served": offer["served"], "final": True})
    while receive().get("jobs") != "told":
        pass
if sys.argv[2] == "accept":
    send({"ask": "accept"})
    receive()
print("stands", flush=True)
os.kill(os.getpid(), signal.SIGSTOP)
"""
"""A process that takes over, and stands still after the step that it is told."""


@pytest.mark.parametrize("step", ["hello", "exchange", "accept"])
async def test_a_service_goes_on_if_the_process_that_takes_over_stands_still(start, tmp_path, models, step):  # noqa: F811
    async with start(TimeLimits(silence=SILENCE)) as client:
        await client.serves()
        door = tmp_path / "state" / "handover"
        while not door.exists():
            await asyncio.sleep(0.01)
        taker = await asyncio.create_subprocess_exec(
            sys.executable, "-S", "-c", TAKER, str(door), step, stdout=asyncio.subprocess.PIPE
        )
        assert await taker.stdout.readline() == b"stands\n"
        address = client.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await asyncio.to_thread(point, models, "current", "v2")
        async with asyncio.timeout(60):
            assert b"200 OK" in await reader.read()
            await client.serves("v2")
            if step == "hello":  # it holds nothing of the service
                await asyncio.sleep(SILENCE)
                assert taker.returncode is None
                taker.send_signal(signal.SIGKILL)
            assert await taker.wait() == -signal.SIGKILL
        writer.close()


@asynccontextmanager
async def taken_over(config, limits):
    """Take a service over, in this process."""
    bridge = Bridge()
    taken = await Taking(config, bridge, partial(make_factory, config)).take_over()
    bridge.close(0.0)
    async with running(config, limits, taken) as service, aiohttp.ClientSession() as http:
        yield Client(service, http)


async def test_a_process_that_took_over_draws_the_jobs_of_an_old_one_that_stands_still(models, tmp_path):
    async with Server(models, tmp_path / "state") as old:
        await old.serves("v1")
        jobs = [(await old.post("/jobs", {"prompt": "a cat", "steps": 100, "n": 8}))[1]["id"] for _ in range(20)]
        config = tiny_config(tmp_path, models, takeover=True)
        async with taken_over(config, TimeLimits(silence=SILENCE)) as new:
            old.process.send_signal(signal.SIGSTOP)
            async with asyncio.timeout(120):
                for job in jobs[:-1]:
                    await new.call("DELETE", f"/jobs/{job}")
                while (found := (await new.call("GET", f"/jobs/{jobs[-1]}"))[2])["state"] != "done":
                    assert found["state"] in ("queued", "running"), found
                    await asyncio.sleep(0.1)
                assert await asyncio.to_thread(old.process.wait) == -signal.SIGKILL
                assert (await new.call("GET", "/status"))[2]["serving"]["version"] == "v1"


async def test_a_process_that_stood_still_itself_does_not_take_that_for_the_others_silence():
    ours, theirs = socket.socketpair()
    channel, other = Channel(ours), Channel(theirs)
    other.beat()
    waiting = asyncio.create_task(channel.receive_of_living(0.3))
    await asyncio.sleep(0.1)
    os.write(theirs.fileno(), b'{"beat": true}\n{"word": 1}\n')
    time.sleep(0.5)
    assert (await waiting).body == {"word": 1}
    other._beating.cancel()
    with pytest.raises(TimeoutError):
        await channel.receive_of_living(0.3)
    for one in (channel, other):
        one.close()
