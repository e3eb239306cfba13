"""A device that this process cannot use any more: nothing is drawn with it, and the service stops."""

import asyncio
import json

import pytest
import torch

from zwatch.errors import Ending

LOST = "CUDA error: an illegal memory access was encountered"


async def test_a_request_that_loses_the_device_stops_the_service_and_requests_that_wait_are_answered(start, tmp_path):
    async with start() as client:
        await client.serves()
        supervisor = client.services.supervisor
        supervisor.factory.device.lost = lambda: LOST
        with client.failing():
            body = {"prompt": "a cat"}
            answers = await asyncio.gather(*(client.call("POST", "/generate", json=body) for _ in range(4)))
        assert [(status, body["error"]["code"]) for status, _, body in answers] == [(503, "shutting_down")] * 4
        await asyncio.wait_for(supervisor.has_failed.wait(), 60)
        assert supervisor.failure.status == 1
        assert LOST in str(supervisor.failure)
        _, _, health = await client.call("GET", "/health")
        assert health["status"] == "degraded"
        assert health["reasons"][0] == f"the service stops: {supervisor.failure}"
        status, _, body = await client.call("POST", "/api/load_model")
        assert (status, body["error"]["code"]) == (503, "shutting_down")
    saved = json.loads((tmp_path / "state/state.json").read_bytes())
    assert (saved["running"], saved["aliases"]["current"]["serving"]["version"]) == (True, "v1"), "it counts as a crash"


async def test_an_error_that_leaves_the_device_whole_stops_nothing(client):
    with client.failing():
        status, _, _ = await client.call("POST", "/generate", json={"prompt": "a cat"})
    assert status == 500
    assert client.services.supervisor.failure is None
    await client.png()


async def test_the_status_and_the_metrics_do_not_need_the_memory_of_a_lost_device(client):
    def fail():
        raise RuntimeError(LOST)

    client.services.supervisor.factory.device.memory = fail
    status, _, body = await client.call("GET", "/status")
    assert (status, body["device"]["free"]) == (200, None)
    async with client.http.get(client.url + "/metrics") as response:
        assert response.status == 200


async def test_a_queue_that_ends_unexpectedly_stops_the_service(client, monkeypatch):
    def fail(model):
        raise LookupError("a defect")

    monkeypatch.setattr(client.services.queue, "_next", lambda: fail(1))
    client.services.queue.wake()
    await asyncio.wait_for(client.services.supervisor.has_failed.wait(), 60)
    assert str(client.services.supervisor.failure) == "the queue ended unexpectedly: LookupError: a defect"


async def see_steps(client):
    async with client.http.post(
        client.url + "/generate", json={"prompt": "a cat", "steps": 20}, headers={"Accept": "text/event-stream"}
    ) as response:
        await response.read()


async def verify(client):
    await client.call("POST", "/api/verify")


async def look(client):
    await client.call("GET", "/status")


@pytest.mark.parametrize(
    ("ask", "broken"),
    [
        (see_steps, "zwatch.generation.previews.preview_file"),
        (verify, "zwatch.engine.pipeline.Engine.verify_resident"),
        (look, "zwatch.shadow.device.Device.memory"),
    ],
)
async def test_a_device_that_is_lost_outside_of_a_generation_stops_the_service_too(start, monkeypatch, ask, broken):
    def fail(*args):
        raise torch.AcceleratorError(LOST)

    async with start() as client:
        await client.serves()
        client.services.queue.generator.preview_share = float("inf")
        client.services.supervisor.factory.device.lost = lambda: LOST
        monkeypatch.setattr(broken, fail)
        await ask(client)
        await asyncio.wait_for(client.services.supervisor.has_failed.wait(), 30)
        assert client.services.supervisor.failure.ending is Ending.DEVICE_LOST


async def test_a_device_that_is_lost_while_nobody_draws_stops_the_service(start, monkeypatch):
    monkeypatch.setattr("zwatch.rollout.device_judge.CHECK_SECONDS", 0.05)
    async with start() as client:
        await client.serves()
        client.services.supervisor.factory.device.lost = lambda: "CUDA error: GPU is lost"
        await asyncio.wait_for(client.services.supervisor.has_failed.wait(), 30)
