"""What the page says and does while the service has no model, is gone, refuses a version, or asks for its token."""

import os
import re
import shutil
import signal

import pytest_asyncio
from playwright.async_api import expect

from tests.page.conftest import GONE, WAIT, running
from tests.page.test_jobs import caption, generate, queue

expect.set_options(timeout=WAIT)


def button(page):
    """The button "Generate"."""
    return page.get_by_role("button", name="Generate", exact=True)


def status(page):
    """The bar at the bottom."""
    return page.get_by_role("status")


async def test_an_unloaded_model_is_named_and_generate_works_again_by_itself(page, server):
    await page.get_by_role("textbox", name="Prompt", exact=True).fill("kept while the model is away")
    assert (await server.post("/api/unload_model"))[0] == 200
    await expect(button(page)).to_contain_text("model not loaded")
    await expect(status(page)).to_contain_text("Model: not loaded")
    await button(page).click()
    await expect(page.get_by_text("Model not loaded. Generate works again as soon as it is.")).to_be_visible()
    await expect(queue(page)).to_have_count(0)
    assert (await server.post("/api/load_model"))[0] == 200
    await expect(status(page)).to_contain_text("Model: v1 ·")
    await expect(button(page)).not_to_contain_text("model not loaded")
    await expect(page.get_by_text("Model not loaded.")).to_have_count(0)
    await generate(page, "kept while the model is away", Steps=4, Seed=3)
    await expect(caption(page)).to_contain_text("v1 · seed 3 ·")


async def test_a_killed_server_is_named_and_joined_again_with_what_was_lost_in_the_queue(page, server):
    page.problems.expect(*GONE)
    await generate(page, "lost by the restart", Steps=100, Images=16, Seed=8)
    await expect(queue(page)).to_have_count(1)
    await page.get_by_role("textbox", name="Prompt", exact=True).fill("still being written")

    async def while_it_is_gone():
        await expect(page.get_by_text("The server does not answer. Connecting again…").first).to_be_visible()
        await expect(button(page)).to_contain_text("no connection")
        await button(page).click()
        await expect(page.locator("#generate-error")).to_contain_text("Generate works again as soon as it does.")

    await server.restart(signal.SIGKILL, while_it_is_gone)
    await expect(status(page)).not_to_contain_text("The server does not answer")
    await expect(queue(page)).to_contain_text("Lost when the server restarted.")
    await expect(status(page)).to_contain_text("Model: v1 ·")
    await page.get_by_role("spinbutton", name="Images").fill("1")
    await page.get_by_role("spinbutton", name="Steps").fill("4")
    await expect(page.get_by_role("textbox", name="Prompt", exact=True)).to_have_value("still being written")
    await queue(page).get_by_role("button", name="Try again").click()
    await expect(queue(page).filter(has_text="Lost when the server restarted")).to_have_count(0)
    await page.keyboard.press("Escape")
    await expect(queue(page)).to_have_count(0)


async def test_a_rejected_version_is_named_with_its_reason(page, server):
    shutil.copytree(server.models / "v1", server.models / "v3")  # the weights of another version
    os.symlink("v3", server.models / "next")
    os.replace(server.models / "next", server.models / "current")
    await expect(status(page)).to_contain_text(re.compile(r"v3 rejected: transformer/.*: the header has version 'v1'"))
    await expect(status(page)).to_contain_text("Model: v1 ·")
    os.symlink("v1", server.models / "next")
    os.replace(server.models / "next", server.models / "current")
    await expect(status(page)).not_to_contain_text("rejected")


async def fake_events(new_page, server, *events):
    """Open the page with an event stream that says only `events`, pairs of a name and its object. It is the page's own: a shared
    worker cannot be reached."""
    page = await new_page("about:blank")
    await page.add_init_script(
        "delete window.SharedWorker;"
        "window.EventSource = class extends EventTarget {"
        " constructor() { super(); window.say = (name, value) => name === 'open' ? this.onopen()"
        " : this.dispatchEvent(new MessageEvent(name, { data: JSON.stringify(value) })) }"
        " close() {} }"
    )
    await page.goto(server.url + "/")
    await say(page, ("open", None), *events)
    return page


async def say(page, *events):
    """Let the page's event stream say these events."""
    for name, value in events:
        await page.evaluate("([name, value]) => say(name, value)", [name, value])


def starting(attempt=None, fault=None):
    """Return the status of a service where nothing serves."""
    current = {"target": "v1", "fault": fault, "attempt": attempt, "unloaded": False}
    return {"serving": None, "aliases": {"current": current}, "queue": {"running": 0, "waiting": 0}, "history": None}


