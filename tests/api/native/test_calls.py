"""The native calls, over real HTTP, with real engines."""

import asyncio
import base64
import io
import json
import socket
import time
import traceback

import pytest
from PIL import Image

from zwatch.api.native.deploy import UNLOADING
from zwatch.generation.image_details import read_details

PIXELS = 64


async def png(client, **fields):
    async with client.http.post(client.url + "/generate", json={"prompt": "a cat", **fields}) as response:
        assert response.status == 200, await response.text()
        return response.headers, await response.read()


async def test_the_answer_is_an_image_that_says_what_made_it(client):
    headers, body = await png(client, seed=42)
    digest = client.services.engines.serving("current").key.digest
    assert headers["Content-Type"] == "image/png"
    assert (headers["X-Zwatch-Version"], headers["X-Zwatch-Digest"], headers["X-Zwatch-Seed"]) == ("v1", digest, "42")
    assert headers["X-Zwatch-Job"].startswith("j-")
    with Image.open(io.BytesIO(body)) as image:
        assert image.size == (PIXELS, PIXELS)
        assert image.text["zwatch_version"] == "v1"
        assert image.text["zwatch_digest"] == digest
        assert "Seed: 42" in image.text["parameters"]
        assert json.loads(image.text["zwatch_request"])["prompt"] == "a cat"


async def test_chinese_survives_in_the_file(client):
    _, body = await png(client, prompt="一只戴墨镜的猫")
    with Image.open(io.BytesIO(body)) as image:
        assert image.text["parameters"].startswith("一只戴墨镜的猫")


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
async def test_other_formats_carry_the_same_in_exif(client, image_format):
    headers, body = await png(client, seed=1, format=image_format)
    assert headers["Content-Type"] == f"image/{image_format}"
    with Image.open(io.BytesIO(body)) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]  # where A1111 writes it, and looks for it
    assert comment.startswith(b"UNICODE\0")
    assert comment[8:].decode("utf-16-be").startswith("a cat\nSteps: 8, ")
    details = read_details(body)
    assert (details.version, details.request["prompt"]) == ("v1", "a cat")


async def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(client):
    first, again, other = [(await png(client, seed=seed))[1] for seed in (7, 7, 8)]
    assert first == again
    assert first != other


async def test_json_has_n_images_each_with_its_seed(client):
    body = {"prompt": "a cat", "seed": 10, "n": 3, "width": 96, "height": 48}
    status, _, found = await client.call("POST", "/generate", json=body, headers={"Accept": "application/json"})
    assert (status, found["version"], found["model"], found["truncated"]) == (200, "v1", "current", False)
    assert [image["seed"] for image in found["images"]] == [10, 11, 12]
    files = [base64.b64decode(image["b64_json"]) for image in found["images"]]
    with Image.open(io.BytesIO(files[0])) as image:
        assert image.size == (96, 48)
    alone = (await png(client, seed=11, width=96, height=48))[1]
    with Image.open(io.BytesIO(files[1])) as one, Image.open(io.BytesIO(alone)) as other:
        assert one.tobytes() == other.tobytes()
    assert found["timings"].keys() == {"queue", "encode", "denoise", "decode", "write", "total"}


async def test_curl_needs_no_content_type(client):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    async with client.http.post(client.url + "/generate", data=b'{"prompt": "x"}', headers=headers) as response:
        assert response.status == 200


async def test_several_images_in_an_image_answer_are_refused_with_advice(client):
    error = await client.error("/generate", {"prompt": "x", "n": 2}, 400)
    assert error["param"] == "n"
    assert "Accept: application/json" in error["message"]


async def test_a_long_prompt_is_served_and_said_to_be_cut(client):
    body = {"prompt": "cat " * 700}
    _, _, found = await client.call("POST", "/generate", json=body, headers={"Accept": "application/json"})
    assert found["truncated"] is True


