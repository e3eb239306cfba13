"""The lists, and `png-info`."""

import base64
import io
import json
import random
import zlib

import pytest
from PIL import Image, PngImagePlugin

from zwatch.api.a1111.pnginfo import png_info
from zwatch.errors import RequestError
from zwatch.generation.infotext import parse_infotext

PREFIX = "data:image/png;base64,"


async def test_the_lists_have_the_expected_fields(client):
    keys = {
        "samplers": {"name", "aliases", "options"},
        "schedulers": {"name", "label", "aliases", "default_rho", "need_inner_model"},
        "upscalers": {"name", "model_name", "model_path", "model_url", "scale"},
    }
    for name, expected in keys.items():
        _, _, found = await client.call("GET", f"/sdapi/v1/{name}")
        assert [entry.keys() for entry in found] == [expected], name
    for name in (
        "latent-upscale-modes", "sd-vae", "hypernetworks", "face-restorers", "realesrgan-models", "prompt-styles",
        "script-info", "extensions",
    ):  # fmt: skip
        assert (await client.call("GET", f"/sdapi/v1/{name}"))[::2] == (200, []), name
    for name in ("checkpoints", "vae", "loras"):
        assert (await client.call("POST", f"/sdapi/v1/refresh-{name}"))[::2] == (200, None), name
    for path, answer in (
        ("/sdapi/v1/scripts", {"txt2img": [], "img2img": []}),
        ("/sdapi/v1/embeddings", {"loaded": {}, "skipped": {}}),
        ("/sdapi/v1/cmd-flags", {"api": True, "nowebui": True}),
        ("/internal/ping", {}),
    ):
        assert (await client.call("GET", path))[::2] == (200, answer), path
    _, _, memory = await client.call("GET", "/sdapi/v1/memory")
    assert memory["ram"]["free"] + memory["ram"]["used"] == memory["ram"]["total"]
    assert memory["cuda"] == {"error": "unavailable"}
    digest = client.services.engines.serving("current").key.digest
    assert (await client.call("GET", "/sdapi/v1/sd-models"))[2] == [
        {
            "title": title, "model_name": name, "hash": digest[:10], "sha256": None, "filename": name, "config": None,
            "digest": digest,
        }
        for title, name in (("current", "current"), (f"v1 [{digest[:10]}]", "v1"))
    ]  # fmt: skip
    _, _, options = await client.call("GET", "/sdapi/v1/options")
    assert (options["sd_model_checkpoint"], options["sd_checkpoint_hash"]) == ("current", digest[:10])


async def test_png_info_returns_the_parameters_of_a_generated_image(client):
    _, _, made = await client.call(
        "POST", "/sdapi/v1/txt2img", json={"prompt": "一只猫", "seed": 7, "negative_prompt": "blurry"}
    )
    for prefix in ("", PREFIX):
        status, _, found = await client.call("POST", "/sdapi/v1/png-info", json={"image": prefix + made["images"][0]})
        assert (status, found["info"]) == (200, json.loads(made["info"])["infotexts"][0])
        assert (found["items"]["zwatch_version"], json.loads(found["items"]["zwatch_request"])["seed"]) == ("v1", 7)
        read = found["parameters"]
        assert (read["Prompt"], read["Negative prompt"], read["Seed"]) == ("一只猫", "blurry", "7")


async def test_an_image_may_be_larger_than_other_request_bodies(client):
    file = io.BytesIO()
    Image.frombytes("RGB", (1024, 1024), random.Random(1).randbytes(3 * 2**20)).save(file, "png")
    image = base64.b64encode(file.getvalue())
    assert len(image) > 2**22
    status, _, found = await client.call("POST", "/sdapi/v1/png-info", data=io.BytesIO(b'{"image": "%b"}' % image))
    assert (status, found) == (200, {"info": "", "items": {}, "parameters": {}})


