"""A picture that is changed: chosen, dropped, pasted or used from the history; its mask, painted with a mouse, fingers or keys."""

import base64
import io
import json
import re

import pytest
import pytest_asyncio
from PIL import Image
from playwright.async_api import expect

from tests.page.conftest import WAIT
from tests.page.pictures import write_picture
from tests.page.test_drop import EVENT, give, has_settings
from tests.page.test_jobs import caption, queue, result
from tests.page.test_screen import findings

expect.set_options(timeout=WAIT)

SPY = """(() => {
    const send = window.fetch;
    const text = (file) => new Promise((resolve) => {
        const reader = new FileReader();
        reader.onload = () => resolve(reader.result);
        reader.readAsDataURL(file);
    });
    window.sent = [];
    window.fetch = async (path, options) => {
        if (options?.body instanceof FormData) {
            const fields = {};
            for (const [name, value] of options.body) fields[name] = value instanceof Blob ? await text(value) : value;
            window.sent.push(fields);
        }
        return send(path, options);
    };
})()"""
"""Notes what the page sends as a form, which the browser does not show to a test, and sends it."""
WIDE = (96, 64)


@pytest_asyncio.fixture(loop_scope="module")
async def page(new_page, server):
    """The page, whose forms are noted."""
    return await opened(new_page, server)


async def opened(new_page, server, path="/", **options):
    page = await new_page("about:blank", **options)
    await page.add_init_script(SPY)
    await page.goto(server.url + path)
    await expect(page.get_by_role("button", name="1:1")).to_have_attribute("aria-pressed", "true")
    return page


def photo(colour="teal", size=WIDE, kind="JPEG", **options):
    """Return a file without settings."""
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind, **options)
    return file.getvalue()


def card(page):
    """The part of the form with the picture."""
    return page.get_by_role("group", name="Picture to change")


async def choose(page, file=None, name="photo.jpg", media_type="image/jpeg", button="Start from a picture"):
    """Choose a file as the picture that is changed."""
    async with page.expect_file_chooser() as chooser:
        await page.get_by_role("button", name=button).click()
    await (await chooser.value).set_files([{"name": name, "mimeType": media_type, "buffer": file or photo()}])
    await expect(card(page)).to_contain_text(name)


async def press_generate(page, prompt="a moor"):
    """Press Generate and return what was sent, files as bytes."""
    await page.get_by_role("textbox", name="Prompt", exact=True).fill(prompt)
    before = await page.evaluate("window.sent.length")
    async with page.expect_response("**/jobs") as answered:
        await page.get_by_role("button", name="Generate", exact=True).click()
    answer = await answered.value
    assert answer.status == 202, await answer.text()
    fields = (await page.evaluate("window.sent"))[before]
    return {
        name: base64.b64decode(value.partition(",")[2]) if value.startswith("data:") else value
        for name, value in fields.items()
    }


async def brush(page):
    """Open the brush and return the picture to paint on."""
    await card(page).get_by_role("button", name="mask").last.click()
    canvas = page.get_by_role("application", name="Picture to paint on")
    await expect(canvas).to_be_focused()
    return canvas


async def done(page):
    await page.get_by_role("button", name="Done").click()
    await expect(page.get_by_role("dialog")).to_have_count(0)


async def painted(page):
    """Return the mask that a press of Generate sends."""
    sent = await press_generate(page)
    return Image.open(io.BytesIO(sent["mask"])).convert("L") if "mask" in sent else None


async def stroke(page, canvas, *points):
    """Paint from point to point, each a part of the width and of the height, with the mouse."""
    box = await canvas.bounding_box()
    for number, (x, y) in enumerate(points):
        await page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if number == 0:
            await page.mouse.down()
    await page.mouse.up()


async def test_a_chosen_picture_is_shown_with_its_size_sent_and_removed(page):
    file = photo(size=(100, 60))
    await choose(page, file)
    await expect(card(page)).to_contain_text("100 × 60, drawn as 96 × 64")  # noqa: RUF001
    await has_settings(page, Width=96, Height=64)
    sent = await press_generate(page, "a heath")
    assert sent["image"] == file
    assert {name: sent[name] for name in ("prompt", "strength", "width", "height")} == {
        "prompt": "a heath", "strength": "0.6", "width": "96", "height": "64",
    }  # fmt: skip
    assert "mask" not in sent
    await expect(caption(page)).to_contain_text("96 × 64")  # noqa: RUF001
    await card(page).get_by_role("button", name="Remove the picture").click()
    await expect(card(page)).to_be_hidden()
    await expect(page.get_by_role("button", name="Start from a picture")).to_be_focused()
    await has_settings(page, Width=256, Height=256)


async def test_a_picture_is_drawn_as_its_exif_says_and_a_large_one_smaller(page):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    await choose(page, photo(size=(160, 96), exif=exif))
    await expect(card(page)).to_contain_text("96 × 160, drawn as 96 × 160")  # noqa: RUF001
    await choose(page, photo(size=(3000, 1500)), name="large.jpg", button="Choose another picture")
    await expect(card(page)).to_contain_text("3000 × 1500, drawn as 720 × 368")  # noqa: RUF001


