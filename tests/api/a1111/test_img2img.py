"""`img2img`: the real `webuiapi`, the fields of a request, and the answer."""

import asyncio
import base64
import io
import json

import numpy as np
import pytest
import webuiapi
from PIL import Image

from tests.api.a1111.recordings import OPEN_WEBUI_HEADERS, SILLYTAVERN_BODY, SILLYTAVERN_HEADERS
from tests.deploy.loras import write_lora
from zwatch.api.a1111.changing import read_img2img, wanted_changes
from zwatch.errors import RequestError
from zwatch.generation.image_details import read_details
from zwatch.generation.infotext import parse_infotext

PATH = "/sdapi/v1/img2img"


def file_of(picture, image_format="PNG"):
    """Return a picture as a file."""
    file = io.BytesIO()
    picture.save(file, image_format)
    return file.getvalue()


def text_of(picture):
    return base64.b64encode(file_of(picture)).decode()


def noise(width=64, height=64, seed=7):
    """Return a picture of coloured noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def white_in(box, size=(64, 64)):
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


PICTURE = text_of(noise())


async def img2img(client, **fields):
    sent = {"prompt": "a cat", "init_images": [PICTURE], **fields}
    status, headers, body = await client.call("POST", PATH, json=sent)
    assert status == 200, body
    return headers, body, json.loads(body["info"])


def opened(text):
    return Image.open(io.BytesIO(base64.b64decode(text, validate=True)))


def changed(made, picture):
    """Return which pixels of two pictures differ."""
    return (np.asarray(made.convert("RGB")) != np.asarray(picture)).any(axis=2)


@pytest.fixture
def ours(client):
    """Return a function that calls webuiapi's real client in a thread: it asks for the scripts when it is made."""
    host, port = client.address

    def call(fields):
        api = webuiapi.WebUIApi(host=host, port=port, steps=4)
        return api.img2img(**{"prompt": "a cat", "seed": 5, **fields})

    async def in_thread(**fields):
        return await asyncio.to_thread(call, fields)

    return in_thread


# --- the real client


async def test_webuiapi_changes_a_picture_with_all_of_its_defaults(client, ours):
    made = await ours(images=[noise(100, 100)])
    assert made.image.size == (512, 512), "its own default"
    key = client.services.engines.serving("current").key
    assert (made.info["sd_model_name"], made.info["sd_model_hash"]) == ("v1", key.digest[:10])
    assert (made.info["denoising_strength"], made.info["all_seeds"], made.info["steps"]) == (0.75, [5], 4)
    assert made.info["extra_generation_params"] == {"Denoising strength": 0.75}
    assert (made.parameters["denoising_strength"], made.parameters["resize_mode"]) == (0.75, 0)
    assert (made.parameters["init_images"], made.parameters["mask"]) == (None, None), "not repeated"
    pairs = parse_infotext(made.info["infotexts"][0])
    assert (pairs["Denoising strength"], pairs["Size"], pairs["Model"], pairs["Seed"]) == ("0.75", "512x512", "v1", "5")
    assert "Mask blur" not in pairs


async def test_webuiapi_paints_what_is_white_in_a_mask_and_the_rest_stays_as_it_is(ours):
    picture = noise(128, 128)
    made = await ours(
        images=[picture], mask_image=white_in((64, 0, 128, 128), (128, 128)), mask_blur=0, inpaint_full_res=False,
        width=128, height=128,
    )  # fmt: skip
    found = changed(made.image, picture)
    assert not found[:, :64].any(), "every pixel"
    assert found[:, 64:].mean() > 0.9
    inverted = await ours(
        images=[picture], mask_image=white_in((64, 0, 128, 128), (128, 128)), mask_blur=0, inpaint_full_res=False,
        width=128, height=128, inpainting_mask_invert=1,
    )  # fmt: skip
    found = changed(inverted.image, picture)
    assert not found[:, 64:].any()
    assert found[:, :64].mean() > 0.9
    assert inverted.info["extra_generation_params"]["Mask mode"] == "Inpaint not masked"


