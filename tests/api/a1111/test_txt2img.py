"""`txt2img`: the fields of a request and the answer."""

import asyncio
import base64
import io
import json

import pytest
from PIL import Image

from tests.deploy.loras import write_lora
from zwatch.api.a1111.txt2img import Txt2ImgRequest, checkpoint_asked, wanted_images
from zwatch.errors import RequestError
from zwatch.generation.fields import validated
from zwatch.generation.image_details import read_details

SLOW = {"prompt": "a cat", "steps": 100, "batch_size": 16, "width": 256, "height": 256}


def parse_txt2img(body, model):
    """Return the request for a body, to be served by `model`."""
    return wanted_images(validated(Txt2ImgRequest, body), model)


async def txt2img(client, **fields):
    status, headers, body = await client.call("POST", "/sdapi/v1/txt2img", json={"prompt": "a cat", **fields})
    assert status == 200, body
    return headers, body, json.loads(body["info"])


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


async def test_the_answer_has_the_images_and_their_parameters(client):
    headers, body, info = await txt2img(
        client, seed=7, batch_size=2, n_iter=2, steps=3, width=96, height=64, negative_prompt="blurry", cfg_scale=7.5
    )
    key = client.services.engines.serving("current").key
    assert (headers["X-Zwatch-Version"], headers["X-Zwatch-Digest"]) == (key.version, key.digest)
    files = [base64.b64decode(image, validate=True) for image in body["images"]]
    assert len(files) == 4
    assert info["all_seeds"] == [7, 8, 9, 10]
    assert [read_details(file).parameters for file in files] == info["infotexts"]
    assert info["infotexts"][1] == (
        "a cat\nNegative prompt: blurry\nSteps: 3, Sampler: Euler, CFG scale: 0.0, Seed: 8, Size: 96x64, "
        f"Model hash: {key.digest[:10]}, Model: v1"
    )
    with Image.open(io.BytesIO(files[0])) as image:
        assert (image.format, image.size) == ("PNG", (96, 64))
    for name in ("prompt", "negative_prompt"):
        assert info[f"all_{name}s"] == [info[name]] * 4
    expected = {
        "seed": 7, "width": 96, "height": 64, "steps": 3, "cfg_scale": 0.0, "batch_size": 2, "sampler_name": "Euler",
        "sd_model_name": "v1", "sd_model_hash": key.digest[:10], "index_of_first_image": 0,
    }  # fmt: skip
    assert {name: info[name] for name in expected} == expected
    asked = {"cfg_scale": 7.5, "batch_size": 2, "n_iter": 2, "seed": 7, "width": 96, "negative_prompt": "blurry"}
    assert {name: body["parameters"][name] for name in asked} == asked
    assert body["zwatch"]["digest"] == key.digest
    assert body["zwatch"]["images"][0]["url"].startswith("/history/")


async def test_the_image_equals_that_of_generate_and_only_guidance_scale_changes_the_guidance(client):
    _, body, _ = await txt2img(client, seed=7, cfg_scale=7)
    native = {"prompt": "a cat", "seed": 7}
    async with client.http.post(client.url + "/generate", json=native) as response:
        same = await response.read()
    with Image.open(io.BytesIO(base64.b64decode(body["images"][0]))) as one, Image.open(io.BytesIO(same)) as other:
        assert one.tobytes() == other.tobytes()
    _, guided, info = await txt2img(client, seed=7, guidance_scale=3)
    assert (guided["images"] != body["images"], info["cfg_scale"], "CFG scale: 3.0" in info["infotexts"][0]) == (
        True, 3.0, True,
    )  # fmt: skip


async def test_images_that_are_not_sent_can_be_fetched(start):
    async with start(history=False) as client:
        await client.serves()
        _, body, info = await txt2img(client, send_images=False, seed=3)
        assert (body["images"], info["all_seeds"]) == ([], [3])
        [image] = body["zwatch"]["images"]
        async with client.http.get(client.url + image["url"]) as response:
            assert (response.status, response.content_type) == (200, "image/png")


async def test_a_request_may_name_a_checkpoint_by_version_title_or_alias(both):
    digests = {resident.key.version: resident.key.digest for resident in both.services.engines.residents}
    for name, version in (
        ("v1", "v1"),
        (f"v1 [{digests['v1'][:10]}]", "v1"),
        ("current", "v2"),
        ("", "v2"),
        (None, "v2"),
    ):
        _, _, info = await txt2img(both, steps=1, override_settings={"sd_model_checkpoint": name})
        assert info["sd_model_name"] == version, name
    _, _, info = await txt2img(both, steps=1, override_settings_restore_afterwards=False)
    assert info["sd_model_name"] == "v2", "the checkpoint of one request is not remembered"


