"""Unloading and verifying, over HTTP, with real engines."""

import asyncio
import traceback

from zwatch.api.native.deploy import UNLOADING
from zwatch.errors import RequestError


def is_closed(client):
    """Return whether the queue refuses requests."""
    try:
        client.services.queue.refuse_if_full()
    except RequestError:
        return True
    return False


async def test_a_newer_link_ends_an_unload_immediately_while_requests_still_run(client):
    body = {"prompt": "a cat", "steps": 100, "n": 16, "width": 256, "height": 256}
    headers = {"Accept": "application/json"}
    making = asyncio.create_task(client.call("POST", "/generate", json=body, headers=headers))
    while client.services.queue.running is None:
        await client.services.supervisor.changes.wait()
    unloading = asyncio.create_task(client.call("POST", "/api/unload_model"))
    while not is_closed(client):
        await asyncio.sleep(0.01)
    kept = set()
    for _ in range(3):
        assert (await client.error("/generate", {"prompt": "x"}, 503))["message"] == str(UNLOADING)
        kept.add(len(traceback.extract_tb(UNLOADING.__traceback__)))
    assert len(kept) == 1, "an error that is raised repeatedly must not keep the frames of every request"
    (client.services.models / ".new").symlink_to("v2")
    (client.services.models / ".new").rename(client.services.models / "current")
    assert (await asyncio.wait_for(unloading, 20))[0] == 409
    assert not is_closed(client)
    assert not making.done()
    making.cancel()
    await client.serves("v2")


async def test_an_unload_prevails_over_a_link_made_just_before(client):
    """The supervisor first sees the link during the unload: it must not take it for a newer one."""
    (client.services.models / ".new").symlink_to("v2")
    (client.services.models / ".new").rename(client.services.models / "current")
    status, _, body = await client.call("POST", "/api/unload_model")
    assert (status, body) == (200, {"status": "success", "message": "Model unloaded from memory"})
    await client.services.supervisor.look_now()
    _, _, status = await client.call("GET", "/status")
    assert (status["serving"], status["engines"]) == (None, [])
    assert status["aliases"]["current"]["unloaded"]


async def test_verify_hashes_the_serving_version_and_names_a_file_that_differs(client):
    status, _, body = await client.call("POST", "/api/verify")
    assert (status, body["version"]) == (200, "v1")
    engine = client.services.engines.serving("current").engine
    assert body["bytes"] == engine.nbytes
    weight = client.weight()
    before = weight.data[0, 0].item()
    weight.data[0, 0] = before + 1
    status, _, body = await client.call("POST", "/api/verify")
    assert status == 409
    assert "transformer/diffusion_pytorch_model.safetensors" in body["error"]["message"]
    weight.data[0, 0] = before
    assert (await client.call("POST", "/api/verify"))[0] == 200


async def test_verify_waits_while_two_versions_are_exchanged(client):
    engines = client.services.engines
    ours = engines.begin_exchange(engines.serving("current").key)
    verifying = asyncio.create_task(client.call("POST", "/api/verify"))
    await asyncio.sleep(0.1)
    assert (await client.call("GET", "/status"))[0] == 200
    assert not verifying.done()
    ours.release()
    engines.end_exchange()
    assert (await asyncio.wait_for(verifying, 60))[0] == 200


async def test_a_version_with_its_text_encoder_in_host_memory_is_told_verified_and_swapped(start):
    async with start(text_encoder="host") as client:
        await client.serves()
        _, _, status = await client.call("GET", "/status")
        [engine] = status["engines"]
        assert (engine["text_encoder"], engine["host_bytes"] > 0) == ("host", True)
        assert (await client.call("POST", "/api/verify"))[2]["bytes"] == engine["bytes"] + engine["host_bytes"]
        status, _, _ = await client.call("POST", "/api/deploy", json={"version": "v2"})
        assert status == 200
        assert (await client.png(width=64, height=64, steps=1))[0]["X-Zwatch-Version"] == "v2"
        _, _, status = await client.call("GET", "/status")
        assert status["aliases"]["current"]["attempt"]["shared"] == ["text_encoder", "vae"]
