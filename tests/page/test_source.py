"""A picture that is changed: chosen, dropped, pasted or used from the history; its mask, painted with a mouse, fingers or keys."""

import asyncio
import base64
import io
import re

import pytest
import pytest_asyncio
from PIL import Image
from playwright.async_api import expect

from tests.page.conftest import GONE, WAIT
from tests.page.pictures import write_picture
from tests.page.test_drop import EVENT, give, has_settings
from tests.page.test_jobs import LONG, caption, queue, result
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
    await page.get_by_role("button", name="Done", exact=True).click()
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
    await expect(card(page)).to_contain_text("photo.jpg96 × 160All of it is changed.")  # noqa: RUF001
    await choose(page, photo(size=(3000, 1500)), name="large.jpg", button="Choose another picture")
    await expect(card(page)).to_contain_text("3000 × 1500, drawn as 720 × 368")  # noqa: RUF001


async def test_other_proportions_are_said_and_taken_back(page):
    await choose(page)
    await page.get_by_role("button", name="16:9").click()
    await expect(card(page)).to_contain_text("stretched to")
    await card(page).get_by_role("button", name="Size of the picture").click()
    await expect(card(page)).to_contain_text("photo.jpg96 × 64All of it is changed.")  # noqa: RUF001
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
    await expect(page.get_by_role("dialog").get_by_text("100% of it is painted anew")).to_be_visible()
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
        (48, 40): 0, (38, 42): 255, (2, 2): 255,
    }  # fmt: skip


async def test_fingers_paint_and_two_of_them_zoom(new_page, server):
    page = await opened(
        new_page, server, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True, color_scheme="dark"
    )
    await choose(page)
    await card(page).get_by_role("button", name="Paint a mask").last.tap()
    canvas = page.get_by_role("application", name="Picture to paint on")
    box = await canvas.bounding_box()
    devtools = await page.context.new_cdp_session(page)

    async def touch(kind, *points):
        places = [{"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"], "id": number}
                  for number, (x, y) in enumerate(points)]  # fmt: skip
        await devtools.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": places})

    await touch("touchStart", (0.2, 0.5))
    await touch("touchMove", (0.5, 0.5))
    await touch("touchEnd")
    await expect(page.get_by_role("dialog").get_by_text("of it is painted anew")).to_be_visible()
    said = await page.get_by_role("dialog").get_by_text("of it is painted anew").inner_text()
    await touch("touchStart", (0.4, 0.4))
    await touch("touchStart", (0.4, 0.4), (0.6, 0.6))
    await touch("touchMove", (0.2, 0.2), (0.8, 0.8))
    await touch("touchEnd")
    assert (await canvas.bounding_box())["width"] > 1.5 * box["width"]
    await expect(page.get_by_role("dialog").get_by_text("of it is painted anew")).to_have_text(said)
    assert await page.evaluate("document.documentElement.scrollWidth") <= 360
    await page.get_by_role("button", name="Done", exact=True).tap()
    mask = await painted(page)
    assert [mask.getpixel((x, 32)) for x in (20, 46, 70)] == [255, 255, 0]


async def test_a_picture_of_the_history_is_used_painted_and_found_again_after_a_reload(page, server):
    await page.get_by_role("textbox", name="Prompt", exact=True).fill("the first")
    for name, value in {"Width": 64, "Height": 64, "Steps": 2, "Seed": 7}.items():
        await page.get_by_role("spinbutton", name=name).fill(str(value))
    await page.get_by_role("button", name="Generate", exact=True).click()
    await expect(caption(page)).to_contain_text("seed 7 · 64 × 64")  # noqa: RUF001
    await page.get_by_role("button", name="Use this picture").click()
    await expect(card(page)).to_contain_text("64 × 64All of it is changed.")  # noqa: RUF001
    canvas = await brush(page)
    await stroke(page, canvas, (0.2, 0.2), (0.8, 0.8))
    await done(page)
    await page.get_by_role("slider", name="Strength").fill("0.8")
    before = await card(page).inner_text()
    await page.reload()
    await expect(card(page)).to_have_text(re.compile("painted anew"))
    assert await card(page).inner_text() == before
    sent = await press_generate(page, "the second")
    assert re.fullmatch(r"history:\w+_seed7(_\d+)?\.png", sent["image"])
    assert Image.open(io.BytesIO(sent["mask"])).convert("L").getpixel((32, 32)) == 255
    await expect(result(page)).to_have_accessible_name("Result: the second")
    link = await page.evaluate(
        "import('/page/settings.js').then(({ toFragment, read }) => toFragment(read('zwatch.settings')))"
    )
    await page.goto("about:blank")
    await page.goto(f"{server.url}/{link}")
    await expect(card(page)).to_contain_text(sent["image"].removeprefix("history:"))