async def test_webuiapi_paints_the_part_around_a_mask_in_the_full_size_by_default(client, ours):
    picture = noise(300, 200)
    made = await ours(
        images=[picture], mask_image=white_in((200, 100, 230, 120), (300, 200)), mask_blur=2, width=256, height=256,
        inpaint_full_res_padding=8,
    )  # fmt: skip
    assert made.image.size == (300, 200), "the picture's own"
    place = np.argwhere(changed(made.image, picture))
    assert place.min(axis=0).min() >= 90
    assert ((place.min(axis=0) >= (90, 190)) & (place.max(axis=0) <= (130, 240))).all()
    assert changed(made.image, picture)[100:120, 200:230].mean() > 0.9
    extra = made.info["extra_generation_params"]
    assert (extra["Inpaint area"], extra["Masked area padding"], extra["Mask blur"]) == ("Only masked", 8, 2)
    assert (made.info["width"], made.info["height"]) == (256, 256), "what was drawn"
    pairs = parse_infotext(made.info["infotexts"][0])
    assert (pairs["Mask blur"], pairs["Inpaint area"], pairs["Masked content"]) == ("2", "Only masked", "fill")
    async with client.http.get(client.url + made.json["zwatch"]["images"][0]["url"]) as response:
        stored = await response.read()
    assert read_details(stored).parameters == made.info["infotexts"][0], "also in the file"
    with Image.open(io.BytesIO(stored)) as file:
        assert file.size == (300, 200)
    async with client.http.post(
        client.url + PATH,
        json={
            **made.parameters,
            "init_images": [text_of(picture)],
            "mask": text_of(white_in((200, 100, 230, 120), (300, 200))),
        },
    ) as response:
        assert (response.headers["X-Zwatch-Width"], response.headers["X-Zwatch-Height"]) == ("300", "200")
        assert (await response.json())["images"] == [base64.b64encode(stored).decode()], "the same again"
    assert (made.json["zwatch"]["width"], made.json["zwatch"]["height"]) == (300, 200)


async def test_webuiapi_makes_several_and_gets_its_pictures_back_if_it_asks(ours):
    made = await ours(images=[noise()], batch_size=2, n_iter=2, width=64, height=64, include_init_images=True)
    assert len(made.images) == 4
    assert made.info["all_seeds"] == [5, 6, 7, 8]
    with opened(made.parameters["init_images"][0].partition(",")[2]) as picture:
        assert not changed(picture, noise()).any()


async def test_webuiapi_gets_the_message_of_an_error(ours):
    for fields, words in (
        ({"images": []}, "init_images must have one image, got 0"),
        ({"images": [noise(), noise()]}, "init_images must have one image, got 2"),
        ({"images": [noise()], "denoising_strength": 1.5}, "denoising_strength must be from 0.0 to 1.0"),
        ({"images": [noise()], "width": 4096}, "width"),
        ({"images": [noise()], "prompt": ""}, "prompt must not be empty"),
    ):
        with pytest.raises(RuntimeError) as caught:
            await ours(**fields)
        status, text = caught.value.args
        assert (status, words in json.loads(text)["detail"]) == (400, True), text


async def test_webuiapis_other_parameters_are_accepted(ours):
    made = await ours(
        images=[noise()], width=64, height=64, styles=["x"], sampler_name="Euler a", scheduler="Karras", tiling=True,
        script_name=None, alwayson_scripts={"ADetailer": {"args": [True]}}, save_images=True, subseed_strength=0.3,
        override_settings={"sd_model_checkpoint": "v1"}, initial_noise_multiplier=1, negative_prompt="dogs",
    )  # fmt: skip
    assert made.info["sd_model_name"] == "v1"


# --- what the recorded programs would send


async def test_the_headers_and_options_of_open_webui_and_sillytavern_work_with_a_picture(client):
    """Neither sends `img2img` itself: Open WebUI edits by OpenAI's API, SillyTavern does not edit. Programs made from them do."""
    for headers, body in (
        (OPEN_WEBUI_HEADERS, {"prompt": "a cat", "batch_size": 1, "width": 512, "height": 512, "steps": 50}),
        (SILLYTAVERN_HEADERS, SILLYTAVERN_BODY),
    ):
        sent = {**body, "init_images": [f"data:image/png;base64,{PICTURE}"]}
        status, _, answer = await client.call("POST", PATH, json=sent, headers=headers)
        assert status == 200, answer
        assert opened(answer["images"][0]).size == (512, 512)
        assert json.loads(answer["info"])["denoising_strength"] == body.get("denoising_strength", 0.75)


# --- pictures and masks


