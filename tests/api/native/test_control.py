"""Control images, by `POST /generate` and `/jobs`, over HTTP, with real engines."""

import base64
import io
import json

import aiohttp
import numpy as np
import pytest
import torch
from blake3 import blake3
from diffusers import ZImageControlNetPipeline
from PIL import Image

from tests.controlnets import write_controlled
from tests.deploy.loras import write_lora
from zwatch.engine.precision import adapt
from zwatch.generation.image_details import read_details
from zwatch.generation.infotext import parse_infotext
from zwatch.generation.picture_settings import picture_settings

JSON = {"Accept": "application/json"}


def drawing(width=80, height=48):
    made = Image.new("RGB", (width, height))
    made.paste((255, 255, 255), (10, 8, 40, 30))
    file = io.BytesIO()
    made.save(file, "PNG")
    return file.getvalue()


CONTROL = drawing()
DIGEST = blake3(CONTROL).hexdigest()
ASKED = {"prompt": "a dog", "seed": 7, "steps": 3, "control_image": base64.b64encode(CONTROL).decode()}


@pytest.fixture
async def guided(start, models):
    """A service that serves v3, v1 with a ControlNet."""
    write_controlled(models, "v3")
    (models / "current").unlink()
    (models / "current").symlink_to("v3")
    async with start() as found:
        await found.serves("v3")
        yield found


async def generated(client, **fields):
    status, _, body = await client.call("POST", "/generate", json={**ASKED, **fields}, headers=JSON)
    assert status == 200, body
    return body


def picture(body):
    return base64.b64decode(body["images"][0]["b64_json"])


def pixels(file):
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"))


