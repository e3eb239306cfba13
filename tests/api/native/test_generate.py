"""`POST /generate`, over HTTP, with real engines."""

import asyncio
import base64
import io
import json
import re

import pytest
from PIL import Image

from zwatch.generation.image_details import read_details

PIXELS = 64


async def test_the_answer_is_an_image_with_the_request_and_the_version_in_its_metadata(client):
    headers, body = await client.png(seed=42)
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


async def test_a_chinese_prompt_is_stored_intact(client):
    _, body = await client.png(prompt="一只戴墨镜的猫")
    with Image.open(io.BytesIO(body)) as image:
        assert image.text["parameters"].startswith("一只戴墨镜的猫")


@pytest.mark.parametrize("image_format", ["jpeg", "webp"])
async def test_jpeg_and_webp_have_the_same_metadata_in_exif(client, image_format):
    headers, body = await client.png(seed=1, format=image_format)
    assert headers["Content-Type"] == f"image/{image_format}"
    with Image.open(io.BytesIO(body)) as image:
        comment = image.getexif().get_ifd(0x8769)[0x9286]  # where A1111 writes it, and looks for it
    assert comment.startswith(b"UNICODE\0")
    assert comment[8:].decode("utf-16-be").startswith("a cat\nSteps: 8, ")
    details = read_details(body)
    assert (details.version, details.request["prompt"]) == ("v1", "a cat")


@pytest.mark.parametrize(
    ("accept", "body", "kind"),
    [
        ("image/jpeg", {}, "jpeg"), ("image/webp", {}, "webp"), ("image/png", {}, "png"), ("image/*", {}, "png"),
        ("*/*", {}, "png"), ("image/avif", {}, "png"), ("image/jpg", {}, "jpeg"), ("IMAGE/WebP ; q=1", {}, "webp"),
        ("image/avif,image/webp,image/*;q=0.8,*/*;q=0.5", {}, "webp"), ("image/png;q=0.5, image/jpeg;q=0.9", {}, "jpeg"),
        ("image/webp;q=0, image/*", {}, "png"), ("image/jpeg", {"format": "webp"}, "webp"),
        ("image/jpeg", {"format": "png"}, "png"),
    ],
)  # fmt: skip
async def test_accept_chooses_the_format_that_the_body_does_not(client, accept, body, kind):
    sent = {"prompt": "a cat", "steps": 1, "seed": 5, **body}
    async with client.http.post(client.url + "/generate", json=sent, headers={"Accept": accept}) as response:
        assert (response.status, response.headers["Content-Type"]) == (200, f"image/{kind}")
        with Image.open(io.BytesIO(await response.read())) as image:
            assert image.format == kind.upper()
        suffix = {"jpeg": "jpg"}.get(kind, kind)
        assert re.fullmatch(
            rf'inline; filename="[0-9]{{8}}_[0-9]{{6}}_seed5(_[0-9]+)?\.{suffix}"',
            response.headers["Content-Disposition"],
        )


async def test_an_image_is_saved_under_the_same_name_from_everywhere(client):
    headers, _ = await client.png(seed=42)
    [listed] = (await client.call("GET", "/history"))[2]["images"]
    assert headers["Content-Disposition"] == f'inline; filename="{listed["name"]}"'
    async with client.http.get(client.url + listed["url"]) as response:
        assert response.headers["Content-Disposition"] == headers["Content-Disposition"]


async def test_an_image_that_no_history_keeps_has_a_name_too(start):
    async with start(history=False) as client:
        await client.serves()
        headers, _ = await client.png(seed=42)
        assert headers["Content-Disposition"].endswith('_seed42.png"')
        _, _, job = await client.call("POST", "/jobs", json={"prompt": "a cat", "seed": 7, "n": 2, "format": "jpeg"})
        while (found := (await client.call("GET", f"/jobs/{job['id']}"))[2])["state"] != "done":
            await asyncio.sleep(0.01)
        async with client.http.get(client.url + found["images"][1]["url"]) as response:
            assert response.headers["Content-Disposition"].endswith('_seed8.jpg"')


async def test_curl_saves_an_image_under_its_name(client, tmp_path):
    command = [
        "curl",
        "-sSOJ",
        "--json",
        '{"prompt": "a cat", "seed": 42}',
        "-H",
        "Accept: image/*",
        f"{client.url}/generate",
    ]
    process = await asyncio.create_subprocess_exec(*command, cwd=tmp_path)
    assert await process.wait() == 0
    [name] = [path.name for path in tmp_path.glob("*_seed42.png")]
    assert name == (await client.call("GET", "/history"))[2]["images"][0]["name"]


async def test_the_same_seed_gives_the_same_bytes_and_another_seed_different_bytes(client):
    first, again, other = [(await client.png(seed=seed))[1] for seed in (7, 7, 8)]
    assert first == again
    assert first != other


