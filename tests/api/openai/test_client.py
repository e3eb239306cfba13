"""The real `openai` package against a running service."""

import asyncio
import base64
import contextlib
import io

import openai
import pytest
from PIL import Image

from zwatch.api.services import TimeLimits

SLOW = {"prompt": "a cat", "extra_body": {"num_inference_steps": 100}, "size": "512x512"}
LONG_JOB = {"prompt": "a cat", "steps": 100, "n": 2, "width": 256, "height": 256}
"""Some seconds: who is refused is told to wait for as long."""


@pytest.fixture
def connect():
    """Return an asynchronous context manager: an AsyncOpenAI for a service, and the statuses of its answers."""

    @contextlib.asynccontextmanager
    async def begin(client, **options):
        statuses = []

        async def note(response):
            statuses.append(response.status_code)

        http = openai.DefaultAsyncHttpxClient(event_hooks={"response": [note]})
        settings = {"base_url": f"{client.url}/v1", "api_key": "whatever", "max_retries": 0, **options}
        async with openai.AsyncOpenAI(http_client=http, **settings) as found:
            yield found, statuses

    return begin


def opened(b64_json):
    return Image.open(io.BytesIO(base64.b64decode(b64_json)))


async def occupy(client):
    """Fill a queue of one; return a function that frees it again."""
    jobs = []
    for _ in range(2):
        _, _, job = await client.call("POST", "/jobs", json=LONG_JOB)
        jobs.append(job["id"])
        while client.services.queue.running is None:
            await client.services.supervisor.changes.wait()

    async def free():
        for job in reversed(jobs):
            await client.call("DELETE", f"/jobs/{job}")

    return free


async def test_a_synchronous_client_gets_an_image_its_models_and_a_stream(client):
    def use():
        with openai.OpenAI(base_url=f"{client.url}/v1", api_key="whatever", max_retries=0) as ours:
            made = ours.images.generate(prompt="a cat", model="gpt-image-1", size="96x64", extra_body={"seed": 42})
            listed = ours.models.list()
            with ours.images.generate(prompt="a cat", stream=True, partial_images=2) as stream:
                events = list(stream)
            return made, listed, events

    made, listed, events = await asyncio.to_thread(use)
    [image] = made.data
    with opened(image.b64_json) as picture:
        assert picture.size == (96, 64)
    assert (image.url, image.revised_prompt, image.model_extra) == (None, None, {"seed": 42})
    assert (made.size, made.output_format, made.background, made.usage.total_tokens) == ("96x64", "png", "opaque", 0)
    digest = client.services.engines.serving("current").key.digest
    assert made.model_extra.items() >= {"version": "v1", "digest": digest, "model": "current"}.items()
    assert [model.id for model in listed.data] == ["current", "v1"]
    assert isinstance(events[-1], openai.types.ImageGenCompletedEvent)


async def test_an_asynchronous_client_may_use_every_parameter(client, connect):
    async with connect(client) as (ours, _):
        made = await ours.images.generate(
            prompt="a cat", model="dall-e-3", n=2, size="256x256", quality="hd", style="vivid", user="u-1",
            background="transparent", output_format="jpeg", output_compression=80, response_format="b64_json",
            moderation="low", extra_body={"seed": 1, "num_inference_steps": 2, "negative_prompt": "dogs"},
        )  # fmt: skip
        assert [image.model_extra["seed"] for image in made.data] == [1, 2]
        with opened(made.data[1].b64_json) as picture:
            assert (picture.format, picture.size) == ("JPEG", (256, 256))
        raw = await ours.images.with_raw_response.generate(prompt="a cat", size="auto", extra_body={"seed": 9})
        assert (raw.headers["X-Zwatch-Version"], raw.headers["X-Zwatch-Seed"]) == ("v1", "9")
        assert raw.parse().size == "64x64"


async def test_models_can_be_listed_and_retrieved(client, connect):
    async with connect(client) as (ours, _):
        names = [model.id async for model in ours.models.list()]
        assert names == ["current", "v1"]
        model = await ours.models.retrieve("current")
        assert (model.id, model.object, model.owned_by, model.model_extra["version"]) == (
            "current",
            "model",
            "zwatch",
            "v1",
        )
        with pytest.raises(openai.NotFoundError) as caught:
            await ours.models.retrieve("gpt-image-1")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


async def test_a_url_can_be_fetched_unchanged(client, connect):
    async with connect(client) as (ours, _):
        made = await ours.images.generate(prompt="a cat", response_format="url")
        [both] = (await ours.images.generate(prompt="a cat", model="dall-e-3")).data
    assert made.data[0].b64_json is None
    async with client.http.get(made.data[0].url) as response:
        with Image.open(io.BytesIO(await response.read())) as picture:
            assert picture.size == (64, 64)
    async with client.http.get(both.url) as response:
        assert await response.read() == base64.b64decode(both.b64_json)


async def test_a_stream_has_partial_images_and_the_completed_one(client, connect):
    client.services.queue.generator.preview_share = float("inf")
    async with connect(client) as (ours, _):
        stream = await ours.images.generate(
            prompt="a cat", stream=True, partial_images=3, size="256x128", output_format="webp", quality="auto",
            extra_body={"seed": 5, "num_inference_steps": 60},
        )  # fmt: skip
        *partial, completed = [event async for event in stream]
        whole = await ours.images.generate(
            prompt="a cat", size="256x128", output_format="webp", extra_body={"seed": 5, "num_inference_steps": 60}
        )
    assert 1 <= len(partial) <= 3
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    shown = []
    for event in partial:
        assert isinstance(event, openai.types.ImageGenPartialImageEvent)
        assert (event.type, event.size, event.output_format) == ("image_generation.partial_image", "256x128", "webp")
        assert (event.background, event.quality) == ("opaque", "high")
        with opened(event.b64_json) as picture:
            assert (picture.format, picture.size) == ("WEBP", (256, 128))
            shown.append(picture.tobytes())
    assert len(set(shown)) == len(shown), "each shows a later step"
    assert isinstance(completed, openai.types.ImageGenCompletedEvent)
    assert (completed.type, completed.size, completed.usage.input_tokens_details.text_tokens) == (
        "image_generation.completed",
        "256x128",
        0,
    )
    extra = completed.model_extra
    assert (extra["version"], extra["model"], extra["seed"]) == ("v1", "current", 5)
    assert completed.b64_json == whole.data[0].b64_json


