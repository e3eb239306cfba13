"""The settings in image files of zwatch, AUTOMATIC1111 and ComfyUI, as these programs write them."""

import io
import json
import struct
import zlib

import pytest
from PIL import Image, PngImagePlugin

from tests.generation.test_comfyui import PLAIN, Z_IMAGE
from zwatch.engine.parameters import GenerationParameters
from zwatch.errors import RequestError
from zwatch.generation.image_details import details_of
from zwatch.generation.image_files import encode
from zwatch.generation.picture_settings import picture_settings
from zwatch.generation.request import ImageFormat, parse_generate
from zwatch.rollout.lifecycle import VersionKey

INFOTEXT = """a cat, <lora:ink:0.8>
wearing sunglasses
Negative prompt: blurry, bad
Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1234567890, Size: 512x768, Model hash: 6ce0161689, \
Model: v1-5-pruned-emaonly, Version: v1.10.1"""
FOUND_INFOTEXT = {
    "prompt": "a cat,\nwearing sunglasses", "negative_prompt": "blurry, bad", "steps": 20,
    "guidance_scale": 7.0, "seed": 1234567890, "width": 512, "height": 768, "loras": [{"name": "ink", "scale": 0.8}],
}  # fmt: skip
FOUND_GRAPH = {
    "prompt": "a cat", "negative_prompt": "blurry", "seed": 42, "steps": 9, "guidance_scale": 0.0, "width": 512, "height": 768,
}  # fmt: skip


def png(**texts):
    chunks = PngImagePlugin.PngInfo()
    for name, text in texts.items():
        chunks.add_text(name, text)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "png", pnginfo=chunks)
    return file.getvalue()


def with_exif(image_format, tags, comment=None):
    exif = Image.Exif()
    for tag, text in tags.items():
        exif[tag] = text
    if comment is not None:
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + comment.encode("utf-16-be")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, image_format, exif=exif)
    return file.getvalue()


def of_zwatch(prompt, image_format="png", negative="ugly"):
    asked = parse_generate({"prompt": prompt, "negative_prompt": negative, "format": image_format, "seed": 7})
    parameters = GenerationParameters(prompt, negative, 64, 48, 8, 1.0, (7,))
    details = details_of(asked, parameters, VersionKey("v1", "ab" * 32), 7)
    return encode(Image.new("RGB", (64, 48), "red"), details, ImageFormat(image_format), 90)