def library_picture(version):
    pipeline = ZImageControlNetPipeline.from_pretrained(version, torch_dtype=torch.bfloat16, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    for module in (pipeline.text_encoder, pipeline.transformer, pipeline.vae, pipeline.controlnet):
        adapt(module, torch.device("cpu"))
    with Image.open(io.BytesIO(CONTROL)) as image:
        [found] = pipeline(
            prompt="a dog", control_image=image, controlnet_conditioning_scale=1.2, width=80, height=48, num_inference_steps=3,
            guidance_scale=0.0, generator=torch.Generator().manual_seed(7),
        ).images  # fmt: skip
    return np.asarray(found)


async def test_the_answer_has_diffusers_own_pixels_in_the_control_images_shape_and_says_what_guided_it(guided, models):
    body = await generated(guided, control_scale=1.2)
    file = picture(body)
    assert np.array_equal(pixels(file), library_picture(models / "v3"))
    assert {name: body[name] for name in ("width", "height", "control", "control_scale")} == {
        "width": 80, "height": 48, "control": DIGEST, "control_scale": 1.2,
    }  # fmt: skip
    details = read_details(file)
    assert (details.control, details.source, details.request["control_scale"]) == (DIGEST, "", 1.2)
    text = parse_infotext(details.parameters)
    assert (text["Control"], text["Control scale"], "Denoising strength" in text) == (DIGEST, "1.2", False)
    assert picture_settings(file)["settings"]["seed"] == 7
    _, _, job = await guided.call("GET", f"/jobs/{body['id']}")
    for one in (job, job["request"]):
        assert (one["control"], one["control_scale"]) == (DIGEST, 1.2)
    assert (job["request"]["source"], job["request"]["strength"]) == (None, None)
    _, _, page = await guided.call("GET", "/history")
    [kept] = page["images"]
    assert (kept["control"], kept["control_scale"], kept["source"], kept["strength"]) == (DIGEST, 1.2, None, None)
    _, _, status = await guided.call("GET", "/status")
    [engine] = status["engines"]
    size = (models / "v3/controlnet/diffusion_pytorch_model.safetensors").stat().st_size
    assert engine["control"] is True
    assert engine["bytes"] > size
    plain = await generated(guided, control_image=None)
    assert (plain["control"], plain["control_scale"]) == (None, None)
    assert read_details(picture(plain)).control == ""


async def test_the_ways_to_send_one_give_the_same_picture_in_the_size_that_is_asked_for(guided, models):
    size = {"width": 64, "height": 32}
    expected = pixels(picture(await generated(guided, **size)))
    assert expected.shape == (32, 64, 3)
    url = await generated(guided, control_image=f"data:image/png;base64,{ASKED['control_image']}", **size)
    form = aiohttp.FormData({name: str(value) for name, value in {**ASKED, **size}.items() if name != "control_image"})
    form.add_field("control_image", CONTROL, filename="pose.png", content_type="image/png")
    async with guided.http.post(guided.url + "/generate", data=form, headers=JSON) as response:
        assert response.status == 200, await response.text()
        by_form = await response.json()
    for one in (url, by_form):
        assert np.array_equal(pixels(picture(one)), expected)
    name = url["images"][0]["name"]
    of_history = await generated(guided, control_image=f"history:{name}", format="webp", **size)
    assert read_details(picture(of_history)).control == blake3(picture(url)).hexdigest()
    assert not np.array_equal(pixels(picture(of_history)), expected)


async def test_a_job_says_what_guides_it_and_a_lora_changes_what_it_draws(guided, models):
    write_lora(guided.services.queue.loras.root.path, "ink", models / "v3/transformer", 4, 0)
    loras = [{"name": "ink", "scale": 0.8}]
    status, _, accepted = await guided.call("POST", "/jobs", json={**ASKED, "loras": loras})
    assert (status, accepted["control"], "source" in accepted) == (202, DIGEST, False)
    first, second = [picture(await generated(guided, loras=loras)) for _ in range(2)]
    assert first == second
    assert not np.array_equal(pixels(first), pixels(picture(await generated(guided))))


async def test_several_models_draw_by_the_same_one(guided, models):
    body = await generated(guided, model=["current", "v3"])
    assert (body["control"], len(body["images"])) == (DIGEST, 2)
    assert len({image["b64_json"] for image in body["images"]}) == 2  # the name of the model is in the file
    assert np.array_equal(*(pixels(base64.b64decode(image["b64_json"])) for image in body["images"]))


async def test_a_version_without_a_controlnet_refuses_it(client):
    for path in ("/generate", "/jobs"):
        status, _, body = await client.call("POST", path, json=ASKED)
        assert (status, body["error"]["param"], body["error"]["code"]) == (400, "control_image", "invalid_value")
        assert "version v1 has no controlnet" in body["error"]["message"]
    _, _, status = await client.call("GET", "/status")
    assert [engine["control"] for engine in status["engines"]] == [False]


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"image": ASKED["control_image"]}, "control_image", "control_image cannot be given beside image"),
        ({"mask": ASKED["control_image"]}, "control_image", "control_image cannot be given beside mask"),
        ({"control_scale": 2.1}, "control_scale", "control_scale must be from 0.0 to 2.0, got 2.1"),
        ({"control_image": "AAAA"}, "control_image", "control_image is no image: send a PNG, JPEG, WebP or GIF file"),
        ({"control_image": "http://a/b.png"}, "control_image", "control_image is a URL, which is not fetched"),
    ],
)
async def test_what_cannot_be_drawn_is_refused(client, fields, param, said):
    status, _, body = await client.call("POST", "/generate", json={**ASKED, **fields})
    assert (status, body["error"]["param"]) == (400, param)
    assert said in body["error"]["message"]


async def test_a_job_that_waits_while_a_version_without_one_is_promoted_fails_and_says_why(guided, models):
    import os

    hold = await guided.call("POST", "/jobs", json={"prompt": "a cat", "steps": 100, "n": 16, "seed": 1})
    _, _, job = await guided.call("POST", "/jobs", json=ASKED)
    os.symlink("v1", models / ".new")
    os.replace(models / ".new", models / "current")
    await guided.serves("v1")
    await guided.call("DELETE", f"/jobs/{hold[2]['id']}")
    for _ in range(600):
        _, _, view = await guided.call("GET", f"/jobs/{job['id']}")
        if view["state"] not in ("queued", "running"):
            break
        import asyncio

        await asyncio.sleep(0.05)
    assert view["state"] == "failed", json.dumps(view)
    assert (view["error"]["param"], "version v1 has no controlnet" in view["error"]["message"]) == (
        "control_image",
        True,
    )