async def test_without_a_mask_it_is_the_native_image_to_image(client):
    _, body, _ = await img2img(client, seed=7, denoising_strength=0.5)
    native = {"prompt": "a cat", "seed": 7, "strength": 0.5, "image": PICTURE}
    async with client.http.post(client.url + "/generate", json=native) as response:
        theirs = Image.open(io.BytesIO(await response.read()))
    assert not changed(opened(body["images"][0]), theirs).any()


async def test_the_size_follows_the_picture_unless_it_is_given(client):
    for size, asked, made in (
        ((100, 60), {}, (96, 64)),
        ((100, 60), {"width": 64, "height": 128}, (64, 128)),
        ((128, 64), {"width": 64}, (64, 32)),
        ((128, 64), {"height": "130"}, (256, 128)),
    ):
        _, body, info = await img2img(client, init_images=[text_of(noise(*size))], **asked)
        assert opened(body["images"][0]).size == made == (info["width"], info["height"])
        assert (body["parameters"]["width"], body["parameters"]["height"]) == made


@pytest.mark.parametrize(
    ("mode", "same_as"),
    [
        (0, noise(128, 64).resize((64, 64), Image.Resampling.LANCZOS)),
        (1, noise(128, 64).crop((32, 0, 96, 64))),
        (3, noise(128, 64).resize((64, 64), Image.Resampling.LANCZOS)),
    ],
)
async def test_a_resize_mode_is_how_a_picture_is_fitted(client, mode, same_as):
    fields = {"seed": 1, "width": 64, "height": 64}
    _, one, _ = await img2img(client, init_images=[text_of(noise(128, 64))], resize_mode=mode, **fields)
    _, other, _ = await img2img(client, init_images=[text_of(same_as)], **fields)
    assert one["images"] != []
    assert not changed(opened(one["images"][0]), opened(other["images"][0])).any()


def found_in(**fields):
    """Return what is drawn for a request, and its native request."""
    body = json.dumps({"prompt": "x", "init_images": [PICTURE], **fields}).encode()
    found = read_img2img("application/json", body)
    return found, wanted_changes(found, "v1")


def test_resizing_and_filling_shows_all_of_the_picture():
    found, _ = found_in(init_images=[text_of(noise(64, 32))], width=64, height=64, resize_mode=2)
    assert found.source.picture.size == (64, 64)
    assert not changed(found.source.picture.crop((0, 16, 64, 48)), noise(64, 32)).any()
    assert not changed(found.source.picture.crop((0, 0, 64, 1)), noise(64, 32).crop((0, 0, 64, 1))).any()


def test_what_waits_holds_no_files_unless_they_are_to_be_repeated():
    mask = text_of(white_in((0, 0, 32, 32)))
    found, _ = found_in(mask=mask)
    assert (found.asked.init_images, found.asked.mask) == ("", "")
    found, wanted = found_in(mask=mask, include_init_images=True)
    assert (wanted.parameters["init_images"], wanted.parameters["mask"]) == ([PICTURE], mask)


def test_the_defaults_are_those_of_automatic1111():
    found, wanted = found_in(mask=text_of(white_in((0, 0, 32, 32))))
    asked = found.asked
    assert (asked.denoising_strength, asked.resize_mode, asked.mask_blur, asked.inpainting_fill) == (0.75, 0, 4, 0)
    assert (asked.inpaint_full_res, asked.inpaint_full_res_padding, asked.inpainting_mask_invert) == (True, 0, False)
    assert (wanted.request.strength, wanted.request.mask_blur, wanted.request.steps, wanted.request.n) == (
        0.75,
        4,
        8,
        1,
    )
    nothing = dict.fromkeys(("mask", "denoising_strength", "mask_blur", "resize_mode", "inpaint_full_res", "width"))
    assert found_in(**nothing)[1].request.strength == 0.75


@pytest.mark.parametrize(
    "mask",
    [
        white_in((8, 8, 24, 24)),
        white_in((8, 8, 24, 24)).convert("RGB"),
        white_in((8, 8, 24, 24)).convert("RGBA"),
        Image.merge("RGBA", [Image.new("L", (64, 64)) for _ in range(3)] + [white_in((8, 8, 24, 24))]),
        white_in((8, 8, 24, 24)).point(lambda level: 130 if level else 120),
        white_in((16, 16, 48, 48), (128, 128)),
        white_in((625, 625, 1875, 1875), (5000, 5000)),
    ],
)
def test_a_mask_may_be_black_and_white_or_a_transparent_layer_of_any_size(mask):
    found, _ = found_in(mask=text_of(mask), inpaint_full_res=False, mask_blur=0, inpainting_fill=1)
    assert found.source.mask.getbbox() == (8, 8, 24, 24)
    assert not changed(found.source.picture, noise()).any(), "1 is the picture itself"


