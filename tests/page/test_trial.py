"""A trial in the panel of versions: started, grown, promoted and ended, by pointer and by keys."""

import asyncio
import os

import aiohttp
import pytest
import pytest_asyncio
import torch
from playwright.async_api import expect

from tests import goldens
from tests.api.conftest import tiny_config
from tests.page.conftest import WAIT
from tests.page.test_screen import findings
from tests.page.test_versions import opened, row
from zwatch import app
from zwatch.api.services import TimeLimits
from zwatch.engine import factory

expect.set_options(timeout=WAIT)


@pytest_asyncio.fixture(loop_scope="module")
async def panel(page, server):
    """The open panel; afterwards there is no trial, and v1 serves."""
    yield await opened(page)
    assert (await server.post("/api/share", {"percent": None}))[0] == 200
    if (server.models / "current").readlink().name != "v1":
        assert (await server.post("/api/deploy", {"version": "v1"}))[0] == 200


def links(server):
    """What `current` and its share lead to."""
    return {path.name: os.readlink(path) for path in server.models.iterdir() if path.name.startswith("current")}


def trial(panel):
    """The part of the panel that is about the trial."""
    return panel.get_by_role("region", name="Trial")


async def start(panel, version, percent):
    """Press "Try…" in a version's row and answer the question."""
    await row(panel, version).get_by_role("button", name="Try…").click()
    question = panel.page.get_by_role("dialog", name="Trial")
    await question.get_by_role("spinbutton", name="Percent of the requests").fill(str(percent))
    await question.get_by_role("button", name="Start").click()


async def test_a_trial_is_started_grown_and_promoted(panel, server):
    await expect(trial(panel)).to_be_hidden()
    await expect(row(panel, "v1").get_by_role("button", name="Try…")).to_be_disabled()
    await start(panel, "v2", 10)
    await expect(panel).to_contain_text("The trial of v2 has begun.")
    await expect(trial(panel)).to_contain_text("v2 draws 10% of the requests for current.")
    await expect(trial(panel).get_by_role("heading")).to_have_text("Trial: current@10 → v2")
    await expect(row(panel, "v2")).to_contain_text("current@10 → v2")
    await expect(row(panel, "v2").get_by_role("button", name="Try…")).to_be_disabled()
    assert links(server) == {"current": "v1", "current@10": "v2"}
    await trial(panel).get_by_role("spinbutton", name="Percent of the requests").fill("50")
    await trial(panel).get_by_role("button", name="Change").click()
    await expect(panel).to_contain_text("v2: 50% of the requests.")
    await expect(trial(panel)).to_contain_text("v2 draws 50% of the requests for current.")
    assert links(server) == {"current": "v1", "current@50": "v2"}
    await trial(panel).get_by_role("button", name="Promote").click()
    question = panel.page.get_by_role("dialog").filter(has_text="Promote v2? It draws all requests")
    await question.get_by_role("button", name="Promote").click()
    await expect(panel).to_contain_text("v2 serves all requests now.")
    await expect(row(panel, "v2")).to_contain_text("Serving")
    await expect(trial(panel)).to_be_hidden()
    assert links(server) == {"current": "v2"}
    assert (await server.status())["aliases"]["current"]["attempt"]["way"] == "resident"


async def test_what_a_share_draws_until_its_new_version_is_ready_is_said(panel, server):
    assert (await server.post("/api/share", {"version": "v2", "percent": 50}))[0] == 200
    await expect(trial(panel)).to_contain_text("v2 draws 50% of the requests for current.")
    link = server.models / "current@50"
    link.unlink()
    link.symlink_to("v9")
    await expect(trial(panel)).to_contain_text("v2 still draws 50%.")
    await expect(trial(panel).get_by_role("button", name="Promote")).to_be_disabled()


async def test_a_trial_is_run_by_keys_alone(panel, server):
    page = panel.page
    await row(panel, "v2").get_by_role("button", name="Try…").focus()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog", name="Trial").get_by_role("spinbutton")).to_be_focused()
    await page.keyboard.press("Escape")
    await expect(page.get_by_role("dialog", name="Trial")).to_have_count(0)
    assert links(server) == {"current": "v1"}, "a question that is dismissed starts nothing"
    await page.keyboard.press("Enter")
    await page.keyboard.press("ArrowUp")
    await page.keyboard.press("Enter")
    await expect(trial(panel)).to_contain_text("v2 draws 11% of the requests for current.")
    part = trial(panel).get_by_role("spinbutton", name="Percent of the requests")
    await part.focus()
    await page.keyboard.press("ControlOrMeta+a")
    await page.keyboard.type("0")
    await page.keyboard.press("Enter")
    await expect(trial(panel)).to_contain_text("v2 is ready and draws no requests for current.")
    assert links(server) == {"current": "v1", "current@0": "v2"}
    for name in ("Change", "Promote", "End the trial"):
        await page.keyboard.press("Tab")
        await expect(trial(panel).get_by_role("button", name=name)).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(panel).to_contain_text("The trial has ended.")
    await expect(trial(panel)).to_be_hidden()
    assert links(server) == {"current": "v1"}


async def test_a_trial_that_an_operator_runs_by_links_is_seen_with_what_is_wrong_with_it(panel, server):
    (server.models / "current@25").symlink_to("v2")
    await expect(trial(panel)).to_contain_text("v2 draws 25% of the requests for current.")
    (server.models / "current@25").rename(server.models / "current@75")
    await expect(trial(panel)).to_contain_text("v2 draws 75% of the requests for current.")
    await expect(trial(panel).get_by_role("spinbutton")).to_have_value("75")
    (server.models / "current@5").symlink_to("v2")
    await expect(trial(panel).locator(".error")).to_contain_text("current@5 and current@75")
    await expect(trial(panel).get_by_role("button", name="Promote")).to_be_disabled()
    await trial(panel).get_by_role("button", name="End the trial").click()
    await expect(trial(panel)).to_be_hidden()
    assert links(server) == {"current": "v1"}