async def test_other_proportions_are_said_and_taken_back(page):
    await choose(page)
    await page.get_by_role("button", name="16:9").click()
    await expect(card(page)).to_contain_text("stretched to")
    await card(page).get_by_role("button", name="Size of the picture").click()
    await expect(card(page)).to_contain_text("96 × 64, drawn as 96 × 64")  # noqa: RUF001
    await has_settings(page, Width=96, Height=64)


async def test_the_strength_says_what_it_means_and_is_sent_with_the_blur_of_a_mask(page):
    await choose(page)
    slider = page.get_by_role("slider", name="Strength")
    await expect(slider).to_have_accessible_description(
        "The composition stays; style and details change. 5 steps are drawn."
    )
    await expect(page.get_by_role("slider", name="Mask blur")).to_be_hidden()
    await slider.fill("0.25")
    await expect(slider).to_have_accessible_description("Colours and fine details change. 2 steps are drawn.")
    await expect(slider).to_have_attribute("aria-valuetext", "0.25")
    await slider.press("ArrowRight")
    canvas = await brush(page)
    await stroke(page, canvas, (0.2, 0.2), (0.8, 0.2))
    await done(page)
    await page.get_by_role("slider", name="Mask blur").fill("4")
    sent = await press_generate(page)
    assert (sent["strength"], sent["mask_blur"]) == ("0.26", "4")


async def test_a_mask_is_painted_with_the_mouse_erased_and_taken_back(page):
    await choose(page)
    canvas = await brush(page)
    await stroke(page, canvas, (0.25, 0.25), (0.75, 0.25))
    await page.get_by_role("button", name="Eraser").click()
    await stroke(page, canvas, (0.75, 0.25))
    await done(page)
    await expect(card(page)).to_contain_text(re.compile(r"\d+% of it is painted anew"))
    mask = await painted(page)
    assert mask.size == WIDE
    found = {place: mask.getpixel(place) for place in ((24, 16), (48, 16), (72, 16), (48, 32), (2, 2))}
    assert found == {(24, 16): 255, (48, 16): 255, (72, 16): 0, (48, 32): 0, (2, 2): 0}
    canvas = await brush(page)
    for _ in range(2):
        await page.keyboard.press("Control+z")
    await expect(page.get_by_role("button", name="Undo")).to_be_disabled()
    await page.get_by_role("button", name="Invert").click()
    await expect(page.get_by_text("100% of it is painted anew")).to_be_visible()
    await page.get_by_role("button", name="Clear").click()
    await expect(page.get_by_role("dialog").get_by_text("All of it is changed")).to_be_visible()
    await page.get_by_role("button", name="Undo").click()
    await done(page)
    assert (await painted(page)).getextrema() == (255, 255)


async def test_a_mask_is_painted_with_keys_alone(page):
    await choose(page)
    await card(page).get_by_role("button", name="Paint a mask").last.focus()
    await page.keyboard.press("Enter")
    canvas = page.get_by_role("application", name="Picture to paint on")
    await expect(canvas).to_be_focused()
    await expect(canvas).to_have_accessible_description(re.compile("Arrow keys move the brush"))
    await page.keyboard.down(" ")
    for _ in range(2):
        await page.keyboard.press("Shift+ArrowRight")
    await page.keyboard.up(" ")
    await page.keyboard.press("Shift+ArrowUp")
    await page.keyboard.press("e")
    await page.keyboard.press(" ")  # nothing is there to be erased
    await expect(page.get_by_role("button", name="Eraser")).to_have_attribute("aria-pressed", "true")
    await expect(page.locator("dialog #announcer")).to_have_text("70% from the left, 35% from the top")
    await page.keyboard.press("]")
    await expect(page.get_by_role("slider", name="Brush size")).to_have_attribute("aria-valuetext", "11%")
    await page.keyboard.press("Escape")
    mask = await painted(page)
    found = {place: mask.getpixel(place) for place in ((48, 32), (67, 32), (28, 32), (48, 50), (67, 22))}
    assert found == {(48, 32): 255, (67, 32): 255, (28, 32): 0, (48, 50): 0, (67, 22): 0}
    await brush(page)
    await page.keyboard.press("Enter")  # holds the brush down, for whom two keys at a time are one too many
    await page.keyboard.press("Shift+ArrowDown")
    await page.keyboard.press("Enter")
    await page.keyboard.press("Shift+ArrowLeft")
    await page.keyboard.press("i")
    await done(page)
    mask = await painted(page)
    assert {place: mask.getpixel(place) for place in ((48, 40), (38, 42), (2, 2))} == {
        (48, 40): 255 * 0, (38, 42): 255, (2, 2): 255,
    }  # fmt: skip
