"""Pictures on the page: made, watched, queued, cancelled, found again, and drawn on through a change of version."""

import os
import re

import pytest
import pytest_asyncio
from playwright.async_api import expect

from tests.page.conftest import WAIT, busy

expect.set_options(timeout=WAIT)

LONG = {"Steps": 100, "Images": 16}
"""A job that does not end before a test has looked at it, however busy the machine is; to be cancelled."""


async def generate(page, prompt="a red fox beside a lake", **numbers):
    """Fill in the form and press Generate."""
    await page.get_by_role("textbox", name="Prompt", exact=True).fill(prompt)
    for name, value in numbers.items():
        await page.get_by_role("spinbutton", name=name).fill(str(value))
    await page.get_by_role("button", name="Generate", exact=True).click()


def queue(page):
    """The items of the list "Queue"."""
    return page.get_by_role("list", name="Queue").get_by_role("listitem")


def result(page):
    """The picture of the stage."""
    return page.get_by_role("img", name=re.compile("^Result"))


def caption(page):
    """The line below the picture: version, seed, size, steps."""
    return page.locator(".caption-details")


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def idle(server):
    """After each test no job is left, and v1 serves."""
    yield
    for name in os.listdir(server.models / "v1"):
        if (server.models / "v1" / name).is_symlink():
            (server.models / "v1" / name).unlink()

    async def is_idle():
        status = await server.status()
        return status["queue"]["waiting"] + status["queue"]["running"] == 0

    await server.until(is_idle, "the queue is empty")


async def test_a_picture_is_made_with_version_and_seed(page):
    await generate(page, Seed=42)
    await expect(result(page)).to_have_attribute("src", re.compile("^/history/.*seed42"))
    await expect(caption(page)).to_have_text("v1 · seed 42 · 256 × 256 · 8 steps")  # noqa: RUF001
    await expect(queue(page)).to_have_count(0)
    assert await result(page).evaluate("image => image.decode().then(() => image.naturalWidth)") == 256


async def test_a_preview_and_the_progress_are_seen_before_the_end(page):
    await generate(page, **LONG)
    await expect(result(page)).to_have_attribute("src", re.compile("^data:image/jpeg"))
    await expect(page.get_by_role("progressbar")).to_be_visible()
    await expect(page.locator(".progress-text")).to_have_text(
        re.compile(r"^picture \d+ of 16 · step \d+ of 100 · \d+ (s|min) left$")
    )
    await page.keyboard.press("Escape")
    await expect(queue(page)).to_have_count(0)


async def test_cancel_ends_the_job_and_generate_goes_on_working(page):
    await generate(page, **LONG)
    await expect(queue(page)).to_have_count(1)
    await page.get_by_role("button", name="Cancel", exact=True).click()
    await expect(queue(page)).to_have_count(0)
    await expect(page.get_by_role("button", name="Cancel", exact=True)).to_be_hidden()
    await generate(page, Steps=4, Images=1, Seed=7)
    await expect(caption(page)).to_contain_text("v1 · seed 7 ·")


async def test_three_jobs_are_queued_and_one_of_them_is_cancelled(page, server):
    async with busy(server):
        await generate(page, "first", Steps=4, Seed=1)
        await generate(page, "second", Steps=4, Seed=2)
        await generate(page, "third", Steps=4, Seed=3)
        await expect(queue(page)).to_have_count(3)
        await queue(page).filter(has_text="second").get_by_role("button", name="Cancel").click()
        await expect(queue(page).filter(has_text="second")).to_have_count(0)
    await expect(queue(page)).to_have_count(0)
    await expect(caption(page)).to_contain_text("v1 · seed 3 ·")
    states = await page.evaluate("fetch('/history?limit=2').then(answer => answer.json())")
    assert [row["prompt"] for row in states["images"]] == ["third", "first"]


async def test_cancel_all_empties_the_queue(page, server):
    async with busy(server):
        for _ in range(4):
            await generate(page, **LONG)
        await expect(queue(page)).to_have_count(4)
        await page.get_by_role("button", name="Cancel all").click()
        await expect(queue(page)).to_have_count(0)


async def test_several_pictures_come_one_by_one_and_a_cancelled_job_keeps_them(page, server):
    before = (await server.status())["history"]["images"]
    await generate(page, "one by one", **LONG, Seed=100)
    await expect(page.locator(".progress-text")).to_contain_text(re.compile(r"picture ([2-9]|1\d) of 16"))
    await page.get_by_role("button", name="Cancel", exact=True).click()
    await expect(queue(page)).to_have_count(0)
    made = (await server.status())["history"]["images"] - before
    assert made > 0
    await expect(caption(page)).to_contain_text(f"v1 · seed {100 + made - 1} ·")


async def test_a_full_queue_is_named_until_there_is_room(page):
    page.problems.expect("429")
    await page.evaluate(
        "() => { const real = fetch; window.fetch = (path, options) => path !== '/jobs' ? real(path, options)"
        " : Promise.resolve(Response.json({ error: { code: 'queue_full', message: '' } },"
        " { status: 429, headers: { 'Retry-After': '7' } })); window.mend = () => { window.fetch = real } }"
    )
    await generate(page)
    await expect(page.get_by_text("The queue is full. Try again in 7 s.")).to_be_visible()
    await page.evaluate(
        "fetch('/generate', { method: 'POST', body: JSON.stringify({ prompt: 'of another client', steps: 1 }) })"
    )
    await expect(page.get_by_text("The queue is full.")).to_have_count(0)