KEPT = """new Promise((resolve) => {
    const opening = indexedDB.open("zwatch", 1);
    opening.onupgradeneeded = () => opening.transaction.abort(); // it is not there yet: the page makes it
    opening.onerror = () => resolve([]);
    opening.onsuccess = () => {
        const finding = opening.result.transaction("form").objectStore("form").getAllKeys();
        finding.onsuccess = () => resolve(finding.result);
    };
})"""
"""Returns the names of what the browser keeps of the form."""


async def test_a_file_that_was_chosen_is_there_after_a_reload_until_it_is_removed(page):
    await choose(page, photo("orange"))
    async with asyncio.timeout(30):  # the browser keeps it a moment later
        while not await page.evaluate(KEPT):
            await asyncio.sleep(0.02)
    await page.reload()
    await expect(card(page)).to_contain_text("photo.jpg")
    assert (await press_generate(page))["image"] == photo("orange")
    await card(page).get_by_role("button", name="Remove the picture").click()
    async with asyncio.timeout(30):
        while await page.evaluate(KEPT):
            await asyncio.sleep(0.02)
    await page.reload()
    await expect(page.get_by_role("button", name="Start from a picture")).to_be_visible()
    assert await page.evaluate(KEPT) == []


async def test_the_details_say_from_what_and_use_settings_brings_it_back(page, new_page, server):
    file = photo("purple")
    await choose(page, file)
    canvas = await brush(page)
    await stroke(page, canvas, (0.2, 0.2), (0.8, 0.8))
    await done(page)
    await page.get_by_role("slider", name="Strength").fill("0.7")
    await page.get_by_role("slider", name="Mask blur").fill("3")
    first = await press_generate(page, "a purple one")
    await expect(result(page)).to_have_accessible_name("Result: a purple one")
    await expect(page.get_by_role("button", name="Details")).to_be_visible()
    await card(page).get_by_role("button", name="Remove the picture").click()
    await page.get_by_role("button", name="Details").click()
    facts = page.locator(".facts")
    await expect(facts).to_contain_text(re.compile("Made from[0-9a-f]{64}Mask✓Strength0.7Mask blur3"))
    await page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    await page.get_by_role("button", name="Copy curl").click()
    command = await page.evaluate("window.copied")
    assert "-F image=@image.png -F mask=@mask.png" in command
    assert "--form-string 'prompt=a purple one'" in command
    assert "--form-string 'strength=0.7'" in command
    await page.get_by_role("button", name="Use settings").last.click()
    await expect(card(page)).to_contain_text("photo.jpg")
    await expect(card(page)).to_contain_text("painted anew")
    await expect(page.get_by_role("slider", name="Strength")).to_have_value("0.7")
    await expect(page.get_by_role("slider", name="Mask blur")).to_have_value("3")
    again = await press_generate(page, "a purple one")
    assert {**again, "seed": 0} == {**first, "seed": 0}
    other = await opened(new_page, server)  # another browser, which has no such file
    await other.get_by_role("button", name="Use settings").click()
    await expect(other.get_by_role("alert")).to_contain_text("The picture to change is not here any more.")
    await has_settings(other, Prompt="a purple one")