@pytest.mark.parametrize("image_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("negative", ["ugly", ""])
@pytest.mark.parametrize("prompt", ["a cat", "一只戴墨镜的猫 🐱", "猫" * 10_000])
def test_a_picture_of_zwatch_has_all_settings_its_version_and_digest(image_format, negative, prompt):
    assert picture_settings(of_zwatch(prompt, image_format, negative)) == {
        "source": "zwatch", "version": "v1", "digest": "ab" * 32,
        "settings": {
            "prompt": prompt, "negative_prompt": negative, "width": 64, "height": 48, "steps": 8, "guidance_scale": 1.0, "seed": 7,
        },
    }  # fmt: skip


def test_a_prompt_that_was_cut_for_a_jpeg_is_found_as_it_is():
    found = picture_settings(of_zwatch("\U0001f431" * 10_000, "jpeg", "\U0001f436" * 10_000))["settings"]
    assert found["prompt"].startswith("\U0001f431" * 1000)
    assert (found["seed"], found["steps"], found["width"]) == (7, 8, 64)


@pytest.mark.parametrize("file", [
    png(parameters=INFOTEXT), with_exif("jpeg", {}, INFOTEXT), with_exif("webp", {}, INFOTEXT),
    png(parameters=INFOTEXT, prompt=json.dumps(PLAIN)),
])  # fmt: skip
def test_a_picture_with_a_text_of_automatic1111(file):
    assert picture_settings(file) == {
        "source": "automatic1111", "version": None, "digest": None, "settings": FOUND_INFOTEXT,
    }  # fmt: skip


PROMPT, WORKFLOW = json.dumps(PLAIN), json.dumps({"nodes": [], "links": []})


@pytest.mark.parametrize("file", [
    png(prompt=PROMPT, workflow=WORKFLOW), png(prompt=PROMPT), png(workflow=WORKFLOW, prompt=PROMPT, parameters="hello"),
    *(
        file for image_format in ("webp", "jpeg")
        for file in (
            with_exif(image_format, {0x0110: f"prompt:{PROMPT}", 0x010F: f"workflow:{WORKFLOW}"}),
            with_exif(image_format, {0x010F: f"Prompt: {PROMPT}", 0x010E: f"Workflow: {WORKFLOW}"}),
            with_exif(image_format, {0x010E: f"prompt:{PROMPT}"}),
            with_exif(image_format, {}, json.dumps({"prompt": PLAIN, "workflow": {}})),
            with_exif(image_format, {}, json.dumps({"prompt": PROMPT})),
        )
    ),
])  # fmt: skip
def test_a_picture_with_a_graph_of_comfyui(file):
    assert picture_settings(file) == {"source": "comfyui", "version": None, "digest": None, "settings": FOUND_GRAPH}


def test_the_graph_of_z_image_turbo_has_no_guidance():
    found = picture_settings(png(prompt=json.dumps(Z_IMAGE)))["settings"]
    assert (found["prompt"], found["negative_prompt"], found["guidance_scale"]) == ("一只戴墨镜的猫", "", 0.0)


def changed_graph(**inputs):
    return png(prompt=json.dumps({**PLAIN, "3": {**PLAIN["3"], "inputs": {**PLAIN["3"]["inputs"], **inputs}}}))


@pytest.mark.parametrize(
    ("file", "missing"),
    [
        (changed_graph(seed=2**64 - 1), {"seed"}), (changed_graph(seed=1.5), {"seed"}), (changed_graph(cfg=30), {"guidance_scale"}),
        (changed_graph(steps=0), {"steps"}), (changed_graph(steps=True), {"steps"}),
        (changed_graph(cfg=float("nan")), {"guidance_scale"}),
        (png(parameters=INFOTEXT.replace("512x768", "512x4096")), {"width", "height"}),
        (png(parameters=INFOTEXT.replace("512x768", "0x" + "9" * 5000)), {"width", "height"}),
        (png(parameters=INFOTEXT.replace("CFG scale: 7", "CFG scale: seven")), {"guidance_scale"}),
        (png(parameters=INFOTEXT.replace("Seed: 1234567890", "Seed: " + "9" * 5000)), {"seed"}),
        (png(parameters=INFOTEXT.replace("a cat", "a cat" * 3000)), {"prompt"}),
    ],
)  # fmt: skip
def test_a_value_that_no_request_may_have_is_left_out(file, missing):
    found = picture_settings(file)["settings"]
    assert found.keys() - {"loras"} == FOUND_INFOTEXT.keys() - {"loras"} - missing
    parse_generate({"prompt": "x", **found})


@pytest.mark.parametrize(
    ("theirs", "ours"), [("500x768", (496, 768)), ("904x1000", (896, 992)), ("7x2050", (16, 2048))]
)
def test_a_size_of_another_program_becomes_the_nearest_that_a_request_may_have(theirs, ours):
    settings = picture_settings(png(parameters=INFOTEXT.replace("512x768", theirs)))["settings"]
    assert (settings["width"], settings["height"]) == ours


@pytest.mark.parametrize("size", ["9" * 400 + "x512", "0x512", "-64x512"])
def test_a_size_that_no_picture_has_is_left_out(size):
    settings = picture_settings(png(parameters=INFOTEXT.replace("512x768", size)))["settings"]
    assert settings["prompt"]
    assert settings.get("width", 16) <= 2048


def test_a_text_without_a_negative_prompt_clears_it():
    assert picture_settings(png(parameters="a cat\nSteps: 4, Seed: 1"))["settings"]["negative_prompt"] == ""


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (b"", "no PNG, JPEG or WebP file"), (b"hello", "no PNG, JPEG or WebP file"),
        (png(parameters=INFOTEXT)[:60], "no PNG, JPEG or WebP file"), (png(), "the picture has no settings in it"),
        (with_exif("jpeg", {0x010F: "Canon", 0x0110: "EOS 5D"}), "the picture has no settings in it"),
        (png(parameters="hello"), "no settings were found in it"), (png(prompt="{}"), "the picture has no settings in it"),
        (png(prompt='{"1": {}}'), "a ComfyUI workflow, but no settings"), (png(prompt="[" * 9999), "no settings in it"),
    ],
)  # fmt: skip
def test_a_file_without_settings_is_refused_with_the_reason(file, message):
    with pytest.raises(RequestError, match=message) as caught:
        picture_settings(file)
    assert (caught.value.status, caught.value.code) == (400, "invalid_value")


def test_a_decompression_bomb_is_refused():
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    file = png(parameters=INFOTEXT)
    with pytest.raises(RequestError, match="no PNG"):
        picture_settings(file[:12] + header + zlib.crc32(header).to_bytes(4) + file[33:])
