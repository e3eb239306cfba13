"""The panel of versions, the comparison, and what an operator's change of the version does to the history."""

import os
import re
import shutil
from datetime import UTC, datetime

import pytest
import pytest_asyncio
from playwright.async_api import expect

from tests.page.conftest import WAIT
from tests.page.test_jobs import generate
from tests.page.test_screen import findings
from zwatch.deploy import provenance
from zwatch.deploy.provenance import Base, Conversion, MergedLora, Provenance, Source
from zwatch.deploy.sealing import write_seal

expect.set_options(timeout=WAIT)

SIDES = {"Width": 64, "Height": 64, "Steps": 2}


@pytest_asyncio.fixture(loop_scope="module")
async def panel(page):
    """The open panel."""
    return await opened(page)


async def opened(page):
    await page.get_by_role("button", name="Versions").click()
    panel = page.get_by_role("dialog", name="Versions")
    await expect(row(panel, "v1")).to_contain_text("Serving")
    return panel


def row(panel, version):
    """The row of a version."""
    return panel.get_by_role("row").filter(has_text=f"ln -sfn {version} current")


async def deploy(panel, version):
    """Press "Deploy" and answer the question."""
    await row(panel, version).get_by_role("button", name="Deploy").click()
    question = panel.page.get_by_role("dialog").filter(has_text=f"Deploy {version}?")
    await question.get_by_role("button", name="Deploy").click()


async def set_link(server, version):
    """Replace the link as an operator does, and wait until the version serves."""
    link = server.models / "current"
    os.symlink(version, server.models / "next")
    os.replace(server.models / "next", link)
    await server.serves(version)


async def test_the_panel_says_of_each_version_what_it_is_and_which_command_deploys_it(panel, server):
    versions = {one["name"]: one for one in (await server.get("/versions"))["versions"]}
    for name in ("v1", "v2"):
        await expect(row(panel, name)).to_contain_text(versions[name]["digest"][:12])
        await expect(row(panel, name)).to_contain_text("Sealed")
        await expect(row(panel, name).locator(".command")).to_have_text(f"ln -sfn {name} current")
    await expect(row(panel, "v1")).to_contain_text("since ")
    await expect(row(panel, "v1")).to_contain_text("Last deployed")
    await expect(row(panel, "v1").get_by_role("button", name="Deploy")).to_be_disabled()


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_has_no_serious_findings_in_the_panel(new_page, server, scheme):
    page = await new_page(server.url + "/", color_scheme=scheme)
    await opened(page)
    assert await findings(page) == []


async def test_deploy_asks_first_and_roll_back_too(panel, server):
    await row(panel, "v2").get_by_role("button", name="Deploy").click()
    question = panel.page.get_by_role("dialog").filter(has_text="Deploy v2?")
    await question.get_by_role("button", name="Cancel").click()
    assert (server.models / "current").readlink().name == "v1"
    await deploy(panel, "v2")
    await expect(panel).to_contain_text("v2 serves now.")
    await expect(row(panel, "v2")).to_contain_text("Serving")
    await expect(row(panel, "v1")).to_contain_text("Loaded")
    assert (server.models / "current").readlink().name == "v2"
    await panel.get_by_role("button", name="Roll back").click()
    question = panel.page.get_by_role("dialog").filter(has_text="that served before (v1)?")
    await question.get_by_role("button", name="Roll back").click()
    await expect(panel).to_contain_text("v1 serves now.")
    await expect(row(panel, "v1")).to_contain_text("Serving")
    assert (server.models / "current").readlink().name == "v1"


async def test_a_rejected_version_has_its_reason_in_its_row(page, server):
    broken = server.models / "v3"
    shutil.copytree(server.models / "v2", broken)
    try:
        panel = await opened(page)
        page.problems.expect("api/deploy: 409", "409 \\(Conflict\\)")
        await deploy(panel, "v3")
        await expect(panel).to_contain_text("v3 is rejected; v1 goes on serving.")
        await expect(row(panel, "v3").locator(".version-attempt.error")).to_contain_text("Rejected")
        await expect(row(panel, "v3").locator(".version-attempt.error")).to_contain_text(
            "the header has version 'v2', the directory is 'v3'"
        )
        await expect(row(panel, "v1")).to_contain_text("Serving")
    finally:
        await set_link(server, "v1")
        shutil.rmtree(broken)