async def test_pictures_that_differ_in_their_masks_alone_bring_back_their_own(page):
    await choose(page, photo("maroon"))
    canvas = await brush(page)
    await stroke(page, canvas, (0.2, 0.2), (0.8, 0.2))
    await done(page)
    first = await press_with_seed(page)
    canvas = await brush(page)
    await page.get_by_role("button", name="Clear").click()
    await done(page)
    assert "mask" not in await press_with_seed(page)
    canvas = await brush(page)
    await stroke(page, canvas, (0.2, 0.8), (0.8, 0.8))
    await done(page)
    third = await press_with_seed(page)
    await page.reload()
    for mask in (first["mask"], None, third["mask"]):  # each is then drawn again, so that the next is the third, too
        await page.get_by_role("button", name="Details").click()
        for place in ("1 of", "2 of"):
            await expect(page.locator("dialog .count")).to_contain_text(place)
            await page.get_by_role("button", name="Older").click()
        await expect(page.locator("dialog .count")).to_contain_text("3 of")
        await page.get_by_role("button", name="Use settings").last.click()
        await expect(page.get_by_role("dialog")).to_have_count(0)
        await expect(card(page)).to_contain_text("All of it is changed" if mask is None else "painted anew")
        assert (await press_with_seed(page)).get("mask") == mask


async def press_with_seed(page):
    """Draw one after the other with the same seed. Return what was sent."""
    await page.get_by_role("spinbutton", name="Seed").fill("77")
    await page.get_by_role("spinbutton", name="Steps").fill("2")
    sent = await press_generate(page, "only the mask differs")
    await expect(queue(page)).to_have_count(0)
    await expect(page.get_by_role("button", name="Details")).to_be_visible()
    return sent


async def test_a_job_that_a_restart_lost_is_tried_again_with_its_picture(page, server):
    page.problems.expect(*GONE)
    await choose(page, photo("navy"))
    for name, value in LONG.items():
        await page.get_by_role("spinbutton", name=name).fill(str(value))
    await press_generate(page, "a navy one")
    await card(page).get_by_role("button", name="Remove the picture").click()
    await server.restart()
    await expect(queue(page)).to_contain_text("Lost when the server restarted.")
    await expect(page.get_by_role("status")).to_contain_text("Model: v1 ·")
    await queue(page).get_by_role("button", name="Try again").click()
    await expect(queue(page).filter(has_text="Lost when the server restarted")).to_have_count(0)
    first, second = await page.evaluate("window.sent")
    same = {name: first[name] for name in first if name != "mask_blur"}
    assert second == {**same, "model": "current", "loras": "[]"}
    await page.keyboard.press("Escape")
    await expect(queue(page)).to_have_count(0)


async def over(page, text, kind):
    """Drag a file over a field of the shade, or drop it there."""
    code = EVENT.replace(
        "document.body",
        f"[...document.querySelectorAll('.drop-shade p')].find((one) => one.textContent.includes({text!r}))",
    )
    await page.evaluate(code, [kind, "dropped.png", "image/png", base64.b64encode(photo(kind="PNG")).decode()])


async def test_a_picture_is_dropped_or_pasted_to_be_changed(page, tmp_path):
    await page.evaluate(EVENT, ["dragover", "a.png", "image/png", ""])
    await expect(page.get_by_text("Drop it here to change the picture")).to_be_visible()
    await over(page, "Drop it here", "drop")
    await expect(page.get_by_text("Drop it here to change the picture")).to_be_hidden()
    await expect(card(page)).to_contain_text("dropped.png")
    page.problems.expect("picture_settings: 400", "400 \\(Bad Request\\)")
    await give(page, photo(), "paste", "pasted.jpg", "image/jpeg")
    await expect(card(page)).to_contain_text("pasted.jpg")
    name = write_picture(tmp_path, 5, "v2", "with settings", 48)
    await give(page, (tmp_path / name).read_bytes(), "paste", "kept.png")
    await has_settings(page, Prompt="with settings")
    await expect(card(page)).to_contain_text("pasted.jpg")
    await page.get_by_role("button", name="Use this picture").last.click()
    await expect(card(page)).to_contain_text("kept.png")