async def test_a_request_may_name_a_resident_version_but_no_other(client):
    headers, _ = await png(client, model="v1")
    assert headers["X-Zwatch-Version"] == "v1"
    error = await client.error("/generate", {"prompt": "x", "model": "v9"}, 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")


async def test_a_side_that_the_version_has_no_positions_for_is_a_400(client):
    engine = client.services.engines.serving("current").engine
    error = await client.error("/generate", {"prompt": "x", "width": engine.max_side + 16}, 400)
    assert error["param"] == "width"
    assert str(engine.max_side) in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/generate", b"{", 400, "invalid_json"),
        ("POST", "/generate", b'{"prompt": "x", "colour": 1}', 400, "unknown_field"),
        ("POST", "/generate", b'{"prompt": "' + b"x" * 2**20 + b'"}', 413, "payload_too_large"),
        ("GET", "/generate", None, 405, "method_not_allowed"),
        ("GET", "/nothing", None, 404, "not_found"),
        ("POST", "/api/deploy", b"{}", 400, "invalid_value"),
        ("POST", "/api/deploy", b'{"version": "../v1"}', 404, "not_found"),
        ("POST", "/api/deploy", b'{"version": "v2", "alias": "stable"}', 404, "not_found"),
        ("POST", "/api/deploy", b'{"version": "v2", "wait": "no"}', 400, "invalid_value"),
        ("POST", "/api/rollback", b"", 409, "rejected"),
        ("POST", "/api/unload_model", b'{"now": true}', 400, "unknown_field"),
    ],
)
async def test_errors_have_one_shape(client, method, path, body, status, code):
    data = None if body is None else io.BytesIO(body)
    found, headers, answer = await client.call(method, path, data=data)
    assert (found, answer["error"]["code"]) == (status, code)
    assert answer["error"].keys() == {"message", "type", "param", "code"}
    assert headers["X-Request-Id"]


async def test_the_clients_own_request_id_comes_back(client):
    _, headers, _ = await client.call("GET", "/status", headers={"X-Request-Id": "mine-7"})
    assert headers["X-Request-Id"] == "mine-7"
    _, headers, _ = await client.call("GET", "/status", headers={"X-Request-Id": "not\tsane"})
    assert headers["X-Request-Id"] != "not\tsane"


async def test_a_full_queue_answers_429_at_once(start):
    async with start(queue=2) as client:
        await client.serves()
        slow = [asyncio.create_task(png(client, seed=seed, steps=40)) for seed in range(3)]
        while client.services.queue.waiting < 2:
            await asyncio.sleep(0.005)
        status, headers, answer = await client.call("POST", "/generate", json={"prompt": "x"})
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        assert int(headers["Retry-After"]) >= 1
        assert not any(task.done() for task in slow[1:]), "it did not wait for a place"
        assert len(await asyncio.gather(*slow)) == 3


async def test_a_client_that_leaves_stops_its_request_between_two_steps(client):
    queue = client.services.queue
    leaving = asyncio.create_task(png(client, steps=100, width=512, height=512))
    while queue.running is None or queue.running.step < 1:
        await asyncio.sleep(0.005)
    job = queue.running
    leaving.cancel()
    while queue.running is job:
        await asyncio.sleep(0.005)
    assert 1 <= job.step < 100
    assert client.services.engines.serving("current").leases == 0
    await png(client)


async def test_a_waiting_client_that_leaves_gives_its_place_back(client):
    queue = client.services.queue
    running = asyncio.create_task(png(client, steps=60))
    while queue.running is None:
        await asyncio.sleep(0.005)
    waiting = asyncio.create_task(png(client, model="v1"))
    while queue.waiting < 1:
        await asyncio.sleep(0.005)
    waiting.cancel()
    while queue.waiting:
        await asyncio.sleep(0.005)
    await running
    assert client.services.engines.serving("current").leases == 0


async def test_a_request_beyond_its_own_limit_is_a_504(start):
    async with start(timeout=0.2) as client:
        await client.serves()
        error = await client.error("/generate", {"prompt": "x", "steps": 100, "width": 512, "height": 512}, 504)
        assert error["code"] == "timeout"
        await client.services.queue.drained()


async def test_a_generation_that_fails_is_a_500_and_the_service_goes_on(client):
    engine = client.services.engines.serving("current").engine
    transformer = engine._pipeline.transformer
    whole = transformer.layers[0].feed_forward.w1.weight.data
    transformer.layers[0].feed_forward.w1.weight.data = whole[:, :1]
    status, headers, answer = await client.call("POST", "/generate", json={"prompt": "x"})
    assert (status, answer["error"]["code"], headers["x-should-retry"]) == (500, "generation_failed", "false")
    transformer.layers[0].feed_forward.w1.weight.data = whole
    await png(client)


async def test_the_event_loop_answers_while_an_image_is_made_and_a_version_loads(client):
    slow = asyncio.create_task(png(client, steps=60, width=256, height=256))
    deploy = asyncio.create_task(client.call("POST", "/api/deploy", json={"version": "v2"}))
    answers = 0
    while not slow.done():
        await client.call("GET", "/health/live")
        answers += 1
    assert answers > 10
    assert (await deploy)[0] == 200
    headers, _ = await slow
    assert headers["X-Zwatch-Version"] in ("v1", "v2")


