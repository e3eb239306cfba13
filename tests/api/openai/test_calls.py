"""OpenAI's calls over HTTP."""

import asyncio
import base64
import io
import json

from PIL import Image

from zwatch.api.services import TimeLimits

PATH = "/v1/images/generations"
SLOW = {"prompt": "a cat", "num_inference_steps": 100, "n": 10, "size": "256x256"}
ZEROS = {
    "input_tokens": 0,
    "input_tokens_details": {"text_tokens": 0, "image_tokens": 0},
    "output_tokens": 0,
    "total_tokens": 0,
}


async def generate(client, headers=None, **fields):
    """Return (headers, body) of a successful answer."""
    status, found, body = await client.call("POST", PATH, json={"prompt": "a cat", **fields}, headers=headers or {})
    assert status == 200, body
    return found, body


def opened(b64_json):
    return Image.open(io.BytesIO(base64.b64decode(b64_json)))


async def test_the_answer_is_openais_with_the_serving_version_added(client):
    headers, body = await generate(client, seed=42, n=2, size="96x64")
    digest = client.services.engines.serving("current").key.digest
    assert (headers["X-Zwatch-Version"], headers["X-Zwatch-Digest"], headers["X-Zwatch-Seed"]) == ("v1", digest, "42")
    assert isinstance(body.pop("created"), int)
    data = body.pop("data")
    assert body.pop("id") == headers["X-Zwatch-Job"]
    assert body == {
        "background": "opaque", "quality": "high", "output_format": "png", "size": "96x64", "usage": ZEROS,
        "version": "v1", "digest": digest, "share": None, "model": "current", "truncated": False,
    }  # fmt: skip
    assert [image["seed"] for image in data] == [42, 43]
    # No url: some clients fetch it whenever there is one.
    assert [image.keys() for image in data] == [{"seed", "b64_json"}] * 2
    with opened(data[0]["b64_json"]) as image:
        assert (image.format, image.size) == ("PNG", (96, 64))
        assert image.text["zwatch_version"] == "v1"


async def test_the_image_equals_that_of_the_native_call_without_guidance(client):
    _, body = await generate(client, seed=7)
    native = {"prompt": "a cat", "seed": 7, "guidance_scale": 0.0, "width": 64, "height": 64}
    async with client.http.post(client.url + "/generate", json=native) as response:
        made = await response.read()
    with opened(body["data"][0]["b64_json"]) as ours, Image.open(io.BytesIO(made)) as theirs:
        assert ours.tobytes() == theirs.tobytes()
        assert json.loads(ours.text["zwatch_request"])["guidance_scale"] == 0.0
    _, body = await generate(client, seed=7, guidance_scale=4)
    with opened(body["data"][0]["b64_json"]) as guided:
        assert json.loads(guided.text["zwatch_request"])["guidance_scale"] == 4.0


async def test_a_transparent_background_is_answered_as_opaque(client):
    _, body = await generate(client, background="transparent", quality="hd", style="vivid")
    assert (body["background"], body["quality"]) == ("opaque", "high")
    with opened(body["data"][0]["b64_json"]) as image:
        assert image.mode == "RGB"


async def test_a_lower_compression_level_makes_a_smaller_file(client):
    for output_format in ("jpeg", "webp"):
        sizes = []
        for level in (0, 100):
            _, body = await generate(client, output_format=output_format, output_compression=level, seed=1)
            assert body["output_format"] == output_format
            sizes.append(len(body["data"][0]["b64_json"]))
            with opened(body["data"][0]["b64_json"]) as image:
                assert image.format == output_format.upper()
        assert sizes[0] < sizes[1]


async def test_urls_lead_to_the_history(client):
    _, body = await generate(client, response_format="url", n=2, seed=3, output_format="webp")
    for image, seed in zip(body["data"], (3, 4), strict=True):
        assert (image.keys(), image["seed"]) == ({"url", "seed"}, seed)
        assert image["url"].startswith(f"{client.url}/history/")
        async with client.http.get(image["url"]) as response:
            assert (response.status, response.content_type) == (200, "image/webp")


async def test_urls_work_without_a_history_too(start):
    async with start(history=False) as client:
        await client.serves()
        headers, body = await generate(client, response_format="url")
        [image] = body["data"]
        assert image["url"] == f"{client.url}/jobs/{headers['X-Zwatch-Job']}/images/0"
        async with client.http.get(image["url"]) as response:
            assert (response.status, response.content_type) == (200, "image/png")


async def test_urls_have_the_host_that_the_client_used_and_the_scheme_of_a_proxy(start):
    async with start(allowed_hosts=("pictures.example",)) as client:
        await client.serves()
        for forwarded, scheme in (("https", "https"), ("https, http", "https"), ("javascript", "http"), ("", "http")):
            said = {"X-Forwarded-Proto": forwarded, "X-Forwarded-Host": "evil.example"}
            _, body = await generate(client, {"Host": "pictures.example:8443", **said}, response_format="url")
            assert body["data"][0]["url"].startswith(f"{scheme}://pictures.example:8443/history/")


async def test_a_url_needs_the_token(start):
    async with start(token="secret") as client:
        await client.serves()
        headers = {"Authorization": "Bearer secret"}
        _, body = await generate(client, headers, response_format="url")
        url = body["data"][0]["url"]
        async with client.http.get(url) as response:
            assert response.status == 401
        async with client.http.get(url, headers=headers) as response:
            assert response.status == 200