async def test_a_file_that_is_no_picture_is_refused_with_a_sentence(page):
    async with page.expect_file_chooser() as chooser:
        await page.get_by_role("button", name="Start from a picture").click()
    await (await chooser.value).set_files([{"name": "notes.jpg", "mimeType": "image/jpeg", "buffer": b"hello"}])
    await expect(page.get_by_role("alert")).to_contain_text("notes.jpg is no picture that this browser can read.")
    await expect(card(page)).to_have_count(0)


async def test_a_pasted_or_dropped_file_is_read_if_the_browser_can_and_else_said_to_be_no_picture(page):
    page.problems.expect("picture_settings: 400", "400 \\(Bad Request\\)")
    for kind, name, media_type in (("paste", "a.txt", "text/plain"), ("drop", "b.png", "image/png")):
        await give(page, b"hello", kind, name, media_type)
        await expect(page.get_by_role("alert")).to_have_text(f"{name} is no picture that this browser can read.")
        await expect(card(page)).to_be_hidden()
    drawn = b'<svg xmlns="http://www.w3.org/2000/svg" width="96" height="64"><rect width="96" height="64" fill="lime"/></svg>'
    await give(page, drawn, "paste", "drawn.svg", "image/svg+xml")
    await expect(card(page)).to_contain_text("drawn.svg96 × 64")  # noqa: RUF001
    sent = Image.open(io.BytesIO((await press_generate(page))["image"]))
    assert (sent.format, sent.size, sent.convert("RGB").getpixel((5, 5))) == ("PNG", WIDE, (0, 255, 0))


async def test_a_picture_that_the_server_does_not_read_is_sent_as_one_that_it_does(page):
    await choose(page, photo("olive", kind="BMP"), "old.bmp", "image/bmp")
    sent = Image.open(io.BytesIO((await press_generate(page))["image"]))
    assert (sent.format, sent.size, sent.convert("RGB").getpixel((5, 5))) == ("PNG", WIDE, (128, 128, 0))


async def test_both_models_of_a_pair_change_the_same_picture(page, server):
    await choose(page)
    assert (await server.post("/api/deploy", {"version": "v2"}))[0] == 200
    try:
        await page.get_by_role("textbox", name="Prompt", exact=True).fill("by both")
        await page.get_by_role("spinbutton", name="Steps").fill("4")
        await page.get_by_role("button", name="A / B").click()
        await page.get_by_role("button", name="Draw both").click()
        dialog = page.locator("dialog.compare")
        await expect(dialog.get_by_role("img", name=re.compile("^by both, v1"))).to_be_visible()
        await expect(dialog.get_by_role("img", name=re.compile("^by both, v2"))).to_be_visible()
        [sent] = await page.evaluate("window.sent")
        assert sent["image"].startswith("data:image/jpeg")
    finally:
        assert (await server.post("/api/deploy", {"version": "v1"}))[0] == 200


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
async def test_axe_has_no_serious_findings_in_the_card_and_the_brush(new_page, server, scheme, width):
    page = await opened(new_page, server, color_scheme=scheme, viewport={"width": width, "height": 800})
    await choose(page)
    found = {"card": await findings(page)}
    canvas = await brush(page)
    await stroke(page, canvas, (0.2, 0.2), (0.8, 0.8))
    found["brush"] = await findings(page)
    await done(page)
    found["masked"] = await findings(page)
    assert {view: some for view, some in found.items() if some} == {}
    assert await page.evaluate("document.documentElement.scrollWidth") <= width


async def test_it_is_all_in_chinese_too(new_page, server):
    page = await new_page(server.url + "/", locale="zh-CN")
    async with page.expect_file_chooser() as chooser:
        await page.get_by_role("button", name="从图片开始").click()
    await (await chooser.value).set_files([{"name": "照片.jpg", "mimeType": "image/jpeg", "buffer": photo()}])
    part = page.get_by_role("group", name="要修改的图片")
    await expect(part).to_contain_text("照片.jpg")
    await part.get_by_role("button", name="绘制蒙版").last.click()
    await page.get_by_role("button", name="反选").click()
    text = await page.evaluate(
        "document.querySelector('.source-card').innerText + document.querySelector('dialog').innerText"
    )
    assert set(re.findall(r"[A-Za-z]{3,}", text)) <= {"jpg", "Shift", "Ctrl"}
