"""The page for everyone: several links, keys, languages, screen readers, high contrast, browsers that keep nothing."""

import os
import re
import shutil

import pytest
import pytest_asyncio
from playwright.async_api import expect

from tests.page.conftest import WAIT, running
from tests.page.test_form import in_page
from tests.page.test_jobs import LONG, generate, queue
from tests.page.test_screen import findings
from zwatch.errors import REJECTION_CODES

expect.set_options(timeout=WAIT)

SIDES = {"Width": 64, "Height": 64, "Steps": 2}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory):
    """A service that follows a second link, `canary`, to v1 as `current`."""
    async with running(tmp_path_factory.mktemp("everyone"), "--alias", "canary") as service:
        os.symlink("v1", service.models / "canary")
        yield service


async def opened(page, name="Versions"):
    """Open the panel of versions."""
    await page.get_by_role("button", name=name, exact=True).click()
    return page.locator("dialog.versions")


def row(panel, version):
    """The row of a version."""
    return panel.get_by_role("row").filter(has=panel.page.get_by_text(version, exact=True))


async def answered(panel, press, question, answer):
    """Press a button and answer the question that it asks."""
    await press.click()
    dialog = panel.page.get_by_role("dialog").filter(has_text=question)
    await dialog.get_by_role("button", name=answer).click()


async def test_a_deploy_and_a_roll_back_move_the_link_that_is_chosen(page, server):
    panel = await opened(page)
    await panel.get_by_role("combobox", name="Link").select_option("canary")
    await expect(row(panel, "v2").locator(".command")).to_have_text("ln -sfn v2 canary")
    await expect(panel).to_contain_text("v1 has served since ")
    await answered(panel, row(panel, "v2").get_by_role("button", name="Deploy"), "Deploy v2 for canary?", "Deploy")
    await expect(panel).to_contain_text("v2 serves now.")
    await expect(panel).to_contain_text("v2 has served since ")
    await expect(row(panel, "v2")).to_contain_text("Serving")
    assert [(server.models / name).readlink().name for name in ("current", "canary")] == ["v1", "v2"]
    await expect(row(panel, "v1")).not_to_contain_text("canary → v1")
    await panel.get_by_role("combobox", name="Link").select_option("current")
    await expect(row(panel, "v1")).to_contain_text("Serving")
    await expect(row(panel, "v2")).to_contain_text("canary → v2")
    await panel.get_by_role("combobox", name="Link").select_option("canary")
    await answered(panel, panel.get_by_role("button", name="Roll back"), "before (v1) for canary?", "Roll back")
    await expect(panel).to_contain_text("v1 serves now.")
    assert (server.models / "canary").readlink().name == "v1"


async def test_versions_that_come_and_go_are_seen_while_the_panel_is_open(page, server):
    page.problems.expect("404")
    panel = await opened(page)
    await expect(row(panel, "v2")).to_be_visible()
    shutil.copytree(server.models / "v2", server.models / "v10")
    await expect(row(panel, "v10")).to_be_visible()
    assert await panel.locator(".version strong").all_inner_texts() == ["v1", "v2", "v10"]
    await row(panel, "v10").get_by_role("button", name="Deploy").click()
    shutil.rmtree(server.models / "v10")
    await page.get_by_role("dialog").filter(has_text="Deploy v10?").get_by_role("button", name="Deploy").click()
    await expect(panel).to_contain_text("Not done: there is no version 'v10'")
    await expect(row(panel, "v10")).to_have_count(0)


async def test_a_newer_wish_may_be_made_while_a_version_loads(page, server):
    panel = await opened(page)
    await expect(row(panel, "v2")).to_be_visible()
    await page.route("**/api/deploy", lambda route: None)  # no answer: the version loads for long
    await answered(panel, row(panel, "v2").get_by_role("button", name="Deploy"), "Deploy v2?", "Deploy")
    await expect(panel).to_contain_text("Verifying and loading…")
    await expect(row(panel, "v2").get_by_role("button", name="Deploy")).to_be_enabled()
    await expect(panel.get_by_role("button", name="Roll back")).to_be_enabled()


async def test_every_reason_of_a_rejection_is_said_in_chinese_too(new_page, server):
    page = await new_page(server.url + "/", locale="zh-CN", color_scheme="dark")
    reasons = await in_page(page, "(await import('/page/strings.js')).reasons")
    assert set(REJECTION_CODES) <= reasons.keys()
    shutil.copytree(server.models / "v2", server.models / "v3")
    page.problems.expect("409")
    try:
        panel = await opened(page, "版本")
        await answered(panel, row(panel, "v3").get_by_role("button", name="部署"), "部署 v3", "部署")
        said = "版本不符：transformer/diffusion_pytorch_model.safetensors: the header has version 'v2'"  # noqa: RUF001
        await expect(row(panel, "v3").locator(".version-attempt")).to_contain_text(said)
        await expect(page.get_by_role("status")).to_contain_text(said)
        assert await findings(page) == []
    finally:
        assert (await server.post("/api/deploy", {"version": "v1"}))[0] == 200
        shutil.rmtree(server.models / "v3")