async def test_live_answers_before_the_engine_and_ready_only_with_it(start):
    async with start() as client:
        assert client.services.supervisor.factory is None, "nothing was imported yet"
        assert (await client.call("GET", "/health/live"))[0] == 200
        status, headers, body = await client.call("POST", "/generate", json={"prompt": "x"})
        if client.services.engines.serving("current") is None:
            assert (status, body["error"]["code"], headers["Retry-After"]) == (503, "model_not_loaded", "2")
        await client.serves()
        assert (await client.call("GET", "/health/ready"))[0] == 200
        assert (await client.call("GET", "/health"))[2] == {"status": "ok", "version": "v1", "reasons": []}


async def test_events_begin_with_the_status_and_tell_of_a_deploy(client):
    seen = []
    async with client.http.get(client.url + "/events") as response:
        assert response.content_type == "text/event-stream"
        deploy = asyncio.create_task(client.call("POST", "/api/deploy", json={"version": "v2"}))
        while not (
            any(event == "serving" and data["version"] == "v2" for event, data in seen)
            and any(event == "attempt" and data["state"] == "PROMOTED" for event, data in seen)
            and any(event == "alias" and data["serving"] == "v2" for event, data in seen)
        ):
            event = (await asyncio.wait_for(response.content.readline(), 30)).decode().strip()
            if event.startswith("event: "):
                data = (await response.content.readline()).decode().removeprefix("data: ")
                seen.append((event.removeprefix("event: "), json.loads(data)))
        await deploy
    assert seen[0][0] == "status"
    assert seen[0][1]["serving"]["version"] == "v1"


async def test_events_tell_that_nothing_serves_any_more(client):
    async with client.http.get(client.url + "/events") as response:
        await response.content.readuntil(b"\n\n")
        unload = asyncio.create_task(client.call("POST", "/api/unload_model"))
        while await asyncio.wait_for(response.content.readline(), 30) != b"event: serving\n":
            pass
        assert await response.content.readline() == b"data: null\n"
        await unload


async def test_a_newer_wish_ends_an_unload_at_once_also_while_requests_go_on(client):
    """It used to refuse requests until the last accepted one was done, or to wait for ever if new ones came."""
    body = {"prompt": "a cat", "steps": 100, "n": 16, "width": 256, "height": 256}
    headers = {"Accept": "application/json"}
    making = asyncio.create_task(client.call("POST", "/generate", json=body, headers=headers))
    while client.services.queue.running is None:
        await client.services.supervisor.changes.wait()
    unloading = asyncio.create_task(client.call("POST", "/api/unload_model"))
    while client.services.queue._closed is None:
        await asyncio.sleep(0.01)
    kept = set()
    for _ in range(3):
        assert (await client.error("/generate", {"prompt": "x"}, 503))["message"] == "the model is unloaded"
        kept.add(len(traceback.extract_tb(UNLOADING.__traceback__)))
    assert len(kept) == 1, "what is raised again and again must not keep every request's frames"
    (client.services.models / ".new").symlink_to("v2")
    (client.services.models / ".new").rename(client.services.models / "current")
    assert (await asyncio.wait_for(unloading, 20))[0] == 409
    assert client.services.queue._closed is None
    assert not making.done()
    making.cancel()
    await client.serves("v2")


async def test_a_link_made_just_before_an_unload_is_the_older_wish(client):
    """The unload used to take the link, which it saw only then, for the newer one."""
    (client.services.models / ".new").symlink_to("v2")
    (client.services.models / ".new").rename(client.services.models / "current")
    status, _, body = await client.call("POST", "/api/unload_model")
    assert (status, body) == (200, {"status": "success", "message": "Model unloaded from memory"})
    await client.services.supervisor.look_now()
    _, _, status = await client.call("GET", "/status")
    assert (status["serving"], status["engines"]) == (None, [])
    assert status["aliases"]["current"]["unloaded"]


async def test_verify_hashes_what_serves_and_names_a_file_that_changed(client):
    status, _, body = await client.call("POST", "/api/verify")
    assert (status, body["version"]) == (200, "v1")
    engine = client.services.engines.serving("current").engine
    assert body["bytes"] == engine.nbytes
    weight = engine._pipeline.transformer.layers[0].feed_forward.w1.weight
    before = weight.data[0, 0].item()
    weight.data[0, 0] = before + 1
    status, _, body = await client.call("POST", "/api/verify")
    assert status == 409
    assert "transformer/diffusion_pytorch_model.safetensors" in body["error"]["message"]
    weight.data[0, 0] = before
    assert (await client.call("POST", "/api/verify"))[0] == 200