async def test_a_compressed_image_has_the_limit_of_other_request_bodies(client):
    headers = {"Content-Encoding": "deflate"}
    small = zlib.compress(b'{"image": "aGVsbG8="}')
    assert (await client.call("POST", "/sdapi/v1/png-info", data=small, headers=headers))[0] == 400
    large = zlib.compress(b'{"image": "%b"}' % (b"A" * 2**21))
    assert (await client.call("POST", "/sdapi/v1/png-info", data=large, headers=headers))[0] == 413


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("", "base64"), (None, "base64"), (5, "base64"), ("aGVsbG8=", "no PNG, JPEG or WebP"), ("é", "no PNG, JPEG or WebP"),
        ("x", "no PNG, JPEG or WebP"), ("https://example.org/a.png", "a URL, which is not fetched"),
    ],
)  # fmt: skip
def test_a_value_that_is_not_an_image_is_refused(image, message):
    with pytest.raises(RequestError, match=message) as caught:
        png_info("application/json", json.dumps({"image": image}).encode())
    assert (caught.value.status, caught.value.param) == (400, "image")


def test_a_decompression_bomb_is_refused():
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "png")
    with pytest.raises(RequestError, match="no PNG"):
        png_info("application/json", json.dumps({"image": base64.b64encode(file.getvalue()).decode()}).encode())


@pytest.mark.parametrize(
    ("infotext", "parameters"),
    [
        ("", {}),
        ("a cat", {"Prompt": "a cat", "Negative prompt": ""}),
        (
            """a cat,\nsitting\nNegative prompt: blurry,\nbad
Steps: 8, Sampler: Euler, CFG scale: 0.0, Seed: 7, Size: 96x64, Lora hashes: "a: 1, b: 2", Model: v1""",
            {
                "Prompt": "a cat,\nsitting", "Negative prompt": "blurry,\nbad", "Steps": "8", "Sampler": "Euler",
                "CFG scale": "0.0", "Seed": "7", "Size": "96x64", "Size-1": "96", "Size-2": "64",
                "Lora hashes": "a: 1, b: 2", "Model": "v1",
            },
        ),
        ("what is a Negative prompt: this?", {"Prompt": "what is a Negative prompt: this?", "Negative prompt": ""}),
        ('x\nSteps: 1, A: "open, B: 2', {"Prompt": "x", "Negative prompt": "", "Steps": "1", "A": '"open', "B": "2"}),
        ('x\nSteps: 1, A: "\\q"', {"Prompt": "x", "Negative prompt": "", "Steps": "1", "A": r'"\q"'}),
    ],
)  # fmt: skip
def test_the_infotext_is_parsed(infotext, parameters):
    assert parse_infotext(infotext) == parameters


@pytest.mark.parametrize("filler", [" ", "a", "a ", '"', "\\", "a: ", ",", '"\\'])
def test_parsing_a_megabyte_of_nonsense_does_not_backtrack(filler):
    parse_infotext("Steps: 1, " + filler * (2**20 // len(filler)))


def test_the_infotext_of_other_programs_is_read_too():
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", "a dog\nSteps: 20, Sampler: DPM++ 2M, Seed: 1")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "png", pnginfo=chunks)
    found = png_info("application/json", json.dumps({"image": base64.b64encode(file.getvalue()).decode()}).encode())
    assert (found["parameters"]["Sampler"], found["items"]) == ("DPM++ 2M", {})


@pytest.mark.parametrize("content", [None, "", "1", "a b"])
async def test_memory_that_cannot_be_read_is_answered_as_automatic1111_does(client, monkeypatch, tmp_path, content):
    if content is not None:
        (tmp_path / "statm").write_text(content)
    monkeypatch.setattr("zwatch.api.a1111.calls._STATM", tmp_path / "statm")
    status, _, body = await client.call("GET", "/sdapi/v1/memory")
    assert (status, body["cuda"]) == (200, {"error": "unavailable"})
    assert body["ram"]["error"].startswith("unavailable: ")