async def test_a_checkpoint_that_is_not_loaded_is_a_404_that_lists_the_loaded_ones(client):
    for name in ("v2", "v1 [0000000000]", "../v1"):
        sent = {"prompt": "x", "override_settings": {"sd_model_checkpoint": name}}
        status, _, body = await client.call("POST", "/sdapi/v1/txt2img", json=sent)
        assert (status, body["error"]["code"], body["error"]["param"]) == (
            404,
            "model_not_found",
            "sd_model_checkpoint",
        )
        assert f"v1 [{client.services.engines.serving('current').key.digest[:10]}]" in body["detail"]


async def test_errors_have_a_detail(start):
    async with start(max_work=1.0) as client:
        await client.serves()
        for sent, param in (
            (b"{", None),
            (b'{"prompt": ""}', "prompt"),
            (b'{"prompt": "x", "batch_size": 5, "n_iter": 5}', "n_iter"),
            (b'{"prompt": "x", "batch_size": 16, "steps": 100}', "n_iter"),
            (b'{"prompt": "x", "steps": 0}', "steps"),
            (b'{"prompt": "x", "override_settings": "v1"}', "override_settings"),
        ):
            status, _, body = await client.call("POST", "/sdapi/v1/txt2img", data=sent)
            assert (status, body["error"]["param"]) == (400, param), (sent, body)
            assert body["detail"] == body["error"]["message"]
        assert (await client.call("GET", "/sdapi/v1/nothing"))[2]["detail"].startswith("there is nothing at")
        assert "detail" not in (await client.call("GET", "/nothing"))[2]


async def test_a_full_queue_refuses_immediately(start):
    async with start(queue=1) as client:
        await client.serves()
        queue = client.services.queue
        native = {"prompt": "x", "steps": 100, "n": 16, "width": 256, "height": 256}
        await client.call("POST", "/jobs", json=native)
        await until(lambda: queue.running is not None)
        await client.call("POST", "/jobs", json=native)
        status, headers, body = await client.call("POST", "/sdapi/v1/txt2img", data=b"not even JSON")
        assert (status, body["error"]["code"]) == (429, "queue_full")
        assert int(headers["Retry-After"]) >= 1
        assert body["detail"] == body["error"]["message"]
        for job in queue.jobs.unsettled:
            queue.cancel(job)


async def test_a_client_that_disconnects_cancels_its_request(client):
    asking = asyncio.create_task(client.call("POST", "/sdapi/v1/txt2img", json=SLOW))
    queue = client.services.queue
    await until(lambda: queue.running is not None)
    job = queue.running
    asking.cancel()
    await until(lambda: job.state.is_final)
    assert job.is_cancelled


@pytest.mark.parametrize(
    ("asked", "made"), [(100, 100), (101, 100), (150, 100), ("150", 100), (1e6, 100), (10**40, 100)]
)
def test_more_steps_than_there_may_be_are_as_many_as_there_may_be(asked, made):
    """SillyTavern's slider ends at 150."""
    body = wanted_images(validated(Txt2ImgRequest, {"prompt": "x", "steps": asked}), "current")
    assert (body.request.steps, body.parameters["steps"]) == (made, made)


@pytest.mark.parametrize(
    ("asked", "made"), [(16, 16), (20, 16), (24, 16), (25, 32), (520, 512), (521, 528), (528, 528), (2047, 2048)]
)
def test_a_side_is_rounded_to_a_multiple_of_16(asked, made):
    found = parse_txt2img({"prompt": "x", "width": asked, "height": 64}, "current")
    assert (found.request.width, found.parameters["width"]) == (made, made)


def test_missing_fields_and_null_stand_for_the_default():
    for body in ({}, dict.fromkeys(("width", "height", "steps", "seed", "batch_size", "n_iter", "negative_prompt"))):
        found = parse_txt2img({"prompt": "x", **body}, "v1").request
        assert (found.width, found.height, found.steps, found.n, found.guidance_scale) == (None, None, 8, 1, 0.0)
        assert (found.negative_prompt, found.format, found.model) == ("", "png", "v1")


def test_a_random_seed_is_exact_in_javascript():
    seeds = {parse_txt2img({"prompt": "x", "seed": -1, "batch_size": 16}, "current").request.seed for _ in range(50)}
    assert len(seeds) > 40
    assert max(seeds) < 2**32