async def test_a_json_answer_has_n_images_each_with_its_seed(client):
    body = {"prompt": "a cat", "seed": 10, "n": 3, "width": 96, "height": 48}
    status, _, found = await client.call("POST", "/generate", json=body, headers={"Accept": "application/json"})
    assert (status, found["version"], found["model"], found["truncated"]) == (200, "v1", "current", False)
    assert [image["seed"] for image in found["images"]] == [10, 11, 12]
    files = [base64.b64decode(image["b64_json"]) for image in found["images"]]
    with Image.open(io.BytesIO(files[0])) as image:
        assert image.size == (96, 48)
    alone = (await client.png(seed=11, width=96, height=48))[1]
    with Image.open(io.BytesIO(files[1])) as one, Image.open(io.BytesIO(alone)) as other:
        assert one.tobytes() == other.tobytes()
    assert found["timings"].keys() == {"queue", "encode", "denoise", "decode", "write", "total"}


async def test_the_content_type_of_a_json_body_is_ignored(client):
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    async with client.http.post(client.url + "/generate", data=b'{"prompt": "x"}', headers=headers) as response:
        assert response.status == 200


async def test_several_images_need_a_json_answer(client):
    error = await client.error("/generate", {"prompt": "x", "n": 2}, 400)
    assert error["param"] == "n"
    assert "Accept: application/json" in error["message"]


async def test_a_prompt_that_is_too_long_is_reported_as_truncated(client):
    body = {"prompt": "cat " * 700}
    _, _, found = await client.call("POST", "/generate", json=body, headers={"Accept": "application/json"})
    assert found["truncated"] is True


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("character", ["a", "\U0001f600"])
async def test_the_longest_prompts_fit_into_the_metadata_of_every_format(client, image_format, character):
    await client.png(prompt=character * 10_000, negative_prompt=character * 10_000, format=image_format)


async def test_a_request_may_name_a_resident_version_only(client):
    headers, _ = await client.png(model="v1")
    assert headers["X-Zwatch-Version"] == "v1"
    error = await client.error("/generate", {"prompt": "x", "model": "v9"}, 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")


async def test_a_side_beyond_the_versions_maximum_is_a_400(client):
    engine = client.services.engines.serving("current").engine
    error = await client.error("/generate", {"prompt": "x", "width": engine.max_side + 16}, 400)
    assert error["param"] == "width"
    assert str(engine.max_side) in error["message"]


async def test_a_full_queue_answers_429_immediately(start):
    async with start(queue=2) as client:
        await client.serves()
        slow = [asyncio.create_task(client.png(seed=seed, steps=40)) for seed in range(3)]
        while client.services.queue.waiting < 2:
            await asyncio.sleep(0.005)
        status, headers, answer = await client.call("POST", "/generate", json={"prompt": "x"})
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        assert int(headers["Retry-After"]) >= 1
        assert not any(task.done() for task in slow[1:]), "it did not wait for a place"
        assert len(await asyncio.gather(*slow)) == 3


async def test_a_client_that_disconnects_stops_its_request_between_two_steps(client):
    queue = client.services.queue
    leaving = asyncio.create_task(client.png(steps=100, width=512, height=512))
    while queue.running is None or queue.running.step < 1:
        await asyncio.sleep(0.005)
    job = queue.running
    leaving.cancel()
    while queue.running is job:
        await asyncio.sleep(0.005)
    assert 1 <= job.step < 100
    assert client.services.engines.serving("current").leases == 0
    await client.png()


async def test_a_waiting_client_that_disconnects_leaves_the_queue(client):
    queue = client.services.queue
    running = asyncio.create_task(client.png(steps=60))
    while queue.running is None:
        await asyncio.sleep(0.005)
    waiting = asyncio.create_task(client.png(model="v1"))
    while queue.waiting < 1:
        await asyncio.sleep(0.005)
    waiting.cancel()
    while queue.waiting:
        await asyncio.sleep(0.005)
    await running
    assert client.services.engines.serving("current").leases == 0


async def test_a_request_that_takes_longer_than_the_timeout_is_a_504(start):
    async with start(timeout=0.2) as client:
        await client.serves()
        error = await client.error("/generate", {"prompt": "x", "steps": 100, "width": 512, "height": 512}, 504)
        assert error["code"] == "timeout"
        await client.services.queue.drained()


async def test_a_failed_generation_is_a_500_and_the_next_request_succeeds(client):
    with client.failing():
        status, headers, answer = await client.call("POST", "/generate", json={"prompt": "x"})
    assert (status, answer["error"]["code"], headers["x-should-retry"]) == (500, "generation_failed", "false")
    await client.png()


async def test_other_calls_are_answered_while_an_image_is_generated_and_a_version_loads(client):
    slow = asyncio.create_task(client.png(steps=60, width=256, height=256))
    deploy = asyncio.create_task(client.call("POST", "/api/deploy", json={"version": "v2"}))
    answers = 0
    while not slow.done():
        await client.call("GET", "/health/live")
        answers += 1
    assert answers > 10
    assert (await deploy)[0] == 200
    headers, _ = await slow
    assert headers["X-Zwatch-Version"] in ("v1", "v2")