async def test_an_unknown_model_is_served_by_current_and_the_answer_says_so(client):
    for model in (None, "gpt-image-1", "dall-e-3", "openai/gpt-image-2", "../v1", "", "v9"):
        headers, body = await generate(client, model=model)
        assert (body["model"], body["version"], headers["X-Zwatch-Version"]) == ("current", "v1", "v1")


async def test_a_share_that_is_not_there_is_a_404_and_never_current(client):
    for model in ("current@50", "current@", "current@half"):
        error = await client.error(PATH, {"prompt": "x", "model": model}, 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert error["message"] == f"current has no share {model!r} at present, see /status"
        assert (await client.error("/generate", {"prompt": "x", "model": model}, 404))["message"] == error["message"]
    _, body = await generate(client, model="stranger@50")
    assert body["model"] == "current", "as any other name that is unknown"


async def test_aliases_and_resident_versions_are_valid_models(client):
    _, _, deployed = await client.call("POST", "/api/deploy", json={"version": "v2"})
    assert deployed["status"] == "success"
    for model, version in (("v1", "v1"), ("v2", "v2"), ("current", "v2")):
        _, body = await generate(client, model=model)
        assert (body["model"], body["version"]) == (model, version)


async def test_a_version_that_is_not_loaded_is_a_404(client):
    error = await client.error(PATH, {"prompt": "x", "model": "v2"}, 404)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "v2 is not loaded" in error["message"]


async def test_a_wrong_field_is_a_400_that_names_it(client):
    for field, value, words in (
        ("prompt", "", "empty"),
        ("model", 5, "a number"),
        ("size", "1040x64", "at most with version v1, got 1040"),
        ("size", "100x64", "multiple of 16, got 100"),
        ("num_inference_steps", 500, "from 1 to 100"),
    ):
        error = await client.error(PATH, {"prompt": "x", field: value}, 400)
        assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_value")
        assert error["param"] == field
        assert words in error["message"]
    for body in (b"", b"prompt=x", b"[]"):
        assert (await client.error(PATH, body, 400))["code"] == "invalid_json"


async def test_too_much_work_is_a_400_that_names_the_openai_field(start):
    async with start(max_work=0.05) as client:
        await client.serves()
        error = await client.error(PATH, {"prompt": "x", "num_inference_steps": 100}, 400)
        assert (error["param"], "--max-work" in error["message"]) == ("num_inference_steps", True)


async def test_a_full_queue_refuses_before_the_body_is_read(start):
    async with start(queue=1) as client:
        await client.serves()
        jobs = [await client.call("POST", "/jobs", json={"prompt": "x", "steps": 100, "n": 16}) for _ in range(2)]
        status, headers, body = await client.call("POST", PATH, data=b"no JSON")
        assert (status, body["error"]["code"], body["error"]["type"]) == (429, "queue_full", "rate_limit_error")
        assert int(headers["Retry-After"]) >= 1
        for _, _, job in reversed(jobs):
            await client.call("DELETE", f"/jobs/{job['id']}")


async def test_a_timeout_is_marked_as_not_to_be_retried(start):
    async with start(timeout=0.2) as client:
        await client.serves()
        status, headers, body = await client.call("POST", PATH, json=SLOW)
        assert (status, body["error"]["code"], headers["x-should-retry"]) == (504, "timeout", "false")
        await client.services.queue.drained()


async def test_models_are_the_aliases_and_the_loaded_versions(client):
    await client.call("POST", "/api/deploy", json={"version": "v2"})
    _, _, body = await client.call("GET", "/v1/models")
    assert body["object"] == "list"
    assert {model["id"]: model["version"] for model in body["data"]} == {"current": "v2", "v1": "v1", "v2": "v2"}
    for model in body["data"]:
        assert (model["object"], model["owned_by"], len(model["digest"])) == ("model", "zwatch", 64)
        assert model["created"] > 1_700_000_000
        assert (await client.call("GET", f"/v1/models/{model['id']}"))[2] == model
    status, _, body = await client.call("GET", "/v1/models/gpt-image-1")
    assert (status, body["error"]["code"], body["error"]["param"]) == (404, "model_not_found", "model")


async def test_an_alias_that_serves_nothing_is_a_model_too(client):
    await client.call("POST", "/api/unload_model")
    _, _, body = await client.call("GET", "/v1/models")
    nothing = {"id": "current", "object": "model", "created": 0, "owned_by": "zwatch", "version": None, "digest": None}
    assert body["data"] == [nothing]
    status, headers, body = await client.call("POST", PATH, json={"prompt": "x", "model": "gpt-image-1"})
    assert (status, body["error"]["code"], headers["Retry-After"]) == (503, "model_not_loaded", "10")


async def test_a_stream_has_event_lines_types_and_comments_while_it_waits(start):
    async with start(TimeLimits(heartbeat=0.02)) as client:
        await client.serves()
        await check_stream(client)


async def check_stream(client):
    _, _, job = await client.call("POST", "/jobs", json={"prompt": "x", "steps": 100, "n": 16, "width": 256})
    async with client.http.post(client.url + PATH, json={"prompt": "x", "stream": True}) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")
        while not (await asyncio.wait_for(response.content.readline(), 30)).startswith(b": "):
            pass
        await client.call("DELETE", f"/jobs/{job['id']}")
        lines = (await response.content.read()).decode().splitlines()
    events = [line for line in lines if line and not line.startswith(":")]
    assert events[0] == "event: image_generation.completed"
    data = json.loads(events[1].removeprefix("data: "))
    assert data["type"] == "image_generation.completed"
    assert len(events) == 2