def test_a_mask_without_anything_white_is_as_if_there_was_none_where_only_its_part_is_painted():
    black = text_of(Image.new("L", (64, 64)))
    assert found_in(mask=black)[0].source.canvas is None
    assert found_in(mask=black, inpaint_full_res=0)[0].source.canvas is not None


def test_a_mask_may_be_blurred_differently_across_and_down():
    found, wanted = found_in(
        mask=text_of(white_in((16, 16, 48, 48))), mask_blur_x=6, mask_blur_y=0, inpaint_full_res=False
    )
    soft = np.asarray(found.source.canvas.mask)
    assert (soft[15].any(), soft[32, 14] > 0) == (False, True)
    assert wanted.request.mask_blur == 6


@pytest.mark.parametrize(("fill", "words"), [(0, "fill"), (1, None), (2, "latent noise"), (3, "latent nothing")])
def test_what_is_under_a_mask(fill, words):
    found, wanted = found_in(mask=text_of(white_in((0, 0, 32, 64))), inpainting_fill=fill, inpaint_full_res=False)
    assert wanted.notes.get("Masked content") == words
    assert not changed(found.source.picture.crop((32, 0, 64, 64)), noise().crop((32, 0, 64, 64))).any()
    assert changed(found.source.picture, noise())[:, :32].any() == (fill != 1)


@pytest.mark.parametrize(
    ("fields", "found"),
    [
        ({"denoising_strength": "0.3"}, ("denoising_strength", 0.3)),
        ({"denoising_strength": 1}, ("denoising_strength", 1.0)),
        ({"mask_blur": "200"}, ("mask_blur", 64)),
        ({"mask_blur": 7.0}, ("mask_blur", 7)),
        ({"inpaint_full_res": 0}, ("inpaint_full_res", False)),
        ({"inpaint_full_res": "true"}, ("inpaint_full_res", True)),
        ({"inpainting_mask_invert": 1}, ("inpainting_mask_invert", True)),
        ({"inpaint_full_res_padding": "32"}, ("inpaint_full_res_padding", 32)),
        ({"resize_mode": "1"}, ("resize_mode", 1)),
    ],
)
def test_numbers_and_flags_may_be_sent_as_automatic1111_accepts_them(fields, found):
    name, value = found
    assert getattr(found_in(**fields)[0].asked, name) == value


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"init_images": None}, "init_images", "required"),
        ({"init_images": PICTURE}, "init_images", "must be a list with an image in base64, got a string"),
        ({"init_images": []}, "init_images", "one image, got 0"),
        ({"init_images": [PICTURE, PICTURE]}, "init_images", "got 2: send a request for each"),
        ({"init_images": [""]}, "init_images", "an empty string"),
        ({"init_images": [5]}, "init_images", "a number"),
        ({"init_images": ["https://example.com/cat.png"]}, "init_images", "not fetched"),
        ({"init_images": ["bm8gaW1hZ2U="]}, "init_images", "no image"),
        ({"init_images": [PICTURE[:400]]}, "init_images", "damaged"),
        ({"mask": "bm8gaW1hZ2U="}, "mask", "no image"),
        ({"mask": 5}, "mask", "a number"),
        ({"denoising_strength": -0.1}, "denoising_strength", "from 0.0 to 1.0, got -0.1"),
        ({"denoising_strength": "much"}, "denoising_strength", "a string"),
        ({"resize_mode": 4}, "resize_mode", "from 0 to 3, got 4"),
        ({"inpainting_fill": -1}, "inpainting_fill", "from 0 to 3"),
        ({"mask_blur": -1}, "mask_blur", "from 0 to 64"),
        ({"inpaint_full_res": "perhaps"}, "inpaint_full_res", "a string"),
        ({"inpainting_mask_invert": 2}, "inpainting_mask_invert", "a number"),
        ({"batch_size": 5, "n_iter": 5}, "n_iter", "16 at most"),
    ],
)
def test_an_invalid_value_is_refused_with_the_fields_name(fields, param, words):
    with pytest.raises(RequestError) as caught:
        found_in(**fields)
    assert (caught.value.status, caught.value.param) == (400, param)
    assert words in caught.value.message


