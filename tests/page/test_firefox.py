"""The page in Firefox: the main path of a designer's day, in one browser and with one service."""

import base64
import io
import re
import signal
import subprocess

import pytest
import pytest_asyncio
from PIL import Image

from tests.page.bidi import FIREFOX, running_firefox
from tests.page.conftest import running
from tests.page.test_drop import A1111, png

pytestmark = pytest.mark.skipif(FIREFOX is None, reason="needs Firefox")

SRC = "(start) => document.querySelector('#result').src.startsWith(start) && document.querySelector('#result').naturalWidth"
DROP = """(text) => {
    const data = new DataTransfer();
    data.items.add(new File([Uint8Array.from(atob(text), (one) => one.charCodeAt(0))], "a.png", { type: "image/png" }));
    for (const one of ["dragover", "drop"])
        document.body.dispatchEvent(new DragEvent(one, { bubbles: true, cancelable: true, dataTransfer: data }));
}"""
CUT_OFF = """(view) => [...document.querySelectorAll(`.${view} *`)].filter((one) => {
    const { left, right } = one.getBoundingClientRect();
    return left < 0 || right > document.documentElement.clientWidth;
}).map((one) => one.outerHTML.slice(0, 80))"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory):
    """A service that serves v1."""
    async with running(tmp_path_factory.mktemp("page")) as service:
        yield service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def firefox(tmp_path_factory):
    """Firefox, one for all tests."""
    async with running_firefox(tmp_path_factory.mktemp("firefox") / "profile") as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def tab(firefox, server):
    """The page of the service; a problem that its console tells of fails the test."""
    found = await firefox.tab(server.url + "/")
    await found.sees("footer", "Model: v[12] ·")
    yield found
    await firefox.call("browsingContext.close", context=found.context)
    assert found.problems == []


async def generate(tab, prompt, **numbers):
    """Fill in the form by the keyboard and generate by it."""
    await tab.fill("#field-prompt", prompt)
    for name, value in numbers.items():
        await tab.fill(f"#field-{name}", str(value))
    await tab.press("Control+Enter")


async def test_a_picture_forms_and_a_flip_meanwhile_loses_nothing(tab, server):
    await generate(tab, "drawn by v1", steps=60, seed=1)
    await tab.until(SRC, "data:image/jpeg")
    await tab.fill("#field-prompt", "what I am writing now")
    subprocess.run(["ln", "-sf", "v2", "current"], cwd=server.models, check=True)
    await tab.sees("footer", "Model: v2 ·")
    assert await tab.run("() => document.activeElement.value") == "what I am writing now"
    await tab.sees(".caption-details", "^v1 · seed 1 ·")
    await tab.until(SRC, server.url + "/history/")
    await generate(tab, "drawn by v2", steps=4, seed=1)
    await tab.sees(".caption-details", "^v2 · seed 1 ·")
    await tab.until("() => document.querySelectorAll('#strip .changed').length")


async def test_the_history_is_walked_seen_in_detail_compared_and_searched(tab):
    await tab.sees(".caption-details", "^v2 ·")
    await tab.run("() => document.activeElement.blur()")
    await tab.press("ArrowRight")
    await tab.sees(".caption-details", "^v1 ·")
    await tab.click("#stage-actions button", "Compare")
    await tab.sees("dialog.compare .pane-label.right", "^v2$")
    before = await tab.run("() => document.querySelector('.pane.left').style.clipPath")
    await tab.press("ArrowLeft", "ArrowLeft")
    await tab.until("(before) => document.querySelector('.pane.left').style.clipPath !== before", before)
    await tab.press("+")
    await tab.until("() => /scale\\(1.5\\)/.test(document.querySelector('.pane.right img').style.transform)")
    await tab.press("Escape", "/")
    await tab.sees("dialog.search .search-state", "^2 pictures")
    await tab.press(*"by v2")
    await tab.sees("dialog.search .search-state", "^1 picture$")
    await tab.press("Enter")
    await tab.until("() => document.activeElement.matches('.grid-list .thumb')")
    await tab.press("Enter")
    await tab.sees("dialog.detail .facts", "v2[^]*current")
    await tab.press("Escape", "Escape")
    await tab.until("() => !document.querySelector('dialog')")


async def test_a_dropped_picture_fills_in_its_settings(tab):
    await tab.run(DROP, base64.b64encode(png(parameters=A1111)).decode())
    await tab.until("() => document.querySelector('#field-prompt').value === 'a castle on a hill'")
    assert await tab.run("() => document.querySelector('#field-seed').value") == "4321"


async def test_a_picture_is_changed_where_its_mask_is_painted(tab):
    file = io.BytesIO()
    Image.new("RGB", (96, 64), "teal").save(file, "PNG")
    to_be_changed = DROP.replace("document.body", "document.querySelector('.drop-shade p')")
    await tab.run(to_be_changed, base64.b64encode(file.getvalue()).decode())
    await tab.sees(".source-card", "a.png[^]*All of it is changed")
    await tab.click(".source-card button", "Paint a mask…")
    await tab.until("() => document.activeElement.matches('.mask-sheet canvas')")
    await tab.click(".mask-sheet canvas")
    await tab.sees("dialog.mask", "1% of it is painted anew")
    await tab.press("Enter", "ArrowRight", "ArrowRight", "Enter", "i")
    await tab.sees("dialog.mask", "9\\d% of it is painted anew")
    await tab.click("dialog.mask button", "Undo")
    await tab.press("Escape")
    await tab.sees(".source-card", "[1-5]% of it is painted anew")
    await tab.run("() => document.activeElement.blur()")
    await generate(tab, "a changed one", steps=4, seed=3)
    await tab.sees(".caption-prompt", "a changed one")
    await tab.sees(".caption-details", "seed 3 · 96 × 64")  # noqa: RUF001
    await tab.until("() => !document.querySelector('#stage-actions').classList.contains('unseen')")
    await tab.click("#stage-actions button", "Details")
    await tab.sees("dialog.detail .facts", "Mask\\s*✓\\s*Strength\\s*0.6")
    await tab.press("Escape")
    await tab.click(".source-card button", "Remove the picture")
    await tab.until("() => document.querySelector('.source-card').hidden")


async def test_the_versions_are_listed_and_one_is_deployed(tab):
    await tab.click("#versions-button")
    await tab.sees(".version.serves", "v2[^]*Serving[^]*ln -sfn v2 current")
    await tab.click(".version:not(.serves) button", "Deploy")
    await tab.click("dialog.question button", "Deploy")
    await tab.sees(".version.serves", "v1[^]*Serving")
    await tab.press("Escape")
    await tab.sees("footer", "Model: v1 ·")
    await tab.run("() => document.activeElement.blur()")
    await tab.press("?")
    await tab.sees("dialog", "Ctrl\\+Enter")
    await tab.press("Escape")


async def test_two_tabs_join_a_server_again_that_was_killed(tab, firefox, server):
    other = await firefox.tab(server.url + "/")
    await other.sees("footer", "Model: v1 ·")

    async def while_it_is_gone():
        for one in (tab, other):
            await one.sees("footer", "The server does not answer")

    await server.restart(signal.SIGKILL, while_it_is_gone)
    await server.serves("v1", 240)
    for one in (tab, other):
        await one.until("() => !/does not answer/.test(document.querySelector('footer').innerText)")
        await one.sees("footer", "Model: v1 ·")
    await generate(other, "after the restart", steps=4, seed=5)
    for one in (other, tab):
        await one.sees(".caption-details", "^v1 · seed 5 ·")
    await firefox.call("browsingContext.close", context=other.context)
    tab.problems[:] = [text for text in tab.problems if not re.search("can.t establish a connection|interrupted", text)]


async def test_nothing_is_cut_off_on_a_phone(tab, firefox):
    viewport = {"width": 360, "height": 740}
    await firefox.call("browsingContext.setViewport", context=tab.context, viewport=viewport)
    for button, view in (("#versions-button", "drawer"), ("#strip-buttons button:last-child", "search")):
        await tab.click(button)
        await tab.sees(f"dialog.{view}", "v1")
        assert await tab.run(CUT_OFF, view) == []
        await tab.press("Escape")
        await tab.until("() => !document.querySelector('dialog')")
    assert await tab.run("() => document.documentElement.scrollWidth <= innerWidth")
