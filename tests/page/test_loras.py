"""LoRAs on the page: chips that follow the LoRA root, a slider for each, what is wrong with one, and what a picture was drawn with."""

import os
import re
import shutil
from urllib.parse import urlencode

import pytest
import pytest_asyncio
from playwright.async_api import expect

from tests.deploy.loras import write_lora
from tests.page.conftest import MODELS, WAIT, running
from tests.page.test_jobs import caption
from tests.page.test_screen import findings
from tests.page.test_source import card, choose, opened

expect.set_options(timeout=WAIT)

TRANSFORMER = MODELS / "v1/transformer"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory):
    """A service with the LoRAs `ink` and `night`, and one whose bytes were changed."""
    directory = tmp_path_factory.mktemp("loras")
    for number, name in enumerate(("ink", "night", "torn")):
        write_lora(directory / "loras", name, TRANSFORMER, seed=number)
    tear(directory / "loras/torn")
    async with running(directory) as service:
        yield service


def tear(directory):
    """Change a LoRA's seal, so that it is none."""
    (directory / "BLAKE3SUMS").write_text("not a seal\n")


def chips(page):
    """The group of the LoRAs."""
    return page.get_by_role("group", name="LoRA", exact=True)


def chip(page, name):
    return chips(page).get_by_role("button", name=name, exact=True)


def weight(page, name):
    return page.get_by_role("slider", name=f"Weight of {name}")


async def draw(page, prompt, **numbers):
    """Press Generate and return the job's request, as it was sent."""
    await page.get_by_role("textbox", name="Prompt", exact=True).fill(prompt)
    for name, value in {"Width": 64, "Height": 64, "Steps": 2, **numbers}.items():
        await page.get_by_role("spinbutton", name=name).fill(str(value))
    async with page.expect_request(lambda one: one.url.endswith("/jobs") and one.method == "POST") as asked:
        await page.get_by_role("button", name="Generate", exact=True).click()
    return (await asked.value).post_data_json


async def test_a_chip_is_pressed_its_slider_moved_and_the_picture_says_so(page, server):
    await expect(chips(page).get_by_role("button")).to_have_text(["ink", "night", "torn"])
    await expect(page.get_by_role("slider")).to_have_count(0)
    await chip(page, "ink").click()
    await expect(chip(page, "ink")).to_have_attribute("aria-pressed", "true")
    await expect(weight(page, "ink")).to_have_value("1")
    await weight(page, "ink").fill("0.8")
    await weight(page, "ink").press("ArrowLeft")
    await chip(page, "night").press("Enter")
    await weight(page, "night").fill("-0.5")
    asked = await draw(page, "by ink at night", Seed=5)
    assert asked["loras"] == [{"name": "ink", "scale": 0.75}, {"name": "night", "scale": -0.5}]
    await expect(caption(page)).to_contain_text("v1 · seed 5 · 64 × 64")  # noqa: RUF001
    await expect(page.get_by_role("img", name="Result: by ink at night")).to_be_visible()
    await page.get_by_role("button", name="Details").click()
    await expect(page.locator(".facts")).to_contain_text(re.compile(r"LoRAink 0.75 \([0-9a-f]{12}\), night -0.5 \("))
    await page.evaluate("navigator.clipboard.writeText = async (text) => { window.copied = text; }")
    await page.get_by_role("button", name="Copy curl").click()
    assert '"loras":[{"name":"ink","scale":0.75},{"name":"night","scale":-0.5}]' in await page.evaluate("window.copied")
    await page.keyboard.press("Escape")


async def test_they_are_remembered_shared_as_a_link_and_used_again(page, new_page, server):
    await chip(page, "night").click()
    await weight(page, "night").fill("1.5")
    await draw(page, "remembered", Seed=6)
    await expect(caption(page)).to_contain_text("seed 6")
    await page.reload()
    await expect(weight(page, "night")).to_have_value("1.5")
    link = await page.evaluate(
        "import('/page/settings.js').then(({ toFragment, read }) => toFragment(read('zwatch.settings')))"
    )
    other = await new_page(f"{server.url}/{link}")
    await expect(weight(other, "night")).to_have_value("1.5")
    await chip(page, "night").click()
    await expect(weight(page, "night")).to_have_count(0)
    await expect(page.get_by_role("img", name="Result: remembered")).to_be_visible()
    await page.get_by_role("button", name="Use settings").click()
    await expect(weight(page, "night")).to_have_value("1.5")
    assert (await draw(page, "without"))["loras"] == [{"name": "night", "scale": 1.5}]
    await chip(page, "night").click()
    assert "loras" not in await draw(page, "without")


async def test_one_that_cannot_be_used_says_why(page, server):
    await chip(page, "torn").click()
    await expect(chip(page, "torn")).to_have_attribute("aria-pressed", "false")
    await expect(page.locator("#loras")).to_contain_text("torn cannot be used: BLAKE3SUMS")
    await chip(page, "ink").click()
    await expect(page.locator("#loras")).not_to_contain_text("cannot be used")