async def test_keys_that_are_held_down_are_one_wish_and_p_needs_no_small_letter(page, server):
    await page.get_by_role("textbox", name="Prompt", exact=True).fill("held down")
    for name, value in LONG.items():
        await page.get_by_role("spinbutton", name=name).fill(str(value))
    await page.keyboard.down("Control")
    for _ in range(3):
        await page.keyboard.down("Enter")
    await page.keyboard.up("Enter")
    await page.keyboard.press("Enter")
    await page.keyboard.up("Control")
    await expect(queue(page)).to_have_count(2)
    for _ in range(3):
        await page.keyboard.down("Escape")
    await page.keyboard.up("Escape")
    await expect(queue(page)).to_have_count(1)
    await page.get_by_role("heading", name="zwatch").click()
    await page.keyboard.press("Shift+P")
    await expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_be_focused()
    await page.keyboard.press("?")
    await expect(page.get_by_role("dialog")).to_have_count(0)  # it is typed
    await page.keyboard.press("Escape")
    await expect(queue(page)).to_have_count(0)


@pytest.mark.parametrize(
    "storage",
    [
        "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError') }})",
        "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') }",
    ],
    ids=["forbidden", "full"],
)
async def test_a_browser_that_keeps_nothing_can_be_used(new_page, server, storage):
    page = await new_page("about:blank", permissions=["notifications"])
    await page.add_init_script(storage)
    await page.goto(server.url + "/")
    await expect(page.get_by_role("status")).to_contain_text("Model: v1")
    await page.get_by_role("button", name="Notify me").click()
    await expect(page.get_by_text("Notifications are ")).to_be_visible()


async def test_another_language_than_the_two_is_english(new_page, server):
    page = await new_page(server.url + "/", locale="de-DE")
    await expect(page.get_by_role("button", name="Generate", exact=True)).to_be_visible()
    assert await page.evaluate("document.documentElement.lang") == "en"


async def test_what_is_announced_is_inside_the_dialog_in_front(page, server):
    await generate(page, "announced", Seed=3, **SIDES)
    await expect(page.locator("#announcer")).to_have_text("The picture is done: version v1, seed 3")
    await page.get_by_role("button", name="Details").click()
    await expect(page.locator("dialog.detail #announcer")).to_have_text("announced, v1, seed 3")


async def test_high_contrast_marks_what_is_chosen(new_page, server):
    page = await new_page(server.url + "/", forced_colors="active")
    await expect(page.get_by_role("status")).to_contain_text("Model: v1")
    await expect(page.get_by_role("button", name="1:1")).to_have_css("outline-style", "solid")
    await expect(page.get_by_role("button", name="16:9")).to_have_css("outline-style", "none")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1440])
async def test_axe_has_no_serious_findings_in_any_view(new_page, server, scheme, width):
    page = await new_page(server.url + "/", color_scheme=scheme, viewport={"width": width, "height": 800})
    await generate(page, "seen by axe", **SIDES)
    await expect(page.locator("#strip .thumb").first).to_have_accessible_name(re.compile("^seen by axe, v1, seed "))
    found = {}
    for view in ("Details", "Compare", "All pictures", "Versions", "Keys"):
        await page.get_by_role("button", name=view, exact=True).click()
        await expect(page.locator("dialog[open]")).to_be_visible()
        found[view] = await findings(page)
        if view == "Versions":
            await row(page.locator("dialog.versions"), "v2").get_by_role("button", name="Deploy").click()
            found["question"] = await findings(page)
            await page.keyboard.press("Escape")
        await page.keyboard.press("Escape")
        await expect(page.locator("dialog[open]")).to_have_count(0)
    await page.get_by_role("textbox", name="Prompt", exact=True).fill("")
    await page.get_by_role("button", name="Generate", exact=True).click()
    found["error"] = await findings(page)
    assert {view: some for view, some in found.items() if some} == {}


async def test_a_phone_shows_the_picture_that_was_asked_for(new_page, server):
    page = await new_page(server.url + "/", viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    await expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_be_in_viewport()
    await page.get_by_text("Advanced").tap()
    await generate(page, "seen on a phone", Seed=5, **SIDES)
    await expect(page.get_by_role("img", name="Result: seen on a phone")).to_be_in_viewport(ratio=0.99)
