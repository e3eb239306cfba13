"""OpenAI's edits: the real `openai` package, Open WebUI's call, and the fields of the form."""

import asyncio
import base64
import io
import json

import aiohttp
import numpy as np
import openai
import pytest
from PIL import Image

from zwatch.api.openai.edits import EditsRequest, edit_of, read_edit
from zwatch.api.openai.requests import with_client_names
from zwatch.errors import RequestError
from zwatch.generation.image_details import read_details

PATH = "/v1/images/edits"


def file_of(picture, image_format="PNG"):
    """Return a picture as a file."""
    file = io.BytesIO()
    picture.save(file, image_format)
    return file.getvalue()


def noise(width=64, height=64, seed=0):
    """Return a picture of coloured noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def transparent_in(box, size=(64, 64)):
    """Return a mask as OpenAI wants it: what is in the box is to be edited."""
    mask = Image.new("RGBA", size, (0, 0, 0, 255))
    mask.paste((0, 0, 0, 0), box)
    return mask


PICTURE, MASK = file_of(noise()), file_of(transparent_in((32, 0, 64, 64)))
URL = f"data:image/png;base64,{base64.b64encode(PICTURE).decode()}"


def opened(b64_json):
    return Image.open(io.BytesIO(base64.b64decode(b64_json)))


@pytest.fixture
async def ours(client):
    """The real client of a service that serves v1."""
    async with openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="whatever", max_retries=0) as found:
        yield found


async def native(client, **fields):
    """Return the image that the native call makes of the picture."""
    body = {"prompt": "a cat", "image": base64.b64encode(PICTURE).decode(), **fields}
    async with client.http.post(client.url + "/generate", json=body) as response:
        assert response.status == 200, await response.text()
        return Image.open(io.BytesIO(await response.read()))


# --- the real package


async def test_a_synchronous_client_edits_a_file_and_streams_the_result(client, tmp_path):
    path = tmp_path / "cat.png"
    path.write_bytes(PICTURE)

    def use():
        with openai.OpenAI(base_url=f"{client.url}/v1", api_key="whatever", max_retries=0) as sync:
            with path.open("rb") as file:
                made = sync.images.edit(
                    image=file, prompt="a cat", model="gpt-image-2.5-sunburst", extra_body={"seed": 42}
                )
            with (
                path.open("rb") as file,
                sync.images.edit(image=file, prompt="a cat", stream=True, extra_body={"seed": 42}) as stream,
            ):
                return made, list(stream)

    made, events = await asyncio.to_thread(use)
    [image] = made.data
    with opened(image.b64_json) as picture:
        assert (picture.format, picture.size) == ("PNG", (64, 64))
        assert picture.text["zwatch_version"] == "v1"
    assert (made.size, made.output_format, made.background, made.usage.total_tokens) == ("64x64", "png", "opaque", 0)
    assert made.model_extra.items() >= {"version": "v1", "model": "current", "truncated": False}.items()
    [completed] = events
    assert isinstance(completed, openai.types.ImageEditCompletedEvent)
    assert completed.b64_json == image.b64_json, "the same seed, picture and version"


async def test_an_edit_equals_that_of_the_native_call(client, ours):
    made = await ours.images.edit(image=PICTURE, prompt="a cat", extra_body={"seed": 7, "strength": 0.5})
    theirs = await native(client, seed=7, strength=0.5)
    with opened(made.data[0].b64_json) as picture:
        assert picture.tobytes() == theirs.tobytes()
    other = await ours.images.edit(
        image=file_of(noise(seed=1)), prompt="a cat", extra_body={"seed": 7, "strength": 0.5}
    )
    with opened(other.data[0].b64_json) as picture:
        assert picture.tobytes() != theirs.tobytes(), "it is made from the picture"


async def test_every_parameter_may_be_used(client, ours):
    made = await ours.images.edit(
        image=("cat.jpg", file_of(noise(), "JPEG"), "image/jpeg"), prompt="a cat", mask=MASK, model="gpt-image-2", n=2,
        size="128x64", quality="high", background="transparent", input_fidelity="high", output_format="jpeg",
        output_compression=80, user="u-1", safety_identifier="s-1", response_format="b64_json", complexity="low",
        extra_body={"seed": 1, "num_inference_steps": 2, "negative_prompt": "dogs", "mask_blur": 2},
    )  # fmt: skip
    assert [image.model_extra["seed"] for image in made.data] == [1, 2]
    assert (made.size, made.output_format, made.quality) == ("128x64", "jpeg", "high")
    with opened(made.data[1].b64_json) as picture:
        assert (picture.format, picture.size) == ("JPEG", (128, 64))


async def test_a_stream_has_partial_images_and_the_completed_one(client, ours):
    client.services.queue.generator.preview_share = float("inf")
    given = {"image": file_of(noise(256, 128)), "prompt": "a cat", "output_format": "webp"}
    extra = {"seed": 5, "num_inference_steps": 60, "strength": 1.0}
    stream = await ours.images.edit(**given, stream=True, partial_images=3, extra_body=extra)
    *partial, completed = [event async for event in stream]
    whole = await ours.images.edit(**given, extra_body=extra)
    assert 1 <= len(partial) <= 3
    assert [event.partial_image_index for event in partial] == list(range(len(partial)))
    for event in partial:
        assert isinstance(event, openai.types.ImageEditPartialImageEvent)
        assert (event.type, event.size, event.output_format) == ("image_edit.partial_image", "256x128", "webp")
        with opened(event.b64_json) as picture:
            assert (picture.format, picture.size) == ("WEBP", (256, 128))
    assert isinstance(completed, openai.types.ImageEditCompletedEvent)
    assert (completed.type, completed.size, completed.usage.total_tokens) == ("image_edit.completed", "256x128", 0)
    assert (completed.model_extra["version"], completed.model_extra["seed"]) == ("v1", 5)
    assert completed.b64_json == whole.data[0].b64_json


async def test_an_error_in_the_middle_of_a_stream_is_raised_in_the_client(client, ours):
    with client.failing():
        stream = await ours.images.edit(image=PICTURE, prompt="x", stream=True)
        with pytest.raises(openai.APIError) as caught:
            [event async for event in stream]
    assert (caught.value.code, caught.value.type) == ("generation_failed", "server_error")


@pytest.mark.parametrize("stream", [True, False])
async def test_a_client_that_disconnects_cancels_its_edit(client, ours, stream):
    queue = client.services.queue
    slow = {"num_inference_steps": 100, "strength": 1.0}
    asking = asyncio.create_task(
        ours.images.edit(image=PICTURE, prompt="x", size="512x512", extra_body=slow, stream=stream)
    )
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
    assert job.source is None, "its picture is not kept"
    await queue.drained()


async def test_a_list_of_one_is_a_picture_and_of_more_is_refused(ours):
    made = await ours.images.edit(image=[PICTURE], prompt="a cat", extra_body={"seed": 1})
    same = await ours.images.edit(image=PICTURE, prompt="a cat", extra_body={"seed": 1})
    assert made.data[0].b64_json == same.data[0].b64_json
    with pytest.raises(openai.BadRequestError) as caught:
        await ours.images.edit(image=[PICTURE, PICTURE], prompt="a cat")
    assert (caught.value.param, caught.value.code) == ("image", "invalid_value")
    assert "2 times: one picture is edited at a time" in caught.value.message


async def test_errors_have_the_right_class_and_name_the_field(ours):
    for fields, kind, param, words in (
        ({"prompt": ""}, openai.BadRequestError, "prompt", "empty"),
        ({"image": b"no image"}, openai.BadRequestError, "image", "no image"),
        ({"image": PICTURE[:200]}, openai.BadRequestError, "image", "damaged"),
        ({"image": b""}, openai.BadRequestError, "image", "image"),
        ({"mask": b"no image"}, openai.BadRequestError, "mask", "no image"),
        ({"mask": PICTURE}, openai.BadRequestError, "mask", "no transparent pixel"),
        ({"mask": file_of(transparent_in((0, 0, 9, 9), (64, 32)))}, openai.BadRequestError, "mask", "64 x 32 pixels, image 64 x 64"),
        ({"markup": PICTURE}, openai.BadRequestError, "markup", "say in mask"),
        ({"size": "100x64"}, openai.BadRequestError, "size", "multiple of 16"),
        ({"size": "2048x2048"}, openai.BadRequestError, "size", "at most"),
        ({"output_format": "gif"}, openai.BadRequestError, "output_format", "png, jpeg, webp"),
        ({"n": 2, "stream": True}, openai.BadRequestError, "n", "leave out stream"),
        ({"input_fidelity": "medium"}, openai.BadRequestError, "input_fidelity", "low or high"),
        ({"extra_body": {"strength": 2}}, openai.BadRequestError, "strength", "from 0"),
        ({"model": "v2"}, openai.NotFoundError, "model", "not loaded"),
    ):  # fmt: skip
        with pytest.raises(kind) as caught:
            await ours.images.edit(**{"image": PICTURE, "prompt": "x", **fields})
        assert caught.value.param == param, fields
        assert words in caught.value.message, (fields, caught.value.message)
        assert caught.value.request_id


async def test_urls_lead_to_the_history(client, ours):
    made = await ours.images.edit(image=PICTURE, prompt="a cat", response_format="url", extra_body={"seed": 3})
    async with client.http.get(made.data[0].url) as response:
        assert (response.status, response.content_type) == (200, "image/png")
        assert "Denoising strength: 0.6" in read_details(await response.read()).parameters


# --- the picture and the mask


async def test_the_size_follows_the_picture_unless_it_is_given(ours):
    for size, asked, made in (
        ((100, 60), {}, "96x64"),
        ((100, 60), {"size": "auto"}, "96x64"),
        ((100, 60), {"size": "64x64"}, "64x64"),
        ((17, 17), {}, "16x16"),
    ):
        found = await ours.images.edit(image=file_of(noise(*size)), prompt="a cat", **asked)
        assert found.size == made
        with opened(found.data[0].b64_json) as picture:
            assert f"{picture.width}x{picture.height}" == made


async def test_a_picture_of_another_shape_is_cropped_and_not_stretched(ours):
    wide = noise(128, 64)
    whole = await ours.images.edit(image=file_of(wide), prompt="a cat", size="64x64", extra_body={"seed": 1})
    middle = await ours.images.edit(image=file_of(wide.crop((32, 0, 96, 64))), prompt="a cat", extra_body={"seed": 1})
    with opened(whole.data[0].b64_json) as one, opened(middle.data[0].b64_json) as other:
        assert one.tobytes() == other.tobytes()


async def test_what_is_transparent_in_the_mask_is_edited_and_the_rest_stays_as_it_is(ours):
    made = await ours.images.edit(image=PICTURE, mask=MASK, prompt="a cat", extra_body={"seed": 4})
    with opened(made.data[0].b64_json) as picture:
        changed = (np.asarray(picture) != np.asarray(noise())).any(axis=2)
    assert not changed[:, :32].any(), "every pixel"
    assert changed[:, 32:].mean() > 0.9


async def test_a_blurred_mask_has_a_soft_edge(ours):
    made = await ours.images.edit(image=PICTURE, mask=MASK, prompt="a cat", extra_body={"seed": 4, "mask_blur": 3})
    with opened(made.data[0].b64_json) as picture:
        changed = (np.asarray(picture) != np.asarray(noise())).any(axis=2)
    assert not changed[:, :20].any()
    assert changed[:, 28:32].mean() > 0.5


async def test_a_client_of_dall_e_2_sends_a_picture_that_is_its_own_mask(ours):
    layer = noise().convert("RGBA")
    layer.putalpha(Image.open(io.BytesIO(MASK)).getchannel("A"))
    made = await ours.images.edit(image=file_of(layer), prompt="x", model="dall-e-2", response_format="b64_json")
    with opened(made.data[0].b64_json) as picture:
        assert np.array_equal(np.asarray(picture)[:, :32], np.asarray(noise())[:, :32])
    other = await ours.images.edit(image=file_of(layer), prompt="x", model="gpt-image-2")
    with opened(other.data[0].b64_json) as picture:
        assert not np.array_equal(np.asarray(picture)[:, :32], np.asarray(noise())[:, :32]), "all of it is edited"


def form(**fields):
    """Return the content type and the body of a form."""
    parts = [b""]
    for name, value in fields.items():
        for one in value if isinstance(value, list) else [value]:
            head = f'Content-Disposition: form-data; name="{name}"'
            head += '; filename="f.png"' if isinstance(one, bytes) else ""
            parts.append(
                f"\r\n{head}\r\n\r\n".encode() + (one if isinstance(one, bytes) else str(one).encode()) + b"\r\n"
            )
    return "multipart/form-data; boundary=XX", b"--XX".join([*parts, b"--\r\n"])


@pytest.mark.parametrize(
    ("fields", "strength"),
    [
        ({}, 0.6), ({"input_fidelity": "low"}, 0.6), ({"input_fidelity": "high"}, 0.4), ({"input_fidelity": ""}, 0.6),
        ({"mask": MASK}, 1.0), ({"mask": MASK, "input_fidelity": "high"}, 1.0),
        ({"strength": "0.25"}, 0.25), ({"mask": MASK, "strength": 0}, 0.0), ({"strength": ""}, 0.6),
    ],
)  # fmt: skip
def test_how_much_is_changed(fields, strength):
    found = read_edit(*form(image=PICTURE, prompt="x", **fields))
    assert edit_of(found, "v1").generate.strength == strength


def test_an_empty_value_of_a_form_stands_for_a_default():
    names = ("size", "n", "output_format", "output_compression", "response_format", "stream", "partial_images", "seed")
    wanted = edit_of(read_edit(*form(image=PICTURE, prompt="x", **dict.fromkeys(names, ""))), "v1")
    made = wanted.generate
    assert (made.width, made.height, made.n, made.format, made.quality) == (None, None, 1, "png", 92)
    assert (wanted.stream, wanted.files, wanted.urls) == (False, True, False)


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({}, "image", "image is required"),
        ({"image": ""}, "image", "image"),
        ({"image": "https://example.com/cat.png"}, "image", "not fetched"),
        ({"image": [PICTURE, PICTURE]}, "image", "twice"),
        ({"image[]": [PICTURE, PICTURE, PICTURE]}, "image", "3 times"),
        ({"image": PICTURE, "image[]": PICTURE}, "image", "twice"),
        ({"image": PICTURE, "mask[]": [MASK, MASK]}, "mask", "2 times"),
        ({"image": PICTURE, "prompt": b"a cat"}, "prompt", "is a file"),
        ({"image": PICTURE, "n": "two"}, "n", "a string"),
    ],
)
def test_what_is_wrong_in_a_form_is_named(fields, param, words):
    with pytest.raises(RequestError) as caught:
        read_edit(*form(**{"prompt": "x", **fields}))
    error = with_client_names(caught.value)
    assert (error.status, error.param) == (400, param)
    assert words in error.message


def test_json_with_base64_or_a_data_url_is_accepted_too():
    plain = base64.b64encode(PICTURE).decode()
    for text in (plain, f"data:image/png;base64,{plain}", [plain]):
        body = json.dumps({"image": text, "prompt": "x", "size": None}).encode()
        assert read_edit("application/json", body).source.picture.size == (64, 64)


def test_a_mask_of_another_size_and_the_same_shape_is_resized():
    mask = file_of(transparent_in((64, 0, 128, 128), (128, 128)))
    assert read_edit(*form(image=PICTURE, prompt="x", mask=mask)).source.mask.getbbox() == (32, 0, 64, 64)
    enormous = Image.new("LA", (5000, 5000), (0, 255))
    enormous.paste((0, 0), (2500, 0, 5000, 5000))
    found = read_edit(*form(image=PICTURE, prompt="x", mask=file_of(enormous))).source.mask
    assert np.asarray(found)[:, 33:].min() == 255
    assert np.asarray(found)[:, :31].max() == 0


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("markup", "data:image/png;base64,AAAA", "say in mask"),
        ("images", [{"image_url": URL}], "beside image"),
        ("images", [{"image_url": URL}] * 2, "has 2 pictures"),
        ("images", [{"file_id": "file-1"}], "no files are kept"),
        ("images", [{"image_url": {"url": URL}}], "needs a data URL"),
        ("images", [URL], "must be .*image_url"),
        ("images", {"image_url": URL}, "must be .*in JSON"),
        ("mask", {"file_id": "file-1"}, "no files are kept"),
    ],
)
def test_what_cannot_be_followed_is_named(field, value, words):
    body = json.dumps({"image": base64.b64encode(PICTURE).decode(), "prompt": "x", field: value}).encode()
    with pytest.raises(RequestError, match=words) as raised:
        read_edit("application/json", body)
    assert (raised.value.status, raised.value.param) == (400, field)


@pytest.mark.parametrize(
    ("field", "words"), [("markup", "say in mask"), ("images", "got a file: in a form send one picture as image")]
)
def test_what_a_form_cannot_have_is_named(field, words):
    with pytest.raises(RequestError, match=words) as raised:
        read_edit(*form(image=PICTURE, prompt="x", **{field: PICTURE}))
    assert (raised.value.status, raised.value.param) == (400, field)


def test_json_refers_to_the_picture_and_the_mask_by_data_urls():
    mask = base64.b64encode(file_of(transparent_in((32, 0, 64, 64), (64, 64)))).decode()
    body = {"images": [{"image_url": URL}], "mask": {"image_url": f"data:image/png;base64,{mask}"}, "prompt": "x"}
    found = read_edit("application/json", json.dumps(body).encode())
    assert found.source.picture.size == (64, 64)
    assert found.source.mask.getbbox() == (32, 0, 64, 64)
    assert (found.asked.image, found.asked.images, found.asked.mask) == (None, None, None)
    body["images"] = [{"image_url": "https://example.org/cat.png"}]
    with pytest.raises(RequestError, match="not fetched") as raised:
        read_edit("application/json", json.dumps(body).encode())
    assert raised.value.param == "images"


def test_what_waits_holds_no_files():
    found = read_edit(*form(image=PICTURE, prompt="x", mask=MASK))
    assert (found.asked.image, found.asked.mask) == (None, None)


def test_a_picture_is_decoded_only_if_the_rest_is_valid():
    with pytest.raises(RequestError) as caught:
        read_edit(*form(image=b"no image", prompt="x", size="large"))
    assert caught.value.param == "size"


def test_the_fields_of_generations_are_there_too():
    from zwatch.api.openai.requests import ImagesRequest

    assert set(EditsRequest.model_fields) >= set(ImagesRequest.model_fields)


# --- other clients, and limits


async def test_open_webuis_edit(client):
    """As `image_edits` of its `backend/open_webui/routers/images.py` sends it, with one picture and with a list of one."""
    for name in ("image", "image[]"):
        sent = aiohttp.FormData()
        for field, value in {"model": "gpt-image-1", "prompt": "a cat", "n": 1, "size": "128x64", "response_format": "b64_json"}.items():  # fmt: skip
            sent.add_field(field, str(value))
        sent.add_field(name, io.BytesIO(PICTURE), filename="0c9a.png", content_type="image/png")
        headers = {"Authorization": "Bearer whatever"}
        url = client.url + f"{PATH}?api-version=2025-04-01-preview"
        async with client.http.post(url, data=sent, headers=headers) as response:
            assert response.status == 200, await response.text()
            answer = await response.json(content_type=None)
        [image] = answer["data"]
        assert "url" not in image, "it would fetch it"
        with opened(image["b64_json"]) as picture:
            assert picture.size == (128, 64)


async def test_a_body_that_is_too_long_is_a_413_and_a_full_queue_a_429_before_it_is_read(start):
    async with start(queue=1) as client:
        await client.serves()
        status, _, body = await client.call("POST", PATH, data={"image": io.BytesIO(bytes(40 * 2**20)), "prompt": "x"})
        assert (status, body["error"]["code"]) == (413, "payload_too_large")
        jobs = [await client.call("POST", "/jobs", json={"prompt": "x", "steps": 100, "n": 16}) for _ in range(2)]
        status, headers, body = await client.call("POST", PATH, data=b"no form")
        assert (status, body["error"]["code"]) == (429, "queue_full")
        assert int(headers["Retry-After"]) >= 1
        for _, _, job in reversed(jobs):
            await client.call("DELETE", f"/jobs/{job['id']}")


async def test_edits_need_the_token(start):
    async with start(token="secret") as client:
        await client.serves()
        async with openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="wrong", max_retries=0) as stranger:
            with pytest.raises(openai.AuthenticationError):
                await stranger.images.edit(image=PICTURE, prompt="x")
        async with openai.AsyncOpenAI(base_url=f"{client.url}/v1", api_key="secret", max_retries=0) as ours:
            assert (await ours.images.edit(image=PICTURE, prompt="x")).data[0].b64_json
