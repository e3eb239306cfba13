"""Images that are changed, by `POST /generate` and `/jobs`, over HTTP, with real engines."""

import asyncio
import base64
import gc
import io
import json
import threading
import weakref
from dataclasses import replace

import aiohttp
import numpy as np
import pytest
import torch
from blake3 import blake3
from diffusers import ZImageImg2ImgPipeline, ZImageInpaintPipeline
from PIL import Image, ImageFilter

from tests.engine.test_pipeline import library_pipeline
from zwatch.api import compared, results
from zwatch.api.native import asked, generate
from zwatch.generation import sources
from zwatch.generation.image_details import read_details
from zwatch.generation.infotext import parse_infotext
from zwatch.generation.sources import read_source

JSON = {"Accept": "application/json"}


def file_of(width=64, height=64, colour=(200, 40, 30), kind="PNG"):
    noise = np.random.default_rng(1).integers(0, 50, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray((noise + np.array(colour)).clip(0, 255).astype(np.uint8)).save(file, kind)
    return file.getvalue()


def mask_of(width=64, height=64):
    made = Image.new("L", (width, height))
    made.paste(255, (width // 2, 0, width, height))
    file = io.BytesIO()
    made.save(file, "PNG")
    return file.getvalue()


def text_of(file):
    return base64.b64encode(file).decode()


IMAGE, MASK = file_of(), mask_of()
ASKED = {"prompt": "a dog", "seed": 7, "steps": 4, "image": text_of(IMAGE)}


async def generated(client, **fields):
    status, _, body = await client.call("POST", "/generate", json={**ASKED, **fields}, headers=JSON)
    assert status == 200, body
    return body


def picture(body, number=0):
    return base64.b64decode(body["images"][number]["b64_json"])


def pixels(file):
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"))


async def test_the_ways_to_send_an_image_give_the_same_picture(client):
    plain = await generated(client)
    [[expected]] = [[picture(plain)]]
    assert picture(await generated(client, image=f"data:image/png;base64,{ASKED['image']}")) != b""
    same = pixels(expected)
    for way in (await generated(client, image=f"data:image/png;base64,{ASKED['image']}"), await multipart(client)):
        assert np.array_equal(pixels(picture(way)), same)
    assert not np.array_equal(
        pixels(picture(await generated(client, image=text_of(file_of(colour=(0, 0, 200)))))), same
    )


async def multipart(client, **fields):
    form = aiohttp.FormData({name: str(value) for name, value in (ASKED | fields).items() if name != "image"})
    form.add_field("image", IMAGE, filename="cat.png", content_type="image/png")
    async with client.http.post(client.url + "/generate", data=form, headers=JSON) as response:
        assert response.status == 200, await response.text()
        return await response.json()


@pytest.mark.parametrize("kind", [ZImageImg2ImgPipeline, ZImageInpaintPipeline])
async def test_the_answer_has_diffusers_own_pixels(client, kind):
    fields = {"strength": 0.8, "guidance_scale": 2.0, "negative_prompt": "dark"}
    masked = {} if kind is ZImageImg2ImgPipeline else {"mask": text_of(MASK), "mask_blur": 3}
    found = pixels(picture(await generated(client, **fields, **masked)))
    library = kind(**library_pipeline(client.services.models / "v1").components)
    with Image.open(io.BytesIO(IMAGE)) as image, Image.open(io.BytesIO(MASK)) as mask:
        theirs = {} if not masked else {"mask_image": library.mask_processor.blur(mask, 3)}
        [expected] = library(
            prompt="a dog", image=image.convert("RGB"), num_inference_steps=4, generator=torch.Generator("cpu").manual_seed(7), **fields, **theirs
        ).images  # fmt: skip
    assert np.array_equal(found, np.asarray(expected))


async def test_a_mask_as_a_file_and_as_text(client):
    form = aiohttp.FormData({"prompt": "a dog", "seed": "7", "steps": "4", "strength": "0.9", "mask_blur": "2"})
    form.add_field("image", IMAGE, filename="a.png")
    form.add_field("mask", MASK, filename="m.png")
    async with client.http.post(client.url + "/generate", data=form, headers=JSON) as response:
        by_form = await response.json()
    by_text = await generated(client, mask=text_of(MASK), strength=0.9, mask_blur=2)
    assert np.array_equal(pixels(picture(by_form)), pixels(picture(by_text)))
    assert not np.array_equal(pixels(picture(by_text)), pixels(picture(await generated(client, strength=0.9))))


async def test_a_file_that_a_browser_did_not_get_is_none_and_an_empty_one_is_refused(client):
    form = aiohttp.FormData({"prompt": "a dog", "steps": "1"})
    form.add_field("image", b"", filename="", content_type="application/octet-stream")
    async with client.http.post(client.url + "/generate", data=form) as response:
        assert response.status == 200
    form = aiohttp.FormData({"prompt": "a dog"})
    form.add_field("image", b"", filename="cat.png")
    async with client.http.post(client.url + "/generate", data=form) as response:
        assert response.status == 400
        assert "empty file" in (await response.json())["error"]["message"]


async def test_a_picture_of_the_history_can_be_changed(client):
    first = await generated(client)
    name = first["images"][0]["name"]
    second = await generated(client, image=f"history:{name}", seed=8)
    assert read_details(picture(second)).source == blake3(picture(first)).hexdigest()
    status, _, _ = await client.call("DELETE", f"/history/{name}")
    assert status == 200
    error = await client.error("/generate", {**ASKED, "image": f"history:{name}"}, 404)
    assert (error["code"], error["param"]) == ("not_found", "image")
    for odd in ("history:", "history:../../etc/passwd", "history:\0", "history:" + "a" * 5000):
        assert (await client.error("/generate", {**ASKED, "image": odd}, 404))["param"] == "image"


async def test_a_history_that_is_off(start):
    async with start(history=False) as client:
        await client.serves()
        error = await client.error("/generate", {**ASKED, "image": "history:a.png"}, 400)
        assert "which is off" in error["message"]


@pytest.mark.parametrize(
    ("size", "given", "expected"),
    [
        ((64, 64), {}, (64, 64)), ((70, 90), {}, (64, 96)), ((73, 40), {}, (80, 48)), ((5, 5), {}, (16, 16)),
        ((64, 64), {"width": 96, "height": 32}, (96, 32)), ((60, 120), {"width": 32}, (32, 64)), ((60, 120), {"height": 64}, (32, 64)),
        ((600, 300), {}, (512, 256)),
    ],
)  # fmt: skip
async def test_sizes_follow_the_image_unless_given(client, size, given, expected):
    engine = client.services.engines.serving("current").engine
    if max(size) > 512:
        engine.max_side = 512
    body = {**ASKED, "steps": 1, "image": text_of(file_of(*size)), **given}
    answer = await generated(client, **body)
    assert (answer["width"], answer["height"]) == expected
    assert pixels(picture(answer)).shape == (expected[1], expected[0], 3)
    async with client.http.post(client.url + "/generate", json=body) as response:
        assert (response.headers["X-Zwatch-Width"], response.headers["X-Zwatch-Height"]) == tuple(map(str, expected))


async def test_a_size_that_follows_a_large_image_stays_within_the_work_that_is_allowed(start):
    async with start(max_work=0.05) as client:
        await client.serves()
        answer = await generated(client, image=text_of(file_of(400, 200)), steps=4, strength=1.0)
        assert answer["width"] * answer["height"] * 4 / 1e6 <= 0.05
        assert (answer["width"], answer["height"]) == (144, 64)
        error = await client.error("/generate", {**ASKED, "width": 256, "height": 256, "strength": 1.0}, 400)
        assert error["param"] == "width"
        # What counts are the steps that are made.
        error = await client.error(
            "/generate", {**ASKED, "width": 128, "height": 128, "steps": 16, "strength": 0.5}, 400
        )
        assert (error["param"], "steps may be 6 at most" in error["message"]) == ("steps", True)
        await generated(client, width=128, height=128, steps=6, strength=0.5)


async def test_what_was_changed_is_in_the_metadata_and_can_be_read_back(client):
    digest = blake3(IMAGE).hexdigest()
    for image_format in ("png", "jpeg", "webp"):
        answer = await generated(client, mask=text_of(MASK), strength=0.75, mask_blur=3, format=image_format)
        details = read_details(picture(answer))
        assert (details.source, details.mask) == (digest, "yes")
        found = parse_infotext(details.parameters)
        assert (found["Denoising strength"], found["Mask blur"], found["Source"]) == ("0.75", "3", digest)
        assert (details.request["strength"], details.request["mask_blur"]) == (0.75, 3)
        async with client.http.post(client.url + "/api/picture_settings", data=picture(answer)) as response:
            settings = (await response.json())["settings"]
        assert (settings["strength"], settings["mask_blur"]) == (0.75, 3)
        _, _, info = await client.call("POST", "/sdapi/v1/png-info", json={"image": text_of(picture(answer))})
        assert (info["items"]["zwatch_source"], info["items"]["zwatch_mask"]) == (digest, "yes")
    _, _, page = await client.call("GET", "/history?limit=1")
    [kept] = page["images"]
    assert (kept["source"], kept["mask"], kept["strength"]) == (digest, True, 0.75)
    plain = read_details((await client.png())[1])
    assert (plain.source, plain.mask, "strength" in plain.request) == ("", "", False)


async def test_a_stream_counts_the_steps_that_are_made(client):
    steps = []
    headers = {"Accept": "text/event-stream"}
    body = {**ASKED, "steps": 8, "strength": 0.4, "n": 2}
    async with client.http.post(client.url + "/generate", json=body, headers=headers) as response:
        async for line in response.content:
            if line.startswith(b"data: ") and b'"steps"' in line and b'"images"' not in line:
                found = json.loads(line.removeprefix(b"data: "))
                steps.append((found["step"], found["steps"]))
    assert {most for _, most in steps} == {8}  # 4 for each of two images
    assert max(step for step, _ in steps) == 8


@pytest.mark.parametrize("strength", [0, 0.0, 1, 0.01])
async def test_any_strength_gives_a_picture(client, strength):
    status, _, accepted = await client.call("POST", "/jobs", json={**ASKED, "strength": strength})
    assert status == 202
    job = await ended(client, accepted["id"])
    assert job["state"] == "done", job
    assert job["steps"] == max(1, round(4 * strength + 0.49))
    assert job["request"]["strength"] == strength
    assert job["request"]["mask_blur"] is None
    assert (job["request"]["source"], job["request"]["mask"]) == (blake3(IMAGE).hexdigest(), False)
    assert (job["width"], job["height"]) == (64, 64)


async def test_an_accepted_job_says_which_image_it_changes_and_the_history_how_its_mask_was_blurred(client):
    body = {**ASKED, "mask": text_of(MASK), "mask_blur": 3}
    _, _, accepted = await client.call("POST", "/jobs", json=body)
    assert accepted["source"] == blake3(IMAGE).hexdigest()
    await ended(client, accepted["id"])
    assert "source" not in (await client.call("POST", "/jobs", json={"prompt": "a cat", "steps": 1}))[2]
    _, _, page = await client.call("GET", "/history?limit=500")
    newest = next(image for image in page["images"] if image["mask"])
    assert (newest["source"], newest["mask_blur"]) == (accepted["source"], 3)


async def ended(client, name):
    while True:
        _, _, job = await client.call("GET", f"/jobs/{name}")
        if job["state"] not in ("queued", "running"):
            return job
        await asyncio.sleep(0.02)


async def test_a_job_that_has_ended_holds_no_image(client):
    _, _, accepted = await client.call("POST", "/jobs", json={**ASKED, "mask": text_of(MASK)})
    await ended(client, accepted["id"])
    job = client.services.queue.jobs.find(accepted["id"])
    assert job.source is None
    assert job.parameters.source.picture is job.parameters.source.mask is None
    assert job.finished.parameters.source.picture is None


@pytest.mark.parametrize("model", ["current", ["current", "v1"]], ids=["one", "two"])
async def test_the_pixels_of_an_image_are_freed_while_its_answer_is_still_being_sent(client, model, monkeypatch):
    pictures = []

    def read(image, mask):
        pictures.append(weakref.ref((made := read_source(image, mask)).picture))
        return made

    monkeypatch.setattr(asked, "read_source", read)
    drawn, encode = [], results.finished_body

    def slow(*given):
        gc.collect()
        drawn.append(pictures[0]())
        return encode(*given)

    def slow_comparison(comparison):
        gc.collect()
        drawn.append(pictures[0]())
        return compared.compared_body(comparison)

    monkeypatch.setattr(generate, "finished_body", slow)
    monkeypatch.setattr(generate, "compared_body", slow_comparison)
    await generated(client, model=model)
    assert drawn == [None]


async def test_several_models_change_the_same_image(client):
    answer = await generated(client, model=["v1", "current"])
    [first, second] = answer["images"]
    assert (first["width"], first["height"]) == (64, 64)
    assert np.array_equal(pixels(base64.b64decode(first["b64_json"])), pixels(base64.b64decode(second["b64_json"])))


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"image": "nonsense!"}, "image", "is not base64"), ({"image": ""}, "image", "must not be empty"), ({"image": 5}, "image", "must be a string"),
        ({"image": "https://example.com/cat.png"}, "image", "not fetched"), ({"image": text_of(b"hello world")}, "image", "is no image"),
        ({"image": text_of(IMAGE[:60])}, "image", "damaged or incomplete"), ({"mask": text_of(b"hello")}, "mask", "is no image"),
        ({"mask": "!"}, "mask", "is not base64"), ({"image": None, "mask": text_of(MASK)}, "image", "image is missing"),
        ({"strength": 1.1}, "strength", "from 0"), ({"strength": "0.5"}, "strength", "must be a number"), ({"strength": -0.1}, "strength", "from 0"),
        ({"mask_blur": 65}, "mask_blur", "from 0 to 64"), ({"mask_blur": 1.5}, "mask_blur", "whole number"), ({"image": [1]}, "image", "must be a string"), ({"image": ["a", "b"]}, "image", "is there 2 times"),
    ],
)  # fmt: skip
async def test_what_is_wrong_is_refused_with_the_fields_name(client, fields, param, words):
    error = await client.error("/generate", {**ASKED, **fields}, 400)
    assert (error["param"], error["code"]) == (param, "invalid_value")
    assert words in error["message"]


