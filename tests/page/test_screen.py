"""The screen for everyone: themes, sizes of window, screen readers, and what the page asks of the server."""

import re

import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import expect

from tests.page.conftest import WAIT
from tests.page.test_jobs import caption, generate, queue, result

expect.set_options(timeout=WAIT)

SERIOUS = ("serious", "critical")


async def findings(page):
    """Return the serious findings of axe-core, with the element of each."""
    # By the debugger's way, which the page's policy does not concern.
    found = await Axe().run(page)
    return [
        (one["id"], node["html"])
        for one in found.response["violations"]
        if one["impact"] in SERIOUS
        for node in one["nodes"]
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_has_no_serious_findings(new_page, server, scheme):
    page = await new_page(server.url + "/", color_scheme=scheme)
    await expect(page.get_by_role("status")).to_contain_text("Model: v1")
    await page.get_by_text("Advanced").click()
    assert await findings(page) == []
    await generate(page, "first", Steps=100)
    await generate(page, "second", Steps=100)
    await page.get_by_role("spinbutton", name="Width").fill("7")
    await page.keyboard.press("Enter")
    await expect(queue(page)).to_have_count(2)
    await expect(result(page)).to_be_visible()
    assert await findings(page) == []
    await page.get_by_role("button", name="Cancel all").click()
    await expect(queue(page)).to_have_count(0)


@pytest.mark.parametrize(("width", "height"), [(360, 740), (820, 1180), (1440, 900), (3840, 2160)])
async def test_nothing_is_cut_off_and_generate_is_in_reach(new_page, server, width, height):
    page = await new_page(server.url + "/", viewport={"width": width, "height": height})
    await expect(page.get_by_role("status")).to_contain_text("Model: v1")
    assert await page.evaluate("document.documentElement.scrollWidth") <= width
    button = page.get_by_role("button", name="Generate", exact=True)
    await expect(button).to_be_in_viewport(ratio=1)
    await page.get_by_role("textbox", name="Prompt", exact=True).fill("x" * 400)
    assert await page.evaluate("document.documentElement.scrollWidth") <= width
    await page.evaluate("scrollTo(0, 0)")
    await expect(button).to_be_in_viewport(ratio=1)


async def test_a_phone_makes_a_picture(new_page, server):
    page = await new_page(server.url + "/", viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    await generate(page, Steps=4, Seed=21)
    await expect(caption(page)).to_contain_text("v1 · seed 21 ·")


async def test_nothing_moves_while_pictures_form_and_the_queue_grows(page):
    await expect(page.get_by_role("status")).to_contain_text("Model: v1")
    await page.evaluate("document.fonts.ready")
    await generate(page, Steps=4, Seed=1)
    await expect(caption(page)).to_contain_text("v1 · seed 1 ·")
    canvas, button = page.locator(".canvas"), page.get_by_role("button", name="Generate", exact=True)
    before = [await canvas.bounding_box(), await button.bounding_box()]
    await generate(page, Steps=100, Seed=2)
    await generate(page, Steps=4, Seed=3)
    await expect(queue(page)).to_have_count(2)
    assert [await canvas.bounding_box(), await button.bounding_box()] == before
    await expect(result(page)).to_have_attribute("src", re.compile("^data:"))
    assert [await canvas.bounding_box(), await button.bounding_box()] == before
    await expect(caption(page)).to_contain_text("v1 · seed 3 ·")
    assert [await canvas.bounding_box(), await button.bounding_box()] == before


async def answered(server):
    """Return what the server counts of its answers, by route; a worker's requests are seen only here."""
    async with server.http.get(server.url + "/metrics") as response:
        lines = (await response.text()).splitlines()
    return [one for one in lines if one.startswith("zwatch_http_requests_total{") and "/metrics" not in one]


async def test_an_idle_page_asks_for_nothing_but_its_event_stream(page, server):
    await expect(page.get_by_role("status")).to_contain_text("Model: v1")
    await expect(page.get_by_role("status")).to_contain_text("Queue: empty")  # of other tests, nothing goes on
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    for _ in range(10):  # what the page asks for at its start comes late on a busy machine
        asked.clear()
        before = await answered(server)
        await page.wait_for_timeout(3000)
        if asked == [] and await answered(server) == before:
            break
    else:
        raise AssertionError(f"it asks again and again: {asked}")


async def test_all_comes_from_this_server(new_page, server):
    page = await new_page("about:blank")
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    await page.goto(server.url + "/")
    await expect(page.get_by_role("status")).to_contain_text("Model: v1")
    assert asked
    assert {url for url in asked if not url.startswith((server.url, "data:", "blob:"))} == set()


async def test_reduced_motion_is_respected(new_page, server):
    page = await new_page(server.url + "/", reduced_motion="reduce")
    await expect(page.get_by_role("status")).to_contain_text("Model: v1")
    await page.get_by_role("textbox", name="Prompt", exact=True).fill("x")
    moving = (
        "[...document.querySelectorAll('*')].filter(one => getComputedStyle(one).transitionDuration !== '0s').length"
    )
    assert await page.evaluate(moving) == 0


async def test_a_screen_reader_hears_that_a_picture_is_done(page):
    await generate(page, Steps=4, Seed=9)
    await expect(page.locator("#announcer")).to_have_text("The picture is done: version v1, seed 9")
    await expect(result(page)).to_have_accessible_name("Result: a red fox beside a lake")