def test_whole_numbers_may_be_strings_and_floats():
    found = parse_txt2img({"prompt": "x", "steps": 20.0, "width": "512", "seed": " 7 ", "cfg_scale": "7"}, "current")
    assert (found.request.steps, found.request.width, found.request.seed) == (20, 512, 7)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 20.5), ("steps", "many"), ("steps", 0), ("width", 15), ("width", 2049), ("height", True), ("seed", -2),
        ("seed", 2**63), ("batch_size", 17), ("batch_size", 0), ("n_iter", -1), ("send_images", "no"),
        ("guidance_scale", 21), ("prompt", ["x"]), ("negative_prompt", 5),
    ],
)  # fmt: skip
def test_an_invalid_value_is_refused_with_the_fields_name(field, value):
    with pytest.raises(RequestError) as caught:
        parse_txt2img({"prompt": "x", field: value}, "current")
    assert (caught.value.status, caught.value.param) == (400, field)
    assert field in caught.value.message


@pytest.mark.parametrize("cfg_scale", ["7", None, float("inf"), True, [1]])
def test_an_invalid_cfg_scale_is_ignored(cfg_scale):
    assert parse_txt2img({"prompt": "x", "cfg_scale": cfg_scale}, "current").parameters["cfg_scale"] == 7.0


@pytest.mark.parametrize("value", [5, ["v1"], "x" * 10_001])
def test_a_checkpoint_must_be_a_string(value):
    with pytest.raises(RequestError) as caught:
        checkpoint_asked(
            validated(Txt2ImgRequest, {"prompt": "x", "override_settings": {"sd_model_checkpoint": value}})
        )
    assert caught.value.param == "sd_model_checkpoint"


@pytest.fixture
def loras(client, models):
    root = client.services.queue.loras.root.path
    for seed, name in enumerate(("ink", "night")):
        write_lora(root, name, models / "v1/transformer", 4, seed)
    return root


async def test_a_tag_in_the_prompt_is_drawn_with_and_removed_from_the_prompt(client, loras):
    _, body, info = await txt2img(client, prompt="a cat <lora:ink:0.8>, at home", seed=1)
    digest = client.services.queue.loras.root.open_lora("ink").digest
    file = base64.b64decode(body["images"][0])
    _, native = await client.png(prompt="a cat , at home", seed=1, loras=[{"name": "ink", "scale": 0.8}])
    assert Image.open(io.BytesIO(file)).tobytes() == Image.open(io.BytesIO(native)).tobytes()
    assert info["infotexts"][0].startswith("a cat , at home <lora:ink:0.8>\nSteps: 8, ")
    assert f'Lora hashes: "ink: {digest[:12]}"' in info["infotexts"][0]
    assert body["parameters"]["prompt"] == "a cat <lora:ink:0.8>, at home"
    assert body["zwatch"]["loras"] == [{"name": "ink", "scale": 0.8, "digest": digest}]
    _, again, _ = await txt2img(client, prompt=info["infotexts"][0].partition("\n")[0], seed=1)
    assert again["images"] == body["images"]


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("a cat <lora:oil:1>", "prompt: there is no LoRA 'oil'; there are ink, night"),
        ("a cat <lora:ink:much>", '<lora:ink:much> has "much" for a scale, expected a number such as <lora:ink:0.8>'),
        ("a cat <lora:ink:3>", "<lora:ink:3> has the scale 3, it must be from -2 to 2"),
        ("a cat <lora:../x:1>", "<lora:../x:1> has the name"), ("<lora:ink:1>", "prompt names LoRAs and nothing else"),
        ("a cat " + "".join(f"<lora:l{number}>" for number in range(9)), "may name up to 8 LoRAs, got 9"),
    ],
)  # fmt: skip
async def test_a_wrong_tag_is_named(client, loras, prompt, says):
    error = await client.error("/sdapi/v1/txt2img", {"prompt": prompt}, 400)
    assert says in error["message"]
    assert error["param"] == "prompt"


@pytest.mark.parametrize(
    ("prompt", "rest", "found"),
    [
        ("a cat", "a cat", {}), ("a cat <lora:ink>", "a cat", {"ink": 1.0}), ("<lora:ink:0.5> a  cat", "a cat", {"ink": 0.5}),
        ("a <lora:ink:1:0.25> cat", "a cat", {"ink": 0.25}), ("a cat<lora:ink:te=1:unet=0.3>", "a cat", {"ink": 0.3}),
        ("a cat <lora:ink:0.5><lora:night:-1>", "a cat", {"ink": 0.5, "night": -1.0}),
        ("a cat <lora:ink:0.5> <lora:ink:0.25>", "a cat", {"ink": 0.75}), ("a < b, <hypernet:x:1>", "a < b, <hypernet:x:1>", {}),
        ("a cat <lora:ink:0.8>\nat home", "a cat\nat home", {"ink": 0.8}), ("a  cat", "a  cat", {}),
    ],
)  # fmt: skip
def test_tags_are_read_as_automatic1111_does(prompt, rest, found):
    parsed = parse_txt2img({"prompt": prompt}, "current").request
    assert parsed.prompt == rest
    assert {wish.name: wish.scale for wish in parsed.loras} == found
