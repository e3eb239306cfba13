"""`POST /api/picture_settings`: the settings in an image file."""

import io
import zlib

import pytest
from PIL import Image


async def test_a_generated_picture_gives_its_settings_back(client):
    asked = {
        "prompt": "一只猫", "negative_prompt": "blurry", "width": 64, "height": 96, "steps": 2, "guidance_scale": 1.5, "seed": 7,
    }  # fmt: skip
    for image_format in ("png", "jpeg", "webp"):
        headers, file = await client.png(**asked, format=image_format)
        status, _, found = await client.call("POST", "/api/picture_settings", data=file)
        assert (status, found) == (200, {
            "source": "zwatch", "version": "v1", "digest": headers["X-Zwatch-Digest"], "settings": asked,
        })  # fmt: skip


async def test_the_content_type_does_not_matter(client):
    _, file = await client.png(seed=1)
    for kind in ("image/png", "application/octet-stream", "application/json", "application/x-www-form-urlencoded", "x"):
        status, _, found = await client.call("POST", "/api/picture_settings", data=file, headers={"Content-Type": kind})
        assert (status, found["settings"]["seed"]) == (200, 1)


@pytest.mark.parametrize(
    ("body", "message"),
    [(b"", "no PNG, JPEG or WebP"), (b"hello", "no PNG, JPEG or WebP"), (None, "no settings in it")],
)
async def test_a_file_without_settings_is_a_400_with_the_reason(client, body, message):
    if body is None:
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "png")
        body = file.getvalue()
    error = await client.error("/api/picture_settings", body, 400)
    assert (error["code"], error["param"]) == ("invalid_value", "image")
    assert message in error["message"]


async def test_a_file_of_more_than_32_mib_is_a_413(client):
    for size, status in ((32 * 2**20, 400), (32 * 2**20 + 1, 413)):
        file = io.BytesIO(bytes(size))
        assert (await client.call("POST", "/api/picture_settings", data=file))[0] == status
    headers = {"Content-Encoding": "deflate"}
    large = zlib.compress(bytes(2**21))
    assert (await client.call("POST", "/api/picture_settings", data=large, headers=headers))[0] == 413


async def test_it_needs_no_history(start):
    async with start(history=False) as client:
        await client.serves()
        _, file = await client.png(seed=1)
        _, _, found = await client.call("POST", "/api/picture_settings", data=file)
        assert found["settings"]["seed"] == 1