async def test_those_that_come_go_and_change_are_followed(page, server, tmp_path):
    root = server.models.parent / "loras"
    os.rename(write_lora(tmp_path, "new", TRANSFORMER, seed=9), root / "new")
    await chip(page, "new").click()
    await expect(weight(page, "new")).to_be_visible()
    await expect(chips(page).get_by_role("button")).to_have_text(["ink", "new", "night", "torn"])
    tear(root / "new")
    await expect(chips(page).get_by_role("button")).to_have_text(["ink", "night", "new", "torn"])
    await expect(page.locator("#loras")).to_contain_text("new cannot be used: BLAKE3SUMS")
    shutil.rmtree(root / "new")
    await expect(page.locator("#loras")).to_contain_text("new cannot be used: it is not on this server")
    page.problems.expect("400")
    await page.get_by_role("textbox", name="Prompt", exact=True).fill("x")
    await page.keyboard.press("Control+Enter")
    await expect(page.locator("#generate-error")).to_contain_text("new")
    await chip(page, "new").click()
    await expect(chips(page).get_by_role("button")).to_have_text(["ink", "night", "torn"])


LINKED = [
    ('[{"name":"ink","scale":0.5},{"name":"night"}]', [("ink", 0.5), ("night", 1)]),
    ('[{"name":"ink","scale":0.5},{"name":"ink","scale":0.7},{"name":"night"}]', [("ink", 0.5), ("night", 1)]),
    ('[{"name":"ink","scale":9},{"name":"ink","scale":0.7}]', [("ink", 0.7)]),
    ('[{"name":123},{"name":["ink"]},{"name":{}},{"name":true},{},null,5,"ink"]', []),
    ('[{"name":".hidden"},{"name":"-ink"},{"name":"a/b"},{"name":""},{"name":"' + "x" * 65 + '"}]', []),
    ('[{"name":"ink","scale":"0.5"}]', []),
    ('[{"name":"ink","scale":[1]}]', []),
    ('[{"name":"ink","scale":null}]', []),
    ('[{"name":"ink","scale":true}]', []),
    ('[{"name":"ink","scale":1e999}]', []),
    ('[{"name":"ink","scale":2.01},{"name":"night","scale":-2}]', [("night", -2)]),
    ('{"name":"ink"}', []),
]


async def test_only_what_the_server_takes_is_taken_from_a_link(page, server):
    for link, expected in LINKED:
        await page.goto("about:blank")
        await page.goto(f"{server.url}/#{urlencode({'prompt': 'linked', 'loras': link})}")
        await expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value("linked")
        found = await page.evaluate("JSON.parse(localStorage['zwatch.settings']).loras")
        assert found == [{"name": name, "scale": scale} for name, scale in expected], link
        await expect(page.get_by_role("slider")).to_have_count(len(expected))


async def test_many_are_searched_and_eight_are_the_most(page, server):
    root = server.models.parent / "loras"
    names = [f"style-{number:02}" for number in range(20)]
    for name in names:
        shutil.copytree(root / "ink", root / name)
        tear(root / name)
    try:
        search = page.get_by_role("searchbox", name="Search the LoRAs")
        await search.fill("STYLE-1")
        await expect(chips(page).get_by_role("button")).to_have_text([f"style-{number}" for number in range(10, 20)])
        await search.fill("")
        await expect(chips(page).get_by_role("button")).to_have_count(23)
        link = "[" + ",".join(f'{{"name":"{name}"}}' for name in names[:8]) + "]"
        await page.goto("about:blank")
        await page.goto(f"{server.url}/#loras={link}")
        await expect(page.get_by_role("slider")).to_have_count(8)
        await chip(page, "ink").click()
        await expect(page.locator("#loras")).to_contain_text("A picture may have 8 LoRAs at most.")
    finally:
        for name in names:
            shutil.rmtree(root / name)


async def test_a_picture_is_changed_with_them(new_page, server):
    page = await opened(new_page, server)
    await choose(page)
    await chip(page, "ink").click()
    await page.get_by_role("textbox", name="Prompt", exact=True).fill("changed by ink")
    await page.get_by_role("button", name="Generate", exact=True).click()
    await expect(page.get_by_role("img", name="Result: changed by ink")).to_be_visible()
    [sent] = await page.evaluate("window.sent")
    assert sent["loras"] == '[{"name":"ink","scale":1}]'
    await expect(card(page)).to_be_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
async def test_axe_has_no_serious_findings_in_the_chips(new_page, server, scheme, width):
    page = await new_page(server.url + "/", color_scheme=scheme, viewport={"width": width, "height": 800})
    await chip(page, "ink").click()
    await chip(page, "torn").click()
    await expect(weight(page, "ink")).to_be_visible()
    assert await findings(page) == []
    assert await page.evaluate("document.documentElement.scrollWidth") <= width


async def test_problems_are_said_in_chinese_too(new_page, server):
    page = await new_page(server.url + "/", locale="zh-CN")
    await chip(page, "torn").click()
    await expect(page.locator("#loras")).to_contain_text("torn 无法使用：封存无效：BLAKE3SUMS")  # noqa: RUF001
    assert await page.get_by_role("slider", name="ink 的权重").count() == 0