async def test_an_image_that_takes_too_long_to_decode_is_refused_and_others_are_not(client, monkeypatch):
    limits = client.services.bridge._limits
    monkeypatch.setitem(limits, "decode", replace(limits["decode"], seconds=0.5))
    stop, hangs = threading.Event(), True

    def read(image, mask):
        if hangs:
            stop.wait(60)
        return read_source(image, mask)

    monkeypatch.setattr(asked, "read_source", read)
    try:
        error = await client.error("/generate", ASKED, 400)
        assert (error["param"], "takes too long to decode" in error["message"]) == ("image", True)
        hangs = False
        await generated(client)
    finally:
        stop.set()


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/generate", {"image": text_of(IMAGE)}),
        ("/v1/images/edits", {"image": text_of(IMAGE)}),
        ("/sdapi/v1/img2img", {"init_images": [text_of(IMAGE)], "width": 64, "height": 64}),
    ],
)
async def test_images_that_only_wait_for_others_are_not_refused_as_too_slow(client, monkeypatch, path, fields):
    """More at once than are decoded at a time, each nearly as long as one may take; and then the decoder is taken."""
    limits, stop = client.services.bridge._limits, threading.Event()
    monkeypatch.setitem(limits, "decode", replace(limits["decode"], seconds=2.0))
    decode, slow = sources.open_picture, True

    def open_picture(file, param):
        if slow:
            stop.wait(1.2)
        return decode(file, param)

    monkeypatch.setattr(sources, "open_picture", open_picture)
    body = {"prompt": "a dog", "seed": 7, "steps": 1, **fields}
    found = await asyncio.gather(*(client.call("POST", path, json=body, headers=JSON) for _ in range(6)))
    assert [status for status, _, _ in found] == [200] * 6, found[-1]
    slow, bridge = False, client.services.bridge
    for _ in range(limits["decode"].most_left):
        call = bridge.begin("decode", stop.wait)
        while not call.has_begun:
            await asyncio.sleep(0.01)
        call.leave()
    try:
        status, headers, answer = await client.call("POST", path, json=body, headers=JSON)
        assert status == 503, answer
        assert int(headers["Retry-After"]) >= 1
    finally:
        stop.set()