@pytest.mark.parametrize(
    ("locale", "words"),
    [
        ("en", ["from Tongyi-MAI/Z-Image-Turbo f332072aa78b · + v1", "licence apache-2.0", "made "]),
        ("zh-CN", ["来自 Tongyi-MAI/Z-Image-Turbo f332072aa78b · + v1", "许可证 apache-2.0", "制作于 "]),
    ],
)
async def test_a_version_says_what_it_was_made_from(new_page, server, locale, words):
    made = Provenance(
        source=Source("hub", "f332072aa78b", "Tongyi-MAI/Z-Image-Turbo", "f332072aa78be7aecdf3ee76d5c247082da564a6"),
        base=Base("v1", "1" * 64),
        loras=(MergedLora("ink.safetensors", "2" * 64, 0.8),),
        conversions=(Conversion("transformer", "F32", "BF16"),),
        created=datetime(2026, 11, 21, 14, 2, 11, tzinfo=UTC),
        licence="apache-2.0",
        note="für 画",
    )
    version = server.models / "v4"
    shutil.copytree(server.models / "v2", version)
    try:
        (version / "zwatch.json").write_bytes(provenance.format(made))
        write_seal(version, "v4")
        page = await new_page(server.url + "/", locale=locale)
        await page.get_by_role("button", name="Versions" if locale == "en" else "版本", exact=True).click()
        found = page.get_by_role("row").filter(has_text="ln -sfn v4 current")
        for text in [*words, "ink.safetensors \u00d7 0.8", "transformer: F32 → BF16", "für 画"]:
            await expect(found).to_contain_text(text)
        assert await findings(page) == []
    finally:
        shutil.rmtree(version)


async def test_an_unloaded_model_is_loaded_from_the_panel(page, server):
    assert (await server.post("/api/unload_model"))[0] == 200
    await page.get_by_role("button", name="Versions").click()
    panel = page.get_by_role("dialog", name="Versions")
    await expect(panel).to_contain_text("The model is unloaded.")
    await panel.get_by_role("button", name="Load the model").click()
    await expect(row(panel, "v1")).to_contain_text("Serving")
    await expect(panel.get_by_role("button", name="Load the model")).to_be_hidden()


async def test_compare_draws_the_same_prompt_and_seed_on_the_other_version(page, server):
    await set_link(server, "v2")
    await set_link(server, "v1")
    await generate(page, "a lighthouse", Seed=7, **SIDES)
    await expect(page.locator("#strip .thumb").first).to_have_accessible_name("a lighthouse, v1, seed 7")
    await page.get_by_role("button", name="Compare").click()
    view = page.get_by_role("dialog", name="Compare")
    pictures = view.locator(".pane img")
    await expect(pictures.nth(1)).to_have_attribute("alt", "a lighthouse, v2, seed 7")
    await expect(pictures.nth(0)).to_have_attribute("alt", "a lighthouse, v1, seed 7")
    made = (await server.get("/history?limit=2"))["images"]
    assert [(one["version"], one["seed"], one["width"], one["steps"]) for one in made] == [
        ("v2", 7, 64, 2),
        ("v1", 7, 64, 2),
    ]
    assert await findings(page) == []
    # The second time it is there already.
    await page.keyboard.press("Escape")
    await page.get_by_role("button", name="Compare").click()
    await expect(pictures.nth(1)).to_have_attribute("alt", "a lighthouse, v2, seed 7")
    assert (await server.get("/history"))["total"] == len((await server.get("/history?limit=500"))["images"])
    assert [one["version"] for one in (await server.get("/history?limit=2"))["images"]] == ["v2", "v1"]


async def test_the_divider_moves_by_keyboard_and_both_pictures_zoom_together(page, server):
    for seed in (11, 12):
        await server.generate("two of one version", seed, width=64, height=64, steps=2)
    await expect(page.locator("#strip .thumb").first).to_have_accessible_name("two of one version, v1, seed 12")
    await page.locator("#strip .thumb").first.click()
    if await page.get_by_role("dialog", name="Details").count():  # it was in the stage already
        await page.keyboard.press("Escape")
    await page.locator("#strip .thumb").nth(1).click(modifiers=["Control"])
    view = page.get_by_role("dialog", name="Compare")
    await expect(view.locator(".pane img").nth(1)).to_have_attribute("alt", "two of one version, v1, seed 11")
    divider = view.get_by_role("slider", name="Divider between the pictures")
    await expect(divider).to_be_focused()
    await page.keyboard.press("End")
    await expect(view.locator(".pane.right")).to_have_css("clip-path", "inset(0px 0px 0px 100%)")
    await page.keyboard.press("+")
    matrices = [await view.locator(".pane img").nth(side).evaluate("one => one.style.transform") for side in (0, 1)]
    assert matrices[0] == matrices[1] == "translate(0px, 0px) scale(1.5)"
    await view.get_by_role("button", name="Side by side").click()
    left, right = [await view.locator(f".pane.{side}").bounding_box() for side in ("left", "right")]
    assert left["x"] + left["width"] <= right["x"]
    await view.get_by_role("list", name="Pictures to compare with").locator(".thumb").nth(0).click()
    await expect(view.locator(".pane img").nth(1)).to_have_attribute("alt", "two of one version, v1, seed 12")