async def test_without_partial_images_a_stream_has_one_event(client, connect):
    client.services.queue.generator.preview_share = float("inf")
    async with connect(client) as (ours, _):
        stream = await ours.images.generate(prompt="x", stream=True, extra_body={"num_inference_steps": 30})
        assert [event.type async for event in stream] == ["image_generation.completed"]


async def test_the_client_ignores_comments_in_a_stream(start, connect):
    async with start(TimeLimits(heartbeat=0.001)) as client, connect(client) as (ours, _):
        await client.serves()
        stream = await ours.images.generate(prompt="x", stream=True, extra_body={"num_inference_steps": 30})
        assert [event.type async for event in stream] == ["image_generation.completed"]


async def test_an_error_in_the_middle_of_a_stream_is_raised_in_the_client(client, connect):
    async with connect(client) as (ours, statuses):
        with client.failing():
            stream = await ours.images.generate(prompt="x", stream=True)
            with pytest.raises(openai.APIError) as caught:
                [event async for event in stream]
    assert (statuses, caught.value.code, caught.value.type) == ([200], "generation_failed", "server_error")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_disconnects_cancels_its_request(client, connect, stream):
    queue = client.services.queue
    async with connect(client) as (ours, _):
        asking = asyncio.create_task(ours.images.generate(**SLOW, stream=stream))
        while queue.running is None or queue.running.step < 1:
            await asyncio.sleep(0.005)
        job = queue.running
        if stream:
            await (await asking).close()
        else:
            asking.cancel()
        while not job.state.is_final:
            await asyncio.sleep(0.005)
        assert job.is_cancelled
        await queue.drained()
        assert client.services.engines.serving("current").leases == 0


async def test_errors_have_the_right_class_and_name_the_field(client, connect):
    async with connect(client, max_retries=2) as (ours, statuses):
        for fields, kind, param, code in (
            ({"prompt": ""}, openai.BadRequestError, "prompt", "invalid_value"),
            ({"size": "1000x64"}, openai.BadRequestError, "size", "invalid_value"),
            ({"size": "2048x2048"}, openai.BadRequestError, "size", "invalid_value"),
            ({"output_format": "gif"}, openai.BadRequestError, "output_format", "invalid_value"),
            ({"n": 2, "stream": True}, openai.BadRequestError, "n", "invalid_value"),
            ({"model": "v2"}, openai.NotFoundError, "model", "model_not_found"),
        ):
            with pytest.raises(kind) as caught:
                await ours.images.generate(**{"prompt": "x", **fields})
            assert (caught.value.param, caught.value.code) == (param, code)
            assert caught.value.request_id
        assert len(statuses) == 6, "none is retried"


async def test_a_failed_generation_is_not_retried(client, connect):
    async with connect(client, max_retries=3) as (ours, statuses):
        with client.failing(), pytest.raises(openai.InternalServerError) as caught:
            await ours.images.generate(prompt="x")
    assert (statuses, caught.value.code) == ([500], "generation_failed")


async def test_a_full_queue_is_a_rate_limit_error_that_the_client_retries(start, connect):
    async with start(queue=1) as client:
        await client.serves()
        free = await occupy(client)
        async with connect(client) as (ours, _):
            with pytest.raises(openai.RateLimitError) as caught:
                await ours.images.generate(prompt="x")
            assert (caught.value.code, caught.value.type) == ("queue_full", "rate_limit_error")
            assert int(caught.value.response.headers["Retry-After"]) >= 1
        async with connect(client, max_retries=5) as (ours, statuses):
            asking = asyncio.create_task(ours.images.generate(prompt="x"))
            while not statuses:
                await asyncio.sleep(0.01)
            await free()
            made = await asking
        assert statuses[0] == 429
        assert statuses[-1] == 200
        assert made.data[0].b64_json


async def test_the_client_retries_while_the_model_is_unloaded(client, connect):
    await client.call("POST", "/api/unload_model")
    async with connect(client) as (ours, _):
        with pytest.raises(openai.InternalServerError) as caught:
            await ours.images.generate(prompt="x")
        assert (caught.value.status_code, caught.value.code) == (503, "model_not_loaded")
    async with connect(client, max_retries=5) as (ours, statuses):
        asking = asyncio.create_task(ours.images.generate(prompt="x"))
        while not statuses:
            await asyncio.sleep(0.01)
        await client.call("POST", "/api/load_model")
        assert (await asking).data[0].b64_json
    assert (statuses[0], statuses[-1]) == (503, 200)


async def test_the_api_key_is_the_token(start, connect):
    async with start(token="secret") as client:
        await client.serves()
        async with connect(client, api_key="wrong") as (ours, _):
            with pytest.raises(openai.AuthenticationError) as caught:
                await ours.models.list()
            assert caught.value.code == "unauthorized"
        async with connect(client, api_key="secret") as (ours, _):
            assert (await ours.images.generate(prompt="x")).data[0].b64_json