async def test_a_percentage_that_there_is_not_is_not_sent(panel, server):
    await start(panel, "v2", 101)
    question = panel.page.get_by_role("dialog", name="Trial")
    await expect(question).to_be_visible()
    await question.get_by_role("button", name="Cancel").click()
    await expect(question).to_have_count(0)
    assert links(server) == {"current": "v1"}


async def test_both_sides_are_shown_with_what_they_have_drawn(panel, server):
    await start(panel, "v2", 100)
    await expect(trial(panel)).to_contain_text("v2 draws 100% of the requests for current.")
    for seed in range(2):
        assert (await server.generate(seed=seed, width=64, height=64, steps=1))[0] == "v2"
    sides = trial(panel).get_by_role("table", name="Both sides of the trial")
    await expect(sides.get_by_role("columnheader")).to_contain_text(["v1current", "v2current@100"])
    await expect(sides.get_by_role("row").filter(has_text="Requests").get_by_role("cell")).to_have_text(["0", "2"])
    await expect(sides.get_by_role("row").filter(has_text="Failures").get_by_role("cell")).to_have_text(["0", "0"])


async def test_a_refused_trial_says_why(page, server):
    page.problems.expect("api/share: 409", "409 \\(Conflict\\)")
    panel = await opened(page)
    os.symlink("v1", server.models / "canary")
    (server.models / "current@5").mkdir()
    try:
        await start(panel, "v2", 5)
        await expect(panel).to_contain_text(
            "Not done: current@5: expected a symlink, found something else with that name"
        )
    finally:
        (server.models / "current@5").rmdir()
        (server.models / "canary").unlink()


async def test_a_withdrawn_version_has_its_reason_and_is_not_promoted(new_page, models, tmp_path):
    async with app.running(tiny_config(tmp_path, models), TimeLimits()) as service, aiohttp.ClientSession() as http:
        engines, changes = service.services.engines, service.services.supervisor.changes
        while engines.serving("current") is None:
            await changes.wait()
        (models / "current@100").symlink_to("v2")
        page = await new_page(service.url + "/")
        await page.get_by_role("button", name="Versions").click()
        panel = page.get_by_role("dialog", name="Versions")
        await expect(trial(panel)).to_contain_text("v2 draws 100% of the requests for current.")
        components = engines.serving("current@").engine.components
        [transformer] = [one.module for one in components if one.key.component == "transformer"]
        transformer.register_forward_hook(
            lambda module, given, made: ([torch.full_like(one, float("nan")) for one in made[0]],)
        )
        for seed in range(3):
            body = {"prompt": "a cat", "seed": seed, "width": 64, "height": 64, "steps": 1}
            async with http.post(service.url + "/generate", json=body) as response:
                assert response.headers["X-Zwatch-Version"] == "v1"
        await expect(trial(panel).locator(".error")).to_contain_text("v2 was withdrawn from current@100: 3 of its last")
        await expect(trial(panel)).not_to_contain_text("v2 draws")
        await expect(trial(panel).get_by_role("button", name="Promote")).to_be_disabled()
        await expect(page.get_by_role("status")).to_contain_text("v2 was withdrawn from current@100")
        failures = trial(panel).get_by_role("row").filter(has_text="Failures").get_by_role("cell")
        await expect(failures).to_have_text(["0", "3"])
        await page.close()


async def test_a_version_that_missed_golden_images_says_so_and_is_not_promoted(new_page, models, tmp_path, monkeypatch):
    monkeypatch.setattr(factory, "SECONDS", 0.0)  # one before the promotion, the others beside requests
    await asyncio.to_thread(goldens.add, models, "v2")
    goldens.invert(models / "v2", "golden/2.png")
    goldens.seal(models / "v2")
    (models / "current@10").symlink_to("v2")
    async with app.running(tiny_config(tmp_path, models), TimeLimits()) as service:
        page = await new_page(service.url + "/")
        await page.get_by_role("button", name="Versions").click()
        panel = page.get_by_role("dialog", name="Versions")
        await expect(trial(panel)).to_contain_text("v2 draws 10% of the requests for current.")
        await expect(trial(panel).locator(".error")).to_have_text("v2 missed 1 of 3 golden images.")
        await expect(trial(panel).get_by_role("button", name="Promote")).to_be_disabled()
        await page.close()


@pytest.mark.parametrize(
    ("locale", "scheme", "width"), [("en-US", "light", 1440), ("en-US", "dark", 360), ("zh-CN", "light", 360)]
)
async def test_everybody_can_use_it(new_page, server, locale, scheme, width):
    assert (await server.post("/api/share", {"version": "v2", "percent": 10}))[0] == 200
    try:
        page = await new_page(
            server.url + "/", locale=locale, color_scheme=scheme, viewport={"width": width, "height": 740}
        )
        await page.get_by_role("button", name="版本" if locale == "zh-CN" else "Versions", exact=True).click()
        part = page.get_by_role("region", name="试用" if locale == "zh-CN" else "Trial")
        words = "v2 处理 current 的 10% 请求。" if locale == "zh-CN" else "v2 draws 10% of the requests for current."
        await expect(part).to_contain_text(words)
        assert await findings(page) == []
        drawer = page.locator("dialog.versions .drawer-body")
        assert await drawer.evaluate("(one) => one.scrollWidth <= one.clientWidth"), "nothing is cut off"
        assert "trial." not in await page.locator("dialog.versions").inner_text(), "every string is there"
    finally:
        assert (await server.post("/api/share", {"percent": None}))[0] == 200