def attempt(state, progress=0.0, **others):
    """Return an attempt to bring v1 into service."""
    return {"version": "v1", "state": state, "progress": progress, **others}


async def test_a_start_names_what_it_does_and_never_stands_at_0_percent(new_page, server):
    page = await fake_events(new_page, server, ("status", starting(attempt("LOADING"))))
    for stage, text in [
        (attempt("LOADING"), "v1: loading"), (attempt("LOADING", 0.62), "v1: verifying 62%"),
        (attempt("LOADING", 1.0), "v1: loading"), (attempt("WARMING", 1.0), "v1: warming up"),
    ]:  # fmt: skip
        await say(page, ("status", starting(stage)))
        await expect(page.locator(".status-deploy")).to_have_text(text)
        await expect(button(page)).not_to_have_class(re.compile("blocked"))  # a request waits for the load


async def test_a_service_that_has_nothing_to_load_does_not_say_that_it_loads(new_page, server):
    missing = {"code": "missing", "message": "current: there is no such link"}
    page = await fake_events(new_page, server, ("status", starting(fault=missing)))
    await expect(status(page)).to_contain_text("Link current: there is no such link")
    await expect(button(page)).to_contain_text("model not loaded")
    rejected = attempt("REJECTED", 1.0, code="hash_mismatch", reason="the seal says 9a")
    await say(page, ("status", starting(rejected)))
    await expect(button(page)).to_contain_text("model not loaded")


async def test_time_left_is_told_from_the_second_step_on(new_page, server):
    def job(step, remaining, images=()):
        request = {"prompt": "x", "n": 1, "steps": 4, "width": 256, "height": 256}
        known = {"id": "a", "state": "running", "steps": 4, "images": list(images), "request": request}
        return {**known, "step": step, "remaining": remaining}

    page = await fake_events(new_page, server, ("status", starting()), ("jobs", {"jobs": [job(0, None)]}))
    await expect(queue(page)).to_contain_text("reading the prompt")
    for step, remaining, text in [
        (0, None, "reading the prompt"), (1, 30.0, "step 1 of 4"), (2, 4.2, "step 2 of 4 · 4 s left"),
        (4, 0.0, "finishing"),
    ]:  # fmt: skip
        await say(page, ("job", job(step, remaining)))
        await expect(page.locator(".progress-text")).to_have_text(text)


async def test_a_failed_job_that_was_dismissed_stays_away(new_page, server):
    request = {"prompt": "the failed one", "n": 1, "steps": 4, "width": 256, "height": 256}
    error = {"code": "generation_failed", "message": "of the device"}
    failed = {"id": "a", "state": "failed", "step": 1, "steps": 4, "images": [], "request": request, "error": error}
    events = [("open", None), ("status", starting()), ("jobs", {"jobs": [failed, {**failed, "id": "b"}]})]
    page = await fake_events(new_page, server, *events)
    await expect(queue(page)).to_have_count(2)
    await queue(page).first.get_by_role("button", name="Dismiss").click()
    await expect(queue(page)).to_have_count(1)
    await page.reload()
    await say(page, *events)
    await expect(queue(page)).to_have_count(1)


