"""A real service whose device hangs or is lost: clients are told, it ends with the reason, and the next start knows of it."""

import asyncio
import json
import os
from pathlib import Path

import pytest

from tests.harness import Server
from tests.test_operations import flip

JSON = {"Accept": "application/json"}
BROKEN = Path(__file__).parent / "broken_device"


def service(models, tmp_path, device):
    given = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(BROKEN), str(BROKEN.parent.parent), *([given] if given else [])])
    options = ("--stall-timeout", "4", "--no-history")
    return Server(models, tmp_path / "state", *options, device=device, environment={"PYTHONPATH": path})


async def asked(server, *prompts, pause=0.1):
    """Return (status, body, Retry-After) of a request for each prompt, sent one after the other, `pause` seconds apart."""

    async def ask(prompt):
        async with server.http.post(
            server.url + "/generate", json={"prompt": prompt, "seed": 1}, headers=JSON
        ) as response:
            return response.status, await response.json(), response.headers.get("Retry-After")

    tasks = []
    for prompt in prompts:
        tasks.append(asyncio.create_task(ask(prompt)))
        await asyncio.sleep(pause)
    return await asyncio.gather(*tasks)


async def ended(server):
    """Wait for the end of the process by itself; return its exit status and its last line."""
    status = await asyncio.to_thread(server.process.wait, 60)
    return status, server.log.read_text().splitlines()[-1]


def saved(tmp_path):
    return json.loads((tmp_path / "state/state.json").read_bytes())


async def hangs(server, tmp_path):
    """Let a generation hang while others wait; see what all are told, and that the process ends."""
    first, *others = await asked(server, "hang", "a cat", "a dog")
    assert (first[0], first[1]["error"]["code"]) == (500, "generation_failed")
    assert "v2 made no progress for 4 s" in first[1]["error"]["message"]
    assert [(status, body["error"]["code"], retry) for status, body, retry in others] == [
        (503, "shutting_down", "5")
    ] * 2
    status, last = await ended(server)
    assert (status, last) == (1, "zwatch: a generation by v2 made no progress for 4 s and does not come back")
    assert "in _hang" in server.log.read_text(), "the log has the thread's place"
    state = saved(tmp_path)
    assert (state["failure"]["ending"], state["failure"]["hung"]["version"]) == ("hung", "v2")


async def serving(server):
    """Return the version that serves `current`, once one does."""

    async def version():
        found = (await server.status())["serving"]
        return found and found["version"]

    return await server.until(version, "something serves")


async def ending_of_previous_run(server):
    async with server.http.get(server.url + "/metrics") as response:
        text = await response.text()
    return [
        line.split('"')[1]
        for line in text.splitlines()
        if line.startswith("zwatch_previous_run") and line.endswith(" 1.0")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
async def test_a_version_that_hangs_ends_the_service_twice_and_then_what_was_good_serves(models, tmp_path, device):
    async with service(models, tmp_path, device) as server:
        assert await serving(server) == "v1"
        assert await ending_of_previous_run(server) == ["none"]
        for seed in range(3):
            await server.generate(seed=seed)  # v1 is good
        flip(models, "v2")
        await server.serves("v2")
        for seed in range(3):
            await server.generate(seed=seed)  # so is v2, until it hangs
        await server.until(lambda: "v2" in str(saved(tmp_path)["proved"]), "v2 has proved itself")
        await hangs(server, tmp_path)
    async with service(models, tmp_path, device) as server:
        assert await serving(server) == "v2"
        assert [(crash["key"]["version"], crash["count"]) for crash in saved(tmp_path)["crashes"]] == [("v2", 1)]
        assert await ending_of_previous_run(server) == ["hung"]
        await hangs(server, tmp_path)
    async with service(models, tmp_path, device) as server:
        assert await serving(server) == "v1"
        attempt = await server.rejected("set_aside")
        assert "2 crashes in a row" in attempt["reason"]
        # A loop of Python code is no reason to end: its thread can be interrupted.
        first, other = await asked(server, "loop", "a cat")
        assert (first[0], first[1]["error"]["code"]) == (500, "generation_failed")
        assert (other[0], other[1]["version"]) == (200, "v1")
        assert (await server.generate())[0] == "v1"
        assert server.process.poll() is None
        answers = await asked(server, "lose", "a cat", pause=0.0)
        assert [(status, body["error"]["code"], retry) for status, body, retry in answers] == [
            (503, "shutting_down", "5")
        ] * 2
        status, last = await ended(server)
        assert status == 1
        assert "does not work any more (CUDA error: device-side assert triggered)" in last
        assert last.endswith("after AcceleratorError: CUDA error: device-side assert triggered")
        assert saved(tmp_path)["failure"]["ending"] == "device_lost"
    assert "the previous run ended by itself: a generation by v2 made no progress" in server.log.read_text()
