"""The history on the page: the strip, the search, the details, deletion, and thousands of pictures. No model is needed."""

import asyncio
import io
import json
import os
import re

import pytest
import pytest_asyncio
from PIL import Image
from playwright.async_api import expect

from tests.page.conftest import GONE, WAIT, running
from tests.page.pictures import write_picture
from tests.page.test_screen import findings
from zwatch.generation.image_details import read_details

expect.set_options(timeout=WAIT)

PICTURES = 2000
CHANGE = 1990
"""Pictures from this one on are of v2, the older ones of v1."""
SEED = 2**63 - 2
"""A seed that JavaScript's numbers cannot hold."""
MOST_SHOWN = 120
"""Items in the document at most: what is in view of a window of 1440 x 900, and half as much on both sides."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kept(tmp_path_factory):
    """A service with 2,000 pictures; nothing waits for its model."""
    root = tmp_path_factory.mktemp("history")
    for number in range(PICTURES):
        version = "v2" if number >= CHANGE else "v1"
        prompt = "一只戴墨镜的猫" if number == 500 else f"a harbour at dawn, number {number}"
        write_picture(root / "state.images", number, version, prompt, seed=SEED if number == 1998 else None)
    async with running(root, version=None) as service:
        yield service


def items(page):
    """The pictures of the strip."""
    return page.get_by_role("list", name="History").locator(".thumb")


def found(page):
    """The pictures of the full view."""
    return page.get_by_role("list", name="Pictures found").locator(".thumb")


@pytest_asyncio.fixture(loop_scope="module")
async def page(new_page, kept):
    """The page of the service with many pictures."""
    page = await new_page(kept.url + "/")
    await expect(items(page).first).to_be_visible()
    return page


async def search(page, **fields):
    """Open the full view, fill in its fields and wait for the answer."""
    await page.get_by_role("button", name="All pictures").click()
    for name, value in fields.items():
        field = page.get_by_label({"words": "Words of the prompt", "seed": "Seed to find"}[name])
        await field.fill(value)


async def test_the_newest_picture_is_first_and_in_the_stage_on_opening(page):
    await expect(items(page).first).to_have_accessible_name("a harbour at dawn, number 1999, v2, seed 1999")
    await expect(page.get_by_role("img", name="Result")).to_have_attribute(
        "src", "/history/20260101_003319_seed1999.png"
    )
    await expect(page.locator("#strip")).to_contain_text("2,000")


async def test_the_strip_marks_where_the_version_changed(page):
    name = f"number {CHANGE - 1}, v1, seed {CHANGE - 1}. The version changed here from v1 to v2"
    await expect(page.get_by_role("list", name="History").get_by_role("button", name=name)).to_have_count(1)
    await expect(page.locator("#strip .changed .mark")).to_have_text("v1")


async def test_the_pictures_are_shown_by_their_thumbnails(page):
    image = items(page).first.locator("img")
    await expect(image).to_have_attribute("src", "/history/20260101_003319_seed1999.png/thumbnail")
    await expect(page.locator("#strip .cell.seen").first).to_be_visible()


async def test_arrows_walk_through_the_strip_and_enter_opens_the_details(page):
    await items(page).first.focus()
    for _ in range(3):
        await page.keyboard.press("ArrowRight")
    await expect(items(page).nth(3)).to_be_focused()
    await expect(items(page).nth(3)).to_have_attribute("aria-current", "true")
    await expect(page.get_by_role("img", name="Result")).to_have_attribute(
        "src", "/history/20260101_003316_seed1996.png"
    )
    await page.keyboard.press("Enter")
    details = page.get_by_role("dialog", name="Details")
    await expect(details).to_contain_text("4 of 2,000")
    await page.keyboard.press("ArrowLeft")
    await expect(details).to_contain_text("3 of 2,000")
    await page.keyboard.press("Escape")
    await expect(details).to_have_count(0)
    await expect(page.get_by_role("img", name="Result")).to_have_attribute(
        "src", "/history/20260101_003317_seed1997.png"
    )


async def test_one_click_reuses_all_settings_and_another_only_the_seed(page):
    prompt, seed = page.get_by_role("textbox", name="Prompt", exact=True), page.get_by_role("spinbutton", name="Seed")
    cell = page.locator("#strip .cell").nth(4)
    await cell.hover()
    await cell.get_by_role("button", name="Fill in only the seed").click()
    await expect(seed).to_have_value("1995")
    await expect(prompt).to_have_value("")
    cell = page.locator("#strip .cell").nth(2)
    await cell.hover()
    await cell.get_by_role("button", name="Fill in all settings").click()
    await expect(prompt).to_have_value("a harbour at dawn, number 1997")
    await expect(seed).to_have_value("1997")
    await expect(page.get_by_role("spinbutton", name="Width")).to_have_value("16")


async def test_the_details_say_all_and_the_curl_command_makes_the_picture_again(page, kept):
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await items(page).nth(1).click()
    await page.get_by_role("button", name="Details").click()
    details = page.get_by_role("dialog", name="Details")
    for text in ("a harbour at dawn, number 1998", "v2", b"v2".hex().ljust(64, "0"), str(SEED), "16 \u00d7 16"):
        await expect(details).to_contain_text(text)
    assert await findings(page) == []
    await details.get_by_role("button", name="Copy prompt").click()
    await expect(page.get_by_text("Copied.")).to_be_visible()
    assert await page.evaluate("navigator.clipboard.readText()") == "a harbour at dawn, number 1998"
    await details.get_by_role("button", name="Copy curl").click()
    await page.wait_for_function("navigator.clipboard.readText().then((text) => text.startsWith('curl'))")
    command = await page.evaluate("navigator.clipboard.readText()")
    address, body = command.split("'")[1], json.loads(command.split("'")[3])
    assert address == kept.url + "/generate"
    assert body == {
        "prompt": "a harbour at dawn, number 1998", "width": 16, "height": 16, "steps": 8, "guidance_scale": 0, "seed": SEED,
    }  # fmt: skip
    async with page.expect_download() as download:
        await details.get_by_role("link", name="Download").click()
    assert (await download.value).suggested_filename == f"20260101_003318_seed{SEED}.png"


async def test_a_held_key_deletes_one_picture_and_the_message_is_in_the_view_in_front(page):
    await search(page, words="number 1900")
    await expect(page.get_by_text("1 picture")).to_be_visible()
    await found(page).first.click()
    details = page.get_by_role("dialog", name="Details")
    await expect(details).to_contain_text("1 of 1")
    for _ in range(5):
        await page.keyboard.down("Delete")
    await page.keyboard.up("Delete")
    await expect(details).to_have_count(0)
    await expect(page.get_by_text("No picture matches.")).to_be_visible()
    await page.get_by_role("dialog", name="All pictures").get_by_role("button", name="Undo").click()
    await expect(found(page)).to_have_count(1)


async def test_details_are_zoomed_by_a_key_and_the_keys_are_shown_there(page):
    await items(page).nth(2).click()
    await page.get_by_role("button", name="Details").click()
    details = page.get_by_role("dialog", name="Details")
    await expect(details.get_by_role("img")).to_have_attribute("alt", "a harbour at dawn, number 1997")
    await page.keyboard.press("z")
    await expect(details.locator(".detail-stage.actual")).to_be_focused()
    assert await findings(page) == []
    await page.keyboard.press("?")
    keys = page.get_by_role("dialog", name="Keys")
    await expect(keys).to_contain_text("Zoom, in details and comparison")
    await page.keyboard.press("Escape")
    await expect(keys).to_have_count(0)
    await page.keyboard.press("z")
    await expect(details.locator(".actual")).to_have_count(0)


async def test_words_the_version_and_the_seed_narrow_the_full_view(page):
    await search(page, words="dawn 1234")
    await expect(page.get_by_text("1 picture")).to_be_visible()
    await expect(found(page)).to_have_accessible_name(["a harbour at dawn, number 1234, v1, seed 1234"][0])
    words = page.get_by_label("Words of the prompt")
    await words.fill("墨镜")
    await expect(found(page)).to_have_count(1)
    await expect(found(page)).to_have_accessible_name("一只戴墨镜的猫, v1, seed 500")
    await words.fill("")
    await page.get_by_label("Version", exact=True).select_option("v2")
    await expect(page.get_by_text("10 pictures")).to_be_visible()
    await expect(found(page)).to_have_count(10)
    await page.get_by_label("Version", exact=True).select_option("")
    await page.get_by_label("Seed to find").fill("77")
    await expect(page.get_by_text("1 picture")).to_be_visible()
    await expect(found(page)).to_have_accessible_name("a harbour at dawn, number 77, v1, seed 77")
    await page.get_by_label("Seed to find").fill("x")
    await expect(page.get_by_text("A seed is a whole number.")).to_be_visible()
    await page.get_by_label("Seed to find").fill("")
    await words.fill("nowhere")
    await expect(page.get_by_text("No picture matches.")).to_be_visible()
    await expect(found(page)).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_has_no_serious_findings_in_the_full_view(new_page, kept, scheme):
    page = await new_page(kept.url + "/", color_scheme=scheme)
    await expect(items(page).first).to_be_visible()
    assert await findings(page) == []
    await search(page)
    await expect(found(page).first).to_be_visible()
    assert await findings(page) == []


@pytest.mark.parametrize("view", ["strip", "full view"])
async def test_two_thousand_pictures_are_scrolled_with_few_in_the_document(page, view):
    if view == "full view":
        await search(page)
    shown = items(page) if view == "strip" else found(page)
    scroller = page.locator(".strip-scroller" if view == "strip" else ".grid-scroller")
    await expect(shown.first).to_be_visible()
    last = page.get_by_role("button", name="number 0, v1, seed 0")
    while await last.count() == 0:
        assert await shown.count() <= MOST_SHOWN
        await scroller.evaluate("one => one.scrollBy(one.scrollWidth, one.scrollHeight)")
        # At the end of those that are known more are loaded, and then there is more to scroll.
        await page.wait_for_function(
            """one => one.querySelector('[aria-posinset="2000"]') || one.scrollLeft + one.clientWidth < one.scrollWidth - 9
                      || one.scrollTop + one.clientHeight < one.scrollHeight - 9""",
            arg=await scroller.element_handle(),
        )
    await expect(last).to_be_in_viewport()
    await expect(page.locator(".cell.seen").last).to_be_visible()
    assert await shown.count() <= MOST_SHOWN


async def test_a_deletion_elsewhere_shows_by_itself_and_keeps_the_scroll(page, kept):
    scroller = page.locator(".strip-scroller")
    await scroller.evaluate("one => { one.scrollLeft = 2000; }")
    page.problems.expect("/history/20260101_003319_seed1999.png")  # it may just be asked for
    async with kept.http.delete(kept.url + "/history/20260101_003319_seed1999.png") as answer:
        assert answer.status == 200
    await expect(page.locator("#strip .count")).to_have_text("1,999")
    assert await scroller.evaluate("one => one.scrollLeft") > 0


async def test_a_deleted_picture_can_be_brought_back_until_the_message_goes(page, kept):
    second = await items(page).nth(1).get_attribute("data-name")
    await items(page).nth(1).click()
    await page.get_by_role("button", name="Delete", exact=True).click()
    await expect(page.locator(f'#strip [data-name="{second}"]')).to_have_count(0)
    # The next picture takes its place; a click at the one in the stage would open its details
    await expect(items(page).nth(1)).to_have_attribute("aria-current", "true")
    await page.get_by_role("button", name="Undo").click()
    await expect(page.locator(f'#strip [data-name="{second}"]')).to_have_count(1)
    await items(page).nth(1).click()
    await page.get_by_role("button", name="Delete", exact=True).click()
    await expect(page.locator(f'#strip [data-name="{second}"]')).to_have_count(0)
    await page.get_by_role("button", name="Close").click()
    await kept.until(lambda: _is_gone(kept, second), "the picture is deleted")


async def _is_gone(kept, name):
    async with kept.http.get(f"{kept.url}/history/{name}") as answer:
        return answer.status == 404


async def shown_at(page, selector, count=6):
    """Return the first pictures that are seen, with their positions on the screen."""
    return await page.evaluate(
        """([selector, count]) => {
            const box = document.querySelector(selector).getBoundingClientRect();
            return [...document.querySelectorAll(selector + " .thumb")].map((one) => [one.dataset.name, one.getBoundingClientRect()])
                .filter(([, { left, top }]) => left >= box.left && top >= box.top).slice(0, count)
                .map(([name, { left, top }]) => [name, Math.round(left), Math.round(top)]);
        }""",
        [selector, count],
    )


async def shown_when_loaded(page, selector):
    """Return what is seen as soon as all of it, and the rest that is in the document, is loaded."""
    await expect(page.locator(f"{selector} .thumb[disabled]")).to_have_count(0)
    while not (found := await shown_at(page, selector)) or not all(name for name, *_ in found):
        await asyncio.sleep(0.1)
    await expect(page.locator(f"{selector} .thumb[disabled]")).to_have_count(0)
    return found


@pytest.mark.parametrize("view", ["strip", "full view"])
async def test_end_goes_to_the_oldest_picture_and_home_to_the_newest(page, view):
    if view == "full view":
        await search(page)
    shown = items(page) if view == "strip" else found(page)
    await expect(shown.first).to_have_attribute("data-name", re.compile("seed"))
    newest = await shown.first.get_attribute("data-name")
    calls = []
    page.on("request", lambda request: calls.append(request.url))
    await shown.first.focus()
    await page.keyboard.press("End")
    oldest = page.get_by_role("button", name="number 0, v1, seed 0")
    await expect(oldest).to_be_focused()
    await expect(oldest).to_be_in_viewport()
    assert await shown.count() <= MOST_SHOWN
    await page.keyboard.press("ArrowLeft")
    await expect(page.get_by_role("button", name="number 1, v1, seed 1", exact=False).last).to_be_focused()
    await page.keyboard.press("Home")
    await expect(shown.first).to_be_focused()
    await expect(shown.first).to_have_attribute("data-name", newest)
    assert len([url for url in calls if "/history?" in url]) < 8, "what is jumped past is not loaded"


@pytest.mark.parametrize("view", ["strip", "full view"])
async def test_what_is_seen_stays_where_it_is_while_pictures_before_it_go(page, kept, view):
    if view == "full view":
        await search(page)
    selector = ".strip-scroller" if view == "strip" else ".grid-scroller"
    total = (await kept.get("/history?limit=1"))["total"]
    await page.locator(selector).evaluate("one => { one.scrollLeft = 60000; one.scrollTop = 20000; }")
    before = await shown_when_loaded(page, selector)
    for _ in range(3):
        await delete_one(page, kept)
    await expect(page.locator("#strip .count")).to_have_text(f"{total - 3:,}")
    await expect(page.locator(f"{selector} [aria-setsize='{total - 3}']").first).to_be_visible()
    assert await shown_at(page, selector) == before


async def delete_one(page, kept):
    """Delete a picture that is near the newest."""
    name = (await kept.get("/history?limit=1&offset=50"))["images"][0]["name"]
    page.problems.expect(f"/history/{name}")  # its thumbnail may just be asked for
    async with kept.http.delete(f"{kept.url}/history/{name}") as answer:
        assert answer.status == 200


async def test_what_is_seen_stays_although_another_place_is_loaded_while_pictures_go(page, kept):
    total = (await kept.get("/history?limit=1"))["total"]
    await page.locator(".strip-scroller").evaluate("one => { one.scrollLeft = 60000; }")
    before = await shown_when_loaded(page, ".strip-scroller")
    deleted = 0

    async def deletes_first(route):
        nonlocal deleted
        deleted += 1
        await delete_one(page, kept)
        await route.continue_()

    # The picture in the stage, the newest, is looked for after each change
    await page.route(re.compile(r"/history\?limit=100$"), deletes_first)
    await delete_one(page, kept)
    await kept.until(lambda: _is_true(deleted > 0), "the newest are loaded")
    await expect(page.locator("#strip .count")).to_have_text(f"{total - 1 - deleted:,}")
    assert await shown_at(page, ".strip-scroller") == before


async def _is_true(value):
    return value


async def test_a_picture_that_is_deleted_elsewhere_leaves_the_stage(page, kept):
    names = [image["name"] for image in (await kept.get("/history?limit=9"))["images"]]
    page.problems.expect(f"/history/{names[4]}")  # it, or its thumbnail, may just be asked for
    result = page.get_by_role("img", name="Result")
    await items(page).nth(4).click()
    await expect(result).to_have_attribute("src", f"/history/{names[4]}")
    async with kept.http.delete(f"{kept.url}/history/{names[4]}") as answer:
        assert answer.status == 200
    await expect(result).to_have_attribute("src", f"/history/{names[5]}")
    await expect(page.locator(f'#strip [data-name="{names[4]}"]')).to_have_count(0)


async def test_a_picture_whose_deletion_can_be_undone_is_not_found_and_is_deleted_when_the_page_is_closed(page, kept):
    before = await kept.get("/history?limit=9")
    name, after = before["images"][2]["name"], before["images"][3]["name"]
    await items(page).nth(2).click()
    await page.get_by_role("button", name="Delete", exact=True).click()
    await expect(page.get_by_role("img", name="Result")).to_have_attribute("src", f"/history/{after}")
    await search(page)
    await expect(page.get_by_text(f"{before['total'] - 1:,} pictures")).to_be_visible()
    await expect(found(page).nth(2)).to_have_attribute("data-name", after)
    assert not await _is_gone(kept, name), "the message with Undo is still there"
    await page.close()
    await kept.until(lambda: _is_gone(kept, name), "the picture is deleted")


async def test_the_copied_curl_command_runs_in_a_shell_and_makes_the_same_picture(page, kept, tmp_path):
    prompt = 'it\'s "$HOME" `id` \\n 50% !! \U0001f431 \u732b\n@second line'
    await kept.until(lambda: _draws(kept), "v1 draws", 240)
    request = {"prompt": prompt, "seed": SEED, "width": 64, "height": 64, "steps": 2, "format": "webp"}
    headers = {"Accept": "application/json"}
    async with kept.http.post(kept.url + "/generate", json=request, headers=headers) as answer:
        name = (await answer.json())["images"][0]["name"]
    await page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    await page.context.add_cookies([{"name": "zwatch-token", "value": "1", "url": kept.url}])  # as after a login
    await page.locator(f'#strip [data-name="{name}"]').click()
    await page.get_by_role("button", name="Details").click()
    await page.get_by_role("button", name="Copy curl").click()
    await expect(page.get_by_text("Copied.")).to_be_visible()
    command = await page.evaluate("navigator.clipboard.readText()")
    assert '-H "Authorization: Bearer $ZWATCH_TOKEN"' in command
    environment = {**os.environ, "ZWATCH_TOKEN": "any"}
    run = await asyncio.create_subprocess_exec("bash", "-c", command, cwd=tmp_path, env=environment)
    assert await run.wait() == 0
    async with kept.http.get(f"{kept.url}/history/{name}") as answer:
        first = await answer.read()
    again = (tmp_path / name).read_bytes()
    assert read_details(again).request == read_details(first).request
    assert read_details(again).request["prompt"] == prompt
    with Image.open(io.BytesIO(first)) as one, Image.open(io.BytesIO(again)) as other:
        assert one.tobytes() == other.tobytes()


async def _draws(kept):
    return (await kept.status())["serving"] is not None


async def test_the_history_says_so_while_the_server_is_gone_and_goes_on_when_it_is_back(page, kept):
    page.problems.expect(*GONE)
    second = await items(page).nth(1).get_attribute("data-name")
    await items(page).nth(1).click()
    calls = []

    async def without_server():
        await page.get_by_role("button", name="Delete", exact=True).click()
        await expect(page.locator(f'#strip [data-name="{second}"]')).to_have_count(0)
        await page.get_by_role("button", name="Close").click()
        await expect(page.get_by_role("alert")).to_contain_text("Not done: The server does not answer.")
        await expect(page.locator(f'#strip [data-name="{second}"]')).to_have_count(1)
        await page.get_by_role("alert").get_by_role("button", name="Close").click()
        await page.locator(".strip-scroller").evaluate("one => { one.scrollLeft = 1e6; }")
        await expect(page.locator("#strip .thumb[disabled]").first).to_be_visible()
        await search(page, words="dawn 1234")
        await expect(page.get_by_text("The history cannot be read: The server does not answer.").last).to_be_visible()
        page.on("request", lambda request: calls.append(request.url))
        await page.wait_for_timeout(1000)
        assert len([url for url in calls if "/history?" in url]) < 3, "what failed is not asked for again and again"

    await kept.restart(between=without_server)
    await expect(found(page)).to_have_accessible_name("a harbour at dawn, number 1234, v1, seed 1234")
    await expect(page.locator("#strip .thumb[disabled]")).to_have_count(0)


async def test_all_are_deleted_after_a_question(page, kept):
    await search(page)
    await page.get_by_role("button", name="Delete all").click()
    question = page.get_by_role("dialog").filter(has_text="This cannot be undone.")
    await question.get_by_role("button", name="Cancel").click()
    await expect(found(page).first).to_be_visible()
    await page.get_by_role("button", name="Delete all").click()
    await question.get_by_role("button", name="Delete all", exact=True).click()
    await expect(page.get_by_text("No pictures yet.").last).to_be_visible()
    assert (await kept.get("/history"))["total"] == 0
    await page.keyboard.press("Escape")
    await expect(items(page)).to_have_count(0)
    await expect(page.get_by_role("img", name="Result")).to_have_count(0)