async def test_a_service_without_a_history_says_so_and_is_not_asked_for_it(new_page, server):
    asked = []
    page = await fake_events(new_page, server)
    page.on("request", lambda request: asked.append(request.url))
    await say(page, ("status", starting()))
    await expect(page.get_by_text("This server keeps no pictures.")).to_be_visible()
    assert [url for url in asked if "/history" in url] == []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(tmp_path_factory):
    """A service with a token, "open sesame"; it may still be loading."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "token").write_text("open sesame\n")
    async with running(folder, "--token-file", str(folder / "token"), version=None) as service:
        yield service


async def test_the_token_is_asked_for_once(guarded, new_page):
    page = await new_page(guarded.url + "/")
    page.problems.expect("401")
    dialog = page.get_by_role("dialog", name="Token")
    await dialog.get_by_label("Token").fill("wrong")
    await dialog.get_by_role("button", name="Continue").click()
    await expect(dialog).to_contain_text("This is not the server's token.")
    await dialog.get_by_label("Token").fill("open sesame")
    await dialog.get_by_role("button", name="Continue").click()
    await expect(dialog).to_have_count(0)
    await expect(status(page)).to_contain_text("Model: v1 ·")
    await generate(page, Steps=2, Seed=1)
    await expect(caption(page)).to_contain_text("v1 · seed 1 ·")
    await page.reload()
    await expect(status(page)).to_contain_text("Model: v1 ·")
    await expect(page.get_by_role("dialog")).to_have_count(0)


async def streams_ended(service):
    """Return how many event streams have ended."""
    async with service.http.get(service.url + "/metrics") as response:
        lines = re.findall(r'zwatch_http_requests_total\{[^}]*route="/events"[^}]*\} (\S+)', await response.text())
    return sum(float(line) for line in lines)


async def test_ten_tabs_of_a_browser_share_one_event_stream(new_page, server):
    page = await new_page(server.url + "/")
    await expect(status(page)).to_contain_text("Model: v1 ·")
    before = await streams_ended(server)

    async def are_given_up(count):
        return await streams_ended(server) == before + count

    tabs = [page]
    while len(tabs) < 10:
        tabs.append(await page.context.new_page())
        await tabs[-1].goto(server.url + "/")
        await expect(status(tabs[-1])).to_contain_text("Model: v1 ·")
    await server.until(lambda: are_given_up(9), "each tab that joined has taken over the stream of the others")
    await generate(tabs[9], "from the tenth tab", Steps=60, Seed=6)
    await expect(queue(page)).to_contain_text("from the tenth tab")
    await expect(page.locator("#result")).to_have_attribute("src", re.compile("^data:image/jpeg"))
    await tabs.pop(1).close()
    assert (await server.post("/api/deploy", {"version": "v2"}))[0] == 200
    for tab in tabs:
        await expect(status(tab)).to_contain_text("Model: v2 ·")
        await expect(caption(tab)).to_contain_text("seed 6 ·")
    assert (await server.post("/api/deploy", {"version": "v1"}))[0] == 200
    await expect(status(page)).to_contain_text("Model: v1 ·")
    assert await are_given_up(9)
    await page.context.close()
    await server.until(lambda: are_given_up(10), "the last stream ends with the tabs")


async def test_a_login_in_one_tab_serves_the_others(guarded, new_page):
    page = await new_page(guarded.url + "/")
    page.problems.expect("401")
    other = await page.context.new_page()
    await other.goto(guarded.url + "/")
    for tab in (page, other):
        await expect(tab.get_by_role("dialog", name="Token")).to_be_visible()
    await page.get_by_role("textbox", name="Token").fill("open sesame")
    await page.keyboard.press("Enter")
    for tab in (page, other):
        await expect(tab.get_by_role("dialog")).to_have_count(0)
        await expect(status(tab)).to_contain_text("Model: v1 ·")
    await page.context.clear_cookies()
    await page.evaluate("dispatchEvent(new Event('locked'))")  # as when one tab's call was the first to be refused
    for tab in (page, other):
        await expect(tab.get_by_role("dialog", name="Token")).to_be_visible()


async def test_a_prompt_for_the_token_that_was_cancelled_can_be_tried_again(guarded, new_page):
    page = await new_page(guarded.url + "/")
    page.problems.expect("401")
    dialog = page.get_by_role("dialog", name="Token")
    await expect(dialog).to_be_visible()
    await page.keyboard.press("Escape")
    await expect(status(page)).to_contain_text("The server asks for its token")
    await page.get_by_role("textbox", name="Prompt", exact=True).fill("asked again")
    await button(page).click()
    await expect(dialog).to_be_visible()
    await page.keyboard.press("Escape")
    await status(page).get_by_role("button", name="Token").click()
    await dialog.get_by_label("Token").fill("open sesame")
    await page.keyboard.press("Enter")
    await expect(status(page)).to_contain_text("Model: v1 ·")
    await expect(status(page)).not_to_contain_text("token")


async def test_a_restart_that_ended_the_session_asks_for_the_token(guarded, new_page):
    page = await new_page(guarded.url + "/")
    page.problems.expect("401", *GONE)  # pictures are still being read, too
    dialog = page.get_by_role("dialog", name="Token")
    await dialog.get_by_label("Token").fill("open sesame")
    await page.keyboard.press("Enter")
    await expect(status(page)).to_contain_text("Model: v1 ·")
    (guarded.models.parent / "token").write_text("open barley\n")
    await guarded.restart()
    await dialog.get_by_label("Token").fill("open barley")
    await page.keyboard.press("Enter")
    await expect(dialog).to_have_count(0)
    await expect(status(page)).to_contain_text("Model: v1 ·")
    await expect(status(page)).not_to_contain_text("does not answer")