async def test_the_queue_is_there_again_after_a_reload_and_goes_on_meanwhile(page):
    await generate(page, "runs on", **LONG)
    await generate(page, "waits", Steps=4, Images=1, Seed=5)
    await expect(queue(page)).to_have_count(2)
    await page.goto("about:blank")
    await page.go_back()
    await expect(queue(page)).to_have_count(2)
    await expect(result(page)).to_have_attribute("src", re.compile("^data:image/jpeg"))
    await queue(page).filter(has_text="runs on").get_by_role("button", name="Cancel").click()
    await expect(caption(page)).to_contain_text("v1 · seed 5 ·")


async def test_the_last_picture_is_there_when_the_page_is_opened(page, new_page, server):
    await generate(page, Steps=4, Seed=77)
    await expect(result(page)).to_have_attribute("src", re.compile("seed77"))  # the caption may come before
    other = await new_page(server.url + "/")  # another browser: it has no jobs
    await expect(result(other)).to_have_attribute("src", re.compile("seed77"))
    await expect(caption(other)).to_contain_text("v1 · seed 77")


async def test_a_link_flipped_during_a_generation_disturbs_nothing(page, server):
    page.on("framenavigated", lambda frame: page.problems.found.append(f"navigated to {frame.url}"))
    await expect(page.get_by_role("status")).to_contain_text("Model: v1 ·")
    await generate(page, "drawn by v1", Steps=40, Seed=1)
    await page.get_by_role("textbox", name="Prompt", exact=True).fill("what I am writing now")
    await page.get_by_role("textbox", name="Prompt", exact=True).evaluate("area => area.setSelectionRange(4, 8)")
    os.symlink("v2", server.models / "v1" / "v2")  # what `ln -sf v2 current` does
    await expect(page.get_by_role("status")).to_contain_text("Model: v2 ·")
    prompt = page.get_by_role("textbox", name="Prompt", exact=True)
    await expect(prompt).to_be_focused()
    await expect(prompt).to_have_value("what I am writing now")
    assert await prompt.evaluate("area => [area.selectionStart, area.selectionEnd]") == [4, 8]
    await expect(caption(page)).to_contain_text("v1 · seed 1 ·")
    await page.get_by_role("spinbutton", name="Steps").fill("4")
    await page.keyboard.press("Control+Enter")
    await expect(caption(page)).to_contain_text("v2 ·")
    await server.post("/api/deploy", {"version": "v1"})
    await expect(page.get_by_role("status")).to_contain_text("Model: v1 ·")


NOTE_NOTIFICATIONS = (
    "() => { window.told = []; const Real = Notification; window.Notification = class extends EventTarget {"
    " static permission = Real.permission; constructor(title, options) { super(); told.push(options.body); } }; }"
)


@pytest.mark.parametrize(("jobs", "images"), [(3, 1), (1, 3)])
async def test_a_notification_tells_that_a_long_queue_is_done(new_page, server, jobs, images):
    page = await new_page(server.url + "/", permissions=["notifications"])
    await page.evaluate(NOTE_NOTIFICATIONS)
    async with busy(server):
        for seed in range(jobs):
            await generate(page, Steps=1, Images=images, Seed=seed)
    await server.until(lambda: page.evaluate("told.length"), "the notification is shown")
    assert await page.evaluate("told") == ["The queue is done: 3 pictures"]


async def test_what_happens_while_a_cancel_is_under_way_is_not_undone_by_its_answer(page, server):
    async with busy(server):
        await generate(page, "to be cancelled", **LONG)
        await expect(queue(page)).to_have_count(1)
        # The answer comes late, after another job was added
        await page.evaluate(
            "() => { const real = fetch; window.fetch = async (path, options) => { const answer = await real(path, options);"
            " if (options?.method === 'DELETE') await new Promise((resolve) => (window.goOn = resolve)); return answer } }"
        )
        await queue(page).get_by_role("button", name="Cancel:").click()
        await expect(queue(page)).to_have_count(0)  # the event tells
        await generate(page, "added meanwhile", **LONG)
        await expect(queue(page)).to_have_count(1)
        await page.evaluate("goOn()")
        await expect(page.locator("#announcer")).to_have_text("Cancelled")
        await expect(queue(page)).to_have_text(re.compile("added meanwhile"))
        await page.reload()
        await queue(page).get_by_role("button", name="Cancel:").click()
        await expect(queue(page)).to_have_count(0)


async def test_jobs_that_the_server_no_longer_knows_are_kept_as_failed(page):
    found = await page.evaluate(
        "import('/page/stream.js').then(({ reconciled }) => reconciled("
        "[{ id: 'a', state: 'running' }, { id: 'b', state: 'done' }, { id: 'c', state: 'queued' }, "
        "{ id: 'd', state: 'failed', error: { code: 'restarted' } }], [{ id: 'c', state: 'running' }])"
        ".map((job) => [job.id, job.state, job.error?.code ?? null]))"
    )
    assert found == [["a", "failed", "restarted"], ["d", "failed", "restarted"], ["c", "running", None]]