async def test_verifying_waits_while_versions_change_places(client):
    engines = client.services.engines
    ours = engines.begin_exchange(engines.serving("current").key)
    verifying = asyncio.create_task(client.call("POST", "/api/verify"))
    await asyncio.sleep(0.1)
    assert (await client.call("GET", "/status"))[0] == 200
    assert not verifying.done()
    ours.release()
    engines.end_exchange()
    assert (await asyncio.wait_for(verifying, 10))[0] == 200


async def test_the_status_can_be_had_while_the_load_begins_another_phase(client):
    phases = client.services.supervisor.attempt("current").control.phases

    class Begun(float):
        def __round__(self, digits):
            phases["another"] = 0.0
            return round(float(self), digits)

    phases["read"] = Begun(1.0)
    assert (await client.call("GET", "/status"))[0] == 200


async def test_the_status_has_every_field_that_the_interface_shows(client):
    _, _, status = await client.call("GET", "/status")
    assert {"status", "serving", "aliases", "engines", "strays", "queue", "device", "uptime"} <= status.keys()
    assert status["serving"].keys() == {"version", "digest", "since", "images"}
    attempt = status["aliases"]["current"]["attempt"]
    fields = {
        "version",
        "digest",
        "state",
        "code",
        "reason",
        "started",
        "seconds",
        "bytes",
        "progress",
        "phases",
        "shared",
    }
    assert fields | {"way", "held"} <= attempt.keys()
    assert {"read", "verify", "build", "warm", "promote"} == attempt["phases"].keys()
    assert status["engines"][0].keys() >= {"version", "state", "leases", "bytes"}
    assert status["queue"] == {"waiting": 0, "running": 0, "limit": 64}
    _, _, versions = await client.call("GET", "/versions")
    fields = {
        "name",
        "sealed",
        "digest",
        "header_version",
        "bytes",
        "files",
        "resident",
        "serving",
        "aliases",
        "sealed_at",
    }
    assert all(fields <= one.keys() for one in versions["versions"])
    assert [one["header_version"] for one in versions["versions"]] == ["v1", "v2"]


async def test_a_body_that_does_not_arrive_is_a_408(client, monkeypatch):
    monkeypatch.setattr("zwatch.api.answers.BODY_SECONDS", 0.1)
    reader, writer = await asyncio.open_connection(*client.url.removeprefix("http://").split(":"))
    writer.write(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
    assert b" 408 " in await reader.readline()
    writer.close()
    await writer.wait_closed()


async def test_a_torn_request_does_no_harm(client):
    host, port = client.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as torn:
        torn.sendall(b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: 50\r\n\r\n{")
    begun = time.monotonic()
    await png(client)
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("character", ["a", "\U0001f600"])
async def test_the_longest_prompts_fit_into_every_format(client, image_format, character):
    await png(client, prompt=character * 10_000, negative_prompt=character * 10_000, format=image_format)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_a_body_that_is_not_what_its_content_encoding_says_is_the_clients_fault(client, encoding):
    head = (
        f"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: {encoding}\r\nContent-Length: 5\r\n\r\nhello"
    )
    assert await first_line(client, head.encode()) == b"HTTP/1.1 400 Bad Request"


@pytest.mark.parametrize(
    ("header", "status"),
    [(b"Authorization: Bearer \xff", 200), (b"Authorization: Basic \xc3\xa9", 200), (b"Origin: http://[", 403)],
)
async def test_odd_bytes_in_headers_are_no_error_of_ours(client, header, status):
    head = b"POST /api/load_model HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n" + header + b"\r\n\r\n"
    assert (await first_line(client, head)).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize("header", [b"Authorization: Bearer \xff", b"Authorization: Basic \xc3\xa9"])
async def test_odd_bytes_in_a_token_are_a_wrong_token(start, header):
    async with start(token="secret") as client:
        line = await first_line(client, b"GET /status HTTP/1.1\r\nHost: localhost\r\n" + header + b"\r\n\r\n")
    assert line == b"HTTP/1.1 401 Unauthorized"


async def first_line(client, request: bytes) -> bytes:
    host, _, port = client.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    try:
        return (await asyncio.wait_for(reader.readline(), 10)).rstrip()
    finally:
        writer.close()


async def test_the_last_change_is_streamed_at_once(client):
    """What changed while an event was sent, or in the pause after it, used to wait for the next one, or 10 s."""
    async with client.http.get(client.url + "/events") as stream:
        await stream.content.readuntil(b"\n\n")
        await asyncio.sleep(0.3)  # the stream waits for a change now
        await png(client, steps=60)  # longer than the pause between two events
        async with asyncio.timeout(9):
            while b'"running": 1' not in await stream.content.readuntil(b"\n\n"):
                pass
            while b'"running": 0' not in await stream.content.readuntil(b"\n\n"):
                pass