async def test_new_pictures_come_to_the_strip_with_the_mark_of_a_new_version_and_nothing_else_moves(page, server):
    await page.get_by_role("textbox", name="Prompt", exact=True).fill("kept words")
    await server.generate("before the change", 21, width=64, height=64, steps=2)
    first = page.locator("#strip .thumb").first
    await expect(first).to_have_accessible_name("before the change, v1, seed 21")
    await set_link(server, "v2")
    try:
        await server.generate("after the change", 22, width=64, height=64, steps=2)
        await expect(first).to_have_accessible_name("after the change, v2, seed 22")
        second = page.locator("#strip .cell").nth(1)
        await expect(second.locator(".mark")).to_have_text("v1")
        await expect(second.locator(".thumb")).to_have_accessible_name(
            "before the change, v1, seed 21. The version changed here from v1 to v2"
        )
        await expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value("kept words")
    finally:
        await set_link(server, "v1")


async def test_every_string_of_the_panel_and_the_comparison_is_chinese(new_page, server):
    await server.generate("一座灯塔", 31, width=64, height=64, steps=2)
    page = await new_page(server.url + "/", locale="zh-CN")
    await page.get_by_role("button", name="版本", exact=True).click()
    await expect(page.get_by_role("row").first).to_contain_text("服务中")
    await expect(page.get_by_role("dialog", name="版本").get_by_role("button", name="部署")).to_have_count(2)
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("list", name="历史记录").locator(".thumb").first).to_have_accessible_name(
        re.compile("^一座灯塔.v1.种子 31")
    )


async def test_two_models_draw_the_form_s_prompt_and_seed_and_each_picture_is_voted_on(page, server):
    await set_link(server, "v2")
    await set_link(server, "v1")
    await page.get_by_role("textbox", name="Prompt", exact=True).fill("two harbours")
    for name, value in {**SIDES, "Seed": 21}.items():
        await page.get_by_role("spinbutton", name=name, exact=True).fill(str(value))
    await page.get_by_role("button", name="A / B", exact=True).click()
    choice = page.get_by_role("dialog", name="Draw the same prompt and seed by two models")
    await expect(choice.get_by_label("First model")).to_have_value("current")
    await expect(choice.get_by_label("Second model")).to_have_value("v2")
    assert await findings(page) == []
    await choice.get_by_label("First model").select_option("v2")
    await expect(choice.get_by_role("button", name="Draw both")).to_be_disabled()
    await choice.get_by_label("First model").select_option("v1")
    await choice.get_by_role("button", name="Draw both").click()
    view = page.get_by_role("dialog", name="Compare")
    pictures = view.locator(".pane img")
    await expect(pictures.nth(0)).to_have_attribute("alt", "two harbours, v1, seed 21")
    await expect(pictures.nth(1)).to_have_attribute("alt", "two harbours, v2, seed 21")
    made = (await server.get("/history?limit=2"))["images"]
    assert [(one["version"], one["seed"], one["model"]) for one in made] == [("v2", 21, "v2"), ("v1", 21, "v1")]
    assert await findings(page) == []
    votes = [view.locator(f".pane-foot.{side} .votes") for side in ("left", "right")]
    liked = votes[1].get_by_role("button", name="Vote for this picture (0)")
    await liked.focus()
    await page.keyboard.press("Enter")
    await expect(votes[1].get_by_role("button", name="Vote for this picture (1)")).to_have_attribute(
        "aria-pressed", "true"
    )
    await votes[0].get_by_role("button", name="Vote against this picture (0)").click()
    await expect(votes[0].get_by_role("button", name="Vote against this picture (1)")).to_have_attribute(
        "aria-pressed", "true"
    )
    async with server.http.get(server.url + "/metrics") as response:
        text = await response.text()
    assert 'zwatch_votes{share="",version="v2",vote="up"} 1.0' in text
    assert 'zwatch_votes{share="",version="v1",vote="down"} 1.0' in text
    await page.keyboard.press("Escape")
    # The vote is there in the stage and in the details too, also after a reload, and a second press takes it back.
    await page.reload()
    await expect(page.locator("#strip .thumb").first).to_have_accessible_name("two harbours, v2, seed 21")
    stage = page.locator("#stage-actions").get_by_role("button", name="Vote for this picture (1)")
    await expect(stage).to_have_attribute("aria-pressed", "true")
    await page.get_by_role("button", name="Details", exact=True).click()
    details = page.get_by_role("dialog", name="Details")
    await details.get_by_role("button", name="Vote for this picture (1)").click()
    await expect(details.get_by_role("button", name="Vote for this picture (0)")).to_have_attribute(
        "aria-pressed", "false"
    )
    [newest, _] = (await server.get("/history?limit=2"))["images"]
    assert (newest["votes"]["up"], newest["votes"]["down"]) == (0, 0)