@pytest.mark.parametrize("size", [(40, 64), (300, 300)])
async def test_a_mask_of_another_size_is_blurred_in_its_own_pixels(client, size):
    mask = Image.new("L", size)
    mask.paste(255, (size[0] // 3, 0, size[0], size[1] // 2))
    file = io.BytesIO()
    mask.save(file, "PNG")
    soft = io.BytesIO()
    mask.filter(ImageFilter.GaussianBlur(6)).save(soft, "PNG")
    blurred = await generated(client, mask=text_of(file.getvalue()), mask_blur=6)
    before = await generated(client, mask=text_of(soft.getvalue()))
    assert np.array_equal(pixels(picture(blurred)), pixels(picture(before)))


@pytest.mark.parametrize(
    ("size", "sides", "words"),
    [
        ((100, 333), {"width": 1024}, "width may be"), ((333, 100), {"height": 1024}, "height may be"),
        ((1, 4096), {"width": 64}, "no side keeps its shape"),
    ],
)  # fmt: skip
async def test_a_side_whose_other_would_be_too_long_is_refused(client, size, sides, words):
    [name] = sides
    error = await client.error("/generate", {**ASKED, "image": text_of(file_of(*size)), **sides}, 400)
    assert (error["param"], words in error["message"]) == (name, True), error


async def test_a_form_may_name_its_image_as_a_list(client):
    form = aiohttp.FormData({"prompt": "a dog", "seed": "7", "steps": "4"})
    form.add_field("image[]", IMAGE, filename="a.png")
    async with client.http.post(client.url + "/generate", data=form, headers=JSON) as response:
        answer = await response.json()
    assert np.array_equal(pixels(picture(answer)), pixels(picture(await generated(client)))), answer


async def test_only_calls_that_take_a_name_in_the_history_advise_it(client):
    for path, body in [
        ("/v1/images/edits", {"prompt": "x", "image": "!"}), ("/sdapi/v1/img2img", {"prompt": "x", "init_images": ["!"]}),
    ]:  # fmt: skip
        status, _, answer = await client.call("POST", path, json=body)
        text = json.dumps(answer)
        assert (status, "is not base64" in text, "history:" in text) == (400, True, False), text
    assert "history:NAME" in (await client.error("/generate", {**ASKED, "image": "!"}, 400))["message"]


async def test_another_field_takes_no_file(client):
    form = aiohttp.FormData({"prompt": "a dog"})
    form.add_field("negative_prompt", b"x", filename="x.txt")
    async with client.http.post(client.url + "/generate", data=form) as response:
        assert response.status == 400
        assert (await response.json())["error"]["message"].startswith(
            "negative_prompt is a file: only image, mask, control_image may be one"
        )


async def test_a_null_image_is_none(client):
    await client.png(image=None, mask=None, strength=0.5)


async def test_more_than_a_megabyte_of_image_is_accepted_and_more_than_32_are_not(client):
    noise = np.random.default_rng(3).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    assert len(file.getvalue()) > 2**21
    body = io.BytesIO(json.dumps({**ASKED, "image": text_of(file.getvalue()), "width": 64, "height": 64}).encode())
    status, _, answer = await client.call("POST", "/generate", data=body, headers=JSON)
    assert (status, len(answer["images"])) == (200, 1)
    status, _, _ = await client.call("POST", "/generate", data=io.BytesIO(b"x" * (33 * 2**20)))
    assert status == 413


async def test_images_that_wait_are_bounded(client, monkeypatch):
    monkeypatch.setattr(sources, "MOST_HELD", 64 * 64 * 3 * 2)
    queue = client.services.queue
    await blocked(client)
    try:
        for number in range(3):
            body = {**ASKED, "image": text_of(file_of(colour=(number, 0, 0)))}
            status, headers, body = await client.call("POST", "/jobs", json=body)
            if number < 2:
                assert status == 202, body
        assert (status, body["error"]["code"]) == (429, "queue_full")
        assert int(headers["Retry-After"]) >= 1
        status, _, _ = await client.call("POST", "/jobs", json={"prompt": "a cat"})
        assert status == 202, "one without an image is accepted"
    finally:
        for job in list(queue.jobs.unsettled):
            queue.cancel(job)


async def blocked(client):
    """Return when the device draws something that takes long."""
    _, _, accepted = await client.call("POST", "/jobs", json={"prompt": "a cat", "steps": 100, "n": 16})
    while client.services.queue.running is None:
        await asyncio.sleep(0.01)
    return accepted["id"]


async def test_the_event_loop_is_not_blocked_while_a_large_image_is_decoded(client):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(3).integers(0, 255, (3000, 2000, 3), dtype=np.uint8)).save(
        file, "PNG", compress_level=1
    )
    body = json.dumps({**ASKED, "image": text_of(file.getvalue()), "width": 64, "height": 64}).encode()
    sending = asyncio.create_task(client.call("POST", "/generate", data=io.BytesIO(body), headers=JSON))
    longest, loop = 0.0, asyncio.get_running_loop()
    while not sending.done():
        before = loop.time()
        await asyncio.sleep(0.001)
        longest = max(longest, loop.time() - before)
    status, _, answer = await sending
    assert status == 200, answer
    assert longest < 1.0
