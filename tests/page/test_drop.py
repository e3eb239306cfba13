"""A picture that is dropped, pasted or chosen fills in its settings."""

import base64
import io
import json

import pytest_asyncio
from PIL import Image, PngImagePlugin
from playwright.async_api import expect

from tests.page.conftest import WAIT, running
from tests.page.pictures import write_picture
from zwatch.generation.image_details import Details
from zwatch.generation.image_files import encode
from zwatch.generation.request import ImageFormat

expect.set_options(timeout=WAIT)

A1111 = (
    "a castle on a hill\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 4321, Size: 512x768, "
    "Model hash: abcdef, Model: other"
)
COMFYUI = {
    "3": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 77, "steps": 12, "cfg": 1.5, "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0],
            "model": ["4", 0], "sampler_name": "euler", "scheduler": "normal", "denoise": 1,
        },
    },
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 640, "height": 384, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a paper crane", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "text", "clip": ["4", 1]}},
}  # fmt: skip
EVENT = """([kind, name, type, text]) => {
    const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], name, { type }));
    const options = { bubbles: true, cancelable: true };
    if (kind === "paste") return document.body.dispatchEvent(new ClipboardEvent(kind, { ...options, clipboardData: data }));
    for (const one of ["dragenter", "dragover", kind]) {
        document.body.dispatchEvent(new DragEvent(one, { ...options, dataTransfer: data }));
    }
}"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kept(tmp_path_factory):
    """A service that needs no model for this."""
    async with running(tmp_path_factory.mktemp("drop"), version=None) as service:
        yield service


@pytest_asyncio.fixture(loop_scope="module")
async def page(new_page, kept):
    """The page, before a picture is dropped on it."""
    return await new_page(kept.url + "/")


def png(**chunks):
    """Return a PNG file with text chunks."""
    texts = PngImagePlugin.PngInfo()
    for name, text in chunks.items():
        texts.add_text(name, text)
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(file, "PNG", pnginfo=texts)
    return file.getvalue()


async def give(page, file, kind="drop", name="picture.png", media_type="image/png"):
    """Drop or paste a file."""
    await page.evaluate(EVENT, [kind, name, media_type, base64.b64encode(file).decode()])


async def has_settings(page, **expected):
    """Check what the form says."""
    for name, value in expected.items():
        role = "textbox" if name in ("Prompt", "Negative_prompt") else "spinbutton"
        field = page.get_by_role(role, name=name.replace("_", " "), exact=True, include_hidden=True)
        await expect(field).to_have_value(str(value))


async def test_a_dropped_picture_of_zwatch_fills_in_all_its_settings(page, tmp_path):
    name = write_picture(tmp_path, 5, "v2", "a dropped harbour", 48)
    await give(page, (tmp_path / name).read_bytes())
    await has_settings(page, Prompt="a dropped harbour", Width=48, Height=48, Steps=8, Seed=5)
    await expect(page.get_by_text("The settings of the picture are filled in (zwatch v2).")).to_be_visible()


async def test_a_pasted_picture_of_automatic1111_fills_in_its_settings(page):
    await give(page, png(parameters=A1111), "paste")
    await has_settings(page, Prompt="a castle on a hill", Width=512, Height=768, Steps=20, Seed=4321, Guidance=7)
    await has_settings(page, Negative_prompt="blurry")
    await expect(page.get_by_text("The settings of the picture are filled in (AUTOMATIC1111).")).to_be_visible()


async def test_a_chosen_picture_of_comfyui_fills_in_its_settings(page):
    async with page.expect_file_chooser() as chooser:
        await page.get_by_role("button", name="Settings from a picture").click()
    file = {"name": "comfy.png", "mimeType": "image/png", "buffer": png(prompt=json.dumps(COMFYUI))}
    await (await chooser.value).set_files([file])
    await has_settings(page, Prompt="a paper crane", Width=640, Height=384, Steps=12, Seed=77, Guidance=1.5)
    await expect(page.get_by_text("The settings of the picture are filled in (ComfyUI).")).to_be_visible()


CHINESE = """一只戴墨镜的猫 <lora:水墨_v2:0.8> (neon:1.2)
第二行 🐱
Negative prompt: 模糊, (worst quality:1.4)
Steps: 25, Sampler: {sampler}, CFG scale: 5.5, Seed: 9007199254740993, Size: 904x512, Model hash: 6ce0161689, Model: xl, \
Lora hashes: "水墨_v2: 0123456789ab, ink: ba9876543210", Version: v1.10.1"""
"""A text of AUTOMATIC1111 with a seed beyond 2^53, and a side that is no multiple of 16."""


def with_exif(image_format, tags, comment=None):
    """Return a JPEG or WebP file as AUTOMATIC1111 (a comment) or ComfyUI (texts in other tags) write it."""
    exif = Image.Exif()
    exif.update(tags)
    if comment is not None:
        exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + comment.encode("utf-16-be")
    file = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(file, image_format, exif=exif)
    return file.getvalue()


def of_zwatch(image_format):
    request = {
        "prompt": "雪山 at dawn", "negative_prompt": "", "width": 80, "height": 48, "steps": 9, "guidance_scale": 0.0,
        "seed": 2**63 - 2, "format": image_format, "quality": 71, "model": "current",
    }  # fmt: skip
    details = Details("雪山 at dawn\nSteps: 9, Seed: 1", "v1", "ab" * 32, request)
    return encode(Image.new("RGB", (80, 48), "teal"), details, ImageFormat(image_format), 71)


async def test_jpeg_and_webp_files_of_all_three_programs_fill_in_their_settings(page):
    graph = {**COMFYUI, "3": {**COMFYUI["3"], "inputs": {**COMFYUI["3"]["inputs"], "seed": 2**60 + 1}}}
    tags = {0x0110: f"prompt:{json.dumps(graph)}", 0x010F: 'workflow:{"nodes": [], "links": []}'}
    filled = page.get_by_text("The settings of the picture are filled in")
    for kind in ("jpeg", "webp"):
        await give(page, of_zwatch(kind), name=f"ours.{kind}", media_type=f"image/{kind}")
        await has_settings(page, Prompt="雪山 at dawn", Width=80, Height=48, Steps=9, Seed=2**63 - 2)
        await expect(filled).to_contain_text("zwatch v1")
        sampler = {"jpeg": "DPM++ 2M Karras", "webp": "Euler a, Schedule type: Automatic"}[kind]
        text = CHINESE.replace("{sampler}", sampler)
        await give(page, with_exif(kind, {}, text), name=f"theirs.{kind}", media_type=f"image/{kind}")
        await has_settings(page, Prompt="\n".join(text.split("\n")[:2]), Negative_prompt="模糊, (worst quality:1.4)")
        await has_settings(page, Width=896, Height=512, Steps=25, Seed=9007199254740993, Guidance=5.5)
        await expect(filled).to_contain_text("AUTOMATIC1111")
        await give(page, with_exif(kind, tags), name=f"graph.{kind}", media_type=f"image/{kind}")
        await has_settings(page, Prompt="a paper crane", Width=640, Height=384, Steps=12, Seed=2**60 + 1, Guidance=1.5)
        await expect(filled).to_contain_text("ComfyUI")


async def test_a_picture_without_a_seed_leaves_the_seed_as_it_is(page):
    seed = page.get_by_role("spinbutton", name="Seed")
    await seed.fill("31")
    await give(page, png(parameters="a moor\nSteps: 6, Sampler: UniPC, Size: 256x256"))
    await has_settings(page, Prompt="a moor", Width=256, Steps=6, Seed=31)


async def test_a_broken_file_is_refused_with_a_sentence_and_nothing_is_lost(page):
    await page.get_by_role("textbox", name="Prompt", exact=True).fill("kept words")
    page.problems.expect("picture_settings: 400", "400 \\(Bad Request\\)")
    for file, name in ((of_zwatch("webp")[:40], "cut.webp"), (b"hello", "notes.txt")):
        await give(page, file, name=name, media_type="application/octet-stream")
        await expect(page.get_by_role("alert")).to_have_text(f"{name} is no picture that this browser can read.")
        async with page.expect_file_chooser() as chooser:
            await page.get_by_role("button", name="Settings from a picture").click()
        await (await chooser.value).set_files([{"name": name, "mimeType": "image/png", "buffer": file}])
        alert = page.get_by_role("alert").filter(has_text="No settings from")
        await expect(alert).to_contain_text(f"No settings from {name}: ")
        await expect(alert).to_contain_text("no PNG, JPEG or WebP file")
    await has_settings(page, Prompt="kept words")
    await page.get_by_role("button", name="Close").click()
    await expect(page.get_by_role("alert")).to_have_count(0)


async def test_a_photograph_has_no_settings_and_is_the_picture_that_is_changed_unless_only_settings_are_wanted(page):
    await page.get_by_role("textbox", name="Prompt", exact=True).fill("kept words")
    page.problems.expect("picture_settings: 400", "400 \\(Bad Request\\)")
    photograph = with_exif("jpeg", {0x010F: "Canon", 0x0110: "EOS 5D"})
    await give(page, photograph, name="photo.jpg", media_type="image/jpeg")
    await expect(page.get_by_role("group", name="Picture to change")).to_contain_text("photo.jpg")
    await has_settings(page, Prompt="kept words", Width=16)
    async with page.expect_file_chooser() as chooser:
        await page.get_by_role("button", name="Settings from a picture").click()
    await (await chooser.value).set_files([{"name": "other.jpg", "mimeType": "image/jpeg", "buffer": photograph}])
    await expect(page.get_by_role("alert")).to_contain_text("the picture has no settings in it")
    await expect(page.get_by_role("group", name="Picture to change")).to_contain_text("photo.jpg")


async def test_a_dragged_file_is_announced_over_the_page_and_the_page_is_not_left(page):
    await page.evaluate(EVENT, ["dragover", "a.png", "image/png", ""])
    await expect(page.get_by_text("Drop the picture to fill in its settings")).to_be_visible()
    await page.evaluate(
        "() => document.body.dispatchEvent(Object.assign(new DragEvent('dragleave', {bubbles: true, dataTransfer: "
        "(() => { const data = new DataTransfer(); data.items.add(new File([], 'a.png')); return data; })() })))"
    )
    await expect(page.get_by_text("Drop the picture to fill in its settings")).to_be_hidden()