# --- the answer


@pytest.mark.parametrize("strength", [0, 0.25, 1, "0.9"])
async def test_the_text_of_an_image_is_in_the_answer_as_it_is_in_the_file(client, strength):
    _, body, info = await img2img(client, denoising_strength=strength, mask=PICTURE, mask_blur=0, resize_mode=2)
    details = read_details(base64.b64decode(body["images"][0]))
    assert details.parameters == info["infotexts"][0]
    assert info["extra_generation_params"]["Denoising strength"] == float(strength) == details.request["strength"]


async def test_png_info_reads_the_parameters_of_a_changed_picture(client):
    _, body, info = await img2img(client, mask=text_of(white_in((0, 0, 32, 32))), mask_blur=3, denoising_strength=0.9)
    _, _, read = await client.call("POST", "/sdapi/v1/png-info", json={"image": body["images"][0]})
    assert read["info"] == info["infotexts"][0]
    assert (read["parameters"]["Denoising strength"], read["parameters"]["Mask blur"]) == ("0.9", "3")


async def test_without_images_in_the_answer_they_are_in_the_history(client):
    _, body, info = await img2img(client, send_images=False, seed=3)
    assert (body["images"], info["all_seeds"]) == ([], [3])
    async with client.http.get(client.url + body["zwatch"]["images"][0]["url"]) as response:
        assert (response.status, response.content_type) == (200, "image/png")


async def test_an_interrupted_request_is_answered_without_images(client):
    slow = {"steps": 100, "batch_size": 16, "width": 256, "height": 256, "denoising_strength": 1}
    task = asyncio.create_task(img2img(client, **slow))
    queue = client.services.queue
    while queue.running is None or not queue.running.step:
        await asyncio.sleep(0.01)
    job = queue.running
    assert (await client.call("POST", "/sdapi/v1/interrupt"))[::2] == (200, {})
    _, body, info = await task
    assert (body["images"], info["denoising_strength"], body["zwatch"]["state"]) == ([], 1.0, "cancelled")
    assert job.source is None


async def test_errors_have_a_detail_and_the_names_of_this_api(start):
    async with start(max_work=0.05) as client:
        await client.serves()
        for fields, param in (
            ({"init_images": ["x"]}, "init_images"),
            ({"batch_size": 16, "steps": 8, "width": 64, "height": 64}, "n_iter"),
            ({"override_settings": {"sd_model_checkpoint": "v9"}}, "sd_model_checkpoint"),
        ):
            sent = {"prompt": "x", "init_images": [PICTURE], **fields}
            status, _, body = await client.call("POST", PATH, json=sent)
            assert (status, body["error"]["param"]) == (404 if param == "sd_model_checkpoint" else 400, param)
            assert body["detail"] == body["error"]["message"]
        status, _, body = await client.call("POST", PATH, data=io.BytesIO(bytes(33 * 2**20)))
        assert (status, body["error"]["code"]) == (413, "payload_too_large")


async def test_a_tag_in_the_prompt_is_drawn_with(client, models):
    write_lora(client.services.queue.loras.root.path, "ink", models / "v1/transformer")
    plain, inked = [
        await client.call(
            "POST",
            "/sdapi/v1/img2img",
            json={"prompt": prompt, "init_images": [PICTURE], "denoising_strength": 0.7, "seed": 1},
        )
        for prompt in ("a cat", "a cat <lora:ink:1.5>")
    ]
    assert (plain[0], inked[0]) == (200, 200), inked[2]
    assert plain[2]["images"] != inked[2]["images"]
    assert inked[2]["zwatch"]["loras"][0]["name"] == "ink"
    assert "<lora:ink:1.5>" in json.loads(inked[2]["info"])["infotexts"][0]


def test_files_that_are_kept_for_the_answer_count_as_held():
    sent = {"prompt": "a cat", "init_images": [PICTURE], "mask": text_of(white_in((0, 0, 32, 64)))}
    plain, kept = (
        read_img2img("application/json", json.dumps({**sent, "include_init_images": kept}).encode()).source
        for kept in (False, True)
    )
    assert kept.nbytes - plain.nbytes == len(PICTURE) + len(sent["mask"])
